package nat

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// dialer makes connections whose initial sequence numbers a test does not choose.
type dialer func(l *lab, inner, remote netip.AddrPort) *conn

// wherever runs a script with initial sequence numbers in the midst of their space
// and at places where they wrap while the script goes on.
func wherever(t *testing.T, script func(t *testing.T, dial dialer)) {
	t.Helper()
	for _, isn := range [][2]uint32{{1000, 7000}, {1<<32 - 1, 1<<32 - 1}, {1<<32 - 2, 5}, {1<<31 - 1, 1<<32 - 700}, {1<<32 - 1500, 1<<31 - 2}} {
		t.Run(fmt.Sprintf("%d,%d", isn[0], isn[1]), func(t *testing.T) {
			script(t, func(l *lab, inner, remote netip.AddrPort) *conn {
				c := l.conn(inner, remote)
				c.out, c.in = isn[0], isn[1]
				return c
			})
		})
	}
}

// works sends what both sides would of an open connection, and sees that it counts.
func (c *conn) works() {
	c.Helper()
	c.wait(time.Minute)
	c.dataOut(700)
	c.dataIn(900)
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
	if c.state("established"); c.left() != 7440*time.Second {
		c.Fatalf("an open connection has %v left, want 7440s", c.left())
	}
}

// T-2: every way in which a handshake may go, in order or not, opens the connection.
func TestT2Handshakes(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		for name, script := range map[string]func(c *conn){
			"three ways": func(c *conn) {
				c.open()
			},
			"an answer with data, which the first data acknowledges": func(c *conn) {
				c.syn()
				c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out, payload: 100})
				c.in += 101
				c.dataOut(10)
			},
			"data in the SYN, accepted": func(c *conn) { // RFC 7413
				c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out, payload: 300})
				c.out += 301
				c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
				c.in++
				c.dataIn(500) // the remote need not wait for our ACK
				c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
			},
			"data in the SYN, not accepted and sent again": func(c *conn) {
				c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out, payload: 300})
				c.out++
				c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
				c.in++
				c.dataOut(300)
				c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out})
			},
			"data in a SYN that is lost, and a SYN without": func(c *conn) {
				c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out, payload: 300})
				c.open()
			},
			"an answer that comes twice, and an ACK that does": func(c *conn) {
				c.open()
				c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in - 1, ack: c.out})
				c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
			},
			"a SYN sent again that is late": func(c *conn) {
				c.open()
				c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out - 1})
				c.dataOut(500)
				c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out - 501})
				c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in - 1, ack: c.out - 500}) // what the first one was answered with
			},
			"both at once": func(c *conn) {
				c.syn()
				c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: c.in})
				c.in++
				c.mustSend(packet.Pass, seg{flags: synAck, seq: c.out - 1, ack: c.in})
				c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in - 1, ack: c.out})
				c.state("established")
			},
			"both at once, and the answer from outside is lost": func(c *conn) {
				c.syn()
				c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: c.in})
				c.in++
				c.mustSend(packet.Pass, seg{flags: synAck, seq: c.out - 1, ack: c.in})
				c.dataIn(10)
			},
			"both at once, the answers before the SYN from outside": func(c *conn) {
				c.syn()
				c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
				c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: c.in})
				c.in++
				c.mustSend(packet.Pass, seg{flags: synAck, seq: c.out - 1, ack: c.in})
				c.state("established")
			},
		} {
			t.Run(name, func(t *testing.T) {
				c := dial(newLab(t, nil), box, web)
				script(c)
				c.works()
				if n := c.Stats().HalfOpen; n != 0 {
					t.Errorf("%d half-open", n)
				}
				audit(t, c.Table)
			})
		}
	})
}

// A handshake that is not complete opens nothing, and what anybody might have
// sent refreshes nothing.
func TestT2HalfAHandshake(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web).syn()
		l.wait(time.Minute)
		c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: 77})
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: 78, ack: 5})
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out + 1})
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out - 1})
		if c.state("opening"); c.left() != 180*time.Second {
			t.Errorf("forgeries changed the time left to %v", c.left())
		}
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
		c.in++
		if c.state("opening"); c.left() != 240*time.Second {
			t.Errorf("answered: %v left, want 240s", c.left())
		}
		l.wait(time.Minute)
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in - 1, ack: c.out})
		c.state("opening")
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		c.works()
	})
}

