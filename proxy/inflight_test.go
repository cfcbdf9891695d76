package proxy

import (
	"context"
	"errors"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against two clients who ask for the same thing and build it twice.
func TestEqualBuildsRunOnce(t *testing.T) {
	table := newInflight()
	runs, release := 0, make(chan struct{})
	run := func(context.Context, *build) (*nix.BuildResult, error) {
		runs++
		<-release
		return &nix.BuildResult{Status: nix.StatusBuilt}, nil
	}
	key := buildKey{1}
	a, howA := table.join(t.Context(), key, newBuildLog(t.TempDir(), 0), run)
	b, howB := table.join(t.Context(), key, newBuildLog(t.TempDir(), 0), run)
	if howA != joinedFirst || howB != joinedOthers || a != b {
		t.Fatalf("joined %v, %v; same build %v", howA, howB, a == b)
	}
	close(release)
	for range 2 {
		result, err := a.wait(t.Context(), nix.Discard, 0)
		if err != nil || result.Status != nix.StatusBuilt {
			t.Errorf("wait = %v, %v", result, err)
		}
		table.leave(key, a)
	}
	if table.wg.Wait(); runs != 1 {
		t.Errorf("the build ran %d times", runs)
	}
}

// Guards against builds that nobody wants any more and that hold a slot, and
// against one client's leaving that kills the build of another.
func TestBuildEndsWhenTheLastClientLeaves(t *testing.T) {
	table := newInflight()
	cancelled := make(chan error, 1)
	run := func(ctx context.Context, _ *build) (*nix.BuildResult, error) {
		<-ctx.Done()
		cancelled <- context.Cause(ctx)
		return nil, context.Cause(ctx)
	}
	key := buildKey{2}
	b, _ := table.join(t.Context(), key, newBuildLog(t.TempDir(), 0), run)
	table.join(t.Context(), key, newBuildLog(t.TempDir(), 0), run)

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.wait(gone, nix.Discard, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("wait of a client that is gone = %v", err)
	}
	table.leave(key, b)
	select {
	case err := <-cancelled:
		t.Fatalf("the build ended (%v) while a client waits", err)
	default:
	}
	table.leave(key, b)
	if err := <-cancelled; !errors.Is(err, errNobodyWaits) {
		t.Errorf("cause is %v", err)
	}
	table.wg.Wait()
}

// Guards against a client that attaches to a build which was just cancelled and
// gets its failure.
func TestNewRequestDoesNotJoinACancelledBuild(t *testing.T) {
	table := newInflight()
	key := buildKey{3}
	block := make(chan struct{})
	old, _ := table.join(t.Context(), key, newBuildLog(t.TempDir(), 0), func(context.Context, *build) (*nix.BuildResult, error) {
		<-block
		return nil, errNobodyWaits
	})
	table.leave(key, old)
	fresh, how := table.join(t.Context(), key, newBuildLog(t.TempDir(), 0), func(context.Context, *build) (*nix.BuildResult, error) {
		return &nix.BuildResult{Status: nix.StatusBuilt}, nil
	})
	if how != joinedFirst || fresh == old {
		t.Error("a new request joined a build that was cancelled")
	}
	close(block)
	if result, err := fresh.wait(t.Context(), nix.Discard, 0); err != nil || result.Status != nix.StatusBuilt {
		t.Errorf("wait = %v, %v", result, err)
	}
	table.leave(key, fresh)
	table.wg.Wait()
}
