package uplink

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(m)) }

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

var (
	dedicated1 = netip.MustParseAddr("127.77.0.1")
	dedicated2 = netip.MustParseAddr("127.77.0.2")
	gateway    = netip.MustParseAddr("10.9.0.254")
	inner1     = netip.MustParseAddr("10.9.0.1")
	inner2     = netip.MustParseAddr("10.9.0.2")
)

// inside gives a sandbox's view of an address that the uplink sees, and outside the way
// back: 10.9.0.N is 127.77.0.N, and 198.51.100.N is 127.0.0.N, where the servers are.
func inside(a netip.Addr) netip.Addr  { return swap(a, [3]byte{10, 9, 0}, [3]byte{198, 51, 100}, 127) }
func outside(a netip.Addr) netip.Addr { return swap(a, [3]byte{127, 77, 0}, [3]byte{127, 0, 0}, 0) }

func swap(a netip.Addr, own, far [3]byte, from byte) netip.Addr {
	b := a.As4()
	if from == 127 && b[0] != 127 {
		return a
	}
	to := own
	if b[0] == 198 || b[1] == 0 {
		to = far
	}
	return netip.AddrFrom4([4]byte{to[0], to[1], to[2], b[3]})
}

// sandbox is a TCP/IP stack behind an uplink, with a fixed translation between them.
type sandbox struct {
	t   testing.TB
	up  *Sockets
	dev *netstack.Device

	slow atomic.Bool // the tunnel is the bottleneck

	mu    sync.Mutex
	seen  [][]byte // what Read gave and is not TCP, as the uplink gave it
	news  chan struct{}
	pumps sync.WaitGroup
}

// newSandbox starts an uplink with cfg, whose addresses are filled in, and a sandbox
// with the addresses inner1 and inner2.
func newSandbox(t testing.TB, cfg SocketsConfig) *sandbox {
	t.Helper()
	current := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, current) })
	if cfg.Addresses == nil {
		cfg.Addresses = []netip.Addr{dedicated1, dedicated2}
	}
	cfg.Gateway, cfg.Log = gateway, slog.New(slog.DiscardHandler)
	up, err := NewSockets(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := netstack.New(netstack.Config{Addresses: []netip.Addr{inner1, inner2}, MTU: 1420})
	if err != nil {
		t.Fatal(err)
	}
	s := &sandbox{t: t, up: up, dev: dev, news: make(chan struct{}, 1)}
	s.pumps.Go(s.egress)
	s.pumps.Go(s.ingress)
	t.Cleanup(s.close)
	return s
}

func (s *sandbox) close() {
	s.dev.Close()
	s.up.Close()
	s.pumps.Wait()
}

func (s *sandbox) egress() {
	bufs, sizes := buffers()
	for {
		n, err := s.dev.Read(bufs, sizes, 8)
		if err != nil {
			return
		}
		out := make([][]byte, 0, n)
		for i := range n {
			b := bufs[i][:8+sizes[i]]
			var p packet.Packet
			if o := packet.Parse(&p, b[8:]); o != packet.Pass {
				s.t.Errorf("sandbox sent what does not parse: %v", o)
				continue
			}
			p.SetSource(netip.AddrPortFrom(outside(p.Src), p.SrcPort))
			p.SetDestination(netip.AddrPortFrom(outside(p.Dst), p.DstPort))
			out = append(out, b)
		}
		if _, err := s.up.Write(out, 8); err != nil {
			return
		}
	}
}

func (s *sandbox) ingress() {
	bufs, sizes := buffers()
	for {
		n, err := s.up.Read(bufs, sizes, 8)
		if err != nil {
			return
		}
		for begun := time.Now(); s.slow.Load() && time.Since(begun) < time.Millisecond; {
			runtime.Gosched()
		}
		for i := range n {
			s.take(bufs[i][8 : 8+sizes[i]])
		}
	}
}

// take gives the sandbox one packet from the uplink.
func (s *sandbox) take(b []byte) {
	var p packet.Packet
	if o := packet.Parse(&p, b); o != packet.Pass {
		s.t.Errorf("uplink returned what does not parse: %v", o)
		return
	}
	if p.Kind != packet.KindICMPError && !p.ChecksumOK() {
		s.t.Errorf("uplink returned a wrong checksum: %x", b)
	}
	if p.Proto != packet.TCP {
		s.mu.Lock()
		s.seen = append(s.seen, append([]byte(nil), b...))
		s.mu.Unlock()
		select {
		case s.news <- struct{}{}:
		default:
		}
	}
	if p.Proto == packet.UDP {
		return
	}
	if p.Kind == packet.KindICMPError {
		p.SetEmbeddedSource(netip.AddrPortFrom(inside(p.Inner.Src), p.Inner.SrcPort))
		p.SetEmbeddedDestination(netip.AddrPortFrom(inside(p.Inner.Dst), p.Inner.DstPort))
	} else {
		p.SetSource(netip.AddrPortFrom(inside(p.Src), p.SrcPort))
	}
	p.SetDestination(netip.AddrPortFrom(inside(p.Dst), p.DstPort))
	s.dev.Write([][]byte{p.B}, 0)
}

