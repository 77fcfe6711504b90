package nat

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

var (
	external = netip.MustParseAddr("198.51.100.7")
	// The remotes and the inner endpoints of most tests.
	web   = ap("203.0.113.10:443")
	web2  = ap("203.0.113.10:8443")
	other = ap("203.0.113.99:443")
	box   = ap("10.0.0.2:40000")
	box2  = ap("10.0.0.3:40000")
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// reporter is what testing.TB and rapid.T have in common.
type reporter interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// lab is a table with a clock, and builders for the packets that meet it.
type lab struct {
	reporter
	*Table
	now packet.Instant
	buf [4096]byte
	was [4096]byte    // the last packet, as it came
	p   packet.Packet // the last packet, as the table left it
}

func newLab(tb reporter, change func(*Config)) *lab {
	tb.Helper()
	c := Config{External: external, Seed: [32]byte{1, 2, 3}}
	if change != nil {
		change(&c)
	}
	t, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return &lab{reporter: tb, Table: t, now: packet.Instant(time.Hour)}
}

func (l *lab) wait(d time.Duration) { l.now += packet.Instant(d) }

// settle lets everything go whose time is over.
func (l *lab) settle() int { return l.Expire(l.now, 1<<30) }

// Sessions yields every session whose time is not over.
func (l *lab) Sessions() iter.Seq[Session] { return sessionsOf(l.Table) }

func sessionsOf(t *Table) iter.Seq[Session] {
	return func(yield func(Session) bool) {
		var some []Session
		for at, first := uint32(0), true; at != 0 || first; first = false {
			some, at = t.AppendSessions(some[:0], at, 7)
			for _, s := range some {
				if !yield(s) {
					return
				}
			}
		}
	}
}

// Revoke removes all that an inner address holds, in steps.
func (l *lab) Revoke(inner netip.Addr, now packet.Instant) (ended int) {
	for more := true; more; {
		n := 0
		n, more = l.Table.Revoke(inner, now, 300)
		ended += n
	}
	return ended
}

// RevokeRemote removes all sessions with remotes of a prefix, in steps.
func (l *lab) RevokeRemote(remote netip.Prefix, now packet.Instant) (ended int) {
	n, next := l.Table.RevokeRemote(remote, now, 0, 0)
	for ended = n; next != 0; ended += n {
		n, next = l.Table.RevokeRemote(remote, now, next, 20)
	}
	return ended
}

// events drains all events.
func (l *lab) events() []Event {
	out := make([]Event, l.Table.events.used)
	return out[:l.Drain(out)]
}

func (l *lab) parse(n int) {
	l.Helper()
	if n == 0 {
		l.Fatal("the builder refused")
	}
	if o := packet.Parse(&l.p, l.buf[:n]); o != packet.Pass {
		l.Fatalf("the test's own packet does not parse: %v", o)
	}
}

// egress hands the built packet to the table and checks what must be true of
// every packet that leaves.
func (l *lab) egress(n int) packet.Outcome {
	l.Helper()
	l.parse(n)
	copy(l.was[:], l.p.B)
	o := l.Egress(&l.p, l.now)
	if o == packet.Pass {
		l.sound()
		if l.config.Identity {
			l.unchanged()
		} else if l.p.Src != external {
			l.Fatalf("a packet left with source %v", l.p.Src)
		}
	}
	return o
}

func (l *lab) ingress(n int) packet.Outcome {
	l.Helper()
	l.parse(n)
	copy(l.was[:], l.p.B)
	o := l.Ingress(&l.p, l.now)
	if o == packet.Pass {
		l.sound()
		if l.config.Identity {
			l.unchanged()
		}
	}
	return o
}

// unchanged checks what must be true of every packet in an identity table.
func (l *lab) unchanged() {
	l.Helper()
	if was := l.was[:len(l.p.B)]; !bytes.Equal(l.p.B, was) {
		l.Fatalf("an identity table changed %x to %x", was, l.p.B)
	}
}

// sound parses the translated packet again, from its bytes alone.
func (l *lab) sound() {
	l.Helper()
	var q packet.Packet
	if o := packet.Parse(&q, l.p.B); o != packet.Pass {
		l.Fatalf("the translated packet does not parse: %v", o)
	}
	if !q.ChecksumOK() {
		l.Fatal("the translated packet's checksum is wrong")
	}
	if q.Src != l.p.Src || q.Dst != l.p.Dst || q.SrcPort != l.p.SrcPort || q.DstPort != l.p.DstPort {
		l.Fatalf("the view %v:%d>%v:%d is not what the bytes say: %v:%d>%v:%d",
			l.p.Src, l.p.SrcPort, l.p.Dst, l.p.DstPort, q.Src, q.SrcPort, q.Dst, q.DstPort)
	}
}

func (l *lab) src() netip.AddrPort { return netip.AddrPortFrom(l.p.Src, l.p.SrcPort) }
func (l *lab) dst() netip.AddrPort { return netip.AddrPortFrom(l.p.Dst, l.p.DstPort) }

// udpOut sends a datagram and returns the source that the far side sees.
func (l *lab) udpOut(from, to netip.AddrPort) (netip.AddrPort, packet.Outcome) {
	l.Helper()
	o := l.egress(packet.BuildUDP(l.buf[:], from, to, []byte("ping"), 64, 0))
	return l.src(), o
}

// udpIn sends a datagram from the far side and returns where it arrives.
func (l *lab) udpIn(from, to netip.AddrPort) (netip.AddrPort, packet.Outcome) {
	l.Helper()
	o := l.ingress(packet.BuildUDP(l.buf[:], from, to, []byte("pong"), 64, 0))
	return l.dst(), o
}

// echoOut sends an echo request and returns the identifier that the far side sees.
func (l *lab) echoOut(from netip.AddrPort, to netip.Addr) (uint16, packet.Outcome) {
	l.Helper()
	o := l.egress(packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: from.Addr(), Dst: to, Ident: from.Port(), TTL: 64}, []byte("ping")))
	return l.p.SrcPort, o
}

