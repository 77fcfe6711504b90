package nat

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Attacks as they are known from the literature. What other files prove already is
// not repeated here.

// gatewayPayloads are what helpers for protocols (ALGs) look for, by destination port: each
// names an inner address and a port that a helper would open.
var gatewayPayloads = []struct {
	name  string
	proto packet.Proto
	port  uint16
	data  string
}{
	{"FTP PORT", packet.TCP, 21, "PORT 10,0,0,2,31,144\r\n"},
	{"FTP EPRT", packet.TCP, 21, "EPRT |1|10.0.0.2|8080|\r\n"},
	{"SIP REGISTER", packet.TCP, 5060, "REGISTER sip:203.0.113.10 SIP/2.0\r\nVia: SIP/2.0/TCP 10.0.0.2:8080;branch=z9hG4bK1\r\n" +
		"Contact: <sip:a@10.0.0.2:8080;transport=tcp>\r\nContent-Length: 0\r\n\r\n"},
	{"SIP REGISTER", packet.UDP, 5060, "REGISTER sip:203.0.113.10 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.2:8080\r\nContact: <sip:a@10.0.0.2:8080>\r\n\r\n"},
	{"H.323 setup", packet.TCP, 1720, "\x03\x00\x00\x2a\x08\x02\x00\x01\x05\x7e\x00\x1e\x05\x20\x80\x06\x00\x08\x91\x4a\x00\x04\x0a\x00\x00\x02\x1f\x90\x00\x00"},
	{"PPTP call", packet.TCP, 1723, "\x00\x9c\x00\x01\x1a\x2b\x3c\x4d\x00\x07\x00\x00\x0a\x00\x00\x02\x1f\x90"},
	{"TFTP read", packet.UDP, 69, "\x00\x01file\x00octet\x00"},
	{"IRC DCC", packet.TCP, 6667, "PRIVMSG a :\x01DCC CHAT chat 167772162 8080\x01\r\n"},
	{"RTSP SETUP", packet.TCP, 554, "SETUP rtsp://203.0.113.10/a RTSP/1.0\r\nTransport: RTP/AVP;unicast;client_port=8080-8081\r\n\r\n"},
}

// through sends the packet l.buf[:n] and returns the payload that left.
func (l *lab) through(n int) []byte {
	l.Helper()
	if o := l.egress(n); o != packet.Pass {
		l.Fatal(o)
	}
	return bytes.Clone(l.p.Data())
}

// A-1, U-10, T-6: nothing that a payload says opens a port or changes a byte,
// whether it comes in one packet, over segments cut anywhere, or over fragments.
func TestA1NoHelpers(t *testing.T) {
	for _, g := range gatewayPayloads {
		l := newLab(t, nil)
		remote := netip.AddrPortFrom(web.Addr(), g.port)
		var at netip.AddrPort
		c := l.conn(box, remote)
		if g.proto == packet.TCP {
			at = c.open().external
		} else {
			at = must2(l.udpOut(box, remote))(l, packet.Pass)
		}
		before := l.Stats()
		for cut := 0; cut < len(g.data); cut += 5 {
			var got []byte
			for _, part := range []string{g.data[:cut], g.data[cut:]} {
				if g.proto == packet.TCP {
					h := packet.TCPHeader{Src: box, Dst: remote, Seq: c.out, Ack: c.in, Flags: packet.ACK | packet.PSH, Window: 65535, TTL: 64}
					got = append(got, l.through(packet.BuildTCP(l.buf[:], h, []byte(part)))...)
					c.out += uint32(len(part))
				} else {
					got = append(got, l.through(packet.BuildUDP(l.buf[:], box, remote, []byte(part), 64, 0))...)
				}
			}
			if string(got) != g.data {
				t.Errorf("%s cut at %d left as %q", g.name, cut, got)
			}
		}
		if g.proto == packet.UDP && len(g.data) > 52 { // what one fragment would hold is none
			if got := l.fragmented(t, packet.BuildUDP(l.buf[:], box, remote, []byte(g.data), 64, 77)); string(got) != g.data {
				t.Errorf("%s over fragments left as %q", g.name, got)
			}
		}
		if after := l.Stats(); after.Sessions != before.Sessions || after.Mappings != before.Mappings {
			t.Errorf("%s made state", g.name)
		}
		// Probes from the server and from elsewhere, to the advertised port and to ours.
		for _, from := range []netip.AddrPort{netip.AddrPortFrom(web.Addr(), 20), other} {
			for _, to := range []uint16{8080, 8081, at.Port()} {
				probe := l.conn(box, from)
				probe.external = netip.AddrPortFrom(external, to)
				if o := probe.recv(seg{flags: packet.SYN, seq: 1}); o == packet.Pass {
					t.Errorf("%s: a SYN from %v to port %d came in", g.name, from, to)
				}
				if _, o := l.udpIn(from, netip.AddrPortFrom(external, to)); o == packet.Pass {
					t.Errorf("%s: a datagram from %v to port %d came in", g.name, from, to)
				}
			}
		}
	}
}