// wait returns the first packet that the uplink returned, TCP aside, for which match is true.
func (s *sandbox) wait(what string, match func(*packet.Packet) bool) packet.Packet {
	s.t.Helper()
	late := time.After(patience)
	for {
		s.mu.Lock()
		for i, b := range s.seen {
			var p packet.Packet
			if packet.Parse(&p, b); match(&p) {
				s.seen = append(s.seen[:i:i], s.seen[i+1:]...)
				s.mu.Unlock()
				return p
			}
		}
		s.mu.Unlock()
		select {
		case <-s.news:
		case <-late:
			s.t.Fatalf("no %s within %v; drops %v", what, patience, drops(s.up))
		}
	}
}

// udp waits for a datagram to port.
func (s *sandbox) udp(port uint16) packet.Packet {
	s.t.Helper()
	return s.wait("datagram", func(p *packet.Packet) bool { return p.Kind == packet.KindUDP && p.DstPort == port })
}

// error waits for an ICMP error about a packet that came from port or identifier.
func (s *sandbox) error(port uint16) packet.Packet {
	s.t.Helper()
	return s.wait("ICMP error", func(p *packet.Packet) bool { return p.Kind == packet.KindICMPError && p.Inner.SrcPort == port })
}

// event waits for an event of the uplink.
func (s *sandbox) event() Event {
	s.t.Helper()
	select {
	case e := <-s.up.Events():
		return e
	case <-time.After(patience):
		s.t.Fatalf("no event within %v; drops %v", patience, drops(s.up))
		panic("unreachable")
	}
}

// dial connects from an inner address and port to a server's address as the host knows it.
func (s *sandbox) dial(local string, server net.Addr) (*netstack.Conn, error) {
	to := server.(*net.TCPAddr).AddrPort()
	to = netip.AddrPortFrom(inside(to.Addr().Unmap()), to.Port())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.dev.DialTCP(ctx, netip.MustParseAddrPort(local), to)
}

func (s *sandbox) mustDial(local string, server net.Addr) *netstack.Conn {
	s.t.Helper()
	c, err := s.dial(local, server)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// send writes packets to the uplink as one batch.
func (s *sandbox) send(pkts ...[]byte) {
	s.t.Helper()
	if _, err := s.up.Write(pkts, 0); err != nil {
		s.t.Fatal(err)
	}
}

func buffers() ([][]byte, []int) {
	bufs := make([][]byte, netstack.BatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16+8)
	}
	return bufs, make([]int, len(bufs))
}

// datagram builds a UDP packet as the translator hands it to the uplink.
func datagram(from, to string, payload []byte) []byte {
	return datagramTTL(from, to, payload, 63, 1)
}

func datagramTTL(from, to string, payload []byte, ttl uint8, id uint16) []byte {
	b := make([]byte, ipv4Len+udpLen+len(payload))
	packet.BuildUDP(b, netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), payload, ttl, id)
	return b
}

// drops are the counters that are not zero, by name.
func drops(u Uplink) map[string]uint64 {
	m := map[string]uint64{}
	st := u.Stats()
	for o := range packet.Outcomes() {
		if st.Drops[o] > 0 {
			m[o.String()] = st.Drops[o]
		}
	}
	return m
}

// wantDrops waits until exactly these drops are counted.
func (s *sandbox) wantDrops(want map[packet.Outcome]uint64) {
	s.t.Helper()
	s.eventually("drops", func() bool {
		st := s.up.Stats()
		for o := range packet.Outcomes() {
			if st.Drops[o] != want[o] {
				return false
			}
		}
		return true
	})
}

// eventually polls a condition that nothing announces.
func (s *sandbox) eventually(what string, ok func() bool) {
	s.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			s.t.Fatalf("%s not as expected after %v: %+v, drops %v", what, patience, s.up.Stats(), drops(s.up))
		}
	}
}

// listen starts a TCP listener on the loopback.
func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// accept takes one connection with a deadline.
func accept(t testing.TB, l net.Listener) *net.TCPConn {
	t.Helper()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}
