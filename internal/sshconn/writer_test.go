package sshconn

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// socket notes the pieces that it is given.
type socket struct {
	mu     sync.Mutex
	pieces [][]byte
	err    error
}

func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	s.pieces = append(s.pieces, bytes.Clone(p))
	return len(p), nil
}

func (s *socket) lengths() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []int
	for _, p := range s.pieces {
		all = append(all, len(p))
	}
	return all
}

// writePacket writes like the library: a length first, then the packet.
func writePacket(t *testing.T, w io.Writer, packet []byte) {
	t.Helper()
	b := bufio.NewWriter(w)
	b.Write(packet[:4])
	b.Write(packet[4:])
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
}

func packet(length int) []byte {
	p := make([]byte, length)
	for i := range p {
		p[i] = byte(i * i >> 4)
	}
	return p
}

func TestEveryPacketLeavesInOnePiece(t *testing.T) {
	for _, length := range []int{4, 100, 4095, 4097, 5000, 8192, 8193, 32<<10 + 32} {
		t.Run(fmt.Sprint(length), func(t *testing.T) {
			var s socket
			w := NewWriter(&s)
			defer w.Stop()
			want := packet(length)
			for range 3 {
				writePacket(t, w, want)
			}
			if !slices.Equal(s.lengths(), []int{length, length, length}) {
				t.Fatalf("pieces of %v bytes", s.lengths())
			}
			if !bytes.Equal(s.pieces[2], want) {
				t.Error("other bytes")
			}
		})
	}
}

// Guards against a packet of 4096 bytes that waits for one that never comes.
func TestPacketOfTheBuffersLengthIsSentSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s socket
		w := NewWriter(&s)
		writePacket(t, w, packet(4096))
		if len(s.lengths()) != 0 {
			t.Fatal("sent before anything could follow")
		}
		time.Sleep(patience)
		synctest.Wait()
		if !slices.Equal(s.lengths(), []int{4096}) {
			t.Fatalf("pieces of %v bytes", s.lengths())
		}
		writePacket(t, w, packet(5000))
		if !slices.Equal(s.lengths(), []int{4096, 5000}) {
			t.Fatalf("then pieces of %v bytes", s.lengths())
		}
	})
}

func TestPacketsBeyondTheBlockAreWhole(t *testing.T) {
	var s socket
	w := NewWriter(&s)
	defer w.Stop()
	want := packet(256 << 10)
	writePacket(t, w, want)
	if !bytes.Equal(slices.Concat(s.pieces...), want) {
		t.Error("other bytes")
	}
}

func TestErrorOfALateSendIsThatOfTheNextWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := socket{err: errors.New("gone")}
		w := NewWriter(&s)
		writePacket(t, w, packet(4096))
		time.Sleep(patience)
		synctest.Wait()
		if _, err := w.Write([]byte("x")); err != s.err {
			t.Errorf("%v", err)
		}
	})
}

func TestNothingIsSentOnceStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s socket
		w := NewWriter(&s)
		writePacket(t, w, packet(4096))
		w.Stop()
		time.Sleep(time.Second)
		synctest.Wait()
		if len(s.lengths()) != 0 {
			t.Errorf("pieces of %v bytes", s.lengths())
		}
	})
}
