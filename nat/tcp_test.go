package nat

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const (
	synAck = packet.SYN | packet.ACK
	finAck = packet.FIN | packet.ACK
	rstAck = packet.RST | packet.ACK
)

// T-5, X-2: the timers of opening, established and closed connections.
func TestT5Timers(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Timers.TCPOpening = 30 * time.Second })
	c := l.conn(box, web).syn()
	if c.left() != 30*time.Second {
		t.Errorf("opening: %v left, want 30s", c.left())
	}
	c = l.conn(box, web2).open()
	if c.left() != 7440*time.Second {
		t.Errorf("established: %v left, want 7440s", c.left())
	}
	l.wait(7440 * time.Second)
	c.dataIn(10)
	l.wait(7440 * time.Second)
	c.dataOut(10)
	l.wait(7440*time.Second + 200*time.Millisecond)
	c.mustRecv(packet.NoMapping, seg{flags: packet.ACK, seq: c.in, ack: c.out})
	c.mustSend(packet.NoSession, seg{flags: packet.ACK, seq: c.out, ack: c.in})

	c = l.conn(box, other).open()
	c.finOut()
	if c.state("established"); c.left() != 7440*time.Second {
		t.Errorf("half-closed: %v left, want 7440s", c.left())
	}
	c.finIn()
	if c.state("closing"); c.left() != 240*time.Second {
		t.Errorf("closing: %v left, want 240s", c.left())
	}
	l.wait(100 * time.Second)
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
	if c.state("closed"); c.left() != 240*time.Second {
		t.Errorf("closed: %v left, want 240s", c.left())
	}
	l.wait(100 * time.Second)
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
	if c.left() != 140*time.Second {
		t.Errorf("closed: another ACK changed the time left to %v", c.left())
	}
	audit(t, l.Table)
}

// T-2: half-close leaves the other direction open for hours.
func TestT2HalfClose(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	c.finOut()
	for range 100 {
		l.wait(300 * time.Second)
		l.settle()
		c.dataIn(1000)
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
	}
	c.state("established")
}

// T-2: both sides send a SYN; the external port must be known to the remote.
func TestT2SimultaneousOpen(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).syn()
	c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: c.in})
	c.in++
	c.state("opening")
	c.mustSend(packet.Pass, seg{flags: synAck, seq: c.out - 1, ack: c.in})
	c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in - 1, ack: c.out})
	c.dataOut(10)
	c.state("established")
	c.dataIn(10)
	audit(t, l.Table)
}

// A forged SYN during the handshake does not keep the true answer out.
func TestForgedSYNDoesNotBlockHandshake(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).syn()
	c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: 999})
	c.mustSend(packet.Pass, seg{flags: synAck, seq: c.out - 1, ack: 1000}) // answers the forgery
	c.mustRecv(packet.Pass, seg{flags: synAck, seq: 123, ack: c.out + 5})  // acknowledges nothing that was sent
	c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
	c.in++
	c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out})
	c.state("opening") // we have not acknowledged the true answer
	c.dataOut(10)
	c.state("established")
}

// T-4, A-3: an unsolicited SYN is dropped without a word and leaves no trace.
func TestT4UnsolicitedSYN(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web)
	for port := 1024; port < 65536; port += 7 {
		c.external = makeEndpoint(number(external), uint16(port)).addrPort()
		c.mustRecv(packet.NoMapping, seg{flags: packet.SYN, seq: 1})
	}
	if s := l.Stats(); s.Hosts+s.Mappings+l.sessions.live != 0 {
		t.Error("packets from outside left state")
	}
}

// S-6: segments of a connection that isn't known are refused, whatever they are.
func TestS6MidStream(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web)
	for _, f := range []packet.TCPFlags{packet.ACK, finAck, packet.RST, rstAck, synAck, packet.ACK | packet.PSH} {
		c.mustSend(packet.NoSession, seg{flags: f, seq: 5, ack: 5})
	}
	if l.sessions.live != 0 {
		t.Error("a refused segment left state")
	}
}

