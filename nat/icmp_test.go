package nat

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

var router = netip.MustParseAddr("192.0.2.1")

// I-1: an identifier is mapped alike towards all hosts; only a host that was asked may reply.
func TestI1EchoMapping(t *testing.T) {
	l := newLab(t, nil)
	id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	if again := must2(l.echoOut(box, other.Addr()))(l, packet.Pass); again != id {
		t.Errorf("identifiers %d and %d towards two hosts", id, again)
	}
	if l.p.ICMPType != packet.ICMPEchoRequest {
		t.Error("the type changed")
	}
	if at := must2(l.echoIn(web.Addr(), id))(l, packet.Pass); at != box {
		t.Errorf("the reply arrived at %v", at)
	}
	must2(l.echoIn(router, id))(l, packet.Filtered)
	must2(l.echoIn(web.Addr(), id+1))(l, packet.NoMapping)
	if id2 := must2(l.echoOut(box2, web.Addr()))(l, packet.Pass); id2 == id {
		t.Error("two inner hosts share an identifier")
	}
	audit(t, l.Table)
}

// I-2: an identifier outlives the last request by 60 s.
func TestI2QueryTimer(t *testing.T) {
	l := newLab(t, nil)
	id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	l.wait(60 * time.Second)
	must2(l.echoIn(web.Addr(), id))(l, packet.Pass)
	l.wait(200 * time.Millisecond)
	must2(l.echoIn(web.Addr(), id))(l, packet.NoMapping)
}

// A-5, T-3: no request comes in, so no reply goes out.
func TestA5NoEchoFromOutside(t *testing.T) {
	l := newLab(t, nil)
	id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	e := packet.Echo{Src: web.Addr(), Dst: external, Ident: id, TTL: 64}
	if o := l.ingress(packet.BuildICMPEcho(l.buf[:], e, nil)); o != packet.NoMapping {
		t.Errorf("a request from outside: %v", o)
	}
	e = packet.Echo{Src: box.Addr(), Dst: web.Addr(), Reply: true, Ident: box.Port(), TTL: 64}
	if o := l.egress(packet.BuildICMPEcho(l.buf[:], e, nil)); o != packet.NoMapping {
		t.Errorf("a reply from inside: %v", o)
	}
}

// quoteOf returns the packet that the last translation left, cut to what a router quotes at least.
func (l *lab) quoteOf(n int) []byte { return bytes.Clone(l.p.B[:min(n, len(l.p.B))]) }

// I-4, T-9, U-12 a: an error from outside about a packet of a live session is
// restored inside and out, wherever it comes from, however short its quotation.
func TestI4ErrorsFromOutside(t *testing.T) {
	for _, proto := range []packet.Proto{packet.TCP, packet.UDP, packet.ICMP} {
		for _, cut := range []int{28, 1500} {
			for _, kind := range [][2]uint8{{3, 1}, {3, 3}, {11, 0}, {12, 0}} {
				l := newLab(t, nil)
				var quote []byte
				switch proto {
				case packet.TCP:
					l.conn(box, web).syn()
				case packet.UDP:
					must2(l.udpOut(box, web))(l, packet.Pass)
				default:
					must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
				}
				quote = l.quoteOf(cut)
				if o := l.ingress(l.errorAbout(kind[0], kind[1], 0, router, external, quote)); o != packet.Pass {
					t.Fatalf("protocol %d, %v, %d bytes: %v", proto, kind, cut, o)
				}
				e := &l.p.Inner
				if l.p.Dst != box.Addr() || l.p.Src != router || l.p.ICMPType != kind[0] || l.p.ICMPCode != kind[1] ||
					e.Src != box.Addr() || e.SrcPort != box.Port() || e.Dst != web.Addr() {
					t.Errorf("protocol %d: restored to %+v", proto, l.p)
				}
				if cut == 1500 && !quotationSound(l.p.B[28:]) {
					t.Errorf("protocol %d: the quoted packet's checksum is wrong", proto)
				}
			}
		}
	}
}

