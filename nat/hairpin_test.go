package nat

import (
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// turn takes the packet that left last back to the same table.
func (l *lab) turn() packet.Outcome {
	l.Helper()
	var p packet.Packet
	if o := packet.Parse(&p, l.p.B); o != packet.Pass {
		l.Fatal(o)
	}
	l.p = p
	return l.Hairpin(&l.p, l.now)
}

// U-9, X-14: a hairpin within one table is filtered as what comes from outside, shows
// the external endpoint, and refreshes nothing.
func TestHairpin(t *testing.T) {
	l := newLab(t, nil)
	extA := must2(l.udpOut(box, web))(l, packet.Pass)
	extB := must2(l.udpOut(box2, web))(l, packet.Pass)
	must2(l.udpOut(box, extB))(l, packet.Pass)
	if o := l.turn(); o != packet.Filtered {
		t.Errorf("before B has sent: %v", o)
	}
	must2(l.udpOut(box2, extA))(l, packet.Pass)
	if o := l.turn(); o != packet.Pass || l.src() != extB || l.dst() != box {
		t.Errorf("%v: %v -> %v, want %v -> %v", o, l.src(), l.dst(), extB, box)
	}
	must2(l.udpOut(box, netip.AddrPortFrom(external, 1024)))(l, packet.Pass)
	if o := l.turn(); o != packet.NoMapping && o != packet.Filtered {
		t.Errorf("to a port that A has opened to nobody: %v", o)
	}
	must2(l.udpOut(box, web))(l, packet.Pass)
	if o := l.turn(); o != packet.NoMapping {
		t.Errorf("to another address: %v", o)
	}
	must2(l.udpOut(box, extA))(l, packet.Pass)
	if o := l.turn(); o != packet.Martian {
		t.Errorf("to itself: %v", o)
	}
	must2(l.echoOut(box, external))(l, packet.Pass)
	if o := l.turn(); o != packet.NoMapping {
		t.Errorf("an echo request: %v", o)
	}
	if o := l.Hairpin(&packet.Packet{}, l.now); o != packet.Malformed {
		t.Errorf("nothing: %v", o)
	}
	if n := l.Stats().Ingress.Of(packet.Martian); n != 1 {
		t.Errorf("%d counted as martian, want 1", n)
	}
}

// A table says what it holds, and changes nothing by it.
func TestHolds(t *testing.T) {
	for _, mapping := range []Mapping{AddressAndPortDependent, EndpointIndependent} {
		l := newLab(t, func(c *Config) { c.TCPMapping = mapping })
		holds := func(n int) bool {
			l.parse(n)
			return l.Holds(&l.p, l.now)
		}
		datagram := func(to netip.AddrPort) int { return packet.BuildUDP(l.buf[:], box, to, nil, 64, 1) }
		if holds(datagram(web)) || l.HoldsFor(box.Addr()) || l.HoldsFor(netip.Addr{}) {
			t.Error("an empty table holds a flow")
		}
		must2(l.udpOut(box, web))(l, packet.Pass)
		if !holds(datagram(web)) || !holds(datagram(other)) || !l.HoldsFor(box.Addr()) || l.HoldsFor(box2.Addr()) {
			t.Error("the mapping is not held")
		}
		c := l.conn(box, web).open()
		segment := func(to netip.AddrPort) bool { return holds(l.build(box, to, seg{flags: packet.ACK, seq: 1})) }
		if !segment(web) || segment(other) != (mapping == EndpointIndependent) {
			t.Errorf("mapping %d: connection %v, another remote %v", mapping, segment(web), segment(other))
		}
		_ = c
		l.wait(longest)
		if holds(datagram(web)) {
			t.Error("what is over is held")
		}
		if l.settle(); l.HoldsFor(box.Addr()) || segment(web) {
			t.Error("what is gone is held")
		}
	}
}
