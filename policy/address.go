package policy

import (
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

var hostGrammar = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?$`)

// checkListen checks an address to listen on: "host:port", where no host means
// every address of the machine.
func checkListen(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return refuse(`write host:port, as ":22" or "192.0.2.1:22"`, "%s is not an address with port", quote(text))
	}
	if host != "" && !isHost(host) {
		return refuse(`write host:port, as ":22" or "192.0.2.1:22"`, "%s is not a host", quote(host))
	}
	return checkPort(port)
}

// builderAddress returns host:port for what the file has, where the port may be
// left out.
func builderAddress(text string) (string, error) {
	const hint = `write host or host:port, as "builder1.example.org:22" or "[2001:db8::1]:22"`
	switch {
	case strings.Contains(text, "://"):
		return "", refuse(hint, "%s is a URL, not an address", quote(text))
	case strings.Contains(text, "@"):
		return "", refuse("the account has its own key: user", "%s has an account in it", quote(text))
	}
	host, port := text, defaultSSHPort
	if !isHost(strings.Trim(text, "[]")) {
		var err error
		if host, port, err = net.SplitHostPort(text); err != nil || !isHost(host) {
			return "", refuse(hint, "%s is not an address", quote(text))
		}
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), port), checkPort(port)
}

func isHost(text string) bool {
	if hostGrammar.MatchString(text) {
		return true
	}
	_, err := netip.ParseAddr(text)
	return err == nil
}

func checkPort(port string) error {
	number, err := strconv.Atoi(port)
	if err != nil || number < 1 || number > 65535 || !decimal.MatchString(port) {
		return refuse("a port is a number from 1 to 65535", "%s is not a port", quote(port))
	}
	return nil
}