// fragmented sends the packet l.buf[:n] in fragments through reassembly, as the
// gateway does, and returns the payload that left.
func (l *lab) fragmented(t *testing.T, n int) []byte {
	r, err := packet.NewReassembler(packet.ReassemblyConfig{})
	if err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(l.buf[:n])
	var piece [128]byte
	for at := 0; ; {
		n, at = packet.NextFragment(piece[:], whole, 52, at)
		var p packet.Packet
		if o := packet.Parse(&p, piece[:n]); o != packet.Pass || p.Kind != packet.KindFragment {
			t.Fatalf("fragment: %v", o)
		}
		if d, o := r.Add(&p, l.now); d != nil {
			return l.through(copy(l.buf[:], d))
		} else if o != packet.Pass || at == 0 {
			t.Fatalf("reassembly: %v", o)
		}
	}
}

// A-2, C-4, C-5: a sandbox at its caps in every way, and asking on, takes
// nothing from a neighbour: a thousand flows of every protocol, no failure.
func TestA2NeighbourIsUnharmed(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.Ports = PortRange{10000, 19999}
		c.Limits = Limits{Sessions: 3000, Ports: 2000, HalfOpen: 500, NewPerSecond: 5000, Burst: 6000}
	})
	refused := map[packet.Outcome]int{}
	attack := func(i int) {
		from := netip.AddrPortFrom(box.Addr(), uint16(1024+i))
		_, o := l.udpOut(from, makeEndpoint(0xcb007100+uint32(i), 443).addrPort())
		refused[o]++
		refused[l.conn(from, web).send(seg{flags: packet.SYN, seq: 1})]++
	}
	for i := range 10_000 {
		attack(i)
	}
	for i := range 1000 {
		attack(20_000 + i)
		from := netip.AddrPortFrom(box2.Addr(), uint16(1024+i))
		at := must2(l.udpOut(from, web))(l, packet.Pass)
		if got := must2(l.udpIn(web, at))(l, packet.Pass); got != from {
			t.Fatalf("the answer for %v arrived at %v", from, got)
		}
		if i < 900 {
			l.conn(from, web).open().dataIn(100)
		}
		l.wait(time.Millisecond)
	}
	if refused[packet.SessionLimit] < 5000 {
		t.Errorf("the attacker was not at its caps: %v", refused)
	}
	audit(t, l.Table)
}

// A-3, T-4: a million spoofed SYNs, datagrams and echo replies to the external
// address make no session, allocate nothing, and leave what there is usable.
func TestA3InboundFlood(t *testing.T) {
	l := newLab(t, nil)
	c := l.conn(box, web).open()
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	var raw [3][]byte
	for i, n := range []func() int{
		func() int { return l.build(other, c.external, seg{flags: packet.SYN, seq: 1}) },
		func() int { return packet.BuildUDP(l.buf[:], other, at, nil, 64, 0) },
		func() int {
			return packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: other.Addr(), Dst: external, Reply: true, Ident: 9, TTL: 64}, nil)
		},
	} {
		raw[i] = bytes.Clone(l.buf[:n()])
	}
	var ps [3]packet.Packet
	for i := range ps {
		if o := packet.Parse(&ps[i], raw[i]); o != packet.Pass {
			t.Fatal(o)
		}
	}
	before := l.Stats()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	passed := 0
	for i := range uint32(1_000_000) {
		p := &ps[i%3]
		p.Src, p.SrcPort = addrOf(0x14000000+i*2654435761>>4), uint16(i)
		if i%3 < 2 {
			p.DstPort = uint16(i >> 3)
		} else {
			p.SrcPort, p.DstPort = 0, uint16(i>>3)
		}
		if l.Ingress(p, l.now) == packet.Pass {
			passed++
		}
	}
	runtime.ReadMemStats(&m1)
	after := l.Stats()
	if passed != 0 || after.Sessions != before.Sessions || after.Mappings != before.Mappings || after.Hosts != before.Hosts || after.HeldTuples != before.HeldTuples {
		t.Errorf("%d passed; %+v became %+v", passed, before.Sessions, after.Sessions)
	}
	if n := m1.Mallocs - m0.Mallocs; n > 1000 { // the runtime's own
		t.Errorf("%d allocations", n)
	}
	c.dataOut(10)
	c.dataIn(10)
	must2(l.udpIn(web, at))(l, packet.Pass)
	l.conn(box2, web).open()
}

