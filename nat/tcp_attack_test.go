package nat

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// aim lets c send from the remote to any external port.
func (c *conn) aim(port uint16) *conn {
	n := *c
	n.external = netip.AddrPortFrom(external, port)
	return &n
}

// S-1: resets at the figures 0, 1,000,000, in window and one before change nothing;
// the exact one ends the connection, wherever its numbers lie.
func TestS1Figures(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web).open()
		for range 3 {
			c.dataIn(1000)
			c.dataOut(1000)
		}
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		l.wait(time.Minute)
		base := c.in - 3001 // where the remote's numbers began
		for offset, want := range map[uint32]packet.Outcome{
			0: packet.Filtered, 1_000_000: packet.Filtered, 3000: packet.Filtered,
			3002: packet.Pass, 3043: packet.Pass, 3001 + 65_535: packet.Pass, 3001 + 65_536: packet.Filtered,
		} {
			for _, f := range []packet.TCPFlags{packet.RST, rstAck} {
				c.mustRecv(want, seg{flags: f, seq: base + offset, ack: c.out})
				c.mustSend(packet.Pass, seg{flags: f, seq: c.out - 3001 + offset, ack: c.in})
			}
			if c.state("established"); c.left() != 7380*time.Second {
				t.Fatalf("a reset at %d changed the time left to %v", offset, c.left())
			}
		}
		c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: base + 3001})
		c.state("reset")
	})
}

// S-1, A-10: a thousand random resets each way at a connection in each state.
func TestS1RandomResets(t *testing.T) {
	for state, script := range map[string]func(c *conn){
		"opening":     func(c *conn) { c.syn() },
		"established": func(c *conn) { c.open() },
		"closing":     func(c *conn) { c.open(); c.finOut(); c.finIn() },
		"closed":      func(c *conn) { c.open(); c.finish() },
	} {
		l := newLab(t, nil)
		dice := rand.New(rand.NewPCG(1, 6))
		c := l.conn(box, web)
		script(c)
		l.wait(100 * time.Second)
		was := c.left()
		for range 1000 {
			c.recv(seg{flags: packet.RST, seq: dice.Uint32()})
			c.recv(seg{flags: rstAck, seq: dice.Uint32(), ack: dice.Uint32()})
			c.mustSend(packet.Pass, seg{flags: packet.RST, seq: dice.Uint32()})
		}
		if c.state(state); c.left() != was {
			t.Errorf("%s: %v left, was %v", state, c.left(), was)
		}
	}
}

// a sweep of resets over all ports from the spoofed server, then what the
// server answers to forged data: the connection passes data at +1 s and at +239 s.
func TestA6Sweep(t *testing.T) {
	for _, mode := range []Mapping{AddressAndPortDependent, EndpointIndependent} {
		for _, idle := range []time.Duration{time.Second, 239 * time.Second} {
			l := newLab(t, func(c *Config) { c.TCPMapping = mode })
			dice := rand.New(rand.NewPCG(1, uint64(idle)))
			c := l.conn(box, web).open()
			c.dataOut(100)
			c.dataIn(100)
			for port := range 1 << 16 {
				if port > 0 {
					c.aim(uint16(port)).recv(seg{flags: packet.RST, seq: dice.Uint32()})
				}
			}
			// The server got data that nobody sent, and says where it stands.
			c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out})
			l.wait(idle)
			l.settle()
			c.dataIn(100)
			c.dataOut(100)
			c.state("established")
			if n := l.Stats().Ingress.Of(packet.Pass); n != 4 { // the answer to the SYN, data, the challenge, data
				t.Errorf("%d packets came in, want 4: a reset passed", n)
			}
		}
	}
}

// had every reset been exact, the connection were kept for 240 s still.
func TestA6ExactReset(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		for _, idle := range []time.Duration{time.Second, 200 * time.Second, 239 * time.Second} {
			l := newLab(t, nil)
			c, d := dial(l, box, web).open(), dial(l, box2, web).open()
			for _, k := range []*conn{c, d} {
				k.mustRecv(packet.Pass, seg{flags: packet.RST, seq: k.in})
				k.state("reset")
			}
			l.wait(idle)
			l.settle()
			c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out}) // revives nothing
			c.state("reset")
			at := c.external
			c.dataOut(10)
			d.dataIn(10)
			c.works()
			d.works()
			if c.external != at {
				t.Error("the revived connection moved")
			}
		}
	})
}

