package uplink

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// socketBuffer is what a mapping's socket asks for in each direction, in bytes;
// the kernel gives no more than net.core.rmem_max and wmem_max.
const socketBuffer = 1 << 20

// errNotOurs says that a socket is bound to something else than was asked for.
var errNotOurs = errors.New("the kernel bound the socket to another address")

// mapping is the unconnected kernel socket of one UDP or ICMP mapping, bound to
// the dedicated IP and the port or identifier that the translator chose.
type mapping struct {
	key  mappingKey
	turn int32 // the poller's

	// sending is held while the socket is sent on, receiving while it is read;
	// both while fd changes.
	sending, receiving sync.Mutex
	fd                 int // -1 once closed
	discover           int // IP_MTU_DISCOVER in force; under sending
}

// mappings are the sockets of one uplink.
type mappings struct {
	mu   sync.RWMutex
	by   map[mappingKey]*mapping
	shut bool
	open [2]atomic.Int64 // sockets: UDP, ICMP

	// opening is held while a socket is made, so that two packets of one mapping
	// do not make two, and others can look up meanwhile.
	opening sync.Mutex
}

// find returns the socket for key, or nil.
func (t *mappings) find(key mappingKey) *mapping {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.by[key]
}

// gauge counts the sockets of a protocol.
func (t *mappings) gauge(p packet.Proto) *atomic.Int64 {
	if p == packet.UDP {
		return &t.open[0]
	}
	return &t.open[1]
}

// put makes m known. It fails once the uplink is closed.
func (t *mappings) put(m *mapping) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return false
	}
	t.by[m.key] = m
	t.gauge(m.key.proto).Add(1)
	return true
}

// take removes a mapping and returns it, or nil.
func (t *mappings) take(key mappingKey) *mapping {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.by[key]
	if m != nil {
		delete(t.by, key)
		t.gauge(key.proto).Add(-1)
	}
	return m
}

// shutDown removes all mappings, and lets no more in.
func (t *mappings) shutDown() []*mapping {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shut = true
	all := make([]*mapping, 0, len(t.by))
	for key, m := range t.by {
		all = append(all, m)
		t.gauge(key.proto).Add(-1)
	}
	clear(t.by)
	return all
}

// mappingFor returns the socket for the packet p, which it opens if need be.
// Where there is none it has dropped p, told the sandbox, and returns why.
func (s *Sockets) mappingFor(key mappingKey, p *packet.Packet) (*mapping, packet.Outcome) {
	if m := s.mappings.find(key); m != nil {
		return m, packet.Pass
	}
	s.mappings.opening.Lock()
	defer s.mappings.opening.Unlock()
	if m := s.mappings.find(key); m != nil {
		return m, packet.Pass
	}
	if !s.sockets.take() {
		return nil, s.refuse(packet.SocketLimit, codeProhibited, 0, p.B)
	}
	m, err := openMapping(key)
	if err == nil {
		if err = s.register(m); err == nil {
			return m, packet.Pass
		}
		m.end()
	}
	s.sockets.give()
	return nil, s.refuseMapping(key, p, err)
}

// register makes a fresh socket known to poller and table.
func (s *Sockets) register(m *mapping) error {
	if err := s.poller.add(m); err != nil {
		return err
	}
	if !s.mappings.put(m) {
		s.poller.remove(m)
		return errClosing
	}
	return nil
}

// errClosing says that the uplink takes nothing more.
var errClosing = errors.New("the uplink is closing")

// refuseMapping drops p because its socket could not be opened, and returns the reason.
func (s *Sockets) refuseMapping(key mappingKey, p *packet.Packet, err error) packet.Outcome {
	switch {
	case errors.Is(err, errClosing):
		return s.drop(packet.Closed)
	case errors.Is(err, unix.EADDRINUSE), errors.Is(err, unix.EACCES) && key.proto == packet.UDP:
		// In use, or below net.ipv4.ip_unprivileged_port_start.
		s.events.emit(Event{PortRefused, key.flow()})
		return s.drop(packet.PortRefused)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return s.drop(packet.ICMPUnavailable)
	case exhausted(err):
		return s.refuse(packet.SocketLimit, codeProhibited, 0, p.B)
	case errors.Is(err, errNotOurs):
		s.log.Error("socket refused", "error", err)
		return s.drop(packet.WrongSource)
	}
	s.complain(err)
	return s.refuse(packet.Unreachable, codeHost, 0, p.B)
}

// exhausted reports whether err says that descriptors, socket memory or (ENOSPC)
// places in epoll ran out.
func exhausted(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ENOSPC} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// openMapping opens the socket of key. Errors wrap the kernel's.
func openMapping(key mappingKey) (*mapping, error) {
	proto := 0
	if key.proto == packet.ICMP {
		proto = unix.IPPROTO_ICMP
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("open a socket for %v: %w", key.external.addrPort(), err)
	}
	if err := setUp(fd, key); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind a socket to %v: %w", key.external.addrPort(), err)
	}
	return &mapping{key: key, fd: fd, discover: unix.IP_PMTUDISC_OMIT}, nil
}

// setUp sets a socket's options and binds it. UDP goes without SO_REUSEADDR: a
// port belongs to one mapping. The kernel compares the identifiers of ping sockets without
// regard to their addresses, so that the two IPs of a pair could not use
// the same one without it.
func setUp(fd int, key mappingKey) error {
	options := []struct{ level, name, value int }{
		{unix.IPPROTO_IP, unix.IP_RECVERR, 1},
		{unix.IPPROTO_IP, unix.IP_RECVTTL, 1},
		{unix.IPPROTO_IP, unix.IP_RECVTOS, 1},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT},
	}
	if key.proto == packet.ICMP {
		options = append(options, struct{ level, name, value int }{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return err
		}
	}
	if key.proto == packet.UDP {
		// These make it faster and no more: an old kernel has no UDP_GRO.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: key.external.addr, Port: int(key.external.port)}); err != nil {
		return err
	}
	return checkBound(fd, key.external)
}

// checkBound makes sure that what the socket sends comes from want.
func checkBound(fd int, want endpoint) error {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if a, ok := sa.(*unix.SockaddrInet4); !ok || a.Addr != want.addr || a.Port != int(want.port) {
		return errNotOurs
	}
	return nil
}

// closeMapping ends a mapping that was taken out of the table.
func (s *Sockets) closeMapping(m *mapping) {
	s.poller.remove(m)
	m.end()
	s.sockets.give()
}

// end closes the socket when nobody uses it.
func (m *mapping) end() {
	m.sending.Lock()
	defer m.sending.Unlock()
	m.receiving.Lock()
	defer m.receiving.Unlock()
	unix.Close(m.fd)
	m.fd = -1
}

// setFragmentation makes the socket send with DF or without. The caller holds m.sending.
//
// With DF the path MTU that the kernel believes in does not count: packets go out, and
// a router's 3/4 goes to the sandbox, which is the one to act on it. Without DF the
// kernel fragments to its interface's MTU, in order (RFC 4787 REQ-13), and nothing
// that claims to be a router changes that.
func (m *mapping) setFragmentation(df bool) error {
	want := unix.IP_PMTUDISC_OMIT
	if df {
		want = unix.IP_PMTUDISC_PROBE
	}
	if m.discover == want {
		return nil
	}
	if err := unix.SetsockoptInt(m.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, want); err != nil {
		return err
	}
	m.discover = want
	return nil
}