// spoofed segments and datagrams from R:rp to every external port take no
// reply tuple: afterwards a thousand flows to R:rp all succeed.
func TestA4SquattingOnReplyTuples(t *testing.T) {
	l := newLab(t, nil)
	l.parse(l.build(web, netip.AddrPortFrom(external, 1), seg{flags: packet.SYN, seq: 1}))
	syn := l.p
	syn.B = bytes.Clone(l.p.B)
	l.parse(packet.BuildUDP(l.buf[:], web, netip.AddrPortFrom(external, 1), nil, 64, 0))
	datagram := l.p
	for port := range 1 << 16 {
		syn.DstPort, datagram.DstPort = uint16(port), uint16(port)
		if o := l.Ingress(&syn, l.now); o != packet.NoMapping {
			t.Fatalf("a SYN to port %d: %v", port, o)
		}
		if o := l.Ingress(&datagram, l.now); o != packet.NoMapping {
			t.Fatalf("a datagram to port %d: %v", port, o)
		}
	}
	for i := range 1000 {
		from := netip.AddrPortFrom(box.Addr(), uint16(1024+i))
		l.conn(from, web).open().dataIn(1)
		at := must2(l.udpOut(from, web))(l, packet.Pass)
		must2(l.udpIn(web, at))(l, packet.Pass)
	}
	if s := l.Stats(); s.Sessions.Of(packet.TCP) != 1000 || s.Sessions.Of(packet.UDP) != 1000 {
		t.Errorf("%v sessions", s.Sessions)
	}
}

// ports of the gateway's own services belong to no mapping of any
// protocol, whatever port the sandbox uses, and what comes to them meets none.
func TestA8ServicePortsStayFree(t *testing.T) {
	services := []uint16{51820, 53535, 9090}
	l := newLab(t, func(c *Config) {
		c.Ports, c.Reserved, c.Limits, c.TCPMapping = PortRange{51000, 53999}, services[:2], endless, EndpointIndependent
	})
	for i := range 3000 - 2 {
		from := many(i)
		if i < 2 {
			from = netip.AddrPortFrom(box.Addr(), services[i])
		}
		at := must2(l.udpOut(from, web))(l, packet.Pass)
		c := l.conn(from, web).syn()
		for _, p := range services {
			if at.Port() == p || c.external.Port() == p {
				t.Fatalf("mapping %d has port %d", i, p)
			}
		}
	}
	must2(l.udpOut(box2, web))(l, packet.PortsExhausted)
	for _, p := range services {
		must2(l.udpIn(web, netip.AddrPortFrom(external, p)))(l, packet.NoMapping)
		c := l.conn(box, web)
		c.external = netip.AddrPortFrom(external, p)
		c.mustRecv(packet.NoMapping, seg{flags: packet.SYN, seq: 1})
	}
	// Mapped by destination, neither many drawings find one, nor the last port towards one.
	l = newLab(t, func(c *Config) { c.Ports, c.Reserved, c.Limits = PortRange{51800, 51899}, services, endless })
	for i := range 2000 {
		to := web
		if i >= 99 {
			to = makeEndpoint(0xcb007200+uint32(i), 443).addrPort()
		}
		if c := l.conn(many(i), to).syn(); c.external.Port() == 51820 {
			t.Fatalf("connection %d has the tunnel's port", i)
		}
	}
	l.conn(box2, web).mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
}

// the external address and the packet's own destination as an inner source
// are no sources; nothing is made of them, whatever the protocol.
func TestA16SpoofedSources(t *testing.T) {
	l := newLab(t, nil)
	for _, n := range []func(netip.AddrPort) int{
		func(from netip.AddrPort) int { return packet.BuildUDP(l.buf[:], from, web, nil, 64, 0) },
		func(from netip.AddrPort) int { return l.build(from, web, seg{flags: packet.SYN, seq: 1}) },
		func(from netip.AddrPort) int {
			return packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: from.Addr(), Dst: web.Addr(), Ident: 1, TTL: 64}, nil)
		},
	} {
		if o := l.egress(n(netip.AddrPortFrom(external, 4000))); o != packet.SpoofedSource {
			t.Errorf("from the external address: %v", o)
		}
	}
	if s := l.Stats(); s.Hosts != 0 || s.Sessions != (PerProtocol{}) || s.Egress.Of(packet.SpoofedSource) != 3 {
		t.Errorf("%d hosts, sessions %v, counted %d", s.Hosts, s.Sessions, s.Egress.Of(packet.SpoofedSource))
	}
}

