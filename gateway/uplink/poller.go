package uplink

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// pollBatch is how many ready sockets one look at the kernel brings.
const pollBatch = 128

// poller waits for all sockets of mappings with one goroutine: an epoll instance,
// which is itself a descriptor that the Go runtime waits for, so that no thread is
// held while nothing happens.
type poller struct {
	file *os.File
	conn syscall.RawConn

	mu    sync.Mutex
	byFD  map[int32]*mapping
	turns int32 // counts registrations, to tell a descriptor's earlier life
	done  chan struct{}
}

// newPoller starts the goroutine, which calls ready for a mapping whose socket can be read or has an error.
func newPoller(ready func(*mapping)) (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make the epoll instance non-blocking: %w", err)
	}
	p := &poller{file: os.NewFile(uintptr(fd), "epoll"), byFD: make(map[int32]*mapping), done: make(chan struct{})}
	if p.conn, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
		return nil, fmt.Errorf("use the epoll instance: %w", err)
	}
	go p.run(ready)
	return p, nil
}

// run serves sockets until the epoll instance is closed. Sockets are
// level-triggered: one that was not read to its end comes again.
func (p *poller) run(ready func(*mapping)) {
	defer close(p.done)
	var events [pollBatch]unix.EpollEvent
	n := 0
	wait := func(fd uintptr) bool {
		var err error
		n, err = unix.EpollWait(int(fd), events[:], 0)
		return err != unix.EINTR && n > 0
	}
	for p.conn.Read(wait) == nil {
		for _, e := range events[:n] {
			if m := p.find(e); m != nil {
				ready(m)
			}
		}
	}
}

func (p *poller) find(e unix.EpollEvent) *mapping {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.byFD[e.Fd]; m != nil && m.turn == e.Pad {
		return m
	}
	return nil
}

// add begins to wait for m's socket.
func (p *poller) add(m *mapping) error {
	p.mu.Lock()
	p.turns++
	m.turn = p.turns
	p.byFD[int32(m.fd)] = m
	p.mu.Unlock()
	err := p.control(unix.EPOLL_CTL_ADD, m.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(m.fd), Pad: m.turn})
	if err != nil {
		p.forget(m)
		return fmt.Errorf("wait for the socket of %v: %w", m.key.external.addrPort(), err)
	}
	return nil
}

// remove ends the waiting. It comes before the socket is closed.
func (p *poller) remove(m *mapping) {
	p.forget(m)
	// An error says that the epoll instance is closed, which forgets all sockets.
	_ = p.control(unix.EPOLL_CTL_DEL, m.fd, nil)
}

func (p *poller) forget(m *mapping) {
	p.mu.Lock()
	delete(p.byFD, int32(m.fd))
	p.mu.Unlock()
}

func (p *poller) control(op, fd int, e *unix.EpollEvent) error {
	var failed error
	err := p.conn.Control(func(epoll uintptr) { failed = unix.EpollCtl(int(epoll), op, fd, e) })
	return errors.Join(err, failed)
}

// close ends the goroutine and waits for it.
func (p *poller) close() {
	p.file.Close()
	<-p.done
}
