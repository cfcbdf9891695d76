package serve

import (
	"context"
	"io"
	"net"
	"testing"

	"nixbastion/internal/nix"
)

// Guards against a server that cannot stop while clients keep sessions open in
// which nothing happens, and against one that cuts a command short.
func TestStoppingEndsASessionBetweenCommands(t *testing.T) {
	stop := make(chan struct{})
	running, finish := make(chan struct{}), make(chan struct{})
	store := newMemStore()
	store.build = func(context.Context, nix.Logger) (*nix.BuildResult, error) {
		close(running)
		<-finish
		return &nix.BuildResult{}, nil
	}
	clientEnd, serverEnd := net.Pipe()
	served := make(chan error, 1)
	go func() {
		defer serverEnd.Close()
		served <- Serve(t.Context(), serverEnd, store, ServeOptions{Write: true, Stopping: stop})
	}()
	client, err := NewClient(t.Context(), clientEnd, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	built := make(chan error, 1)
	go func() {
		_, err := client.BuildDerivation(t.Context(), nil, pathNamed("x.drv"), someDerivation(), nix.BuildNormal)
		built <- err
	}()
	<-running
	close(stop)
	select {
	case err := <-served:
		t.Fatalf("stopped in the middle of a command: %v", err)
	default:
	}
	close(finish)
	if err := <-built; err != nil {
		t.Errorf("the command that ran ended with %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if _, err := clientEnd.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the stream ended with %v", err)
	}
}
