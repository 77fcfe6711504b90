package nat

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// RFC 4787 (UDP, BCP 127). What udp_test.go proves already is not repeated here.

// endless are the limits of tests that are about ports.
var endless = Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1}

// wholeRange is how many ports 1024-65535 are.
const wholeRange = 64512

// many returns the i-th of many inner endpoints.
func many(i int) netip.AddrPort {
	return makeEndpoint(0x0a000000+uint32(i>>14), uint16(1024+i&0x3fff)).addrPort()
}

// U-2, C-2: whatever an inner address sends, of any protocol and to any
// destination, leaves from the one address of its table.
func TestU2OneExternalAddress(t *testing.T) {
	l := newLab(t, nil)
	for i := range 500 {
		to := makeEndpoint(0xcb007100+uint32(i), uint16(1+i*7)).addrPort()
		at := must2(l.udpOut(netip.AddrPortFrom(box.Addr(), uint16(1024+i)), to))(l, packet.Pass)
		must2(l.echoOut(netip.AddrPortFrom(box.Addr(), uint16(i)), to.Addr()))(l, packet.Pass)
		id := l.p.Src
		c := l.conn(netip.AddrPortFrom(box.Addr(), uint16(1024+i)), to).syn()
		if at.Addr() != external || id != external || c.external.Addr() != external {
			t.Fatalf("flow %d left from %v, %v and %v", i, at, id, c.external)
		}
	}
}

// U-3, T-7: 64,512 mappings of each protocol at once, and no external port or
// identifier twice.
func TestU3EveryPortOfEveryProtocol(t *testing.T) {
	l := newLab(t, func(c *Config) { c.TCPMapping, c.Limits = EndpointIndependent, endless })
	var seen [spaceCount][1 << 16]bool
	for i := range wholeRange {
		from := many(i)
		for space, n := range [spaceCount]func() int{
			tcpSpace: func() int { return l.build(from, web, seg{flags: packet.SYN, seq: 1}) },
			udpSpace: func() int { return packet.BuildUDP(l.buf[:], from, web, nil, 64, 0) },
			icmpSpace: func() int {
				return packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: from.Addr(), Dst: web.Addr(), Ident: from.Port(), TTL: 64}, nil)
			},
		} {
			l.parse(n())
			if o := l.Egress(&l.p, l.now); o != packet.Pass {
				t.Fatalf("mapping %d of space %d: %v", i, space, o)
			}
			if p := l.p.SrcPort; p < 1024 || seen[space][p] {
				t.Fatalf("mapping %d of space %d has port %d, which is another's or out of range", i, space, p)
			}
			seen[space][l.p.SrcPort] = true
		}
	}
	must2(l.udpOut(many(wholeRange), other))(l, packet.PortsExhausted)
	must2(l.echoOut(many(wholeRange), other.Addr()))(l, packet.PortsExhausted)
	l.conn(many(wholeRange), other).mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
}

// U-3a: ports from 1024 on stay in their class. Well-known ones do not: no
// sandbox is given a port below 1024, and no range may hold one.
func TestU3aPortClass(t *testing.T) {
	l := newLab(t, nil)
	for _, p := range []uint16{1, 20, 53, 123, 500, 1023, 1024, 1025, 5060, 49152, 65535} {
		at := must2(l.udpOut(netip.AddrPortFrom(box.Addr(), p), web))(l, packet.Pass)
		c := l.conn(netip.AddrPortFrom(box.Addr(), p), web).syn()
		if at.Port() < 1024 || c.external.Port() < 1024 {
			t.Errorf("inner port %d became %d of UDP and %d of TCP", p, at.Port(), c.external.Port())
		}
	}
	if _, err := New(Config{External: external, Seed: [32]byte{1}, Ports: PortRange{1023, 65535}}); err == nil {
		t.Error("a range that begins below 1024 was accepted")
	}
}

// U-5a: no destination has a shorter timer, well-known ports included.
func TestU5aNoShorterTimer(t *testing.T) {
	for _, to := range []string{"203.0.113.10:1", "203.0.113.10:53", "203.0.113.10:123", "203.0.113.10:1023"} {
		l := newLab(t, nil)
		at := must2(l.udpOut(box, ap(to)))(l, packet.Pass)
		l.wait(300 * time.Second)
		l.settle()
		must2(l.udpIn(ap(to), at))(l, packet.Pass)
	}
}

