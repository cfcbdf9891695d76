package proxy

import (
	"errors"
	"math"
	"net/netip"
	"strings"
)

// target is what a client asks for, once it is known to have exactly one meaning.
type target struct {
	// Name is a host name in lower case, without a last dot; "" if Addr is set.
	name string
	// Addr is an address that the client wrote itself, one of IPv4 never as IPv6.
	addr netip.Addr
	port uint16
}

const (
	maxHostBytes  = 255
	maxNameBytes  = 253 // of a name in the DNS, as text
	maxLabelBytes = 63
)

var (
	errHost = errors.New("not the name of a host and not an address")
	errPort = errors.New("not a port")
)

// parseTarget refuses whatever two programs could read in two ways: addresses as
// one number, in octal or hexadecimal, with a zone, in brackets or with a last
// dot, and everything that is no letter, digit, hyphen or underscore.
func parseTarget(host string, port uint32) (target, error) {
	if port == 0 || port > math.MaxUint16 {
		return target{}, errPort
	}
	t := target{port: uint16(port)}
	if len(host) > maxHostBytes {
		return target{}, errHost
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return target{}, errHost
		}
		t.addr = addr.Unmap()
		return t, nil
	}
	if !isHostName(host) {
		return target{}, errHost
	}
	t.name = strings.ToLower(host) // which makes letters of ASCII from others too, so it comes last
	return t, nil
}

func isHostName(name string) bool {
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if !isHostLabel(label) {
			return false
		}
	}
	return len(name) <= maxNameBytes && !isNumber(labels[len(labels)-1])
}

func isHostLabel(label string) bool {
	for _, c := range []byte(label) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return label != "" && len(label) <= maxLabelBytes && label[0] != '-' && label[len(label)-1] != '-'
}

// isNumber reports whether a last label makes the whole name an address to some
// resolvers: 2130706433, 0x7f.1, 0177.0.0.01. No domain ends like that.
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(strings.ToLower(label), "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