// S-1, A-10: a forged SYN that comes ahead of the answer, and a reset of what it
// seems to begin, neither end the attempt nor spoil what the true answer says.
func TestS1ForgedSYNAndReset(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web)
		c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out, scale: 8})
		c.out++
		c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: 77})
		c.mustRecv(packet.Filtered, seg{flags: packet.RST, seq: 78})
		c.mustRecv(packet.Filtered, seg{flags: rstAck, seq: 78, ack: c.out + 1})
		c.state("opening")
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out, scale: 8})
		c.in++
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		c.state("established")
		// The scale that we offered counts still.
		l.wait(time.Minute)
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in + 2_000_000, ack: c.out, payload: 1})
		if c.left() != 7440*time.Second {
			t.Error("data within our window does not count")
		}
	})
}

// A host that has forgotten its connection begins a new one from the same port
// (RFC 9293 section 3.5.1). Where the remote has forgotten it, too, the new one
// takes the place of the old one; where it has not, the old one ends first.
func TestHalfOpenReuse(t *testing.T) {
	forget := map[string]func(c *conn){
		"opening": func(c *conn) {
			c.syn()
			c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
			c.in++
		},
		"established": func(c *conn) { c.open() },
		"half-closed": func(c *conn) { c.open(); c.finIn() },
		"closing":     func(c *conn) { c.open(); c.finOut(); c.finIn() },
	}
	wherever(t, func(t *testing.T, dial dialer) {
		for was, script := range forget {
			for _, jump := range []uint32{1 << 20, 1 << 31, 1<<32 - 1<<20} { // a host that started again may well begin below
				l := newLab(t, nil)
				c := dial(l, box, web)
				script(c)
				at, state := c.external, stateOf(c)
				n := *c
				n.out, n.in = c.out+jump, c.in+3<<20
				n.syn()
				n.state(state)
				n.mustRecv(packet.Pass, seg{flags: synAck, seq: 99, ack: n.out + 1}) // acknowledges nothing that was sent
				n.state(state)
				n.mustRecv(packet.Pass, seg{flags: synAck, seq: n.in, ack: n.out})
				n.state("opening")
				n.in++
				n.mustSend(packet.Pass, seg{flags: packet.ACK, seq: n.out, ack: n.in})
				n.works()
				if n.external != at || l.Stats().Created.Of(packet.TCP) != 1 {
					t.Errorf("%s: moved from %v to %v", was, at, n.external)
				}
				audit(t, l.Table)
			}
		}
	})
}

func stateOf(c *conn) string {
	c.clock(c.now)
	s, _ := c.session()
	return s.State
}

// The remote of a host that has forgotten its connection refuses the new one.
func TestHalfOpenReuseRefused(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web).open()
		c.out += 1 << 20
		c.syn()
		c.mustRecv(packet.Filtered, seg{flags: rstAck, seq: c.in - 1, ack: c.out - 1})
		c.state("established")
		c.mustRecv(packet.Pass, seg{flags: rstAck, seq: c.in - 1, ack: c.out})
		c.state("reset")
	})
}

// Where TCP is mapped independently of its destination, a connection that takes
// the tuple of one that has just ended is not mistaken for it by whoever releases
// what belonged to the old one.
func TestClosedEventOfATakenTuple(t *testing.T) {
	for name, end := range map[string]func(l *lab, c *conn){
		"expired": func(l *lab, c *conn) { l.wait(441 * time.Second) },
		"swept":   func(l *lab, c *conn) { l.wait(441 * time.Second); l.settle() },
		"uplink": func(l *lab, c *conn) {
			l.Close(Flow{packet.TCP, c.external, c.remote}, l.now)
		},
	} {
		l := newLab(t, func(c *Config) { c.TCPMapping = EndpointIndependent })
		c := l.conn(box, web).open()
		l.wait(7000 * time.Second)
		other := l.conn(box, other).open() // keeps the mapping
		end(l, c)
		other.dataOut(1)
		c.out += 1 << 20
		if c.open(); c.external != other.external {
			t.Fatalf("%s: the mapping moved", name)
		}
		closed := 0
		for _, e := range l.events() {
			if e.Kind == Closed {
				if closed++; e.Reason != ReasonReused {
					t.Errorf("%s: closed for %v, want %v", name, e.Reason, ReasonReused)
				}
			}
		}
		if closed != 1 {
			t.Errorf("%s: %d closed events, want 1", name, closed)
		}
		l.Close(Flow{packet.TCP, c.external, c.remote}, l.now)
		if e := l.events(); len(e) != 1 || e[0].Reason != ReasonUplinkClosed {
			t.Errorf("%s: %+v", name, e)
		}
	}
}
