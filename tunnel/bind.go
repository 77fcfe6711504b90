package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// bind is the UDP side of a tunnel: one socket for IPv4 and one for IPv6, on the
// same port of all addresses.
//
// A datagram is answered from the address that it was sent to: a peer behind a
// firewall or a NAT takes no other answers, and a host has several addresses. The
// bind that comes with wireguard-go forgets that address whenever the kernel hands
// over datagrams coalesced (UDP_GRO). It also copies what is sent together, and
// allocates memory for each call and each datagram.
type bind struct {
	mu     sync.RWMutex // guards what follows
	spared kinds        // which of the two Open does not open
	v4, v6 *udpSocket   // nil: not open

	batch   int // how many datagrams are received or sent at once at most; 0: 128
	calls   calls
	counts  socketCounts
	offload Offload
	log     *slog.Logger // nil is silence
}

// bindTries is how often two sockets with the same free port are sought.
const bindTries = 100

// Open listens on a port, or on a free one for 0.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.v4 != nil || b.v6 != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	for try := 1; ; try++ {
		v4, v6, err := b.openSockets(port)
		if port == 0 && errors.Is(err, syscall.EADDRINUSE) && try < bindTries {
			continue // free for IPv4, taken for IPv6
		}
		if err != nil {
			return nil, 0, err
		}
		b.v4, b.v6 = v4, v6
		break
	}
	var receive []conn.ReceiveFunc
	for _, s := range []*udpSocket{b.v4, b.v6} {
		if s != nil {
			receive = append(receive, (&sieve{calls: &b.calls, socket: s, inner: newIncoming(s, b.BatchSize()).receive}).receive)
			port = s.port
		}
	}
	return receive, port, nil
}

// kinds are kinds of addresses.
type kinds struct{ v4, v6 bool }

// want says that an endpoint is to be reached, and reports whether the bind has to be
// opened anew for it.
func (b *bind) want(a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	kind := &b.spared.v6
	if a.Unmap().Is4() {
		kind = &b.spared.v4
	}
	was := *kind
	*kind = false
	return was
}

// openSockets opens what the machine has of the kinds that are not spared.
func (b *bind) openSockets(port uint16) (v4, v6 *udpSocket, err error) {
	if !b.spared.v4 {
		if v4, err = b.openSocket("udp4", port); v4 != nil {
			port = v4.port
		}
	}
	if err != nil && !errors.Is(err, syscall.EAFNOSUPPORT) || b.spared.v6 {
		return v4, nil, err
	}
	v6, err6 := b.openSocket("udp6", port)
	switch {
	case err6 == nil:
		return v4, v6, nil
	case v4 != nil && errors.Is(err6, syscall.EAFNOSUPPORT):
		return v4, nil, nil
	case v4 != nil:
		_ = v4.udp.Close()
	}
	return nil, nil, err6
}

// Close ends both sockets; whoever receives gets net.ErrClosed.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, s := range []*udpSocket{b.v4, b.v6} {
		if s != nil {
			b.counts.dropped.Add(s.dropped())
			errs = append(errs, s.udp.Close())
		}
	}
	b.v4, b.v6 = nil, nil
	return errors.Join(errs...)
}

// SetMark sets the routing mark of what is sent (SO_MARK).
func (b *bind) SetMark(mark uint32) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, s := range []*udpSocket{b.v4, b.v6} {
		if s == nil {
			continue
		}
		err := s.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)) })
		if err != nil {
			return fmt.Errorf("set the mark %d of a UDP socket: %w", mark, err)
		}
	}
	return nil
}

// BatchSize is how many datagrams are received or sent at once at most.
func (b *bind) BatchSize() int {
	if b.batch > 0 {
		return b.batch
	}
	return conn.IdealBatchSize
}

// Send sends datagrams to an endpoint.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	e, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mu.RLock()
	s := b.v4
	if e.to.Addr().Is6() {
		s = b.v6
	}
	b.mu.RUnlock()
	if s == nil {
		return syscall.EAFNOSUPPORT
	}
	if len(bufs) == 1 && isInitiation(bufs[0]) {
		b.calls.sent(bufs[0], e.to, time.Now())
	}
	return s.send(bufs, e)
}

// ParseEndpoint reads an address and a port.
func (b *bind) ParseEndpoint(text string) (conn.Endpoint, error) {
	e, err := parseEndpoint(text)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// udpSocket is one of the two sockets.
type udpSocket struct {
	udp     *net.UDPConn
	raw     syscall.RawConn // of udp
	network string          // udp4 or udp6
	port    uint16
	counts  *socketCounts
	gso     atomic.Bool // the kernel cuts what is sent; off once a link refused
	gro     bool        // the kernel joins what arrives
	log     *slog.Logger
	out     sync.Pool // *outgoing
}

// cutsNoMore has datagrams be sent one by one from now on, and says so, once.
func (s *udpSocket) cutsNoMore() {
	if s.gso.Swap(false) && s.log != nil {
		s.log.Warn("a link of this machine cannot have the kernel cut datagrams (UDP segmentation offload): a WireGuard socket sends them one by one from now on, which takes more CPU", "port", s.port)
	}
}

func (b *bind) openSocket(network string, port uint16) (*udpSocket, error) {
	config := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = prepare(int(fd), network) })
		return errors.Join(err, failed)
	}}
	l, err := config.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	udp, ok := l.(*net.UDPConn)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s port %d: not a UDP socket", network, port)
	}
	s := &udpSocket{udp: udp, network: network, port: udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(), counts: &b.counts, log: b.log}
	s.out.New = func() any { return newOutgoing(s) }
	if s.raw, err = udp.SyscallConn(); err == nil {
		err = s.probeOffload(b.offload)
	}
	if err != nil {
		_ = udp.Close()
		return nil, err
	}
	return s, nil
}

// prepare sets the options of a fresh socket. What makes it only faster may fail.
func prepare(fd int, network string) error {
	for _, option := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, SocketBuffer)
	}
	if network == "udp4" {
		// A datagram may be cut on its way, as those of the kernel's WireGuard: a narrow
		// link behind a firewall that drops ICMP would swallow all large ones.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
}

func (s *udpSocket) control(do func(fd int) error) error {
	var failed error
	err := s.raw.Control(func(fd uintptr) { failed = do(int(fd)) })
	return errors.Join(err, failed)
}