// U-8, T-3, A-19: without anything set UDP is mapped endpoint-independently and TCP by
// destination; whatever is chosen, nobody reaches a mapping who was not sent to.
func TestA19StrangersNeverPass(t *testing.T) {
	for _, mode := range []Mapping{AddressAndPortDependent, EndpointIndependent} {
		l := newLab(t, func(c *Config) { c.TCPMapping = mode })
		c := l.conn(box, web).open()
		at := must2(l.udpOut(box, web))(l, packet.Pass)
		id := must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
		for i := range 3000 {
			from := makeEndpoint(0xcb00710a+uint32(i%3), uint16(400+i)).addrPort()
			if from == web {
				continue
			}
			stranger := l.conn(box, from)
			stranger.external = c.external
			_, udp := l.udpIn(from, at)
			if udp == packet.Pass || stranger.recv(seg{flags: packet.SYN, seq: 1}) == packet.Pass {
				t.Fatalf("%v reached a mapping", from)
			}
			if from.Addr() != web.Addr() {
				must2(l.echoIn(from.Addr(), id))(l, packet.Filtered)
			}
		}
	}
}

// what comes from outside is never answered by the table: it is changed
// and passed on, or dropped as it is, and two that answer each other's errors meet nobody.
func TestA22NothingIsReflected(t *testing.T) {
	l := newLab(t, nil)
	must2(l.udpOut(box, ap("203.0.113.10:19")))(l, packet.Pass)
	for _, port := range []uint16{7, 13, 17, 19, 53, 69, 123} {
		from := netip.AddrPortFrom(web.Addr(), port)
		for to := uint16(1); to < 2000; to++ {
			n := packet.BuildUDP(l.buf[:], from, netip.AddrPortFrom(external, to), []byte("error"), 64, 0)
			was := bytes.Clone(l.buf[:n])
			if o := l.arrive(n); o == packet.Pass || !bytes.Equal(l.buf[:n], was) {
				t.Fatalf("from %v to port %d: %v", from, to, o)
			}
		}
	}
	if s := l.Stats(); s.Egress.Of(packet.Pass) != 1 || s.Sessions.Of(packet.UDP) != 1 {
		t.Errorf("%d packets left, %d sessions", s.Egress.Of(packet.Pass), s.Sessions.Of(packet.UDP))
	}
}

// describe lists the header bytes of a packet for failures.
func describe(b []byte) string {
	var w strings.Builder
	for i, v := range b[:min(len(b), 80)] {
		if i%4 == 0 {
			w.WriteByte(' ')
		}
		fmt.Fprintf(&w, "%02x", v)
	}
	return w.String()
}

// BenchmarkA2Setup is the time in which a sandbox gets a new UDP mapping and a new TCP
// connection, alone and beside one that is at its caps and goes on asking: its 99th
// percentile should be no more than a tenth higher there.
func BenchmarkA2Setup(b *testing.B) {
	for _, attackers := range []int{0, 1} {
		b.Run(fmt.Sprintf("beside %d", attackers), func(b *testing.B) {
			l := newLab(b, func(c *Config) { c.Limits.NewPerSecond, c.MaxSessions = -1, 1<<21 })
			asks := 0
			attack := func() {
				for k := range attackers {
					asks++
					from := makeEndpoint(0x0a000100+uint32(k), uint16(asks)|1).addrPort()
					l.udpOut(from, makeEndpoint(0xcb007100+uint32(asks), 443).addrPort())
					l.conn(from, web2).send(seg{flags: packet.SYN, seq: 1})
				}
			}
			for range 20_000 {
				attack()
			}
			var spent []time.Duration
			for i := 0; b.Loop(); i++ {
				attack()
				from := many(i % (1 << 20))
				udp, syn := bytes.Clone(l.buf[:packet.BuildUDP(l.buf[:], from, web, nil, 64, 0)]), seg{flags: packet.SYN, seq: 1}
				l.parse(copy(l.buf[:], udp))
				began := time.Now()
				l.Egress(&l.p, l.now)
				spent = append(spent, time.Since(began))
				l.parse(l.build(from, web, syn))
				began = time.Now()
				l.Egress(&l.p, l.now)
				spent = append(spent, time.Since(began))
				if i%4000 == 3999 { // the sandbox's flows end, so that there is always room
					l.wait(10 * time.Minute)
					l.settle()
				}
			}
			slices.Sort(spent)
			b.ReportMetric(float64(spent[len(spent)/2]), "ns-p50")
			b.ReportMetric(float64(spent[len(spent)*99/100]), "ns-p99")
		})
	}
}
