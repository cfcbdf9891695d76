package upstream

import (
	"context"
	"testing"
	"time"

	"nixbastion/internal/nix"
	"nixbastion/internal/nix/worker"
)

// Guards against builds that run on because their daemon was told to end them in the
// moment in which it started them or read their log, when it does not heed that; and
// against waiting for a moment that has been, or never comes.
func TestBuildIsGivenUpWhenItsDaemonHeedsIt(t *testing.T) {
	const given = 500 * time.Millisecond // when it is given up, after it was asked for
	start := nix.LogMessage{Kind: nix.LogStartActivity, ID: 1, Level: nix.LevelInfo, Type: nix.ActivityBuild, Text: "building"}
	line := nix.LogMessage{Kind: nix.LogResult, ID: 1, Type: nix.ResultBuildLogLine, Fields: []nix.LogField{nix.TextField("hello")}}
	endless := func(say func(time.Duration, nix.LogMessage)) {
		for at := time.Duration(0); at < 2*time.Second; at += 20 * time.Millisecond {
			say(at, line)
		}
	}
	for name, c := range map[string]struct {
		says func(say func(at time.Duration, m nix.LogMessage))
		ends time.Duration // after it was asked for
	}{
		"it has begun":           {func(say func(time.Duration, nix.LogMessage)) { say(given/2, start) }, given},
		"it begins later":        {func(say func(time.Duration, nix.LogMessage)) { say(3*given/2, start) }, 3*given/2 + heedPause},
		"it never begins":        {func(say func(time.Duration, nix.LogMessage)) {}, heedTimeout},
		"it has just spoken":     {func(say func(time.Duration, nix.LogMessage)) { say(given-heedPause/2, line) }, given + heedPause/2},
		"it never stops talking": {endless, given + heedTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan time.Time, 1)
			inWorld(t, func(f *fakeBuilder, _ *target, _ *Options) {
				f.programs[daemonCommand] = daemonOf(&fakeStore{build: func(ctx context.Context, log nix.Logger) (*nix.BuildResult, error) {
					asked := time.Now()
					go c.says(func(at time.Duration, m nix.LogMessage) {
						if pause(ctx, time.Until(asked.Add(at))) {
							log.Log(m)
						}
					})
					<-ctx.Done()
					ended <- time.Now()
					return nil, ctx.Err()
				}}, worker.ServeOptions{})
			}, func(w *world) {
				s := w.get()
				ctx, cancel := context.WithTimeout(w.Context(), given)
				defer cancel()
				asked := time.Now()
				log := nix.LoggerFunc(func(m nix.LogMessage) {
					if ctx.Err() != nil {
						w.Errorf("%+v is handed on after it was given up", m)
					}
				})
				if err := w.build(ctx, s, log); err != ctx.Err() {
					w.Errorf("build: %v", err)
				}
				const tolerance = 10 * time.Millisecond // delays between the two sides
				if took := (<-ended).Sub(asked); took < c.ends || took > c.ends+tolerance {
					w.Errorf("ended %s after it was asked for, want %s", took, c.ends)
				}
				if err := s.End(w.Context()); err != nil {
					w.Errorf("end: %v", err)
				}
			})
		})
	}
}
