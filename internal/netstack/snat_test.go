package netstack

import (
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// The translator's yardstick: gVisor's own NAT, a stack with an inner and an outer
// interface that forwards, and one SNAT rule. The same packets go through it and
// through a nat.Table.

// natBatch is how many packets are timed together.
const natBatch = 128

var natExternal = netip.MustParseAddr("198.51.100.7")

// translator is what is compared.
type translator interface {
	// put makes packet k of the next batch of b, which it may keep and change until carry.
	put(k int, b []byte)
	// carry takes the first n packets of the batch, outwards or inwards. Only this is timed.
	carry(n int, outwards bool)
	// source is the source port of the packet that went outwards last.
	source() uint16
	// passed is how many packets came out.
	passed() int
	close()
}

// idleClock runs as the system's does and a set time ahead. It has no timers: gVisor's
// connections are not reaped during a benchmark, which is time that it does not have
// to spend, and a stack that is done with can be collected.
type idleClock struct {
	tcpip.Clock
	ahead atomic.Int64 // nanoseconds
}

func (c *idleClock) NowMonotonic() tcpip.MonotonicTime {
	return c.Clock.NowMonotonic().Add(time.Duration(c.ahead.Load()))
}

func (c *idleClock) AfterFunc(time.Duration, func()) tcpip.Timer { return idleTimer{} }

type idleTimer struct{}

func (idleTimer) Stop() bool          { return true }
func (idleTimer) Reset(time.Duration) {}

// natLink is an interface of gVisor's translator. What leaves by it is counted and lost.
type natLink struct {
	link
	sent int
	last [header.IPv4MinimumSize + header.TCPMinimumSize]byte // headers of what left last
}

func (l *natLink) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range list.AsSlice() {
		l.sent++
		n := copy(l.last[:], pkt.NetworkHeader().Slice())
		copy(l.last[n:], pkt.TransportHeader().Slice())
	}
	return list.Len(), nil
}

// gvisorNAT is gVisor's translator.
type gvisorNAT struct {
	clock        *idleClock
	stack        *stack.Stack
	inner, outer *natLink
	batch        [natBatch]*stack.PacketBuffer
}

func newGvisorNAT(tb testing.TB) *gvisorNAT {
	g := &gvisorNAT{
		clock: &idleClock{Clock: tcpip.NewStdClock()},
		inner: &natLink{link: link{mtu: 1420}},
		outer: &natLink{link: link{mtu: 1420}},
	}
	must := func(err tcpip.Error) {
		if err != nil {
			tb.Helper()
			tb.Fatal(err)
		}
	}
	g.stack = stack.New(stack.Options{
		Clock:              g.clock,
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	const innerNIC, outerNIC = 1, 2
	must(g.stack.CreateNIC(innerNIC, g.inner))
	must(g.stack.CreateNIC(outerNIC, g.outer))
	for nic, addr := range map[tcpip.NICID]netip.Addr{innerNIC: netip.MustParseAddr("10.255.255.254"), outerNIC: natExternal} {
		pa := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address(addr).WithPrefix()}
		must(g.stack.AddProtocolAddress(nic, pa, stack.AddressProperties{}))
	}
	inside := tcpip.AddressWithPrefix{Address: address(netip.MustParseAddr("10.0.0.0")), PrefixLen: 8}.Subnet()
	g.stack.SetRouteTable([]tcpip.Route{{Destination: inside, NIC: innerNIC}, {Destination: header.IPv4EmptySubnet, NIC: outerNIC}})
	must(g.stack.SetForwardingDefaultAndAllNICs(ipv4.ProtocolNumber, true))

	table := g.stack.IPTables().GetTable(stack.NATID, false)
	table.Rules = append([]stack.Rule(nil), table.Rules...)
	table.Rules[table.BuiltinChains[stack.Postrouting]] = stack.Rule{
		Filter: stack.EmptyFilter4(),
		Target: &stack.SNATTarget{NetworkProtocol: ipv4.ProtocolNumber, Addr: address(natExternal), ChangeAddress: true, ChangePort: true},
	}
	g.stack.IPTables().ReplaceTable(stack.NATID, table, false)
	return g
}

func (g *gvisorNAT) put(k int, b []byte) { g.batch[k] = newPacket(b) }

func (g *gvisorNAT) carry(n int, outwards bool) {
	l := g.outer
	if outwards {
		l = g.inner
	}
	for _, pkt := range g.batch[:n] {
		l.deliver(pkt)
	}
}

func (g *gvisorNAT) source() uint16 {
	return header.TCP(g.outer.last[header.IPv4MinimumSize:]).SourcePort()
}

func (g *gvisorNAT) passed() int { return g.inner.sent + g.outer.sent }

func (g *gvisorNAT) close() {
	g.stack.Close()
	g.stack.Wait()
}

// sallyportNAT is ours. It takes packets one by one, or a batch at a time.
type sallyportNAT struct {
	tb      testing.TB
	table   *nat.Table
	batched bool
	now     packet.Instant
	bufs    [natBatch][64]byte
	sizes   [natBatch]int
	views   [natBatch]packet.Packet
	ps      [natBatch]*packet.Packet
	out     [natBatch]packet.Outcome
	through int
}

func newSallyportNAT(tb testing.TB, batched bool) *sallyportNAT {
	none := nat.Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1}
	table, err := nat.New(nat.Config{External: natExternal, Seed: [32]byte{1, 2, 3}, MaxSessions: 1 << 21, Limits: none})
	if err != nil {
		tb.Fatal(err)
	}
	s := &sallyportNAT{tb: tb, table: table, batched: batched, now: packet.Instant(time.Hour)}
	for k := range s.ps {
		s.ps[k] = &s.views[k]
	}
	return s
}