// Address-and-port-dependent mapping: one external port serves many
// destinations, and none twice at once (T-7).
func TestT7PortServesManyDestinations(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2001} })
	for _, to := range []string{"203.0.113.1:443", "203.0.113.1:80", "203.0.113.2:443"} {
		a, b := l.conn(box, ap(to)).open(), l.conn(box2, ap(to)).open()
		if a.external == b.external {
			t.Errorf("two connections to %s share %v", to, a.external)
		}
		third := l.conn(ap("10.0.0.4:40000"), ap(to))
		third.mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	}
	audit(t, l.Table)
}

// T-1: endpoint-independent mapping of TCP, where it is chosen.
func TestT1EndpointIndependentTCP(t *testing.T) {
	l := newLab(t, func(c *Config) { c.TCPMapping = EndpointIndependent })
	a, b := l.conn(box, web).open(), l.conn(box, other).open()
	if a.external != b.external {
		t.Errorf("sources %v and %v, want one", a.external, b.external)
	}
	stranger := l.conn(box, web2)
	stranger.external = a.external
	stranger.mustRecv(packet.Filtered, seg{flags: packet.SYN, seq: 1})
	audit(t, l.Table)
	l.Close(Flow{Proto: packet.TCP, External: a.external, Remote: web}, l.now)
	b.dataOut(1)
	if c := l.conn(box, web2).open(); c.external != a.external {
		t.Error("the mapping changed while it was in use")
	} else {
		l.Close(Flow{Proto: packet.TCP, External: a.external, Remote: web2}, l.now)
	}
	l.Close(Flow{Proto: packet.TCP, External: a.external, Remote: other}, l.now)
	if s := l.Stats(); s.Mappings != 0 || s.HeldPorts != 1 || s.HeldTuples != 0 {
		t.Errorf("after the last connection: %d mappings, %d ports and %d tuples on hold", s.Mappings, s.HeldPorts, s.HeldTuples)
	}
	if c := l.conn(box, web).open(); c.external == a.external {
		t.Error("the freed port was given out again at once")
	}
	audit(t, l.Table)
}

// S-1, A-6, A-10: a reset whose sequence number is not exactly the expected
// one changes nothing; within the window it passes, from outside not beyond.
func TestS1BlindResets(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	c.dataOut(2000)
	c.dataIn(3000)
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
	dice := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		l.wait(time.Second)
		if seq := dice.Uint32(); seq != c.in {
			c.recv(seg{flags: packet.RST, seq: seq})
		}
		if seq := dice.Uint32(); seq != c.out {
			c.mustSend(packet.Pass, seg{flags: rstAck, seq: seq, ack: c.in})
		}
	}
	c.state("established")
	if c.left() != 6440*time.Second {
		t.Errorf("%v left, want 7440 s less the 1000 that passed", c.left())
	}
	c.mustRecv(packet.Filtered, seg{flags: packet.RST, seq: c.in - 1})
	c.mustRecv(packet.Filtered, seg{flags: packet.RST, seq: c.in + 65536})
	c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in + 42})
	c.state("established")
	c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
	if c.state("reset"); c.left() != 240*time.Second {
		t.Errorf("after the exact reset %v left, want 240s", c.left())
	}
}

// S-1 as Linux's packetdrill test conntrack_rst_invalid scripts it.
func TestS1RSTScript(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web)
	c.in = 0
	c.syn()
	c.mustRecv(packet.Pass, seg{flags: synAck, seq: 0, ack: c.out})
	c.in = 1
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
	c.dataIn(3000)
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: 3001})
	for _, seq := range []uint32{0, 1000000, 42, 3000} {
		c.recv(seg{flags: packet.RST, seq: seq})
		c.state("established")
	}
	c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: 3001})
	c.state("reset")
}

