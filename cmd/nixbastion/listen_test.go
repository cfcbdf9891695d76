package main

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func listening(t *testing.T, address, name string) door {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return door{l, name}
}

func isOpen(d door) bool {
	conn, err := net.Dial("tcp", d.Addr().String())
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// Guards against an upgrade that refuses clients since it closes a socket and makes it
// anew, or that leaves one open which the policy names no more.
func TestSocketsOfBeforeAreKeptWhereThePolicyNamesThem(t *testing.T) {
	kept, dropped := listening(t, "127.0.0.1:0", ownSocket), listening(t, "127.0.0.1:0", ownSocket)
	added := "127.0.0.1:" + freePort(t)
	doors, err := listenAll([]string{added, kept.Addr().String()}, []door{dropped, kept})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { doors[0].Close() })
	if len(doors) != 2 || doors[0].Addr().String() != added || doors[1] != kept {
		t.Errorf("listens on %q", addressesOf(doors))
	}
	for _, d := range append(doors, dropped) {
		if isOpen(d) != (d != dropped) {
			t.Errorf("%s is open: %v", d.Addr(), isOpen(d))
		}
	}
	if _, err := listenAll([]string{kept.Addr().String(), kept.Addr().String()}, []door{kept}); err == nil {
		t.Error("one address was opened twice")
	}
	if isOpen(kept) {
		t.Error("after an error a socket is open")
	}
}

// Guards against a proxy that listens beside the sockets of a socket unit, or takes one
// for that of another address.
func TestSocketsOfTheServiceManagerAreAll(t *testing.T) {
	theirs := listening(t, "127.0.0.1:0", "nixbastion.socket")
	doors, err := listenAll([]string{"127.0.0.1:" + freePort(t)}, []door{theirs})
	if err != nil || !slices.Equal(doors, []door{theirs}) {
		t.Errorf("listens on %q, %v", addressesOf(doors), err)
	}
	everywhere := listening(t, ":0", ownSocket)
	_, port, _ := net.SplitHostPort(everywhere.Addr().String())
	_, other, _ := net.SplitHostPort(theirs.Addr().String())
	for address, want := range map[string]bool{
		":" + port: true, "0.0.0.0:" + port: true, "[::]:" + port: true,
		"127.0.0.1:" + port: false, ":" + other: false, "no such host:22": false,
	} {
		if got := listensOn(everywhere, address); got != want {
			t.Errorf("%s is that of %s: %v", everywhere.Addr(), address, got)
		}
	}
}

// Guards against a socket unit for something else, that would be served all the same.
func TestOnlyTCPSocketsAreTaken(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var in inherited
	if err := in.take("nixbastion.socket", l); err == nil || !strings.Contains(err.Error(), "it is no TCP socket") {
		t.Errorf("got %v", err)
	}
	if len(in.doors) > 0 || in.admin != nil {
		t.Errorf("took %+v", in)
	}
}
