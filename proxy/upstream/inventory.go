package upstream

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/policy"
)

const (
	// inventoryTimeout is how long a builder may take to list its store. Half a
	// million paths are some 40 MB.
	inventoryTimeout = 3 * time.Minute
	// inventoryShare bounds the part of the time in which a builder lists its store
	// to one in so many, where that takes long.
	inventoryShare = 20
)

// inventory is what a builder's store held when it was listed last. It is asked
// for when the builder comes up, and again every few minutes; nobody waits for it.
type inventory struct {
	held atomic.Pointer[holdings]

	// next asks again, and busy says that a list is on its way; next is nil if none
	// was ever asked for. Guarded by builder.mu.
	next *time.Timer
	busy bool
}

// holdings are the hash parts of store paths, sorted: 20 bytes for a path.
type holdings [][20]byte

func (h holdings) has(path nix.StorePath) bool {
	want := path.HashBytes()
	_, found := slices.BinarySearchFunc(h, want, compareHashes)
	return found
}

func compareHashes(a, b [20]byte) int { return bytes.Compare(a[:], b[:]) }

// Lists reports whether a builder's store held a path when it was last listed, or
// one with the same hash part. It asks nobody, and is false while no list is there:
// from a builder that was not up yet, or of the serve protocol, which has no words
// for it.
func (p *Pool) Lists(name string, path nix.StorePath) bool {
	p.mu.Lock()
	b := p.builders[name]
	p.mu.Unlock()
	if b == nil {
		return false
	}
	held := b.inventory.held.Load()
	return held != nil && held.has(path)
}

// cameUp has a builder's store listed when it can be asked for the first time, and
// when it was away; and its load be asked for. The caller holds mu.
func (b *builder) cameUp(wasDown bool) {
	b.askLoad(wasDown)
	if b.inventory.next == nil || wasDown {
		b.listAfter(0)
	}
}

// listAfter has the builder's store listed after a pause. The caller holds mu.
func (b *builder) listAfter(pause time.Duration) {
	if b.pool.opts.Inventory == 0 || b.target.protocol == policy.ProtocolServe || b.retired {
		return
	}
	if b.inventory.next != nil {
		b.inventory.next.Stop()
	}
	b.inventory.next = time.AfterFunc(pause, func() { b.pool.spawn(b.takeInventory) })
}

// takeInventory lists the builder's store, and has it done again later.
func (b *builder) takeInventory() {
	if !b.beginList() {
		return
	}
	began := time.Now()
	held, err := b.list()
	took := time.Since(began)
	if err == nil {
		b.inventory.held.Store(&held)
	}
	b.logList(held, took, err)
	pause := max(b.pool.opts.Inventory, inventoryShare*took)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inventory.busy = false
	b.listAfter(pause + time.Duration((rand.Float64()-0.5)/2*float64(pause))) // a quarter to either side
}

func (b *builder) logList(held holdings, took time.Duration, err error) {
	var fault *Error
	switch {
	case err == nil:
		b.log.Info("builder's store is listed", "paths", len(held), "seconds", took.Seconds())
	case errors.As(err, &fault) && !fault.Until.IsZero(), b.pool.ctx.Err() != nil: // down, which was told, or at our end
	default:
		b.log.Warn("builder's store cannot be listed; what came there since is not found", "error", err)
	}
}

// beginList reports whether the caller is to list the store: nobody else does.
func (b *builder) beginList() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.inventory.busy || b.retired || b.rest.spared() {
		return false
	}
	b.inventory.busy = true
	return true
}

// list asks for the store's paths on a session of the usual kind. What is kept of
// them grows as they come.
func (b *builder) list() (holdings, error) {
	ctx, cancel := context.WithTimeout(b.pool.ctx, inventoryTimeout)
	defer cancel()
	d, err := b.get(ctx)
	if err != nil {
		return nil, err
	}
	s := newSession(d)
	defer s.Release()
	var held holdings
	err = s.WalkAllValidPaths(ctx, b.pool.opts.InventoryPaths, func(path nix.StorePath) { held = append(held, path.HashBytes()) })
	if err != nil {
		return nil, err
	}
	if !slices.IsSortedFunc(held, compareHashes) { // Nix sends its lists in order
		slices.SortFunc(held, compareHashes)
	}
	return slices.Clone(held), nil // without the room that it had to grow
}