// A reset that follows data still on its way counts, though nobody has acknowledged the data.
func TestResetBehindData(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	c.dataOut(500)
	c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out})
	c.state("reset")
	c = l.conn(box, web2).open()
	c.dataIn(500)
	c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
	c.state("reset")
}

// A SYN is refused by a reset that acknowledges it, and by no other.
func TestRefusedConnection(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).syn()
	c.mustRecv(packet.Filtered, seg{flags: packet.RST, seq: 0})
	c.mustRecv(packet.Filtered, seg{flags: rstAck, ack: c.out + 1})
	c.mustRecv(packet.Filtered, seg{flags: rstAck, ack: c.out - 1})
	c.state("opening")
	c.mustRecv(packet.Pass, seg{flags: rstAck, ack: c.out})
	c.state("reset")
	if l.Stats().HalfOpen != 0 {
		t.Error("a refused connection counts as half-open")
	}
}

// after a reset the connection is kept for 240 s, and acceptable data brings it back.
func TestX3ResetIsRevived(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 200 * time.Second, 239 * time.Second} {
		l := newLab(t, nil)
		c := l.conn(box, web).open()
		c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
		c.state("reset")
		l.wait(after)
		l.settle()
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in + 1<<20, ack: c.out, payload: 10}) // far outside the window
		c.state("reset")
		c.dataIn(100)
		if c.state("established"); c.left() != 7440*time.Second {
			t.Errorf("revived, but %v left", c.left())
		}
	}
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in})
	l.wait(240*time.Second + 200*time.Millisecond)
	c.mustRecv(packet.NoMapping, seg{flags: packet.ACK, seq: c.in, ack: c.out, payload: 10})
}

// resets from inside lengthen no timer.
func TestX9ResetsDoNotRefresh(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	l.wait(7400 * time.Second)
	for range 4 {
		c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out})
		l.wait(10 * time.Second)
	}
	l.wait(200 * time.Millisecond)
	c.state("")
}

// S-2 as Linux's selftest conntrack_syn_challenge_ack: a SYN on an established
// tuple passes and changes nothing, the challenge passes back, the exact reset
// that follows ends the old connection, and the next SYN starts anew.
func TestS2ChallengeACK(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	was := c.external
	l.wait(time.Minute)
	c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: 42})
	c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: 900_000})
	if c.state("established"); c.left() != 7380*time.Second {
		t.Errorf("the SYN changed the time left to %v", c.left())
	}
	c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out})
	c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out})
	c.state("reset")
	c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: 900_000})
	c.state("opening")
	if c.external != was {
		t.Errorf("the tuple moved to %v", c.external)
	}
}

// S-3: segments that acknowledge what was never sent, or lie outside the
// window, change and refresh nothing.
func TestS3UnacceptableSegments(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	c.dataOut(1000)
	c.dataIn(1000)
	l.wait(time.Minute)
	for _, s := range []seg{
		{flags: packet.ACK, seq: c.in, ack: c.out + 1},
		{flags: packet.ACK, seq: c.in, ack: c.out - 70_000},
		{flags: finAck, seq: c.in + 70_000, ack: c.out},
		{flags: finAck, seq: c.in - 70_000, ack: c.out},
	} {
		c.mustRecv(packet.Pass, s)
		if c.left() != 7380*time.Second {
			t.Fatalf("%+v refreshed", s)
		}
	}
	c.finOut()
	c.state("established") // no FIN from outside was believed
	c.mustSend(packet.Pass, seg{flags: packet.RST, seq: c.out + 70_000})
	c.state("established")
}

// Windows beyond 64 KiB count where both sides offered a scale (RFC 7323).
func TestWindowScale(t *testing.T) {
	for _, tt := range []struct {
		ours, theirs int
		want         string
	}{{8, 8, "reset"}, {8, 0, "established"}, {0, 8, "established"}} {
		l := newLab(t, nil)
		c := l.conn(box, web)
		c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out, scale: tt.ours})
		c.out++
		c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out, scale: tt.theirs})
		c.in++
		c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		// Data far beyond 64 KiB moves the expected number only where scaled.
		c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in + 1_000_000, ack: c.out, payload: 100})
		c.recv(seg{flags: packet.RST, seq: c.in + 1_000_100})
		c.state(tt.want)
	}
}

