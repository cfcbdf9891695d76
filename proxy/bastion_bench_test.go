package proxy

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"
)

// BenchmarkJump moves bytes through the bastion over loopback, with a client of
// x/crypto/ssh in the same process, which costs as much again.
func BenchmarkJump(b *testing.B) {
	b.Run("up", func(b *testing.B) {
		ch, target := benchJump(b)
		done := make(chan int64, 1)
		go func() { n, _ := io.Copy(io.Discard, onlyReader{target}); done <- n }()
		moveBlocks(b, ch)
		ch.CloseWrite()
		if n := <-done; n != int64(b.N)*benchBlock {
			b.Fatalf("%d bytes arrived of %d", n, int64(b.N)*benchBlock)
		}
	})
	b.Run("down", func(b *testing.B) {
		ch, target := benchJump(b)
		done := make(chan int64, 1)
		go func() { n, _ := io.Copy(io.Discard, ch); done <- n }()
		moveBlocks(b, target)
		target.CloseWrite()
		if n := <-done; n != int64(b.N)*benchBlock {
			b.Fatalf("%d bytes arrived of %d", n, int64(b.N)*benchBlock)
		}
	})
}

const benchBlock = 1 << 20

type onlyReader struct{ io.Reader }

func moveBlocks(b *testing.B, to io.Writer) {
	block := make([]byte, benchBlock)
	rand.Read(block)
	b.SetBytes(benchBlock)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := to.Write(block); err != nil {
			b.Fatal(err)
		}
	}
}

// benchJump returns both ends of a jump.
func benchJump(b *testing.B) (ssh.Channel, *net.TCPConn) {
	b.Helper()
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer far.Close()
	who := &roster{grants: map[string]Grant{}}
	who.add("alice", testKey("alice"))
	front, err := NewFront(FrontOptions{
		HostKeys: []ssh.Signer{testKey("host")}, Authorize: who.authorize, Exec: runTestCommand, Log: slog.New(slog.DiscardHandler),
		Jump: func(ctx context.Context, _ *Identity, _ string, _ uint32) (JumpConn, error) {
			return dialTarget(ctx, addrPort(far.Addr()))
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- front.Serve(context.Background(), l) }()
	client, err := ssh.Dial("tcp", l.Addr().String(), &ssh.ClientConfig{
		User: "nix", Auth: []ssh.AuthMethod{ssh.PublicKeys(testKey("alice"))}, HostKeyCallback: ssh.FixedHostKey(testKey("host").PublicKey()),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		client.Close()
		front.Shutdown(context.Background())
		<-served
	})
	ch, err := tryJump(client, "builder1", 22)
	if err != nil {
		b.Fatal(err)
	}
	target, err := far.Accept()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { target.Close() })
	return ch, target.(*net.TCPConn)
}
