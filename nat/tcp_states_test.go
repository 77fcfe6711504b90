package nat

import (
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// the state machine whole: what every class of segment from either side does
// to a connection in every situation that the table tells apart.
//
// A cell says what becomes of the segment and of the connection:
//
//	.   passes, and neither state nor timer changes
//	o   passes; opening, with the opening timer (30 s here) begun anew
//	E   passes; established, with 7,440 s
//	c   passes; closing, with 240 s
//	D   passes; closed, with 240 s
//	R   passes; reset, with at most 240 s, and no more than there was
//	f   dropped as filtered (from outside), and nothing changes
//	x   dropped as nobody's, and nothing changes
const stateMachine = `
                                 from inside                            from outside
                     syn new syn+ syn? ack ack? data fin fin^ rst rst~ rst!  syn syn+ syn? ack ack? data fin fin^ rst rst~ rst! refuse
nothing              o   o   x    x    x   x    x    x   x    x   x    x     x   x    x    x   x    x    x   x    x   x    x    x
syn sent             o   o   .    .    .   .    .    .   .    R   .    .     .   o    .    .   .    .    .   .    f   f    f    R
syn received         o   o   o    .    .   .    .    .   .    R   .    .     .   o    .    .   .    .    .   .    f   f    f    R
syn answered         o   .   E    .    E   .    E    E   E    R   .    .     .   .    .    .   .    .    .   .    R   .    f    f
established          .   .   .    .    E   .    E    E   E    R   .    .     .   .    .    E   .    E    E   E    R   .    f    f
fin sent             .   .   .    .    E   .    E    E   E    R   .    .     .   .    .    E   .    E    c   E    R   .    f    f
fin received         .   .   .    .    E   .    E    c   E    R   .    .     .   .    .    E   .    E    E   E    R   .    f    f
closing              .   .   .    .    D   .    E    c   D    R   .    .     .   .    .    c   .    E    E   c    R   .    f    f
closed               o   o   .    .    .   .    .    .   .    .   .    .     .   .    .    .   .    .    .   .    .   .    f    f
reset                o   o   .    .    E   .    E    E   E    .   .    .     .   .    .    E   .    E    E   E    .   .    f    f
refused              o   o   .    .    .   .    .    .   .    .   .    .     .   .    .    .   .    .    .   .    f   f    f    .
`

// situations bring a connection to where a row begins.
func situations() map[string]func(c *conn) {
	return map[string]func(c *conn){
		"nothing":  func(c *conn) { *c = *c.aim(2000) },
		"syn sent": func(c *conn) { c.syn() },
		"syn received": func(c *conn) {
			c.syn()
			c.mustRecv(packet.Pass, seg{flags: packet.SYN, seq: c.in})
			c.in++
		},
		"syn answered": func(c *conn) {
			c.syn()
			c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
			c.in++
		},
		"established": func(c *conn) { c.open() },
		"fin sent": func(c *conn) {
			c.open()
			c.finOut()
			c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out})
		},
		"fin received": func(c *conn) {
			c.open()
			c.finIn()
			c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
		},
		"closing": func(c *conn) { c.open(); c.finOut(); c.finIn() },
		"closed":  func(c *conn) { c.open(); c.finish() },
		"reset":   func(c *conn) { c.open(); c.mustRecv(packet.Pass, seg{flags: packet.RST, seq: c.in}) },
		"refused": func(c *conn) { c.syn(); c.mustRecv(packet.Pass, seg{flags: rstAck, ack: c.out}) },
	}
}

// classOf is a segment of a class, whose sender stands at sequence number next and
// has heard from the other side up to heard.
func classOf(name string, isn, next, heard uint32) seg {
	switch name {
	case "syn":
		return seg{flags: packet.SYN, seq: isn}
	case "new":
		return seg{flags: packet.SYN, seq: next + 1<<20}
	case "syn+":
		return seg{flags: synAck, seq: isn, ack: heard}
	case "syn?": // acknowledges nothing that was sent
		return seg{flags: synAck, seq: isn, ack: heard + 70_000}
	case "ack":
		return seg{flags: packet.ACK, seq: next, ack: heard}
	case "ack?":
		return seg{flags: packet.ACK, seq: next, ack: heard + 70_000, payload: 10}
	case "data":
		return seg{flags: packet.ACK | packet.PSH, seq: next, ack: heard, payload: 10}
	case "fin":
		return seg{flags: finAck, seq: next, ack: heard}
	case "fin^": // which was sent before, where one was
		return seg{flags: finAck, seq: next - 1, ack: heard}
	case "rst":
		return seg{flags: packet.RST, seq: next}
	case "rst~": // within the window
		return seg{flags: packet.RST, seq: next + 500}
	case "rst!": // outside
		return seg{flags: packet.RST, seq: next + 500_000}
	case "refuse": // as one that never had the connection does
		return seg{flags: rstAck, seq: next + 500_000, ack: heard}
	}
	panic(name)
}

// cell does to a connection what a cell of the table says and returns its letter.
func cell(l *lab, c *conn, isn [2]uint32, class string, d int) string {
	next, heard, from := c.out, c.in, isn[0]
	if d == inward {
		next, heard, from = c.in, c.out, isn[1]
	}
	was, before := stateOf(c), c.left()
	o := packet.Outcome(0)
	if s := classOf(class, from, next, heard); d == outward {
		o = c.send(s)
	} else {
		o = c.recv(s)
	}
	is, left := stateOf(c), c.left()
	switch same := is == was && left == before; {
	case o == packet.Filtered && same:
		return "f"
	case (o == packet.NoMapping || o == packet.NoSession) && same:
		return "x"
	case o != packet.Pass:
		return "?"
	case same:
		return "."
	}
	for _, w := range []struct {
		state, letter string
		left          time.Duration
	}{
		{"opening", "o", 30 * time.Second}, {"established", "E", 7440 * time.Second}, {"closing", "c", 240 * time.Second},
		{"closed", "D", 240 * time.Second}, {"reset", "R", min(240*time.Second, before)},
	} {
		if is == w.state && left == w.left {
			return w.letter
		}
	}
	return "?"
}

func TestX1StateMachine(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(stateMachine), "\n")[1:]
	classes := strings.Fields(lines[0])
	scripts := situations()
	if len(lines)-1 != len(scripts) {
		t.Fatalf("%d rows for %d situations", len(lines)-1, len(scripts))
	}
	wherever(t, func(t *testing.T, dial dialer) {
		for _, line := range lines[1:] {
			name := strings.TrimSpace(line[:20])
			script, cells := scripts[name], strings.Fields(line[20:])
			if script == nil || len(cells) != len(classes) {
				t.Fatalf("row %q: %d cells, want %d", name, len(cells), len(classes))
			}
			for i, class := range classes {
				d := outward
				if i >= len(classes)/2 {
					d = inward
				}
				l := newLab(t, func(c *Config) { c.Timers.TCPOpening = 30 * time.Second })
				c := dial(l, box, web)
				isn := [2]uint32{c.out, c.in}
				script(c)
				l.wait(10 * time.Second)
				if got := cell(l, c, isn, class, d); got != cells[i] {
					t.Errorf("%s, %s from side %d: %s, want %s", name, class, d, got, cells[i])
				}
				audit(t, l.Table)
			}
		}
	})
}