// U-6: one packet from inside a second before the end keeps a mapping for
// another whole timer, whichever of its remotes it goes to.
func TestU6OutboundRefreshes(t *testing.T) {
	l := newLab(t, nil)
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	l.wait(299 * time.Second)
	must2(l.udpOut(box, other))(l, packet.Pass)
	l.wait(299 * time.Second)
	l.settle()
	if again := must2(l.udpOut(box, web))(l, packet.Pass); again != at {
		t.Errorf("mapped to %v, then to %v", at, again)
	}
	must2(l.udpIn(other, at))(l, packet.Pass)
}

// U-7: two tenants with the same inner address, port and destination: what
// belongs to one never reaches the other.
func TestU7SameInnerSameDestination(t *testing.T) {
	second := netip.MustParseAddr("198.51.100.200")
	a := newLab(t, nil)
	b, err := New(Config{External: second, Seed: [32]byte{9}})
	if err != nil {
		t.Fatal(err)
	}
	var buf [256]byte
	var p packet.Packet
	ports := [2]uint16{must2(a.udpOut(box, web))(a, packet.Pass).Port(), 0}
	if o := packet.Parse(&p, buf[:packet.BuildUDP(buf[:], box, web, []byte("b"), 64, 0)]); o != packet.Pass || b.Egress(&p, a.now) != packet.Pass {
		t.Fatal("the second tenant's datagram was dropped")
	}
	if ports[1] = p.SrcPort; p.Src != second {
		t.Errorf("the second tenant left from %v", p.Src)
	}
	for i, table := range []*Table{a.Table, b} {
		for k, to := range []netip.Addr{external, second} {
			n := packet.BuildUDP(buf[:], web, netip.AddrPortFrom(to, ports[k]), []byte("answer"), 64, 0)
			if o := packet.Parse(&p, buf[:n]); o != packet.Pass {
				t.Fatal(o)
			}
			want := packet.NoMapping
			if i == k {
				want = packet.Pass
			}
			if o := table.Ingress(&p, a.now); o != want {
				t.Errorf("tenant %d, answer to tenant %d: %v, want %v", i, k, o, want)
			} else if o == packet.Pass && (p.Dst != box.Addr() || p.DstPort != box.Port() || !bytes.Equal(p.Data(), []byte("answer"))) {
				t.Errorf("tenant %d: the answer arrived at %v:%d as %q", i, p.Dst, p.DstPort, p.Data())
			}
		}
	}
	a.Revoke(box.Addr(), a.now)
	if s := b.Stats(); s.Sessions.Of(packet.UDP) != 1 {
		t.Error("ending one tenant's flows ended the other's")
	}
}

// behaviour says how the table maps and filters one new inner endpoint of each
// protocol, in the words of RFC 4787 section 4.1 and 5.
func behaviour(l *lab, from netip.AddrPort) map[string]string {
	l.Helper()
	seen := map[string]string{}
	first := must2(l.udpOut(from, web))(l, packet.Pass)
	seen["udp mapping"] = "independent"
	for _, to := range []netip.AddrPort{web2, other, ap("203.0.113.99:8443")} {
		if must2(l.udpOut(from, to))(l, packet.Pass) != first {
			seen["udp mapping"] = "dependent"
		}
	}
	_, same := l.udpIn(web, first)
	_, port := l.udpIn(ap("203.0.113.10:9"), first)
	_, addr := l.udpIn(ap("203.0.113.11:443"), first)
	seen["udp filtering"] = same.String() + " " + port.String() + " " + addr.String()
	id := must2(l.echoOut(from, web.Addr()))(l, packet.Pass)
	seen["echo mapping"] = "independent"
	if must2(l.echoOut(from, other.Addr()))(l, packet.Pass) != id {
		seen["echo mapping"] = "dependent"
	}
	a, b := l.conn(from, web).syn(), l.conn(from, other).syn()
	seen["tcp mapping"] = "dependent"
	if a.external == b.external {
		seen["tcp mapping"] = "independent"
	}
	seen["tcp filtering"] = ""
	for _, stranger := range []netip.AddrPort{web2, ap("203.0.113.11:443")} {
		c := l.conn(from, stranger)
		c.external = a.external
		seen["tcp filtering"] += c.recv(seg{flags: packet.SYN, seq: 1}).String() + " "
	}
	return seen
}

