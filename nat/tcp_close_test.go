package nat

import (
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// T-2: half a connection lives for as long as the other half has something to say,
// whichever side closed first.
func TestT2OneWayForHours(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		up, down := dial(l, box, web).open(), dial(l, box2, web).open()
		up.finIn()
		down.finOut()
		for range 12 { // every two hours, for a day
			l.wait(7200 * time.Second)
			l.settle()
			up.dataOut(1000)
			up.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: up.in, ack: up.out})
			down.dataIn(1000)
			down.mustSend(packet.Pass, seg{flags: packet.ACK, seq: down.out, ack: down.in})
		}
		for range 130 { // one way only, the acknowledgements take another way or are lost
			l.wait(60 * time.Second)
			up.dataOut(10)
			down.dataIn(10)
		}
		up.state("established")
		down.state("established")
	})
}

// T-5, RFC 5382 REQ-5: after both FINs a connection stays established as long as data
// before them waits to be acknowledged, and the closing timer is one of idleness.
func TestT5SlowDrain(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web).open()
		for range 20 {
			c.dataOut(1000)
		}
		c.finOut()
		c.mustRecv(packet.Pass, seg{flags: finAck, seq: c.in, ack: c.out - 20_001})
		c.in++
		for left := uint32(20_001); left > 1; left -= 1000 {
			l.wait(time.Hour)
			l.settle()
			c.state("established")
			c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out - left, ack: c.in, payload: 1000})
			c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out - left + 1000})
		}
		for range 10 { // nothing but our FIN is left, and its acknowledgement is lost
			if c.state("closing"); c.left() != 240*time.Second {
				t.Fatalf("closing: %v left, want 240s", c.left())
			}
			l.wait(120 * time.Second)
			l.settle()
			c.mustSend(packet.Pass, seg{flags: finAck, seq: c.out - 1, ack: c.in})
		}
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out})
		c.state("closed")
		l.wait(240*time.Second + 100*time.Millisecond)
		c.mustRecv(packet.NoMapping, seg{flags: packet.ACK, seq: c.in, ack: c.out})
		audit(t, l.Table)
	})
}

// T-2: both close at once; FINs and their ACKs cross, come twice and out of order.
func TestT2SimultaneousClose(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web).open()
		c.mustSend(packet.Pass, seg{flags: finAck, seq: c.out, ack: c.in})
		c.mustRecv(packet.Pass, seg{flags: finAck, seq: c.in, ack: c.out})
		c.state("closing")
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out + 1, ack: c.in + 1})
		c.mustSend(packet.Pass, seg{flags: finAck, seq: c.out, ack: c.in})
		c.state("closing")
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in + 1, ack: c.out + 1})
		if c.state("closed"); c.left() != 240*time.Second {
			t.Errorf("closed: %v left, want 240s", c.left())
		}
		l.wait(time.Minute)
		c.mustRecv(packet.Pass, seg{flags: finAck, seq: c.in, ack: c.out + 1})
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out + 1, ack: c.in + 1})
		c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out + 1})
		if c.state("closed"); c.left() != 180*time.Second {
			t.Errorf("a closed connection was refreshed: %v left, want 180s", c.left())
		}
	})
}

// A FIN with data ahead of data that is lost counts when the hole is filled.
func TestFINOutOfOrder(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web).open()
		c.finOut()
		c.mustRecv(packet.Pass, seg{flags: finAck, seq: c.in + 1000, ack: c.out, payload: 500})
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		c.state("established")
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out, payload: 1000})
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in + 1501})
		c.state("closed")
	})
}

// S-1, A-10: a FIN within the window but not where the stream stands shortens no
// timer, and data behind it shows that it was forged.
func TestS1ForgedFIN(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web).open()
		c.finOut()
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out})
		c.mustRecv(packet.Pass, seg{flags: finAck, seq: c.in + 20_000, ack: c.out})
		c.mustRecv(packet.Pass, seg{flags: finAck, seq: c.in + 65_535, ack: c.out, payload: 1400})
		for range 45 {
			l.wait(400 * time.Second)
			l.settle()
			c.dataIn(1000)
			c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		}
		l.wait(7400 * time.Second)
		l.settle()
		for range 30 {
			c.dataIn(1000)
		}
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		c.state("established")
		c.finIn()
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		c.state("closed")
	})
}