// echoIn sends an echo reply from the far side and returns where it arrives.
func (l *lab) echoIn(from netip.Addr, id uint16) (netip.AddrPort, packet.Outcome) {
	l.Helper()
	return l.echoTo(from, netip.AddrPortFrom(external, id))
}

// echoTo is echoIn to another address than the external one.
func (l *lab) echoTo(from netip.Addr, to netip.AddrPort) (netip.AddrPort, packet.Outcome) {
	l.Helper()
	o := l.ingress(packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: from, Dst: to.Addr(), Reply: true, Ident: to.Port(), TTL: 64}, []byte("ping")))
	return l.dst(), o
}

// must2 checks the outcome of what it is given and returns its value.
func must2[T any](v T, o packet.Outcome) func(l *lab, want packet.Outcome) T {
	return func(l *lab, want packet.Outcome) T {
		l.Helper()
		if o != want {
			l.Fatalf("outcome %v, want %v", o, want)
		}
		return v
	}
}

// seg is a TCP segment but for its endpoints.
type seg struct {
	flags    packet.TCPFlags
	seq, ack uint32
	window   uint16 // 0 stands for 65535, unless shut
	shut     bool   // the window is 0
	payload  int
	scale    int // of a SYN: window scale + 1
}

// conn is a TCP connection through the lab, with both hosts' views.
type conn struct {
	*lab
	inner, remote, external netip.AddrPort
	out, in                 uint32 // next sequence number of each direction
}

func (l *lab) conn(inner, remote netip.AddrPort) *conn {
	return &conn{lab: l, inner: inner, remote: remote, out: 1000, in: 7000}
}

func (l *lab) build(from, to netip.AddrPort, s seg) int {
	if s.window == 0 && !s.shut {
		s.window = 65535
	}
	h := packet.TCPHeader{Src: from, Dst: to, Seq: s.seq, Ack: s.ack, Flags: s.flags, Window: s.window, TTL: 64}
	if s.scale > 0 {
		h.MSS = 1460
	}
	n := packet.BuildTCP(l.buf[:], h, make([]byte, s.payload))
	if s.scale > 0 { // the option MSS becomes window scale and its checksum follows
		o, check := l.buf[40:44], l.buf[36:38]
		was := uint32(binary.BigEndian.Uint16(o)) + uint32(binary.BigEndian.Uint16(o[2:]))
		copy(o, []byte{3, 3, byte(s.scale - 1), 0})
		is := uint32(binary.BigEndian.Uint16(o)) + uint32(binary.BigEndian.Uint16(o[2:]))
		sum := uint32(^binary.BigEndian.Uint16(check)) + 2*0xffff - was + is
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(check, ^uint16(sum))
	}
	return n
}

