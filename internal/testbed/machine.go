package testbed

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// A Machine is a line of a client's machines file.
type Machine struct {
	// Store is the URI, such as "ssh-ng://nix@builder".
	Store string
	// Systems are what it builds for; nil is NativeSystem.
	Systems []string
	// Key is the client's; the zero Key writes "-".
	Key Key
	// MaxJobs 0 is 1; SpeedFactor 0 is 1.
	MaxJobs     int
	SpeedFactor float64
	// Features and Mandatory are the supported and mandatory features.
	Features, Mandatory []string
	// HostKey is field 8, base64 of "ssh-ed25519 AAAA..."; "" writes "-".
	HostKey string
}

// Line returns the line without its end.
func (m Machine) Line() string {
	systems := m.Systems
	if systems == nil {
		systems = []string{NativeSystem}
	}
	key := ""
	if m.Key.Name != "" {
		key = m.Key.File()
	}
	speed := strconv.FormatFloat(max(m.SpeedFactor, 0), 'g', -1, 64)
	if m.SpeedFactor == 0 {
		speed = "1"
	}
	return strings.Join([]string{
		m.Store, strings.Join(systems, ","), dash(key), strconv.Itoa(max(m.MaxJobs, 1)), speed,
		dash(strings.Join(m.Features, ",")), dash(strings.Join(m.Mandatory, ",")), dash(m.HostKey),
	}, " ")
}

func dash(field string) string {
	if field == "" {
		return "-"
	}
	return field
}

// machinesFile is where Nix looks by default, each time it wants to build.
const machinesFile = "/etc/nix/machines"

func machinesText(machines []Machine) string {
	var text strings.Builder
	for _, m := range machines {
		fmt.Fprintln(&text, m.Line())
	}
	return text.String()
}

// SetMachines replaces /etc/nix/machines of the host.
func (h *Host) SetMachines(ctx context.Context, machines ...Machine) error {
	return h.WriteFile(ctx, machinesFile, []byte(machinesText(machines)))
}
