package far

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/mmsg"
)

// A datagram: the socket's goroutine takes up to 64 by recvmmsg into its slots, each
// of them perhaps several that the kernel joined (UDP_GRO) -> under the server's lock
// each is read and counted; answers are collected in the outbox, echoes as they lie in
// their slot -> the lock is given up and sendmmsg sends them -> the next 64.

const (
	// slotSize is the largest payload of a UDP datagram, and what the kernel joins at most.
	slotSize = 1 << 16
	// socketBuffer is asked for, in bytes; without privilege rmem_max bounds it.
	socketBuffer = 64 << 20
	// maxErrors is how many errors of a socket in a row are passed over.
	maxErrors = 100
)

// socket is a UDP socket and what empties it.
type socket struct {
	server *Server
	conn   *net.UDPConn
	raw    syscall.RawConn
	step   func(fd uintptr) bool
	sealer *wire.Sealer
	buffer int           // how many bytes may wait
	lost   atomic.Uint32 // see dropped

	msgs     [batch]mmsg.Message
	iovecs   [batch]unix.Iovec
	names    [batch]sockaddr
	controls [batch][mmsg.ControlSize]byte
	memory   []byte
	got      int
	errno    syscall.Errno

	out     *outbox
	answers [batch][]byte // sealed ones, in the outbox
	run     *run          // of the datagram before, while the lock is held
}

func newSocket(s *Server, conn *net.UDPConn) (*socket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	k := &socket{server: s, conn: conn, raw: raw, sealer: wire.NewSealer(s.cfg.Key), out: newOutbox(raw), memory: make([]byte, batch*slotSize)}
	k.step = k.drain
	if err := raw.Control(func(fd uintptr) { k.buffer, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) }); err != nil {
		return nil, err
	}
	for i := range k.msgs {
		k.iovecs[i].Base = &k.memory[i*slotSize]
		k.iovecs[i].SetLen(slotSize)
		h := &k.msgs[i].Header
		h.Iov, h.Name, h.Control = &k.iovecs[i], &k.names[i][0], &k.controls[i][0]
		h.SetIovlen(1)
	}
	return k, nil
}

// listenUDP makes one of the sockets, in the namespace where it is called.
func listenUDP(at netip.AddrPort, wild bool) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = setUDP(int(fd), at.Addr().Is4(), wild) })
		return errors.Join(cerr, err)
	}}
	network := "udp6"
	if at.Addr().Is4() {
		network = "udp4"
	}
	c, err := lc.ListenPacket(context.Background(), network, at.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func setUDP(fd int, v4, wild bool) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], socketBuffer) != nil {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], socketBuffer))
		}
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // older kernels have none, and join none
	switch {
	case wild && v4:
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	case wild:
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
	}
	return err
}

// dropped is what the kernel says of the socket; after its end what it said last, and 0
// where it does not say.
func (k *socket) dropped() uint32 {
	_ = k.raw.Control(func(fd uintptr) {
		if n, ok := mmsg.Dropped(fd); ok {
			k.lost.Store(n)
		}
	})
	return k.lost.Load()
}

// serve works until the socket is closed. The error is nil then.
func (k *socket) serve() error {
	for failed := 0; ; {
		if err := k.raw.Read(k.step); err != nil {
			return k.server.unlessOver(err)
		}
		if k.errno != 0 {
			if failed++; failed > maxErrors {
				return fmt.Errorf("receive on %v: %w", k.conn.LocalAddr(), k.errno)
			}
			continue // what became of something that was sent is nothing that arrived
		}
		failed = 0
		if err := k.take(time.Now()); err != nil {
			return k.server.unlessOver(err)
		}
	}
}

// drain is called by the netpoller; false waits for more.
func (k *socket) drain(fd uintptr) bool {
	for i := range k.msgs {
		h := &k.msgs[i].Header
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(mmsg.ControlSize)
	}
	for {
		k.got, k.errno = mmsg.Receive(fd, k.msgs[:])
		switch k.errno {
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			return true
		}
	}
}

