package nat

import (
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// U-1: one inner endpoint has one external endpoint towards all destinations.
func TestU1EndpointIndependentMapping(t *testing.T) {
	l := newLab(t, nil)
	want := must2(l.udpOut(box, web))(l, packet.Pass)
	for _, to := range []string{"203.0.113.10:8443", "203.0.113.99:443", "203.0.113.99:53"} {
		if got := must2(l.udpOut(box, ap(to)))(l, packet.Pass); got != want {
			t.Errorf("towards %s the source is %v, towards another %v", to, got, want)
		}
	}
	if got := must2(l.udpOut(box2, web))(l, packet.Pass); got == want {
		t.Error("two inner endpoints share an external one")
	}
	if s := l.Stats(); s.Mappings != 2 || s.Sessions.Of(packet.UDP) != 5 {
		t.Errorf("%d mappings and %d sessions, want 2 and 5", s.Mappings, s.Sessions.Of(packet.UDP))
	}
}

// U-8, C-7: only an address and port that was sent to may answer.
func TestU8FilteringDependsOnAddressAndPort(t *testing.T) {
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	if got := must2(l.udpIn(web, at))(l, packet.Pass); got != box {
		t.Errorf("the answer arrived at %v, want %v", got, box)
	}
	must2(l.udpIn(web2, at))(l, packet.Filtered)
	must2(l.udpIn(other, at))(l, packet.Filtered)
	must2(l.udpIn(web, ap("198.51.100.7:1")))(l, packet.NoMapping)
	must2(l.udpOut(box, other))(l, packet.Pass)
	must2(l.udpIn(other, at))(l, packet.Pass)
}

// U-5, U-6: a mapping lives for its timer after the last packet from inside.
func TestU5U6MappingTimer(t *testing.T) {
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	for range 3 {
		l.wait(299 * time.Second)
		l.settle()
		if got := must2(l.udpOut(box, web))(l, packet.Pass); got != at {
			t.Fatalf("refreshed in time, but mapped to %v instead of %v", got, at)
		}
	}
	l.wait(300 * time.Second)
	must2(l.udpIn(web, at))(l, packet.Pass)
	l.wait(200 * time.Millisecond)
	must2(l.udpIn(web, at))(l, packet.NoMapping)
	if got := must2(l.udpOut(box, web))(l, packet.Pass); got == at {
		t.Error("an expired mapping's port was given out again at once")
	}
}

// U-6a, X-8: packets from outside refresh nothing, whether they pass or not.
func TestX8NothingFromOutsideRefreshes(t *testing.T) {
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	for range 30 {
		must2(l.udpIn(web, at))(l, packet.Pass)
		must2(l.udpIn(other, at))(l, packet.Filtered)
		l.wait(10 * time.Second)
	}
	l.wait(200 * time.Millisecond)
	must2(l.udpIn(web, at))(l, packet.NoMapping)
	if n := l.settle(); n != 1 {
		t.Errorf("%d sessions expired, want 1", n)
	}
}

// A filter ends with its own session, though its mapping lives on.
func TestFilterExpiresBeforeMapping(t *testing.T) {
	for _, sweep := range []bool{false, true} {
		l := newLab(t, nil)
		at := must2(l.udpOut(box, web))(l, packet.Pass)
		l.wait(200 * time.Second)
		must2(l.udpOut(box, other))(l, packet.Pass)
		l.wait(150 * time.Second)
		if sweep {
			l.settle()
		}
		must2(l.udpIn(web, at))(l, packet.Filtered)
		must2(l.udpIn(other, at))(l, packet.Pass)
		if got := must2(l.udpOut(box, web))(l, packet.Pass); got != at {
			t.Errorf("the mapping changed to %v", got)
		}
		must2(l.udpIn(web, at))(l, packet.Pass)
		audit(t, l.Table)
	}
}

// U-3: no two inner endpoints have the same port, up to the last one; U-11,
// C-13: the last ones are found as the first; C-11: then new ones are refused
// and nothing is evicted.
func TestU3NoOverloadingInWholeRange(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.Limits = Limits{Sessions: -1, Ports: -1, NewPerSecond: -1}
		c.Reserved = []uint16{51820, 8080, 80}
	})
	const ports = 64512 - 2
	seen := make(map[uint16]bool, ports)
	from := func(i int) endpoint { return makeEndpoint(0x0a000000+uint32(i>>8), uint16(1024+i&255)) }
	for i := range ports {
		at := must2(l.udpOut(from(i).addrPort(), web))(l, packet.Pass)
		if p := at.Port(); p < 1024 || p == 51820 || p == 8080 || seen[p] {
			t.Fatalf("mapping %d has port %d, which is reserved or another's", i, p)
		}
		seen[at.Port()] = true
	}
	must2(l.udpOut(box2, web))(l, packet.PortsExhausted)
	must2(l.udpOut(box2, other))(l, packet.PortsExhausted)
	if s := l.Stats(); s.Mappings != ports || s.FreePorts.Of(packet.UDP) != 0 || s.Refused.Of(ReasonNoPorts) != 2 {
		t.Errorf("%d mappings, %d free ports, %d refused", s.Mappings, s.FreePorts.Of(packet.UDP), s.Refused.Of(ReasonNoPorts))
	}
	for i := range ports {
		must2(l.udpOut(from(i).addrPort(), web))(l, packet.Pass)
	}
	if n := l.settle(); n != 0 {
		t.Errorf("%d sessions were lost", n)
	}
}

