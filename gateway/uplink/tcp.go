package uplink

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// The life of a TCP session: the sandbox's SYN is admitted or refused in Write
// (admit); the stack hands it over as a request (HandleTCP); a kernel socket
// connects to the remote end from the dedicated IP and port (connect); the
// remote end's answer becomes the answer to the SYN (Accept, Reset, or an ICMP error);
// then bytes are carried both ways (join.go) until the session ends by itself or the
// table releases it.

const (
	// synKept is how much of a SYN is kept to be quoted in ICMP errors: the
	// longest headers are 120 bytes.
	synKept = 128
	// unclaimedTime is how long an admitted SYN may take to come back from the
	// stack as a request, which it does at once unless the stack did not take it.
	unclaimedTime = 5 * time.Second
)

// phase is how far a session has come.
type phase uint8

const (
	admitted   phase = iota // its SYN went to the stack
	connecting              // the stack has asked for it, and the remote end is asked
	connected               // the remote end answered; handshake with the sandbox, then bytes
	over
)

// session is one TCP session. Its fields are under sessions.mu, but for those of
// the goroutine that serves it.
type session struct {
	key    flowKey
	phase  phase
	since  time.Time // of admission
	syn    [synKept]byte
	synLen int

	ctx      context.Context // of connect and handshake; nil before
	cancel   context.CancelFunc
	released bool // the table dropped it

	// The two ends; nil before the bytes flow.
	kernel *net.TCPConn
	conn   *netstack.Conn
}

// sessions are the TCP sessions of one uplink.
type sessions struct {
	slots                         *budget
	maxPending, maxPerDestination int

	mu        sync.Mutex
	by        map[flowKey]*session
	pending   int             // admitted or connecting
	towards   map[[4]byte]int // the same by remote address
	unclaimed []*session      // in order of admission, those that went on among them
	shut      bool
	served    sync.WaitGroup
}

func (t *sessions) init(cfg SocketsConfig, slots *budget) {
	t.slots = slots
	t.maxPending, t.maxPerDestination = cfg.MaxPending, cfg.MaxPendingPerDestination
	t.by, t.towards = make(map[flowKey]*session), make(map[[4]byte]int)
}

// count returns how many sockets and how many pending connects there are.
func (t *sessions) count() (open, pending int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.by), t.pending
}

// knows reports whether a session lives.
func (t *sessions) knows(key flowKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.by[key] != nil
}

// admit makes room for the session that the SYN of key asks for and returns Pass,
// or the reason to refuse it. Repeated SYNs pass.
func (t *sessions) admit(key flowKey, syn []byte, now time.Time) packet.Outcome {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.by[key]
	if x == nil {
		t.sweep(now)
		switch {
		case t.shut:
			return packet.Closed
		case t.pending >= t.maxPending, t.towards[key.remote.addr] >= t.maxPerDestination:
			return packet.PendingLimit
		case !t.slots.take():
			return packet.SocketLimit
		}
		x = &session{key: key, since: now}
		t.by[key] = x
		t.pending++
		t.towards[key.remote.addr]++
		t.unclaimed = append(t.unclaimed, x)
	}
	if x.phase < connected {
		x.synLen = copy(x.syn[:], syn)
	}
	return packet.Pass
}

// sweep forgets SYNs that the stack did not take. The caller holds t.mu.
func (t *sessions) sweep(now time.Time) {
	for len(t.unclaimed) > 0 {
		x := t.unclaimed[0]
		if x.phase == admitted {
			if now.Sub(x.since) < unclaimedTime {
				return
			}
			t.remove(x)
		}
		t.unclaimed[0] = nil
		t.unclaimed = t.unclaimed[1:]
	}
	t.unclaimed = nil
}

// claim begins to serve an admitted session; nil when there is none. The caller
// calls served.Done at the end.
func (t *sessions) claim(ctx context.Context, key flowKey) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.by[key]
	if x == nil || x.phase != admitted || t.shut {
		return nil
	}
	x.phase = connecting
	x.ctx, x.cancel = context.WithCancel(ctx)
	t.served.Add(1)
	return x
}

// answered says that the remote end took the connection.
func (t *sessions) answered(x *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notPending(x)
	x.phase = connected
}

// attach makes the ends known to release. It fails when the table has released the session.
func (t *sessions) attach(x *session, kernel *net.TCPConn, conn *netstack.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x.released {
		return false
	}
	x.kernel, x.conn = kernel, conn
	return true
}

// finish forgets a session. It returns whether the table has to be told, which
// it has not when it released the session itself.
func (t *sessions) finish(x *session) bool {
	x.cancel()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(x)
	return !x.released
}

// remove takes x out of everything. The caller holds t.mu.
func (t *sessions) remove(x *session) {
	t.notPending(x)
	x.phase = over
	delete(t.by, x.key)
	t.slots.give()
}

// notPending takes x out of the count of pending connects. The caller holds t.mu.
func (t *sessions) notPending(x *session) {
	if x.phase > connecting {
		return
	}
	t.pending--
	a := x.key.remote.addr
	if t.towards[a]--; t.towards[a] == 0 {
		delete(t.towards, a)
	}
}

// release ends a session because the table dropped it.
func (t *sessions) release(key flowKey) {
	t.mu.Lock()
	x := t.by[key]
	if x == nil {
		t.mu.Unlock()
		return
	}
	t.drop(x)
	kernel, conn := x.kernel, x.conn
	t.mu.Unlock()
	if conn != nil {
		abort(kernel, conn)
	}
}

// drop marks x as released; what has no ends yet finds out by its context. The
// caller holds t.mu.
func (t *sessions) drop(x *session) {
	x.released = true
	switch {
	case x.phase == admitted:
		t.remove(x)
	case x.conn == nil:
		x.cancel()
	}
}