// quotationSound checks a whole quoted packet.
func quotationSound(q []byte) bool {
	var p packet.Packet
	return packet.Parse(&p, bytes.Clone(q)) == packet.Pass && p.ChecksumOK()
}

// I-4: an error about nothing that was sent is dropped.
func TestI4ErrorsWithoutSession(t *testing.T) {
	l := newLab(t, nil)
	must2(l.udpOut(box, web))(l, packet.Pass)
	quote := l.quoteOf(28)
	for _, tt := range []struct {
		name   string
		change func(q []byte)
		want   packet.Outcome
	}{
		{"as sent", func([]byte) {}, packet.Pass},
		{"another port", func(q []byte) { q[21]++ }, packet.NoMapping},
		{"another remote", func(q []byte) { q[19]++ }, packet.Filtered},
		{"another remote port", func(q []byte) { q[23]++ }, packet.Filtered},
		{"another source", func(q []byte) { q[15]++ }, packet.NoMapping},
		{"another protocol", func(q []byte) { q[9] = 6 }, packet.NoMapping},
	} {
		q := bytes.Clone(quote)
		tt.change(q)
		clear(q[10:12])
		s := sumOf(q[:20])
		q[10], q[11] = byte(s>>8), byte(s)
		if o := l.ingress(l.errorAbout(3, 3, 0, router, external, q)); o != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, o, tt.want)
		}
	}
}

// an error about TCP must quote what is in flight, and no tiny MTU is believed.
func TestA11ForgedErrors(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	c.dataOut(1000)
	c.dataOut(1000)
	c.mustRecv(packet.Pass, seg{flags: packet.ACK, seq: c.in, ack: c.out - 1000})
	for _, tt := range []struct {
		seq  uint32
		code uint8
		mtu  uint32
		want packet.Outcome
	}{
		{c.out - 1000, 4, 1400, packet.Pass},
		{c.out - 1001, 4, 1400, packet.Filtered},
		{c.out + 1, 4, 1400, packet.Filtered},
		{c.out + 1<<31, 1, 0, packet.Filtered},
		{c.out, 1, 0, packet.Pass},
		{c.out - 1000, 4, 575, packet.Filtered},
		{c.out - 1000, 4, 0, packet.Filtered},
		{c.out - 1000, 4, 576, packet.Pass},
	} {
		n := l.build(c.external, c.remote, seg{flags: packet.ACK, seq: tt.seq, ack: c.in, payload: 10})
		if o := l.ingress(l.errorAbout(3, tt.code, tt.mtu, router, external, bytes.Clone(l.buf[:n]))); o != tt.want {
			t.Errorf("%+v: %v", tt, o)
		}
	}
}

// U-12, T-10, I-6: errors neither refresh nor end anything.
func TestI6ErrorsLeaveSessionsAlone(t *testing.T) {
	l := newLab(t, nil)
	must2(l.udpOut(box, web))(l, packet.Pass)
	udp := l.quoteOf(28)
	id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	echo := l.quoteOf(28)
	c := l.conn(box, web).syn()
	tcp := l.quoteOf(40)
	deadline := c.left()
	for range 6 {
		for code := range uint8(16) {
			for _, q := range [][]byte{udp, echo, tcp} {
				l.ingress(l.errorAbout(3, code, 0x5000000, router, external, q))
				l.ingress(l.errorAbout(11, code&1, 0, router, external, q))
			}
		}
		l.wait(10 * time.Second)
	}
	if c.state("opening"); c.left() != deadline-60*time.Second {
		t.Errorf("errors changed the time left to %v", c.left())
	}
	must2(l.echoIn(web.Addr(), id))(l, packet.Pass)
	l.wait(200 * time.Millisecond)
	must2(l.echoIn(web.Addr(), id))(l, packet.NoMapping)
	l.wait(240 * time.Second)
	if l.settle(); l.sessions.live != 0 {
		t.Error("errors kept sessions alive")
	}
}

