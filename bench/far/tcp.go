package far

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// A connection: the kernel hands it over when its first bytes are there
// (TCP_DEFER_ACCEPT), so that accepting, reading, answering and closing are one system
// call each, without a wait and a goroutine, for whoever asks. All else, and what is
// slow to say what it wants, goes to a goroutine.

const (
	// deferSeconds is how long the kernel waits for the first bytes.
	deferSeconds = 5
	// listenBacklog is asked for; net.core.somaxconn bounds it.
	listenBacklog = 1 << 14
	// maxConnections is how many have a goroutine at once.
	maxConnections = 1 << 14
	// firstMessage is how long a connection may take to say what it wants, and patience
	// how long it may stand still after that.
	firstMessage = 10 * time.Second
	patience     = time.Minute
	// acceptPause is how long nothing is accepted when descriptors have run out.
	acceptPause = 10 * time.Millisecond
)

// listenTCP makes the listening socket, in the namespace where it is called. It is a
// file: a net.Listener would make each connection known to the netpoller.
func listenTCP(at netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(family(at), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferSeconds},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, // inherited
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			_ = f.Close()
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if err = unix.Bind(fd, socketAddress(at)); err == nil {
		err = unix.Listen(fd, listenBacklog)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("listen on TCP %v: %w", at, err)
	}
	return f, nil
}

func family(at netip.AddrPort) int {
	if at.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func socketAddress(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
}

func addressOf(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr).Unmap()
	}
	return netip.Addr{}
}

// acceptor takes connections in. Its state is kept in the struct and not in a closure,
// so that a wait allocates nothing.
type acceptor struct {
	server *Server
	file   *os.File
	fd     int
	from   netip.Addr
	err    error
	first  [wire.ReportSize]byte // bytes of a connection
}

// step is called by the netpoller; false waits for a connection.
func (a *acceptor) step(fd uintptr) bool {
	for {
		var sa unix.Sockaddr
		a.fd, sa, a.err = unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch a.err {
		case unix.EAGAIN:
			return false
		case unix.EINTR, unix.ECONNABORTED:
			continue
		case nil:
			a.from = addressOf(sa)
		}
		return true
	}
}

// serve accepts until the file is closed.
func (a *acceptor) serve() error {
	raw, err := a.file.SyscallConn()
	if err != nil {
		return err
	}
	step := a.step
	for {
		if err := raw.Read(step); err != nil {
			return a.server.unlessOver(err)
		}
		switch a.err {
		case nil:
			a.take()
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			a.server.counters.refuse(RefusedCrowd)
			select {
			case <-time.After(acceptPause):
			case <-a.server.quit:
				return nil
			}
		default: // errors of the network that belong to a connection (accept(2))
		}
	}
}

// take answers a connection that asks, and hands others to a goroutine.
func (a *acceptor) take() {
	s := a.server
	s.counters.connections.Add(1)
	if s.wild {
		sa, err := unix.Getsockname(a.fd)
		if err != nil || !s.serves(addressOf(sa)) {
			s.counters.refuse(RefusedAddress)
			reset(a.fd)
			return
		}
	}
	n, err := unix.Read(a.fd, a.first[:])
	if err != unix.EAGAIN && n <= 0 { // it is over already
		s.counters.refuse(RefusedSlow)
		_ = unix.Close(a.fd)
		return
	}
	n = max(n, 0)
	if h, ok := wire.Decode(a.first[:n]); ok && h.Kind == wire.KindAsk {
		if !s.connected(h, a.from) {
			reset(a.fd)
			return
		}
		h.Kind = wire.KindAskAnswer
		h.Put(a.first[:])
		if _, err := unix.Write(a.fd, a.first[:wire.HeadSize]); err == nil { // an empty buffer takes it
			s.asked(h.Run)
		}
		_ = unix.Close(a.fd)
		return
	}
	s.adopt(a.fd, a.from, append([]byte(nil), a.first[:n]...))
}

// reset closes a connection so that its other side sees an error.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// adopt gives a connection, some of whose bytes were read, a goroutine.
func (s *Server) adopt(fd int, from netip.Addr, first []byte) {
	f := os.NewFile(uintptr(fd), "connection")
	c, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		s.counters.refuse(RefusedCrowd)
		return
	}
	conn := &connection{server: s, TCPConn: c.(*net.TCPConn), from: from, first: first}
	if !s.enlist(conn) {
		s.counters.refuse(RefusedCrowd)
		_ = conn.SetLinger(0)
		_ = conn.Close()
		return
	}
	s.spawn(func() error {
		defer s.dismiss(conn)
		conn.serve()
		return nil
	})
}