// take works on what is in the slots.
func (k *socket) take(now time.Time) error {
	s := k.server
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
	}()
	k.run = nil
	datagrams := 0
	for i := range k.got {
		m := &k.msgs[i]
		control := mmsg.Parse(k.controls[i][:min(uint64(m.Header.Controllen), mmsg.ControlSize)])
		to, segment := control.To, control.Segment
		slot := k.memory[i*slotSize:][:m.Size]
		if segment <= 0 {
			segment = len(slot)
		}
		if s.wild && !s.serves(to) {
			s.counters.refuse(RefusedAddress)
			continue
		}
		from, back := k.names[i].addr(), localOf(to)
		for len(slot) > 0 {
			piece := slot[:min(segment, len(slot))]
			slot = slot[len(piece):]
			datagrams++
			if answer := k.read(now, piece, from, to, &k.names[i]); answer != nil {
				k.out.add(&k.names[i], &back, answer)
			}
			if k.out.full() {
				if err := k.flush(); err != nil {
					return err
				}
			}
		}
	}
	s.counters.datagrams.Add(uint64(datagrams))
	return k.flush()
}

// flush sends answers without the lock, which it takes again.
func (k *socket) flush() error {
	s := k.server
	s.mu.Unlock()
	err := k.out.flush()
	sent, failed := k.out.take()
	s.counters.answered.Add(sent)
	s.counters.unsent.Add(failed)
	s.mu.Lock()
	k.run = nil // it may be forgotten by now
	return err
}

// read takes a datagram in, and returns what to answer, nil for nothing. What is
// refused is counted, and answered only if it is authentic.
func (k *socket) read(now time.Time, b []byte, from, to netip.Addr, name *sockaddr) []byte {
	s := k.server
	h, ok := wire.Decode(b)
	if !ok {
		s.counters.refuse(RefusedForeign)
		return nil
	}
	switch h.Kind {
	case wire.KindData, wire.KindEcho:
	case wire.KindJoin, wire.KindGenerate, wire.KindReport:
		return k.control(now, b, from, to, name)
	default:
		s.counters.refuse(RefusedKind)
		return nil
	}
	if k.run == nil || k.run.id != h.Run {
		if k.run = s.table.runs[h.Run]; k.run == nil || k.run.over {
			k.run = nil
			s.counters.refuse(RefusedRun)
			return nil
		}
		k.run.used = now
	}
	t := &k.run.tally
	if h.Kind == wire.KindEcho {
		t.source(from, 1)
		t.report.Echoed++
		h.Kind = wire.KindEchoAnswer
		h.Put(b)
		return b
	}
	if h.Sequence > maxSequence || !s.table.data(k.run, h, len(b), now) {
		s.counters.refuse(RefusedFlow)
		return nil
	}
	t.source(from, 1)
	return nil
}

// control does what a sealed request asks, and returns the answer.
func (k *socket) control(now time.Time, b []byte, from, to netip.Addr, name *sockaddr) []byte {
	s := k.server
	c, verdict := k.sealer.Open(b, now)
	reason := s.admit(verdict)
	if verdict != wire.Good && reason == wire.ReasonNone {
		return nil
	}
	var r *run
	if reason == wire.ReasonNone {
		if r, reason = s.find(c.Head, now); r != nil {
			r.tally.source(from, 1)
		}
	}
	answer := &k.answers[k.out.n]
	if reason == wire.ReasonNone {
		switch c.Head.Kind {
		case wire.KindReport:
			report := r.report(s.dropped())
			*answer = k.sealer.AppendReport((*answer)[:0], c, &report)
			return *answer
		case wire.KindJoin:
			reason = s.table.join(r, c.Head, name, to)
			c.Head.Kind, c.Order = wire.KindJoinAnswer, wire.Order{Flows: uint32(len(r.joins))}
		case wire.KindGenerate:
			reason = s.generate(r, c.Head, c.Order, now)
			c.Head.Kind, c.Order = wire.KindGenerateAnswer, r.order
		}
	}
	if reason != wire.ReasonNone {
		s.counters.refuse(RefusedRequest)
		c.Head.Kind, c.Order = wire.KindRefusal, wire.Order{Reason: reason}
	}
	*answer = k.sealer.Append((*answer)[:0], c)
	return *answer
}