// S-5 as Linux's selftest conntrack_synack_reuse: a SYN on a closed tuple
// starts a connection with full timers on the same port.
func TestS5Reuse(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	was := c.external
	c.finish()
	l.wait(100 * time.Second)
	c.out, c.in = c.out+100_000, c.in+500_000
	c.open()
	if c.external != was {
		t.Errorf("the tuple moved from %v to %v", was, c.external)
	}
	l.wait(2 * time.Hour)
	l.settle()
	c.dataIn(10)
	c.state("established")
	audit(t, l.Table)
}

// A retransmitted SYN refreshes; another initial number starts over.
func TestSYNRetransmission(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).syn()
	l.wait(200 * time.Second)
	c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out - 1})
	if c.left() != 240*time.Second {
		t.Errorf("%v left after a retransmission, want 240s", c.left())
	}
	c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: 77_000})
	c.out = 77_001
	c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: 1001}) // answers the first
	c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
	c.in++
	c.dataOut(1)
	c.state("established")
	if s := l.Stats(); s.HalfOpen != 0 || s.Created.Of(packet.TCP) != 1 {
		t.Errorf("%d half-open of %d created", s.HalfOpen, s.Created.Of(packet.TCP))
	}
}

// C-8: a tuple is held for 120 s towards its destination, and only there.
func TestC8TupleHoldDown(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2000} })
	c := l.conn(box, web).open()
	l.Close(Flow{Proto: packet.TCP, External: c.external, Remote: web}, l.now)
	c.mustRecv(packet.NoMapping, seg{flags: packet.ACK, seq: c.in, ack: c.out})
	c.mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	l.conn(box, other).open()
	l.wait(120 * time.Second)
	c.mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	l.wait(200 * time.Millisecond)
	c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: 1})
	audit(t, l.Table)
}

// RFC 6888 REQ-8: where nearly every tuple towards a destination is taken, one
// closed by both FINs goes to a new connection whose numbers are higher.
func TestC8ClosedTupleIsReused(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Ports = PortRange{2000, 2000} })
	c := l.conn(box, web).open()
	c.finish()
	l.events()
	n := l.conn(box2, web)
	n.mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: c.out - 1})
	n.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out + 1})
	c.state("")
	e := l.events()
	if len(e) != 3 || e[1].Kind != Closed || e[1].Reason != ReasonReused || e[2].Kind != Created {
		t.Errorf("events %+v, want exhausted, closed by reuse and created", e)
	}
	if l.Stats().HeldTuples != 0 {
		t.Error("the reused tuple is on hold")
	}
	audit(t, l.Table)
}

// windowScale reads SYN options as they come.
func TestWindowScaleOption(t *testing.T) {
	for _, tt := range []struct {
		options []byte
		want    uint8
	}{
		{nil, noScale},
		{[]byte{3, 3, 7, 0}, 7},
		{[]byte{1, 1, 1, 3, 3, 200, 0, 0}, 14},
		{[]byte{2, 4, 5, 180, 1, 3, 3, 9}, 9},
		{[]byte{0, 3, 3, 7}, noScale},
		{[]byte{3, 3, 7, 8}[:4], 7},
		{[]byte{2, 0, 3, 3}, noScale},
		{[]byte{1, 1, 1, 3}, noScale},
		{[]byte{3, 4, 7, 0}, noScale},
	} {
		p := packet.Packet{B: append(make([]byte, 40), tt.options...), L4: 20}
		if got := windowScale(&p); got != tt.want {
			t.Errorf("options %v: scale %d, want %d", tt.options, got, tt.want)
		}
	}
}