// A connection that was reset in the midst of its handshake is no longer
// half-open, and segments of it don't make it so again beyond the limit.
func TestResetHandshakeStaysReset(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.HalfOpen = 3 })
	var all []*conn
	for i := range 12 {
		c := l.conn(box, makeEndpoint(0xcb007101, port(i)).addrPort()).syn()
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
		c.in++
		c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out})
		c.state("reset")
		all = append(all, c)
	}
	for _, c := range all {
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out, payload: 10})
		c.state("reset")
	}
	if n := l.Stats().HalfOpen; n != 0 {
		t.Errorf("%d half-open, want none", n)
	}
	c := all[0]
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in}) // the handshake is complete
	c.works()
	audit(t, l.Table)
}

// A-7, T-7: a neighbour neither evicts a connection nor takes over its port, by
// filling the range, by guessing, or by waiting for the connection's end.
func TestA7NeighbourTCP(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2063} })
	victim := l.conn(box, web).open()
	victim.dataOut(10)
	fill := func() (n int) {
		for i := range 200 {
			c := l.conn(netip.AddrPortFrom(box2.Addr(), port(i)), web)
			if c.send(seg{flags: packet.SYN, seq: 1 << 31}) == packet.Pass {
				if n++; c.external == victim.external {
					t.Fatal("the neighbour got the victim's port")
				}
			}
		}
		return n
	}
	if n := fill(); n != 63 {
		t.Errorf("the neighbour got %d ports, want 63", n)
	}
	// Segments from the neighbour with the victim's numbers are not the victim's.
	l.conn(box2, web).mustSend(packet.NoSession, seg{flags: packet.RST, seq: victim.out})
	victim.works()
	// Not even an exact reset frees the tuple before its time, and then it is held.
	l.wait(250 * time.Second)
	l.settle()
	victim.mustRecv(packet.Pass, seg{flags: packet.RST, seq: victim.in})
	for range 24 {
		fill()
		l.wait(10 * time.Second)
		l.settle()
	}
	l.wait(time.Second)
	l.settle()
	victim.state("")
	l.wait(118 * time.Second)
	fill()
	audit(t, l.Table)
}

// 65,536 SYNs to dead hosts stop at the limit of half-open connections, take
// nothing from those that are open, and the slots come back with the opening timer.
func TestA24Scan(t *testing.T) {
	for _, timer := range []time.Duration{0, 30 * time.Second} {
		l := newLab(t, func(c *Config) { c.Timers.TCPOpening = timer })
		live, neighbour := l.conn(box, web).open(), l.conn(box2, web).open()
		passed := 0
		for i := range 1 << 16 {
			if i%4096 == 0 {
				l.wait(time.Second)
				live.dataOut(10)
				neighbour.dataIn(10)
				l.conn(box2, makeEndpoint(0xcb007200, port(i/4096)).addrPort()).open()
			}
			c := l.conn(netip.AddrPortFrom(box.Addr(), port(i%50_000)), makeEndpoint(0xcb000000+uint32(i), 80).addrPort())
			if c.send(seg{flags: packet.SYN, seq: uint32(i)}) == packet.Pass {
				passed++
			}
		}
		s := l.Stats()
		if passed != 4096 || s.HalfOpen != 4096 || s.Refused.Of(ReasonHalfOpen) != 1<<16-4096 {
			t.Errorf("%d SYNs passed, %d half-open, %d refused; want 4096, 4096, %d", passed, s.HalfOpen, s.Refused.Of(ReasonHalfOpen), 1<<16-4096)
		}
		l.wait(l.config.Timers.TCPOpening + 100*time.Millisecond)
		l.settle()
		if n := l.Stats().HalfOpen; n != 0 {
			t.Errorf("%d half-open after the timer, want none", n)
		}
		live.works()
		neighbour.works()
		l.conn(box, other).open()
		audit(t, l.Table)
	}
}

