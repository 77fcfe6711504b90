package conformance

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// TestOracle: the oracle of this package sees what it is there for.
func TestOracle(t *testing.T) {
	pair, inner := pairA, netip.AddrPortFrom(inner1, 5000)
	from, to := netip.AddrPortFrom(pair[1], 5000), endpoint(0, 0)
	good := udp(from, to, "payload")
	quoted := func(dst netip.AddrPort) []byte { return icmp(pair[0], to.Addr(), 3, 3, 0, udp(to, dst, "quoted")) }
	for name, b := range map[string][]byte{
		"datagram": good, "SYN": tcp(from, to, packet.SYN, 1, 0), "error": quoted(from), "echo": echo(pair[0], to.Addr(), 1, false),
		"router alert": withOptions(good, 148, 4, 0, 0),
	} {
		if err := leak(b, pair); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	wrong := slices.Clone(good)
	wrong[10] ^= 1
	for name, b := range map[string][]byte{
		"inner source": udp(inner, to, ""), "another network's source": udp(netip.AddrPortFrom(pairB[0], 1), to, ""),
		"inner destination": udp(from, inner, ""), "multicast": udp(from, netip.MustParseAddrPort("224.0.0.1:1"), ""),
		"class E": udp(from, netip.MustParseAddrPort("240.0.0.1:1"), ""), "inner address quoted": quoted(inner),
		"redirect": icmp(pair[0], to.Addr(), 5, 1, 0, udp(to, from, "")), "source quench": icmp(pair[0], to.Addr(), 4, 0, 0, udp(to, from, "")),
		"GRE": changed(good, 9, 47), "TTL 0": changed(good, 8, 0), "checksum": wrong, "short": good[:10],
		"length": append(slices.Clone(good), 0), "source route": withOptions(good, 131, 7, 4, 1, 2, 3, 4),
		"record route": withOptions(good, 7, 7, 8, 10, 20, 0, 2), "IPv6": append([]byte{0x60}, make([]byte, 39)...),
	} {
		if leak(b, pair) == nil {
			t.Errorf("%s: nothing is wrong with %x", name, b)
		}
	}
}

// TestEveryICMP (U-12, T-10, I-6, A-11): forged ICMP of every type and many codes about a
// live mapping and a live connection, from a stranger and from the peer: both live on,
// and still end when they are due.
func TestEveryICMP(t *testing.T) {
	g := newGround(t)
	g.serve()
	c, conn := g.a1.client(t, 0), g.a1.connect(t, 0, endpoint(0, 1))
	live, _ := c.ask(endpoint(0, 0))
	w := g.wire()
	var batch [][]byte
	for typ := range 256 {
		for code := range 16 {
			for _, from := range []netip.Addr{spooferAddr, serverAddrs[0]} {
				batch = append(batch,
					icmp(from, live.Addr(), uint8(typ), uint8(code), 600, udp(live, endpoint(0, 0), "s1")),
					icmp(from, live.Addr(), uint8(typ), uint8(code), 600, tcp(conn.seen, endpoint(0, 1), packet.ACK, 1, 1)))
			}
		}
		w.send(batch...)
		batch = batch[:0]
	}
	conn.check(t)
	if again, _ := c.ask(endpoint(0, 0)); again != live {
		t.Errorf("the mapping moved from %v to %v", live, again)
	}
	g.clock.advance(290 * time.Second)
	w.send(icmp(spooferAddr, live.Addr(), 3, 3, 0, udp(live, endpoint(0, 0), "s1")))
	g.clock.advance(11 * time.Second)
	g.a.sweep()
	if s := g.a.stats(); s.mappings != 0 {
		t.Errorf("%d mappings are left: an error from outside refreshed one", s.mappings)
	}
	conn.check(t)
}

// TestNoHelpers (A-1, U-10, T-6): what a browser can be made to send for others' helpers
// arrives as it was, by UDP and TCP, whole and in pieces; nothing is opened for it.
func TestNoHelpers(t *testing.T) {
	g := newGround(t)
	texts := map[uint16]string{
		5060: "REGISTER sip:198.51.100.80;transport=UDP SIP/2.0\r\nContact: <sip:lizard@10.20.0.2:2222>\r\n\r\n",
		21:   "PORT 10,20,0,2,8,174\r\n",
		6667: "\x01DCC SEND file 169082882 2222\x01\r\n",
		1720: "\x03\x00\x00\x2a\x08\x02\x00\x01\x05\x0a\x14\x00\x02\x08\xae\r\n",
		69:   "\x00\x01passwd\x00octet\x00",
		1723: "\x00\x10\x00\x01\x1a\x2b\x3c\x4d\r\n",
	}
	for port, text := range texts {
		at := netip.AddrPortFrom(serverAddrs[0], port).String()
		far, err := g.server.ListenPacket("udp4", at)
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		l, err := g.server.Listen("tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		long := text + strings.Repeat("x", 3000) // this one in fragments
		c := g.a1.client(t, 0)
		for _, want := range []string{text, long} {
			if _, err := c.WriteTo([]byte(want), far.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 65535)
			_ = far.SetReadDeadline(time.Now().Add(patience))
			if n, _, err := far.ReadFrom(b); string(b[:n]) != want {
				t.Errorf("UDP port %d: %d bytes that are not what was sent, %v", port, n, err)
			}
		}
		conn, err := g.a1.Dial(t.Context(), "tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprint(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		b := make([]byte, len(text)+1)
		_ = peer.SetReadDeadline(time.Now().Add(patience))
		n, total := 0, 0
		for err = nil; err == nil; total += n {
			n, err = peer.Read(b[total:])
		}
		if string(b[:total]) != text {
			t.Errorf("TCP port %d: %q", port, b[:total])
		}
		_ = peer.Close()
	}
	if s := g.a.stats(); s.mappings != len(texts) {
		t.Errorf("%d mappings for %d sockets", s.mappings, len(texts))
	}
	w, inside := g.wire(), g.watch(g.a1.Namespace, "tun0")
	mark := inside.mark()
	for _, port := range []uint16{2222, 2222 ^ 1} { // what was advertised
		to := netip.AddrPortFrom(egress(pairA, inner1), port)
		w.send(tcp(endpoint(0, 0), to, packet.SYN, 1, 0), udp(endpoint(0, 0), to, "hello"))
	}
	for _, s := range inside.since(mark) { // the connections above may still be ending
		if !s.out && binary.BigEndian.Uint16(s.b[20:]) == endpoint(0, 0).Port() {
			t.Errorf("%x came in", s.b)
		}
	}
}

// TestMarks: DSCP and ECN of a packet are as its sender set them, both ways.
func TestMarks(t *testing.T) {
	eachSubject(t, func(t *testing.T, g *ground) {
		server := g.serve()
		wan, inside := g.watch(g.server, "wan"), g.watch(g.a1.Namespace, "tun0")
		c := g.a1.client(t, 0)
		mapped, _ := c.ask(endpoint(0, 0))
		const marks = 46<<2 | 2 // expedited forwarding, ECT(0)
		raw(t, g.a1.Namespace).send(changed(udp(netip.AddrPortFrom(inner1, c.port()), endpoint(0, 0), "s0"), 1, marks))
		raw(t, g.server).send(changed(udp(endpoint(0, 0), mapped, "marked"), 1, marks))
		_ = server
		for what, at := range map[string]*tap{"outward": wan, "inward": inside} {
			eventually(t, what+" a packet has its marks", func() bool {
				return slices.ContainsFunc(at.since(0), func(s sniffed) bool { return !s.out && s.b[1] == marks && s.b[9] == 17 })
			})
		}
	})
}

// TestFragmentsOfTwoTenants (A-13 f): pieces with the same addresses, ports and
// identification from two networks are not put together to one datagram.
func TestFragmentsOfTwoTenants(t *testing.T) {
	g := newGround(t)
	far := g.watch(g.server, "wan")
	cut := func(fill string) [][]byte {
		return fragments(t, udp(netip.AddrPortFrom(inner1, 5000), endpoint(0, 0), strings.Repeat(fill, 1500)), 1000)
	}
	a, b := cut("a"), cut("b")
	g.a1.send(a[0])
	g.b1.send(b[1])
	g.a1.check(t)
	for _, s := range far.since(0) {
		if !s.out && s.b[9] == 17 {
			t.Fatalf("half a datagram of each network left as %x", s.b[:28])
		}
	}
	g.b1.send(b[0])
	g.a1.send(a[1])
	for _, pair := range [][2]netip.Addr{pairA, pairB} {
		from := egress(pair, inner1)
		eventually(t, "the datagram arrives", func() bool {
			return slices.ContainsFunc(far.since(0), func(s sniffed) bool {
				return !s.out && s.b[9] == 17 && netip.AddrFrom4([4]byte(s.b[12:])) == from
			})
		})
	}
}

// TestFragmentFlood (A-13 e, U-14): first pieces without end from one sandbox: what its
// neighbour sends, whole, is not lost; nor what it sends whole itself.
func TestFragmentFlood(t *testing.T) {
	g := newGround(t)
	g.serve()
	one, two := g.a1.client(t, 0), g.a2.client(t, 0)
	piece := fragments(t, udp(netip.AddrPortFrom(inner1, 5000), endpoint(0, 0), strings.Repeat("x", 1500)), 1000)[0]
	const rounds = 100
	answered := 0
	for i := range rounds {
		for j := range size(200, 2000) {
			b := changed(piece, 4, byte(j>>8))
			g.a1.send(changed(b, 5, byte(i+j)))
		}
		for _, c := range []*client{one, two} {
			if c.answered(endpoint(0, 0), 2*time.Second) {
				answered++
			}
		}
	}
	if answered < 2*rounds*99/100 {
		t.Errorf("%d of %d questions were answered during the flood", answered, 2*rounds)
	}
	if seen, _ := two.ask(endpoint(0, 1)); seen.Addr() != egress(pairA, inner2) {
		t.Errorf("the neighbour leaves from %v", seen)
	}
}

// TestHairpinTCP (T-8): two sandboxes open a connection to each other at once, by external
// endpoints, as programs do that punch holes; each sees the other's external one. Both
// mappings must be known, so that the network has chosen endpoint-independent ones.
func TestHairpinTCP(t *testing.T) {
	g := newGround(t, withEndpointIndependentTCP)
	g.serve()
	const port = 42000
	seenOne, seenTwo := g.a1.connect(t, port, endpoint(0, 0)).seen, g.a2.connect(t, port, endpoint(0, 0)).seen
	ends := make(chan error, 2)
	open := func(s *sandbox, to netip.AddrPort) {
		ends <- func() error {
			c, err := s.dialOnly(t.Context(), port, to)
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
			b := make([]byte, 5)
			if n, err := c.Read(b); string(b[:n]) != "hello" {
				return fmt.Errorf("%v says %q: %w", c.RemoteAddr(), b[:n], err)
			}
			return nil
		}()
	}
	go open(g.a1, seenTwo)
	go open(g.a2, seenOne)
	if err := errors.Join(<-ends, <-ends); err != nil {
		if errors.Is(err, unix.ETIMEDOUT) {
			t.Error("the SYNs that crossed opened nothing")
		}
		t.Error(err)
	}
}
