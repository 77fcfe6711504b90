package nat

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// spread sends a datagram from one inner endpoint to each of n remotes, and returns
// the external port.
func (l *lab) spread(from netip.AddrPort, n int) uint16 {
	for i := range n {
		must2(l.udpOut(from, makeEndpoint(0xcb007100+uint32(i), 53).addrPort()))(l, packet.Pass)
	}
	return l.p.SrcPort
}

// A mapping that ends with many sessions takes no more than atOnce of them along in
// one call, whatever ends it. The inner endpoint has another at once, and Expire
// does the rest.
func TestLargeMappingEndsInSteps(t *testing.T) {
	const n = atOnce + 300
	for name, end := range map[string]func(l *lab, port uint16){
		"expired": func(l *lab, _ uint16) { l.wait(time.Hour) },
		"refused": func(l *lab, port uint16) {
			l.PortRefused(Flow{Proto: packet.UDP, External: netip.AddrPortFrom(external, port)}, l.now)
		},
		"closed": func(l *lab, port uint16) {
			l.Close(Flow{Proto: packet.UDP, External: netip.AddrPortFrom(external, port)}, l.now)
		},
	} {
		l := newLab(t, nil)
		port := l.spread(box, n)
		end(l, port)
		if at := must2(l.udpOut(box, web))(l, packet.Pass); at.Port() == port {
			t.Errorf("%s: the port is the same", name)
		}
		if live := l.sessions.live; live != n-atOnce+1 {
			t.Errorf("%s: %d sessions are left, want %d and a new one", name, live, n-atOnce)
		}
		audit(t, l.Table)
		l.roundTrip(t, name)
		for steps := 0; l.sessions.live > 1; steps++ {
			if l.Expire(l.now, 100) > 100/removalCost+1 || steps > n {
				t.Fatalf("%s: Expire ends more than its budget, or not all", name)
			}
			audit(t, l.Table)
		}
		if s := l.Stats(); s.HeldPorts != 1 || s.Mappings != 1 {
			t.Errorf("%s: %d ports on hold, %d mappings, want one each", name, s.HeldPorts, s.Mappings)
		}
		closed := 0
		for _, e := range l.events() {
			if e.Kind == Closed && e.External.Port() == port {
				closed++
			}
		}
		if closed != 1 {
			t.Errorf("%s: the end was told %d times", name, closed)
		}
	}
}

// A mapping that ends with many sessions in the middle of a batch ends for all packets
// behind it: its inner endpoint has one new mapping, not one for each of them (U-1).
func TestLargeMappingEndsInBatch(t *testing.T) {
	l := newLab(t, nil)
	old := l.spread(box, 3*atOnce)
	l.wait(time.Hour)
	var ps []*packet.Packet
	for i := range 8 {
		b := make([]byte, 64)
		p := new(packet.Packet)
		to := makeEndpoint(0xcb007100+uint32(i/2), 53).addrPort() // pairs with the same key, and others
		if o := packet.Parse(p, b[:packet.BuildUDP(b, box, to, nil, 64, 0)]); o != packet.Pass {
			t.Fatal(o)
		}
		ps = append(ps, p)
	}
	out := make([]packet.Outcome, len(ps))
	l.EgressBatch(ps, out, l.now)
	for i, p := range ps {
		if out[i] != packet.Pass || p.SrcPort == old || p.SrcPort != ps[0].SrcPort {
			t.Errorf("packet %d: %v, from port %d; the first from %d, the old one is %d", i, out[i], p.SrcPort, ps[0].SrcPort, old)
		}
	}
	if n := l.mappings.live; n != 2 {
		t.Errorf("%d mappings, want the old one, which ends, and a new one", n)
	}
	audit(t, l.Table)
}

// roundTrip exports the table and imports that into another.
func (l *lab) roundTrip(t *testing.T, name string) {
	l.wait(time.Second)
	b, _ := l.AppendExport(nil, ExportCursor{}, 1<<30, l.now)
	if err := newLab(t, nil).Import(b, l.now); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// Revoke ends no more sessions at a time than it was told to, and says whether there are more.
func TestRevokeInSteps(t *testing.T) {
	l := newLab(t, nil)
	l.spread(box, 40)
	l.spread(netip.AddrPortFrom(box.Addr(), 1), 10)
	for i := range 30 {
		l.conn(box, makeEndpoint(0xcb007100+uint32(i), 443).addrPort()).open()
	}
	l.spread(box2, 5)
	for left := 80; left > 0; {
		n, more := l.Table.Revoke(box.Addr(), l.now, 16)
		if left -= n; n != 16 || more != (left > 0) {
			t.Fatalf("%d sessions ended, more: %v, with %d left", n, more, left)
		}
		audit(t, l.Table)
	}
	if s := l.Stats(); s.Ended.Of(ReasonRevoked) != 80 || l.sessions.live != 5 {
		t.Errorf("%d sessions revoked, %d are left", s.Ended.Of(ReasonRevoked), l.sessions.live)
	}
}

// RevokeRemote looks at no more records at a time than its budget allows.
func TestRevokeRemoteInSteps(t *testing.T) {
	l := newLab(t, nil)
	l.spread(box, 100)
	ended, steps := 0, 0
	for next := uint32(0); steps == 0 || next != 0; steps++ {
		n := 0
		n, next = l.Table.RevokeRemote(netip.MustParsePrefix("203.0.113.0/27"), l.now, next, 24)
		if ended += n; n > 24/removalCost {
			t.Fatalf("%d ended in one step", n)
		}
	}
	if ended != 32 || l.sessions.live != 68 || steps < 10 {
		t.Errorf("%d ended in %d steps, %d are left", ended, steps, l.sessions.live)
	}
}

// A remote most of whose ports are taken, and of whom nothing is known yet, is not
// asked for all of them by one packet (U-11).
func TestSurveyIsBounded(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits = Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1} })
	n := 0
	syn := func() packet.Outcome {
		n++
		return l.conn(makeEndpoint(0x0a000000+uint32(n>>15), uint16(1024+n&0x7fff)).addrPort(), web).send(seg{flags: packet.SYN})
	}
	for range 64_400 {
		if o := syn(); o != packet.Pass {
			t.Fatal(o)
		}
	}
	clear(l.crowds) // as though the sessions came from elsewhere
	l.crowdRound = nil
	passed, known := 0, uint32(l.blank.first)
	for range 40 {
		if syn() == packet.Pass {
			passed++
		}
		c := l.crowds[makeEndpoint(number(web.Addr()), web.Port())]
		if c.known-known > crowdStep+surveyMost {
			t.Fatalf("%d ports were asked for by one packet", c.known-known)
		}
		known = c.known
	}
	if passed < 30 || known != 1<<16 {
		t.Errorf("%d of 40 connections found one of 112 ports; those below %d were asked for", passed, known)
	}
}