// C-8: a freed port is not given out for 120 seconds, and then it is.
func TestC8PortHoldDown(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2000} })
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	l.Close(Flow{Proto: packet.UDP, External: at}, l.now)
	must2(l.udpOut(box, web))(l, packet.PortsExhausted)
	l.wait(119 * time.Second)
	l.settle()
	must2(l.udpOut(box, web))(l, packet.PortsExhausted)
	l.wait(1100 * time.Millisecond)
	must2(l.udpOut(box2, web))(l, packet.Pass)
	if s := l.Stats(); s.HeldPorts != 0 {
		t.Errorf("%d ports are still on hold", s.HeldPorts)
	}
}

// U-7: tables share nothing, so equal inner endpoints of two tenants never meet.
func TestU7OverlappingTenants(t *testing.T) {
	a, b := newLab(t, nil), newLab(t, func(c *Config) { c.Seed[0] = 9 })
	atA := must2(a.udpOut(box, web))(a, packet.Pass)
	atB := must2(b.udpOut(box, web))(b, packet.Pass)
	if atA == atB {
		t.Error("two seeds gave the same port")
	}
	must2(b.udpIn(web, atA))(b, packet.NoMapping)
}

// a mapping of one protocol opens nothing for another.
func TestX6ProtocolsApart(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2000} })
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	c := l.conn(box, web)
	c.external = at
	c.mustRecv(packet.NoMapping, seg{flags: packet.SYN | packet.ACK, seq: 1, ack: 1})
	must2(l.echoIn(web.Addr(), at.Port()))(l, packet.NoMapping)
	c.open()
	if id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass); id != 2000 {
		t.Errorf("identifier %d, want the only one", id)
	}
	must2(l.udpIn(web, at))(l, packet.Pass)
}

// the external address as an inner source, and as its own peer. What goes to it
// passes and is a hairpin's business.
func TestA14OwnAddress(t *testing.T) {
	l := newLab(t, nil)
	own := ap("198.51.100.7:5000")
	must2(l.udpOut(own, web))(l, packet.SpoofedSource)
	must2(l.udpOut(box, own))(l, packet.Pass)
	must2(l.udpIn(own, own))(l, packet.Martian)
	must2(l.udpIn(web, box))(l, packet.NoMapping)
}

func TestFragmentsAreNotTranslated(t *testing.T) {
	l := newLab(t, nil)
	n := packet.BuildUDP(l.buf[:], box, web, make([]byte, 600), 64, 7)
	l.buf[6] |= 0x20 // more fragments
	clear(l.buf[10:12])
	sum := sumOf(l.buf[:20])
	l.buf[10], l.buf[11] = byte(sum>>8), byte(sum)
	if o := l.egress(n); o != packet.Fragment {
		t.Errorf("a fragment out: %v", o)
	}
	var p packet.Packet
	if o := l.Egress(&p, l.now); o != packet.Malformed {
		t.Errorf("an unparsed packet out: %v", o)
	}
	if o := l.Ingress(&p, l.now); o != packet.Malformed {
		t.Errorf("an unparsed packet in: %v", o)
	}
}

// U-4, X-10: port parity is not kept; P-4: ports have nothing to do with inner ports.
func TestP4InnerPortHidden(t *testing.T) {
	l := newLab(t, nil)
	same := 0
	for i := range 2000 {
		from := makeEndpoint(0x0a000002, uint16(20000+i)).addrPort()
		if at := must2(l.udpOut(from, web))(l, packet.Pass); at.Port()%2 == from.Port()%2 {
			same++
		}
	}
	if same < 900 || same > 1100 {
		t.Errorf("%d of 2000 ports have the parity of the inner one", same)
	}
}
