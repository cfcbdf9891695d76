package proxy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
)

// whoAnswer is who is connected.
type whoAnswer struct {
	// Connections are those that have logged in, by principal and age.
	Connections []connectionStatus `json:"connections"`

	now time.Time
}

// connectionStatus is one SSH connection.
type connectionStatus struct {
	Principal string `json:"principal"`
	// Fingerprint is that of the key that was verified, Certificate which certificate
	// was shown; empty for a plain key.
	Fingerprint string `json:"fingerprint"`
	Certificate string `json:"certificate,omitempty"`
	// Address has the port, too.
	Address string    `json:"address"`
	Since   time.Time `json:"since"`
	// Client is its identification line, and proves nothing.
	Client string `json:"client"`
	// Bytes of SSH.
	Received int64           `json:"received"`
	Sent     int64           `json:"sent"`
	Sessions []sessionStatus `json:"sessions"`
	// Jumps go through the connection to other hosts.
	Jumps int `json:"jumps"`
}

// sessionStatus is one session of a connection.
type sessionStatus struct {
	// Command is what the client asked for, cut to a line; empty before it did.
	Command string `json:"command"`
	// Operation is Nix's name for what runs now, with the derivation of a build; empty
	// while the client asks for nothing. Since is when that began.
	Operation string    `json:"operation"`
	Since     time.Time `json:"since"`
}

func (p *Proxy) who(a *asker, args []string) (answer, error) {
	if err := noArgs("who", args); err != nil {
		return nil, err
	}
	if a.client != nil { // addresses of others are nothing for clients
		return nil, usage("who is for the admin of this host, on its socket")
	}
	return newWho(p.front.connections(), time.Now()), nil
}

func newWho(seen []connSight, now time.Time) *whoAnswer {
	w := &whoAnswer{Connections: []connectionStatus{}, now: now}
	for _, s := range seen {
		w.Connections = append(w.Connections, newConnection(&s))
	}
	slices.SortFunc(w.Connections, func(a, b connectionStatus) int {
		return cmp.Or(strings.Compare(a.Principal, b.Principal), a.Since.Compare(b.Since))
	})
	return w
}

func newConnection(s *connSight) connectionStatus {
	c := connectionStatus{
		Principal: s.who.Principal, Fingerprint: s.who.Fingerprint, Certificate: s.who.Certificate, Address: s.who.Remote.String(),
		Since: s.since.UTC().Round(time.Millisecond), Client: brief(s.who.ClientVersion),
		Received: s.received, Sent: s.sent, Jumps: s.jumps, Sessions: []sessionStatus{},
	}
	for _, one := range s.sessions {
		c.Sessions = append(c.Sessions, sessionStatus{brief(one.command), brief(one.operation), one.since.UTC().Round(time.Millisecond)})
	}
	slices.SortFunc(c.Sessions, func(a, b sessionStatus) int { return a.Since.Compare(b.Since) })
	return c
}

func (w *whoAnswer) print(page *page) {
	page.heading("Connections: %d", len(w.Connections))
	if len(w.Connections) == 0 {
		return
	}
	rows := [][]string{{"PRINCIPAL", "ADDRESS", "SINCE", "RECEIVED", "SENT", "KEY", "DOES"}}
	for i := range w.Connections {
		c := &w.Connections[i]
		key := c.Fingerprint
		if c.Certificate != "" {
			key += " " + c.Certificate
		}
		rows = append(rows, []string{c.Principal, c.Address, span(w.now.Sub(c.Since)) + " ago", upstream.Bytes(c.Received).String(), upstream.Bytes(c.Sent).String(), key, c.doesText(w.now)})
	}
	page.table(rows)
}

// maxSessionsShown is of how many sessions a row says what they do.
const maxSessionsShown = 3

func (c *connectionStatus) doesText(now time.Time) string {
	var does []string
	for _, s := range c.Sessions[:min(len(c.Sessions), maxSessionsShown)] {
		does = append(does, fmt.Sprintf("%s (%s)", cmp.Or(s.Operation, "nothing"), span(now.Sub(s.Since))))
	}
	if more := len(c.Sessions) - len(does); more > 0 {
		does = append(does, fmt.Sprintf("%d more", more))
	}
	if c.Jumps > 0 {
		does = append(does, policy.CountOf(c.Jumps, "jump"))
	}
	return cmp.Or(strings.Join(does, ", "), "no session")
}