// shutDown ends all sessions and lets no more in.
func (t *sessions) shutDown() {
	t.mu.Lock()
	t.shut = true
	joined := make([]*session, 0, len(t.by))
	for _, x := range t.by {
		t.drop(x)
		if x.conn != nil {
			joined = append(joined, x)
		}
	}
	t.mu.Unlock()
	for _, x := range joined {
		abort(x.kernel, x.conn)
	}
}

// admit decides whether a TCP packet goes to the stack.
func (s *Sockets) admit(p *packet.Packet) bool {
	if p.Flags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) != packet.SYN {
		return true
	}
	key := flowKey{endpoint{p.Src.As4(), p.SrcPort}, endpoint{p.Dst.As4(), p.DstPort}}
	switch o := s.tcp.admit(key, p.B, time.Now()); o {
	case packet.Pass:
		return true
	case packet.Closed:
		s.drop(o)
	default:
		s.refuse(o, codeProhibited, 0, p.B)
	}
	return false
}

// HandleTCP implements netstack.TCPHandler: it carries one session from the
// stack's request to its end.
func (s *Sockets) HandleTCP(r *netstack.Request) {
	x := s.tcp.claim(s.ctx, flowKey{endpointOf(r.Source()), endpointOf(r.Destination())})
	if x == nil {
		r.Drop()
		return
	}
	defer s.tcp.served.Done()
	kernel, err := s.connect(x)
	if err != nil {
		tell := s.tcp.finish(x)
		if !tell {
			r.Drop()
			return
		}
		s.refuseConnect(x, r, err)
		return
	}
	s.tcp.answered(x)
	sent := s.accept(x, r, kernel)
	if s.tcp.finish(x) {
		s.linger.add(x.key, sent)
	}
}

// accept answers the sandbox's SYN and carries bytes until the end. It returns how
// many went to the sandbox.
func (s *Sockets) accept(x *session, r *netstack.Request, kernel *net.TCPConn) int64 {
	conn, err := r.Accept(x.ctx)
	if err != nil {
		reset(kernel)
		return 0
	}
	x.cancel() // its time is over, and s.ctx forgets it
	if !s.tcp.attach(x, kernel, conn) {
		abort(kernel, conn)
		return 0
	}
	return s.join(kernel, conn)
}

// connect opens a kernel connection from exactly the session's dedicated IP and port.
func (s *Sockets) connect(x *session) (*net.TCPConn, error) {
	from := x.key.external.addrPort()
	c, err := s.dialer.DialTCP(x.ctx, "tcp4", from, x.key.remote.addrPort())
	if err != nil {
		return nil, err
	}
	if local, ok := c.LocalAddr().(*net.TCPAddr); !ok || unmapped(local.AddrPort()) != from {
		reset(c)
		return nil, errNotOurs
	}
	return c, nil
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// refuseConnect tells the sandbox why its connection failed, in the remote end's
// own way where it has one.
func (s *Sockets) refuseConnect(x *session, r *netstack.Request, err error) {
	f := classify(err)
	switch {
	case f.retry:
		r.Drop()
		s.events.emit(Event{PortRefused, x.key.flow()})
		s.drop(packet.PortRefused)
		return
	case f.reset:
		r.Reset()
	case f.outcome == packet.Closed:
		r.Drop()
		s.drop(f.outcome)
	default:
		if f.outcome == packet.WrongSource {
			s.log.Error("connection refused", "error", err)
		} else if f.odd {
			s.complain(err)
		}
		r.Drop()
		s.refuse(f.outcome, f.code, 0, x.syn[:x.synLen])
	}
	s.linger.add(x.key, 0)
}

// failure is what a failed connect means for the sandbox.
type failure struct {
	retry   bool           // the same SYN may succeed from another port
	reset   bool           // the remote end refused
	outcome packet.Outcome // else the reason, told by ICMP type 3 and
	code    uint8
	odd     bool // an operator should know
}

// classify sorts the errors of connect.
func classify(err error) failure {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		var timeout net.Error
		switch {
		case errors.Is(err, errNotOurs):
			return failure{outcome: packet.WrongSource, code: codeHost}
		case errors.As(err, &timeout) && timeout.Timeout():
			return failure{outcome: packet.Unreachable, code: codeHost}
		}
		return failure{outcome: packet.Closed} // cancelled by Close
	}
	var call *os.SyscallError
	if errors.As(err, &call) && call.Syscall == "bind" {
		switch errno {
		case unix.EADDRINUSE, unix.EACCES: // EACCES: below net.ipv4.ip_unprivileged_port_start
			return failure{retry: true}
		}
		return failure{outcome: packet.Unreachable, code: codeHost, odd: true}
	}
	switch errno {
	case unix.EADDRNOTAVAIL, unix.EADDRINUSE: // the kernel still has this connection
		return failure{retry: true}
	case unix.ECONNREFUSED, unix.ECONNRESET:
		return failure{reset: true}
	case unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ETIMEDOUT:
		return failure{outcome: packet.Unreachable, code: codeHost}
	case unix.ENETUNREACH, unix.ENONET:
		return failure{outcome: packet.Unreachable, code: codeNet}
	case unix.ENOPROTOOPT:
		return failure{outcome: packet.Unreachable, code: codeProtocol}
	case unix.EACCES, unix.EPERM:
		return failure{outcome: packet.Unreachable, code: codeProhibited}
	}
	if exhausted(errno) {
		return failure{outcome: packet.SocketLimit, code: codeProhibited}
	}
	return failure{outcome: packet.Unreachable, code: codeHost, odd: true}
}
