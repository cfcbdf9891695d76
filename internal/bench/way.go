package main

import (
	"strings"

	"nixbastion/internal/testbed"
)

// The ways from a client to the builder, in the order of the table's columns.
const (
	direct  = "direct"
	proxy   = "proxy"
	haproxy = "HAProxy"
	hub     = "hub"
	// unaudited is a proxy without an audit log, for the benches that compare with it.
	unaudited = "unaudited"
)

var wayNames = []string{direct, proxy, haproxy, hub, unaudited}

// A way is what stands between client and builder.
type way struct {
	name string
	// store is the URI for --store and --from.
	store string
	// account is "" or ends in @; host is the name of the middle, or of the builder.
	account, host string
	// builders is the setting of that name: a line of the machines file.
	builders string
	// middle is the host between; nil if there is none.
	middle *testbed.Host
	// reset empties what the middle has stored and brings it back to where it was
	// after its start; nil if it stores nothing.
	reset func() error
}

// user is the name to log in with.
func (w *way) user() string {
	if w.account == "" {
		return "root" // which means nothing to the proxy
	}
	return strings.TrimSuffix(w.account, "@")
}

// aside is a way that is measured for comparison only, and more seldom where
// one run takes long.
func (w *way) aside() bool { return w.name != direct && w.name != proxy }

// decoy is a second builder of the proxy, and the feature without which it gets no
// build.
const decoy = "decoy"

// jobs is how many builds a client runs at once, and the builder too.
const jobs = 8

// newWay makes the way over a host, whose account the client's key opens.
func newWay(name, account string, h *testbed.Host, key testbed.Key) *way {
	uri := "ssh-ng://" + account + h.Name()
	return &way{
		name:     name,
		store:    uri + "?ssh-key=" + key.File(),
		account:  account,
		host:     h.Name(),
		builders: testbed.Machine{Store: uri, Key: key, MaxJobs: jobs, Features: []string{decoy}}.Line(),
	}
}