// U-1, U-11: mapping and filtering are of the same class whether none, half or 99 %
// of the ports are taken, and after the collisions on the way there.
func TestU11SameClassAtAnyOccupancy(t *testing.T) {
	for _, mode := range []Mapping{AddressAndPortDependent, EndpointIndependent} {
		l := newLab(t, func(c *Config) {
			c.Ports, c.Limits, c.TCPMapping = PortRange{10000, 13999}, endless, mode
		})
		tcp := "dependent"
		if mode == EndpointIndependent {
			tcp = "independent"
		}
		filled := 0
		for _, percent := range []int{0, 50, 99} {
			for ; filled < 4000*percent/100; filled++ {
				from := makeEndpoint(0x0a010000+uint32(filled>>8), uint16(1024+filled&255)).addrPort()
				must2(l.udpOut(from, web))(l, packet.Pass)
				must2(l.echoOut(from, web.Addr()))(l, packet.Pass)
				l.conn(from, web).syn()
			}
			for i := range 5 { // several, as some collide on their way to a port
				got := behaviour(l, netip.AddrPortFrom(makeEndpoint(0x0a020000+uint32(percent), 0).addrPort().Addr(), uint16(5000+i)))
				// Without a mapping a port is nobody's towards a stranger.
				strangers := map[Mapping]string{AddressAndPortDependent: "no_mapping no_mapping ", EndpointIndependent: "filtered filtered "}[mode]
				if got["tcp filtering"] != strangers {
					t.Errorf("mode %d at %d %%: TCP filters as %q", mode, percent, got["tcp filtering"])
				}
				if got["udp mapping"] != "independent" || got["echo mapping"] != "independent" ||
					got["udp filtering"] != "pass filtered filtered" || got["tcp mapping"] != tcp && mode == EndpointIndependent {
					t.Errorf("mode %d at %d %%: %v", mode, percent, got)
				}
			}
		}
		audit(t, l.Table)
	}
}

// U-12, T-10, A-11: a hundred forged ICMP messages of each kind, of every type and many
// codes, about UDP, TCP and echo: nothing ends, and no timer moves.
func TestU12ForgedICMPEndsNothing(t *testing.T) {
	l := newLab(t, nil)
	must2(l.udpOut(box, web))(l, packet.Pass)
	quotes := [][]byte{bytes.Clone(l.p.B)}
	must2(l.echoOut(box, web.Addr()))(l, packet.Pass)
	quotes = append(quotes, bytes.Clone(l.p.B))
	c := l.conn(box, web).open()
	c.dataOut(100)
	quotes = append(quotes, bytes.Clone(l.p.B))
	before := map[netip.AddrPort]Session{}
	for s := range l.Sessions() {
		before[s.External] = s
	}
	l.wait(20 * time.Second)
	forged, passed := 0, 0
	for typ := range 256 {
		for _, code := range []uint8{0, 1, 2, 3, 4, 9, 10, 13, 15, 255} {
			for _, q := range quotes {
				for _, from := range []netip.Addr{web.Addr(), router} {
					n := l.errorAbout(uint8(typ), code, 0x057805dc, from, external, q)
					var p packet.Packet
					if packet.Parse(&p, l.buf[:n]) == packet.Pass && l.Ingress(&p, l.now) == packet.Pass {
						passed++
					}
					forged++
				}
			}
		}
	}
	after := map[netip.AddrPort]Session{}
	for s := range l.Sessions() {
		after[s.External] = s
	}
	if len(after) != 3 || len(before) != 3 || passed < 100 || passed > forged/10 {
		t.Fatalf("%d sessions before, %d after %d messages of which %d passed", len(before), len(after), forged, passed)
	}
	for at, s := range before {
		if after[at] != s {
			t.Errorf("%+v became %+v", s, after[at])
		}
	}
	c.dataIn(10)
	audit(t, l.Table)
}