// an exact RST after a FIN of the same side, and after both, as a host sends
// that gets data for what is closed (RFC 9293 section 3.10.7.1), or closes at once.
func TestX3ResetAfterFIN(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		for name, script := range map[string]func(c *conn){
			"from inside, behind the FIN":  func(c *conn) { c.finOut(); c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out}) },
			"from outside, behind the FIN": func(c *conn) { c.finIn(); c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in}) },
			"from inside, behind both FINs": func(c *conn) {
				c.finIn()
				c.finOut()
				c.mustSend(packet.Pass, seg{flags: rstAck, seq: c.out, ack: c.in})
			},
			"from outside, in place of a FIN": func(c *conn) { c.finOut(); c.mustRecv(packet.Pass, seg{flags: rstAck, seq: c.in, ack: c.out}) },
			"from inside, answering data that did not know of the FIN": func(c *conn) {
				c.finOut()
				c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out - 1, payload: 100})
				c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out - 1})
			},
		} {
			c := dial(newLab(t, nil), box, web).open()
			c.wait(time.Minute)
			script(c)
			if got := stateOf(c); got != "reset" || c.left() != 240*time.Second {
				t.Errorf("%s: state %q with %v left, want reset with 240s", name, got, c.left())
			}
			c.wait(time.Minute)
			c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out})
			c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
			if c.left() != 180*time.Second {
				t.Errorf("%s: another reset changed the time left to %v", name, c.left())
			}
		}
	})
}

// S-5, T-2: a new connection from the port of one in TIME-WAIT, without
// acknowledgements in between.
func TestS5ReuseOfTimeWait(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web)
		for range 20 {
			c.open()
			c.dataOut(100)
			c.dataIn(100)
			c.finish()
			l.wait(time.Second)
			c.out, c.in = c.out+250_000, c.in+250_000
		}
		c.open()
		l.wait(130 * time.Second)
		l.settle()
		if c.state("established"); c.left() != 7310*time.Second {
			t.Errorf("%v left, want 7310s", c.left())
		}
		c.works()
		if n := l.Stats().Created.Of(packet.TCP); n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
		audit(t, l.Table)
	})
}

// T-5: what an idle or a blocked connection sends keeps it: keepalives, window
// probes, window updates, retransmissions, urgent data.
func TestT5RefreshedByAcceptableSegments(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web)
		c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out, scale: 8})
		c.out++
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out, scale: 8})
		c.in++
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in, window: 100})
		c.dataOut(2000)
		c.dataIn(3000)
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out, window: 10})
		for name, s := range map[string]seg{
			"keepalive without data":            {flags: packet.ACK, seq: c.out - 1, ack: c.in},
			"keepalive with a byte":             {flags: packet.ACK, seq: c.out - 1, ack: c.in, payload: 1},
			"keepalive, acknowledgement behind": {flags: packet.ACK, seq: c.out - 1, ack: c.in - 1500},
			"retransmission":                    {flags: packet.ACK, seq: c.out - 2000, ack: c.in, payload: 1000},
			"data out of order":                 {flags: packet.ACK, seq: c.out + 20_000, ack: c.in, payload: 1000},
			"urgent data":                       {flags: packet.ACK | packet.URG | packet.PSH, seq: c.out, ack: c.in, payload: 10},
			"window update":                     {flags: packet.ACK, seq: c.out, ack: c.in, window: 200},
			"window next to closed":             {flags: packet.ACK, seq: c.out, ack: c.in, window: 1},
		} {
			l.wait(7400 * time.Second)
			l.settle()
			c.mustSend(packet.Pass, s)
			if c.left() != 7440*time.Second {
				t.Errorf("%s does not refresh: %v left", name, c.left())
			}
		}
		c.state("established")
	})
}

// A window that closes is probed with one byte, which counts when it opens again.
func TestZeroWindowProbe(t *testing.T) {
	wherever(t, func(t *testing.T, dial dialer) {
		l := newLab(t, nil)
		c := dial(l, box, web)
		// The remote never offers more than ten bytes.
		c.syn()
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out, window: 10})
		c.in++
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		for range 5 {
			c.dataOut(10)
			c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out, window: 1})
			c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out + 1, ack: c.in, payload: 1}) // beyond the window
			l.wait(7400 * time.Second)
			l.settle()
			c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in, payload: 1})
			c.out++
			c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out, window: 10})
			if c.left() != 7440*time.Second {
				t.Errorf("the opened window left %v", c.left())
			}
		}
		c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
		c.state("reset")
	})
}

// opening and closing have a timer each, settable by itself.
func TestX2TwoKnobs(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Timers.TCPOpening, c.Timers.TCPClosing = 6*time.Second, 300*time.Second })
	half, closed, reset := l.conn(box, web).syn(), l.conn(box, web2).open(), l.conn(box, other).open()
	closed.finish()
	reset.mustRecv(packet.Pass, seg{flags: packet.RST, seq: reset.in})
	l.wait(6*time.Second + 100*time.Millisecond)
	half.state("")
	closed.state("closed")
	reset.state("reset")
	l.wait(294 * time.Second)
	closed.state("")
	reset.state("")
	if l.settle(); l.Stats().HalfOpen != 0 || l.sessions.live != 0 {
		t.Errorf("%d sessions are left", l.sessions.live)
	}
}
