package upstream

import (
	"context"
	"net"
	"os"
	"syscall"
	"time"
)

// idleGrace is how long a daemon that does nothing may take to see the end of its
// input and to close its own end. One that builds looks for nothing but a
// connection that is shut in both directions.
const idleGrace = 200 * time.Millisecond

// hangUp shuts a connection and waits until the other end is closed, too, or ctx
// ends. It reports whether the other end was closed.
func hangUp(ctx context.Context, conn net.Conn) bool {
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	end, err := watchEnd(unix)
	if err != nil {
		unix.CloseWrite()
		unix.CloseRead()
		return false
	}
	defer end.events.Close()
	unix.CloseWrite()
	idle, cancel := context.WithTimeout(ctx, idleGrace)
	defer cancel()
	return end.await(idle) || end.shut() || end.await(ctx)
}

// farEnd tells when the other end of a connection is closed.
type farEnd struct {
	conn   syscall.RawConn
	events *os.File // epoll, for hang-ups and errors
}

func watchEnd(conn *net.UnixConn) (*farEnd, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	// Else Go's own poller would not wait for it.
	err = syscall.SetNonblock(epoll, true)
	if controlErr := raw.Control(func(fd uintptr) {
		if err == nil {
			err = syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, int(fd), &syscall.EpollEvent{})
		}
	}); err == nil {
		err = controlErr
	}
	if err != nil {
		syscall.Close(epoll)
		return nil, err
	}
	return &farEnd{conn: raw, events: os.NewFile(uintptr(epoll), "epoll")}, nil
}

// await waits for an event.
func (e *farEnd) await(ctx context.Context) (happened bool) {
	raw, err := e.events.SyscallConn()
	if err != nil {
		return false
	}
	e.events.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() { e.events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw.Read(func(epoll uintptr) bool {
		happened = takeEvent(epoll)
		return happened
	})
	return happened
}

// shut ends reading, too, which leaves the connection hung up for good: from here
// on only a change tells of the other end. It reports whether that is closed
// already. Our own change must be taken before the other end can answer it with
// one; a daemon that has to kill a build first takes a thousand times as long.
func (e *farEnd) shut() (closed bool) {
	raw, err := e.events.SyscallConn()
	if err != nil {
		return false
	}
	edge := &syscall.EpollEvent{Events: 1 << 31} // EPOLLET
	raw.Control(func(epoll uintptr) {
		e.conn.Control(func(fd uintptr) {
			syscall.EpollCtl(int(epoll), syscall.EPOLL_CTL_MOD, int(fd), edge)
			if closed = takeEvent(epoll); closed {
				return
			}
			syscall.Shutdown(int(fd), syscall.SHUT_RD)
			takeEvent(epoll)
		})
	})
	return closed
}

// takeEvent takes an event if there is one.
func takeEvent(epoll uintptr) bool {
	var event [1]syscall.EpollEvent
	for {
		n, err := syscall.EpollWait(int(epoll), event[:], 0)
		if err != syscall.EINTR {
			return n > 0
		}
	}
}