// I-5: an error from inside shows no inner address, neither outside nor in the packet it quotes.
func TestI5ErrorsFromInside(t *testing.T) {
	for _, proto := range []packet.Proto{packet.TCP, packet.UDP, packet.ICMP} {
		l := newLab(t, nil)
		var at netip.AddrPort
		switch proto {
		case packet.TCP:
			c := l.conn(box, web).syn()
			at = c.external
			c.mustRecv(packet.Pass, seg{flags: synAck, seq: c.in, ack: c.out})
		case packet.UDP:
			at = must2(l.udpOut(box, web))(l, packet.Pass)
			must2(l.udpIn(web, at))(l, packet.Pass)
		default:
			id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
			at = netip.AddrPortFrom(external, id)
			must2(l.echoIn(web.Addr(), id))(l, packet.Pass)
		}
		quote := l.quoteOf(1500)
		n := l.errorAbout(3, 3, 0, box.Addr(), web.Addr(), quote)
		if o := l.egress(n); o != packet.Pass {
			t.Fatalf("protocol %d: %v", proto, o)
		}
		e := &l.p.Inner
		if l.p.Src != external || e.Dst != external || e.DstPort != at.Port() || e.Src != web.Addr() {
			t.Errorf("protocol %d: translated to %+v", proto, l.p)
		}
		inner := box.Addr().As4()
		if bytes.Contains(l.p.B, inner[:]) {
			t.Errorf("protocol %d: the inner address is in the packet", proto)
		}
		if !quotationSound(l.p.B[28:]) {
			t.Errorf("protocol %d: the quoted packet's checksum is wrong", proto)
		}
		// From another inner host, to another remote, or about another session: nothing leaves.
		for _, ends := range [][2]netip.Addr{{box2.Addr(), web.Addr()}, {box.Addr(), other.Addr()}} {
			if o := l.egress(l.errorAbout(3, 3, 0, ends[0], ends[1], quote)); o != packet.NoMapping {
				t.Errorf("protocol %d, from %v to %v: %v", proto, ends[0], ends[1], o)
			}
		}
		l.wait(3 * time.Hour)
		if o := l.egress(l.errorAbout(3, 3, 0, box.Addr(), web.Addr(), quote)); o != packet.NoMapping {
			t.Errorf("protocol %d, about a session that is over: %v", proto, o)
		}
	}
}

// an error from an address that nobody has is not believed, whatever it
// quotes; loopback reports only where the dedicated address is one itself.
func TestR3ErrorsFromMartians(t *testing.T) {
	for from, want := range map[string]packet.Outcome{
		"0.0.0.0": packet.Martian, "127.0.0.1": packet.Martian, "224.0.0.1": packet.Martian, "240.0.0.1": packet.Martian,
		"255.255.255.255": packet.Martian, "10.9.9.9": packet.Pass, "100.64.0.1": packet.Pass, "169.254.3.3": packet.Pass,
	} {
		l := newLab(t, nil)
		must2(l.udpOut(box, web))(l, packet.Pass)
		quote := l.quoteOf(28)
		if o := l.ingress(l.errorAbout(11, 0, 0, netip.MustParseAddr(from), external, quote)); o != want {
			t.Errorf("from %s: %v, want %v", from, o, want)
		}
	}
	looped := netip.MustParseAddr("127.0.0.10")
	l := newLab(t, func(c *Config) { c.External = looped })
	l.parse(packet.BuildUDP(l.buf[:], box, web, nil, 64, 1))
	if o := l.Egress(&l.p, l.now); o != packet.Pass {
		t.Fatal(o)
	}
	l.parse(l.errorAbout(3, 3, 0, netip.MustParseAddr("127.0.0.1"), looped, l.quoteOf(28)))
	if o := l.Ingress(&l.p, l.now); o != packet.Pass {
		t.Errorf("in a region of loopback: %v", o)
	}
}