func (s *sallyportNAT) put(k int, b []byte) { s.sizes[k] = copy(s.bufs[k][:], b) }

func (s *sallyportNAT) carry(n int, outwards bool) {
	for k := range n {
		packet.Parse(&s.views[k], s.bufs[k][:s.sizes[k]])
	}
	switch {
	case s.batched && outwards:
		s.table.EgressBatch(s.ps[:n], s.out[:n], s.now)
	case s.batched:
		s.table.IngressBatch(s.ps[:n], s.out[:n], s.now)
	default:
		for k, p := range s.ps[:n] {
			if outwards {
				s.out[k] = s.table.Egress(p, s.now)
			} else {
				s.out[k] = s.table.Ingress(p, s.now)
			}
		}
	}
	for _, o := range s.out[:n] {
		if o == packet.Pass {
			s.through++
		}
	}
}

func (s *sallyportNAT) source() uint16 { return s.views[0].SrcPort }
func (s *sallyportNAT) passed() int    { return s.through }
func (s *sallyportNAT) close()         { runtime.KeepAlive(s.table) }

// natInside and natRemote are the ends of connection i.
func natInside(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), uint16(1024+i>>8%40000))
}

func natRemote(i int) netip.AddrPort {
	r := i % 50021
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(r >> 8), byte(r)}), 443)
}

// connections are n established ones of a translator.
type connections struct {
	translator
	external []netip.AddrPort
	buf      [64]byte
}

// establish opens n connections, segment by segment, in both directions.
func establish(tb testing.TB, t translator, n int) *connections {
	c := &connections{translator: t, external: make([]netip.AddrPort, n)}
	for i := range n {
		c.one(packet.SYN, natInside(i), natRemote(i), true)
		c.external[i] = netip.AddrPortFrom(natExternal, t.source())
		c.one(packet.SYN|packet.ACK, natRemote(i), c.external[i], false)
		c.one(packet.ACK, natInside(i), natRemote(i), true)
	}
	if t.passed() != 3*n {
		tb.Fatalf("%d packets of %d handshakes passed", t.passed(), n)
	}
	return c
}

// load puts packet k of the next batch: a segment as an open connection has it, or one
// of the handshake before.
func (c *connections) load(k int, f packet.TCPFlags, from, to netip.AddrPort) {
	h := packet.TCPHeader{Src: from, Dst: to, Seq: 1001, Ack: 1001, Flags: f, Window: 65535, TTL: 64}
	if f&packet.SYN != 0 {
		h.Seq = 1000
	}
	c.put(k, c.buf[:packet.BuildTCP(c.buf[:], h, nil)])
}

func (c *connections) one(f packet.TCPFlags, from, to netip.AddrPort, outwards bool) {
	c.load(0, f, from, to)
	c.carry(1, outwards)
}

// TestConntrackIsReal holds gVisor to what the comparison rests on: connections are
// established, translated in both directions and told from half-open ones by their timeouts.
func TestConntrackIsReal(t *testing.T) {
	const n = 300
	g := newGvisorNAT(t)
	defer g.close()
	c := establish(t, g, n)
	half := n // a connection of which only the SYN came
	c.one(packet.SYN, natInside(half), natRemote(half), true)
	halfAt := netip.AddrPortFrom(natExternal, g.source())
	if ip := header.IPv4(g.outer.last[:]); ip.SourceAddress() != address(natExternal) || ip.DestinationAddress() != address(natRemote(half).Addr()) {
		t.Fatalf("%v to %v left", ip.SourceAddress(), ip.DestinationAddress())
	}
	g.clock.ahead.Store(int64(time.Hour))
	inner := g.inner.sent
	for i := range n {
		c.one(packet.ACK, natRemote(i), c.external[i], false)
		if ip := header.IPv4(g.inner.last[:]); ip.DestinationAddress() != address(natInside(i).Addr()) || header.TCP(ip[header.IPv4MinimumSize:]).DestinationPort() != natInside(i).Port() {
			t.Fatalf("connection %d came in to %v", i, ip.DestinationAddress())
		}
	}
	c.one(packet.SYN|packet.ACK, natRemote(half), halfAt, false)
	if got := g.inner.sent - inner; got != n {
		t.Errorf("%d packets came in after an hour, want those of the %d established connections", got, n)
	}
}