// T-4: an unsolicited SYN that crosses one from inside is dropped without a word,
// and neither keeps the connection from opening nor passes before it.
func TestT4CrossingSYN(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, func(c *Config) { c.TCPMapping = EndpointIndependent })
		at := l.conn(box, other).open().external // the remote knows the port from elsewhere
		c := dial(l, box, web).aim(at.Port())
		for range 6 {
			c.mustRecv(packet.Filtered, seg{flags: packet.SYN, seq: c.in})
			l.wait(time.Second)
		}
		c.syn()
		c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: c.in}) // sent again
		c.in++
		c.mustSend(packet.Pass, seg{flags: synAck, seq: c.out - 1, ack: c.in})
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in - 1, ack: c.out})
		c.works()
		if n := l.Stats().Ingress.Of(packet.Filtered); n != 6 {
			t.Errorf("%d SYNs dropped, want 6", n)
		}
	})
}

// S-6, A-28: after a loss of all state no segment of an old connection gets a new
// port, from inside or outside; a SYN does.
func TestS6AfterStateLoss(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		old := dial(newLab(t, nil), box, web).open()
		l := newLab(t, nil)
		c := *old
		c.lab = l
		for _, f := range []packet.TCPFlags{packet.ACK, packet.ACK | packet.PSH, finAck, packet.RST, rstAck, synAck} {
			c.mustSend(packet.NoSession, seg{flags: f, seq: c.out, ack: c.in, payload: 1})
			c.mustRecv(packet.NoMapping, seg{flags: f, seq: c.in, ack: c.out, payload: 1})
		}
		if s := l.Stats(); s.Hosts != 0 || s.Created != (PerProtocol{}) {
			t.Errorf("refused segments left state: %+v", s)
		}
		c.out += 1 << 20
		c.open()
	})
}

// T-9, T-10: errors of type 3 about a connection are translated, also where they
// quote no more than eight bytes of the segment; they end and refresh nothing in
// any of its states.
func TestT10ErrorsEndNothing(t *testing.T) {
	for state, script := range map[string]func(c *conn){
		"opening":     func(c *conn) { c.syn() },
		"established": func(c *conn) { c.open(); c.dataOut(100) },
		"closing":     func(c *conn) { c.open(); c.finIn(); c.finOut() },
		"reset": func(c *conn) {
			c.open()
			c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
			c.dataOut(0)
			c.finOut()
			c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
		},
	} {
		l := newLab(t, nil)
		c := l.conn(box, web)
		script(c)
		l.wait(20 * time.Second)
		was := c.left()
		n := l.build(c.external, web, seg{flags: packet.ACK, seq: c.out - 1, ack: c.in})
		quote := append([]byte(nil), l.buf[:n]...)
		for code := range uint8(16) {
			for _, cut := range []int{28, n} {
				if o := l.ingress(l.errorAbout(3, code, 1400, router, external, quote[:cut])); o != packet.Pass {
					t.Fatalf("%s: code %d with %d bytes quoted: %v", state, code, cut, o)
				}
				if l.p.Dst != box.Addr() || l.p.Inner.Src != box.Addr() || l.p.Inner.SrcPort != box.Port() {
					t.Fatalf("%s: the error is for %v and quotes %v:%d", state, l.p.Dst, l.p.Inner.Src, l.p.Inner.SrcPort)
				}
			}
		}
		if c.state(state); c.left() != was {
			t.Errorf("%s: errors changed the time left from %v to %v", state, was, c.left())
		}
	}
}

// without endpoint-independent mapping one external port serves different
// destinations at once, whose connections have nothing to do with each other.
func TestX4OverlappingPort(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2000} })
	a, b := l.conn(box, web).open(), l.conn(box2, web2)
	b.in = 100_000
	b.open()
	if a.external != b.external {
		t.Fatalf("%v and %v, want one port", a.external, b.external)
	}
	a.mustRecv(packet.Pass, seg{flags: packet.RST, seq: a.in})
	a.state("reset")
	b.works()
	l.wait(241 * time.Second)
	l.settle()
	a.state("")
	b.works()
	l.conn(box2, web).mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1}) // held towards web only
	l.conn(box2, other).open()
	audit(t, l.Table)
}

// S-3: data at the far edge of the window, which the receiver cuts off, does not
// make what the true sender says next lie too far behind.
func TestS3DataBeyondTheWindow(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web).open()
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in + 65_535, ack: c.out, payload: 1400})
		l.wait(7000 * time.Second)
		l.settle()
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in - 1, ack: c.out}) // a keepalive
		if c.left() != 7440*time.Second {
			t.Errorf("the keepalive left %v", c.left())
		}
	})
}