// send sends a segment as it is from inside.
func (c *conn) send(s seg) packet.Outcome {
	c.Helper()
	o := c.egress(c.build(c.inner, c.remote, s))
	if o == packet.Pass {
		c.external = c.src()
	}
	return o
}

// recv sends a segment as it is from the remote.
func (c *conn) recv(s seg) packet.Outcome {
	c.Helper()
	o := c.ingress(c.build(c.remote, c.external, s))
	if o == packet.Pass && c.dst() != c.inner {
		c.Fatalf("a segment for %v arrived at %v", c.inner, c.dst())
	}
	return o
}

func (c *conn) mustSend(want packet.Outcome, s seg) {
	c.Helper()
	if o := c.send(s); o != want {
		c.Fatalf("segment out %+v: %v, want %v", s, o, want)
	}
}

func (c *conn) mustRecv(want packet.Outcome, s seg) {
	c.Helper()
	if o := c.recv(s); o != want {
		c.Fatalf("segment in %+v: %v, want %v", s, o, want)
	}
}

// syn sends the first segment.
func (c *conn) syn() *conn {
	c.Helper()
	c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out})
	c.out++
	return c
}

// open does the whole handshake.
func (c *conn) open() *conn {
	c.Helper()
	c.syn()
	c.mustRecv(packet.Pass, seg{flags: packet.SYN | packet.ACK, seq: c.in, ack: c.out})
	c.in++
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
	c.state("established")
	return c
}

func (c *conn) dataOut(n int) {
	c.Helper()
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in, payload: n})
	c.out += uint32(n)
}

func (c *conn) dataIn(n int) {
	c.Helper()
	c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out, payload: n})
	c.in += uint32(n)
}

func (c *conn) finOut() {
	c.Helper()
	c.mustSend(packet.Pass, seg{flags: packet.FIN | packet.ACK, seq: c.out, ack: c.in})
	c.out++
}

func (c *conn) finIn() {
	c.Helper()
	c.mustRecv(packet.Pass, seg{flags: packet.FIN | packet.ACK, seq: c.in, ack: c.out})
	c.in++
}

// finish closes the connection from inside, to the last ACK.
func (c *conn) finish() {
	c.Helper()
	c.finOut()
	c.finIn()
	c.mustSend(packet.Pass, seg{flags: packet.ACK, seq: c.out, ack: c.in})
	c.state("closed")
}

// session returns what the table says of the connection.
func (c *conn) session() (Session, bool) {
	for s := range c.Sessions() {
		if s.Proto == packet.TCP && s.Inner == c.inner && s.Remote == c.remote {
			return s, true
		}
	}
	return Session{}, false
}

// state checks the state in the table; "" is none.
func (c *conn) state(want string) {
	c.Helper()
	c.clock(c.now)
	if s, _ := c.session(); s.State != want {
		c.Fatalf("state %q, want %q", s.State, want)
	}
}

// left returns how long the connection has yet if it is silent.
func (c *conn) left() time.Duration {
	c.clock(c.now)
	s, _ := c.session()
	return time.Duration(s.Expires - c.now).Round(time.Second)
}

// errorAbout builds an ICMP error with the given quotation.
func (l *lab) errorAbout(typ, code uint8, info uint32, from, to netip.Addr, quote []byte) int {
	b := l.buf[:]
	n := 28 + len(quote)
	clear(b[:28])
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	b[8], b[9] = 64, 1
	s, d := from.As4(), to.As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], sumOf(b[:20]))
	b[20], b[21] = typ, code
	binary.BigEndian.PutUint32(b[24:], info)
	copy(b[28:], quote)
	binary.BigEndian.PutUint16(b[22:], sumOf(b[20:n]))
	return n
}

// sumOf is the Internet checksum (RFC 1071), the slow way.
func sumOf(b []byte) uint16 {
	s := uint32(0)
	for i, v := range b {
		if i%2 == 0 {
			s += uint32(v) << 8
		} else {
			s += uint32(v)
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
