package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"

	"nixbastion/policy"
	"nixbastion/proxy/upstream"
	"nixbastion/route"
)

// A drained builder gets no new builds until the admin says otherwise, whatever is
// restarted meanwhile. What runs there comes to its end and hands over its outputs;
// then its connections are closed. It is neither probed nor listed nor woken. What
// only it holds can still be read while it is up.

const (
	drainFile = "drained.json"
	// maxDrainFile bounds the file, in bytes, and maxDrainReason a reason.
	maxDrainFile   = 1 << 20
	maxDrainReason = 200
)

// drains are the builders that the admin has drained, as in the file.
type drains struct {
	file   string
	router *route.Router
	pool   *upstream.Pool
	log    *slog.Logger

	// changing lets one change at a time be written and applied, and guards given:
	// another process has the file, and its changes count here too.
	changing sync.Mutex
	given    bool
	// reasons by builder. The map is never changed.
	reasons atomic.Pointer[map[string]string]
}

// drainState is the file.
type drainState struct {
	Drained []drainedBuilder `json:"drained"`
}

type drainedBuilder struct {
	Builder string `json:"builder"`
	Reason  string `json:"reason"`
}

// loadDrains reads the file, which is not there before the first drain.
func loadDrains(stateDir string, router *route.Router, pool *upstream.Pool, log *slog.Logger) (*drains, error) {
	d := &drains{file: filepath.Join(stateDir, drainFile), router: router, pool: pool, log: log}
	reasons, err := readDrains(d.file)
	if err != nil {
		return nil, fmt.Errorf("read which builders are drained: %w\nhint: correct %s, or remove it to have none drained", err, d.file)
	}
	d.reasons.Store(&reasons)
	return d, nil
}

func readDrains(name string) (map[string]string, error) {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]string{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxDrainFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > maxDrainFile:
		return nil, fmt.Errorf("more than %d bytes", maxDrainFile)
	}
	return parseDrains(text)
}

func parseDrains(text []byte) (map[string]string, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var state drainState
	if err := dec.Decode(&state); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("there is something behind the end")
	}
	reasons := make(map[string]string, len(state.Drained))
	for _, b := range state.Drained {
		_, twice := reasons[b.Builder]
		switch {
		case b.Builder == "":
			return nil, errors.New("a builder has no name")
		case twice:
			return nil, fmt.Errorf("builder %q is there twice", b.Builder)
		}
		if err := checkDrainReason(b.Reason); err != nil {
			return nil, err
		}
		reasons[b.Builder] = b.Reason
	}
	return reasons, nil
}

// checkDrainReason refuses what does not fit a line of everybody's messages.
func checkDrainReason(reason string) error {
	if len(reason) > maxDrainReason {
		return fmt.Errorf("the reason has %d bytes, more than %d", len(reason), maxDrainReason)
	}
	if i := strings.IndexFunc(reason, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		return fmt.Errorf("the reason is not one line of plain text: %q", reason)
	}
	return nil
}

// write replaces the file: whoever reads it finds the old or the new one, whole.
func (d *drains) write(reasons map[string]string) error {
	if d.given {
		return nil // who has it does so
	}
	state := drainState{Drained: []drainedBuilder{}}
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		state.Drained = append(state.Drained, drainedBuilder{name, reasons[name]})
	}
	text, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(d.file, append(text, '\n'))
}

// replaceFile replaces a file as a whole, with access for its owner alone: a crash
// leaves the old one or the new one.
func replaceFile(name string, text []byte) error {
	file, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return syncDir(filepath.Dir(name))
}

var errDrainsGiven = errors.New("another process takes the place of this one; ask again in a moment")

// give leaves the file to another process.
func (d *drains) give(given bool) {
	d.changing.Lock()
	defer d.changing.Unlock()
	d.given = given
}

// look takes in what the process that has the file has changed.
func (d *drains) look() {
	d.changing.Lock()
	defer d.changing.Unlock()
	if !d.given {
		return
	}
	reasons, err := readDrains(d.file)
	if err != nil {
		d.log.Error("list of drained builders cannot be read", "error", err)
		return
	}
	before := *d.reasons.Load()
	if maps.Equal(reasons, before) {
		return
	}
	d.reasons.Store(&reasons)
	d.log.Info("another process has changed which builders are drained", "drained", slices.Sorted(maps.Keys(reasons)))
	for name := range before {
		if _, still := reasons[name]; !still {
			d.letGo(name)
		}
	}
	for name, reason := range reasons {
		d.hold(name, reason)
	}
}

// drained reports whether a builder is.
func (d *drains) drained(builder string) bool {
	_, is := (*d.reasons.Load())[builder]
	return is
}

// apply drains what is to be drained of the builders of a policy. Others are
// forgotten: a name that comes back is another builder's.
func (d *drains) apply(builders []policy.Builder) {
	d.changing.Lock()
	defer d.changing.Unlock()
	reasons := maps.Clone(*d.reasons.Load())
	maps.DeleteFunc(reasons, func(name, reason string) bool {
		gone := !slices.ContainsFunc(builders, func(b policy.Builder) bool { return b.Name == name })
		if gone {
			d.log.Warn("drained builder is not in the policy any more and is forgotten", "builder", name, "reason", reason)
		}
		return gone
	})
	if len(reasons) < len(*d.reasons.Load()) {
		if err := d.write(reasons); err != nil {
			d.log.Error("list of drained builders cannot be written", "error", err)
		}
		d.reasons.Store(&reasons)
	}
	for name, reason := range reasons {
		d.hold(name, reason)
	}
}

func (d *drains) hold(builder, reason string) {
	d.router.Drain(builder, reason)
	d.pool.SetLeaving(builder, true)
}

func (d *drains) letGo(builder string) {
	d.pool.SetLeaving(builder, false)
	d.router.Undrain(builder)
}

// drain drains a builder, or gives another reason.
func (d *drains) drain(builder, reason string) error {
	if err := checkDrainReason(reason); err != nil {
		return usage("%v", err)
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.given {
		return errDrainsGiven
	}
	reasons := maps.Clone(*d.reasons.Load())
	reasons[builder] = reason
	if err := d.write(reasons); err != nil {
		return fmt.Errorf("write which builders are drained: %w", err)
	}
	d.reasons.Store(&reasons)
	d.hold(builder, reason)
	d.log.Info("builder is drained", "builder", builder, "reason", reason)
	return nil
}

// undrain ends that.
func (d *drains) undrain(builder string) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.given {
		return errDrainsGiven
	}
	reasons := maps.Clone(*d.reasons.Load())
	if _, is := reasons[builder]; !is {
		return fmt.Errorf("builder '%s' is not drained", builder)
	}
	delete(reasons, builder)
	if err := d.write(reasons); err != nil {
		return fmt.Errorf("write which builders are drained: %w", err)
	}
	d.reasons.Store(&reasons)
	d.letGo(builder)
	d.log.Info("builder is drained no more", "builder", builder)
	return nil
}
