package nat

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// RFC 7857 (updates to the behaviour of NATs). What udp_test.go and tcp_test.go
// prove already is not repeated here.

// without endpoint-independent mapping one external port serves several
// destinations at once, for different sandboxes, and each segment finds its own;
// with it a port has one owner.
func TestX4PortOfManySandboxes(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2000} })
	var conns []*conn
	for i := range 100 {
		from := makeEndpoint(0x0a000002+uint32(i), 40000).addrPort()
		conns = append(conns, l.conn(from, makeEndpoint(0xcb007100+uint32(i), 443).addrPort()).open())
	}
	for _, c := range conns {
		if c.external.Port() != 2000 {
			t.Fatalf("port %d", c.external.Port())
		}
		c.dataIn(10) // recv checks where it arrives
		c.dataOut(10)
	}
	l = newLab(t, func(c *Config) { c.Ports, c.TCPMapping = PortRange{2000, 2000}, EndpointIndependent })
	l.conn(box, web).open()
	l.conn(box, other).open()
	l.conn(box2, web2).mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
}

// pairing is hard. An address whose ports are used up refuses new flows;
// it does not hand them to another address, and says so once a second.
func TestX5ExhaustedAddressRefuses(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2003} })
	for i := range 4 {
		must2(l.udpOut(netip.AddrPortFrom(box.Addr(), uint16(1024+i)), web))(l, packet.Pass)
	}
	l.events()
	for range 20 {
		must2(l.udpOut(box2, web))(l, packet.PortsExhausted)
		if l.p.Src != box2.Addr() {
			t.Fatalf("a refused packet was changed: it has source %v", l.p.Src)
		}
		l.wait(100 * time.Millisecond)
	}
	if e := l.events(); len(e) != 2 || e[0].Kind != Exhausted || e[0].Inner != box2 {
		t.Errorf("%+v", e)
	}
}

// the endpoint-independent mapping of TCP opens nothing for UDP or
// ICMP, nor theirs for TCP, though all have the same number.
func TestX7MappingsOfOneProtocol(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports, c.TCPMapping = PortRange{2000, 2000}, EndpointIndependent })
	c := l.conn(box, web).open()
	must2(l.udpIn(web, c.external))(l, packet.NoMapping)
	must2(l.echoIn(web.Addr(), 2000))(l, packet.NoMapping)
	must2(l.udpOut(box2, other))(l, packet.Pass)
	must2(l.udpIn(web, c.external))(l, packet.Filtered)
	must2(l.echoIn(web.Addr(), 2000))(l, packet.NoMapping)
	stranger := l.conn(box2, other)
	stranger.external = c.external
	stranger.mustRecv(packet.Filtered, seg{flags: packet.SYN, seq: 1})
	c.dataIn(1)
}

// with an endpoint-independent mapping of TCP, too, what the filter
// refuses every 10 s refreshes nothing.
func TestX8RefusedSegmentsDoNotRefresh(t *testing.T) {
	l := newLab(t, func(c *Config) { c.TCPMapping = EndpointIndependent })
	c := l.conn(box, web).open()
	stranger := l.conn(box, other)
	stranger.external = c.external
	for left := c.left(); left > 0; left -= 10 * time.Second {
		if got := c.left(); got != left {
			t.Fatalf("%v are left, want %v", got, left)
		}
		stranger.mustRecv(packet.Filtered, seg{flags: packet.SYN, seq: 1})
		stranger.mustRecv(packet.Filtered, seg{flags: packet.ACK, seq: c.in, ack: c.out})
		l.wait(10 * time.Second)
	}
	l.wait(200 * time.Millisecond)
	if l.settle(); l.sessions.live != 0 || l.mappings.live != 0 {
		t.Error("refused segments kept a mapping alive")
	}
}

// the mapping of an echo identifier goes with its last session, at once.
func TestX13EchoMappingGoesWithItsLastSession(t *testing.T) {
	l := newLab(t, nil)
	id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	l.wait(30 * time.Second)
	must2(l.echoOut(box, other.Addr()))(l, packet.Pass)
	l.wait(31 * time.Second)
	if n := l.settle(); n != 1 || l.Stats().Mappings != 1 {
		t.Fatalf("%d sessions expired, %d mappings are left, want 1 and 1", n, l.Stats().Mappings)
	}
	must2(l.echoIn(web.Addr(), id))(l, packet.Filtered)
	l.wait(30 * time.Second)
	if n := l.settle(); n != 1 || l.Stats().Mappings != 0 || l.Stats().HeldPorts != 1 {
		t.Errorf("%d sessions expired, %d mappings are left", n, l.Stats().Mappings)
	}
	must2(l.echoIn(other.Addr(), id))(l, packet.NoMapping)
	audit(t, l.Table)
}