// connection is one that has a goroutine.
type connection struct {
	*net.TCPConn
	server *Server
	from   netip.Addr
	first  []byte // what was read of it
}

// serve does what the connection asks for. What fails is the other side's affair: it
// sees the connection end, by a reset unless all was done.
func (c *connection) serve() {
	if c.obey() {
		_ = c.Close()
		return
	}
	_ = c.SetLinger(0)
	_ = c.Close()
}

func (c *connection) obey() bool {
	s := c.server
	_ = c.SetReadDeadline(time.Now().Add(firstMessage))
	if !c.fill(wire.HeadSize) {
		s.counters.refuse(RefusedSlow)
		return false
	}
	h, ok := wire.Decode(c.first)
	if !ok {
		s.counters.refuse(RefusedForeign)
		return false
	}
	switch h.Kind {
	case wire.KindSink:
		return s.connected(h, c.from) && c.sink(h)
	case wire.KindAsk:
		if !s.connected(h, c.from) {
			return false
		}
		h.Kind = wire.KindAskAnswer
		h.Put(c.first)
		answered := c.answer(c.first[:wire.HeadSize])
		if answered {
			s.asked(h.Run)
		}
		return answered
	case wire.KindSource:
		return c.fill(wire.ControlSize) && c.control()
	case wire.KindReport:
		return c.fill(wire.ReportSize) && c.control()
	}
	s.counters.refuse(RefusedKind)
	return false
}

// answer writes a message, whatever the time that the connection has taken so far.
func (c *connection) answer(b []byte) bool {
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	_, err := c.Write(b)
	return err == nil
}

// fill reads until n bytes of the connection are known.
func (c *connection) fill(n int) bool {
	if missing := n - len(c.first); missing > 0 {
		b := make([]byte, missing)
		if _, err := io.ReadFull(c.TCPConn, b); err != nil {
			return false
		}
		c.first = append(c.first, b...)
	}
	return true
}

// control does what a sealed request asks.
func (c *connection) control() bool {
	s, now := c.server, time.Now()
	sealer := wire.NewSealer(s.cfg.Key)
	m, verdict := sealer.Open(c.first, now)
	reason := s.admit(verdict)
	if verdict != wire.Good && reason == wire.ReasonNone {
		return false
	}
	var report wire.Report
	if reason == wire.ReasonNone {
		report, reason = s.order(m, c.from, now)
	}
	var answer []byte
	switch {
	case reason != wire.ReasonNone:
		s.counters.refuse(RefusedRequest)
		m.Head.Kind, m.Order = wire.KindRefusal, wire.Order{Reason: reason}
		answer = sealer.Append(nil, m)
	case m.Head.Kind == wire.KindReport:
		answer = sealer.AppendReport(nil, m, &report)
	default:
		return c.source(m.Head.Run, m.Order)
	}
	return c.answer(answer)
}

// source sends as much as was ordered.
func (c *connection) source(run uint64, o wire.Order) bool {
	limit := c.server.cfg.Limits.For
	if o.For > 0 {
		limit = o.For
	}
	end := time.Now().Add(limit)
	left := o.Bytes
	for o.Bytes == 0 || left > 0 {
		now := time.Now()
		if !now.Before(end) {
			return o.Bytes == 0 // what was to be whole is not
		}
		_ = c.SetWriteDeadline(minTime(end, now.Add(patience)))
		piece := c.server.filler
		if o.Bytes > 0 {
			piece = piece[:min(left, uint64(len(piece)))]
		}
		n, err := c.Write(piece)
		left -= uint64(n)
		c.server.sourced(run, n)
		if err != nil {
			return o.Bytes == 0 && os.IsTimeout(err) && !time.Now().Before(end)
		}
	}
	return true
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// sink counts what comes, without looking at it, and says how much it was.
func (c *connection) sink(h wire.Head) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	total := uint64(len(c.first) - wire.HeadSize)
	c.server.sunk(h.Run, int(total))
	var n int
	step := func(fd uintptr) bool {
		for {
			// MSG_TRUNC discards what has come and copies nothing (tcp(7)).
			n, err = discard(fd)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	}
	for {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if rerr := raw.Read(step); rerr != nil || err != nil {
			return false
		}
		if n == 0 {
			break
		}
		total += uint64(n)
		c.server.sunk(h.Run, n)
	}
	h.Kind, h.Sequence = wire.KindSinkAnswer, total
	h.Put(c.first)
	return c.answer(c.first[:wire.HeadSize])
}

// discard takes what waits in a TCP socket, up to discardSize bytes.
func discard(fd uintptr) (int, error) {
	const discardSize = 1 << 22
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, fd, 0, discardSize, unix.MSG_TRUNC, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
