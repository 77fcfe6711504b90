package conformance

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// check sees that a sandbox still reaches the world.
func (s *sandbox) check(t *testing.T) {
	t.Helper()
	run(t, s.Namespace, netlab.Program(t, "ping"), "-n", "-c", "1", "-W", "20", serverAddrs[0].String())
}

// crafted is a packet that must come to nothing.
type crafted struct {
	name string
	b    []byte
}

// fromInside is what a sandbox may try with its own source.
func fromInside(live netip.AddrPort) []crafted {
	src, dst := netip.AddrPortFrom(inner1, 5000), endpoint(0, 0)
	good, about := udp(src, dst, "crafted"), udp(dst, netip.AddrPortFrom(inner1, 5000), "crafted")
	proto := func(p byte) []byte { return changed(good, 9, p) }
	to := func(a string) []byte { return udp(src, netip.AddrPortFrom(netip.MustParseAddr(a), 53), "crafted") }
	broken := slices.Clone(good)
	broken[10] ^= 0xff
	short := slices.Clone(good)
	binary.BigEndian.PutUint16(short[2:], 4000)
	return []crafted{
		{"R-2 checksum of the IP header", broken},
		{"R-2 total length beyond the frame", fixed(short)},
		{"R-2 IHL below five", fixed(changed(good, 0, 0x44))},
		{"R-2 version 6", changed(good, 0, 0x65)},
		{"R-5 loose source route", withOptions(good, 131, 7, 4, 198, 51, 100, 80)},
		{"R-5 strict source route", withOptions(good, 137, 7, 4, 198, 51, 100, 80)},
		{"A-18 record route", withOptions(good, 7, 7, 4, 10, 20, 0, 2)},
		{"A-18 timestamps with addresses", withOptions(good, 68, 12, 5, 1, 10, 20, 0, 2, 0, 0, 0, 0)},
		{"C-1 IP in IP", proto(4)}, {"C-1 IPv6 in IP", proto(41)}, {"C-1 GRE", proto(47)},
		{"C-1 ESP", proto(50)}, {"C-1 SCTP", proto(132)}, {"C-1 protocol 255", proto(255)},
		{"A-15 to 169.254.169.254", to("169.254.169.254")}, {"A-15 multicast", to("224.0.0.251")},
		{"A-15 broadcast", to("255.255.255.255")}, {"A-15 class E", to("240.0.0.1")},
		{"A-15 loopback", to("127.0.0.1")}, {"A-15 0/8", to("0.0.0.1")}, {"A-15 private", to("192.168.1.1")},
		{"A-15 shared", to("100.64.0.1")}, {"A-17 the gateway's host", to(gatewayWAN.String())},
		{"A-17 another network's IP", to(pairB[0].String())},
		{"A-14 LAND", udp(src, src, "crafted")},
		{"A-12 redirect", icmp(inner1, serverAddrs[0], 5, 1, 0xc6336450, about)},
		{"A-11 source quench", icmp(inner1, serverAddrs[0], 4, 0, 0, about)},
		{"I-10 timestamp request", icmp(inner1, serverAddrs[0], 13, 0, 1, make([]byte, 12))},
		{"I-10 address mask request", icmp(inner1, serverAddrs[0], 17, 0, 1, make([]byte, 4))},
		{"I-3 checksum of an ICMP error", func() []byte {
			b := icmp(inner1, serverAddrs[0], 3, 3, 0, about)
			b[22] ^= 0xff
			return b
		}()},
		{"I-5 an error about nobody's packet", icmp(inner1, serverAddrs[0], 3, 3, 0, udp(dst, netip.AddrPortFrom(inner1, 6), ""))},
		{"A-13 UDP header cut off", fixed(changed(good, 3, 24))},
		{"A-18 TCP with SYN and FIN", tcp(src, dst, packet.SYN|packet.FIN, 1, 0)},
		{"A-18 TCP without flags", tcp(src, dst, 0, 1, 0)},
		{"S-6 TCP out of nowhere", tcp(src, dst, packet.ACK, 1, 1)},
		{"N-7 IPv6", append([]byte{0x60, 0, 0, 0, 0, 0, 59, 64}, make([]byte, 32)...)},
		{"A-14 to the sandbox's own external endpoint", udp(netip.AddrPortFrom(inner1, live.Port()), netip.AddrPortFrom(pairB[1], live.Port()), "")},
	}
}

// TestCraftedOutward: nothing of what must not leave leaves, by the capture of all
// that does; a good packet after it all does.
// C-1, I-3, I-10, I-11, N-7.
func TestCraftedOutward(t *testing.T) {
	g := newGround(t)
	g.serve()
	c := g.a1.client(t, 0)
	live, _ := c.ask(endpoint(0, 0))
	before := g.a.stats()
	for _, bad := range fromInside(live) {
		mark := g.tap.mark()
		g.a1.send(bad.b)
		again, others := c.ask(endpoint(0, 0))
		if again != live || len(others) > 0 {
			t.Errorf("%s: the live socket is seen as %v and hears %q", bad.name, again, others)
		}
		for _, s := range g.tap.since(mark) {
			if !s.out && (s.b[9] != 17 || netip.AddrFrom4([4]byte(s.b[16:])) != serverAddrs[0] || binary.BigEndian.Uint16(s.b[20:]) != live.Port()) {
				t.Errorf("%s: %x left", bad.name, s.b)
			}
		}
	}
	if after := g.a.stats(); after.sessions != before.sessions || after.mappings != before.mappings {
		t.Errorf("crafted packets left state: %d sessions and %d mappings, before %d and %d", after.sessions, after.mappings, before.sessions, before.mappings)
	}
}

// TestSpoofedInside: what a sandbox's kernel sends with another source
// goes nowhere, and is not answered.
func TestSpoofedInside(t *testing.T) {
	g := newGround(t)
	mark := g.tap.mark()
	run(t, g.a1.Namespace, "ip", "address", "add", inner2.String()+"/32", "dev", "tun0")
	if out, err := try(t, g.a1.Namespace, "ping", "-n", "-c", "2", "-i", "0.05", "-W", "0.3", "-I", inner2.String(), serverAddrs[0].String()); err == nil {
		t.Errorf("a spoofed source is answered: %s", out)
	}
	if n := g.a1.spoofed.Load(); n < 2 {
		t.Errorf("%d packets counted", n)
	}
	if left := g.tap.since(mark); len(left) > 0 {
		t.Errorf("%d packets left", len(left))
	}
	g.a2.check(t) // whose address it is
}

// fromOutside is what strangers may send, all of it about or to a live mapping.
func fromOutside(live netip.AddrPort, ident uint16) []crafted {
	peer, ext := endpoint(0, 0), live.Addr()
	stranger := netip.AddrPortFrom(spooferAddr, 4000)
	good := udp(peer, live, "crafted")
	from := func(a string) []byte {
		return udp(netip.AddrPortFrom(netip.MustParseAddr(a), peer.Port()), live, "crafted")
	}
	broken := slices.Clone(good)
	broken[10] ^= 0xff
	sent := udp(live, peer, "s0")
	badQuote := icmp(spooferAddr, ext, 3, 3, 0, changed(sent, 8, 9))
	badQuote[38] ^= 0xff
	binary.BigEndian.PutUint16(badQuote[22:], 0)
	binary.BigEndian.PutUint16(badQuote[22:], sum(badQuote[20:]))
	other := pairA[0]
	if other == ext {
		other = pairA[1]
	}
	list := []crafted{
		{"R-2 checksum of the IP header", broken},
		{"R-5 loose source route", withOptions(good, 131, 7, 4, 198, 51, 100, 80)},
		{"R-5 strict source route", withOptions(good, 137, 7, 4, 198, 51, 100, 80)},
		{"U-8 another port of the peer", udp(endpoint(0, 1), live, "crafted")},
		{"U-8 another address of the peer", udp(endpoint(1, 0), live, "crafted")},
		{"T-4 SYN to a live UDP port", tcp(stranger, live, packet.SYN, 1, 0)},
		{"X-6 SYN from the peer of a UDP mapping", tcp(peer, live, packet.SYN, 1, 0)},
		{"T-4 SYN to a free port", tcp(stranger, netip.AddrPortFrom(ext, 22), packet.SYN, 1, 0)},
		{"T-4 SYN and ACK", tcp(stranger, netip.AddrPortFrom(ext, 22), packet.SYN|packet.ACK, 1, 1)},
		{"A-5 echo request", echo(spooferAddr, ext, 7, false)},
		{"A-5 echo request with a live identifier", echo(serverAddrs[0], ext, ident, false)},
		{"I-4 echo reply of a stranger", echo(spooferAddr, ext, ident, true)},
		{"A-12 redirect", icmp(spooferAddr, ext, 5, 1, 0xc6336442, sent)},
		{"A-11 source quench", icmp(serverAddrs[0], ext, 4, 0, 0, sent)},
		{"I-3 checksum of the quoted header", badQuote},
		{"I-4 error about nobody's packet", icmp(spooferAddr, ext, 3, 3, 0, udp(netip.AddrPortFrom(ext, 9), peer, ""))},
		{"A-5 too big, but below the floor", icmp(spooferAddr, ext, 3, 4, 100, tcp(live, peer, packet.ACK, 1, 1))},
		{"A-14 LAND", udp(live, live, "crafted")},
		{"A-14 one dedicated IP to the other", udp(netip.AddrPortFrom(other, 5000), live, "crafted")},
		{"A-14 inner source", from("10.20.0.3")},
		{"R-3 loopback", from("127.0.0.1")}, {"R-3 0/8", from("0.0.0.9")}, {"R-3 multicast", from("224.0.0.1")},
		{"R-3 class E", from("240.0.0.9")}, {"R-3 broadcast", from("255.255.255.255")},
		{"A-18 TCP with SYN and FIN", tcp(stranger, live, packet.SYN|packet.FIN, 1, 0)},
		{"A-13 UDP header cut off", fixed(changed(good, 3, 24))},
	}
	for _, p := range []byte{4, 41, 47, 50, 132, 255} {
		list = append(list, crafted{fmt.Sprintf("A-20 protocol %d", p), changed(good, 9, p)})
	}
	return list
}

// TestCraftedInward: what strangers send brings nothing into the sandbox, no answer
// back, and no state; the mapping that it is about lives on.
// T-4, U-8, U-12, T-10, R-2, R-3, R-5, A-5, A-11, A-12, A-14, A-20, A-22, I-3, I-4, X-6.
func TestCraftedInward(t *testing.T) {
	g := newGround(t)
	g.serve()
	c := g.a1.client(t, 0)
	live, _ := c.ask(endpoint(0, 0))
	wan := g.watch(g.server, "wan")
	ident := echoIdent(t, g, g.a1, wan, 321, serverAddrs[0]).Port()
	inside := g.watch(g.a1.Namespace, "tun0")
	w, before := g.wire(), g.a.stats()
	for _, bad := range fromOutside(live, ident) {
		mark, markInside := g.tap.mark(), inside.mark()
		w.send(bad.b)
		again, others := c.ask(endpoint(0, 0))
		if again != live || len(others) > 0 {
			t.Errorf("%s: the live socket is seen as %v and hears %q", bad.name, again, others)
		}
		for _, s := range g.tap.since(mark) {
			if !s.out && binary.BigEndian.Uint16(s.b[20:]) != live.Port() {
				t.Errorf("%s: %x was sent back", bad.name, s.b)
			}
		}
		for _, s := range inside.since(markInside) {
			if !s.out && (s.b[9] != 17 || netip.AddrFrom4([4]byte(s.b[12:])) != serverAddrs[0] || binary.BigEndian.Uint16(s.b[20:]) != endpoint(0, 0).Port()) {
				t.Errorf("%s: %x came in", bad.name, s.b)
			}
		}
	}
	after := g.a.stats()
	if after.sessions != before.sessions || after.mappings != before.mappings {
		t.Errorf("%d sessions and %d mappings, before %d and %d", after.sessions, after.mappings, before.sessions, before.mappings)
	}
}

// TestSilence (T-4, A-9): a stranger's SYN, echo and datagram on the way through the
// gateway's kernel are not answered, within the six seconds of RFC 5382 REQ-4 by the
// Forwarder's clock and as long as an answer would take by the real one.
func TestSilence(t *testing.T) {
	g := newGround(t)
	g.serve()
	live, _ := g.a1.client(t, 0).ask(endpoint(0, 0))
	spoofer, heard := raw(t, g.spoofer), g.watch(g.spoofer, "wan")
	mark := heard.mark()
	me := netip.AddrPortFrom(spooferAddr, 4000)
	for _, port := range []uint16{22, 80, live.Port(), 51820, 65535} {
		to := netip.AddrPortFrom(live.Addr(), port)
		spoofer.send(tcp(me, to, packet.SYN, 1, 0))
		spoofer.send(udp(me, to, "anybody?"))
	}
	spoofer.send(echo(spooferAddr, live.Addr(), 7, false))
	g.clock.advance(6 * time.Second)
	g.a.sweep()
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(size(500, 7000))*time.Millisecond)
	defer cancel()
	if s, err := heard.await(ctx, mark, func(_ *pkt, s sniffed) bool { return !s.out && !arp(s) }); err == nil {
		t.Errorf("a stranger is answered: %x", s.b)
	}
}

// arp says whether it is no IPv4 at all.
func arp(s sniffed) bool { return len(s.b) < 20 || s.b[0]>>4 != 4 }

// TestResetSweep (S-1, A-6, A-10): resets with the server's address, guessed sequence
// numbers and every port there is: the connection carries data at once, and when the
// time of a closing one would be over.
func TestResetSweep(t *testing.T) {
	g := newGround(t)
	g.serve()
	c := g.a1.connect(t, 0, endpoint(0, 0))
	c.check(t)
	w, random := g.wire(), rand.New(rand.NewPCG(5, 6))
	var batch [][]byte
	for port := 0; port <= 65535; port++ {
		batch = append(batch, tcp(endpoint(0, 0), netip.AddrPortFrom(c.seen.Addr(), uint16(port)), packet.RST, random.Uint32(), 0))
		if len(batch) == 512 {
			w.send(batch...)
			batch = batch[:0]
		}
	}
	for range 1000 { // and at the right port
		batch = append(batch, tcp(endpoint(0, 0), c.seen, packet.RST|packet.ACK, random.Uint32(), random.Uint32()))
	}
	w.send(batch...)
	c.check(t)
	for range 2 {
		g.clock.advance(239 * time.Second)
		g.a.sweep()
		c.check(t)
	}
	if s := g.a.stats(); s.sessions != 1 {
		t.Errorf("%d sessions, want 1", s.sessions)
	}
}

// TestScanOutward (A-24, C-4, C-11 D): a sandbox that knocks at dead hosts meets its
// bound of half-open connections; those that are established, and the neighbour's new
// ones, do not feel it; the room comes back when the knocks have timed out.
func TestScanOutward(t *testing.T) {
	const bound = 64
	g := newGround(t, withNAT(nat.Config{Limits: nat.Limits{HalfOpen: bound}}))
	g.serve()
	c := g.a1.connect(t, 0, endpoint(0, 0))
	inside := g.watch(g.a1.Namespace, "tun0")
	for i := range 4000 {
		g.a1.send(tcp(netip.AddrPortFrom(inner1, uint16(20000+i)), netip.AddrPortFrom(nowhere, uint16(1+i)), packet.SYN, 1, 0))
	}
	if s := g.a.stats(); s.halfOpen != bound {
		t.Errorf("%d half-open connections, want %d", s.halfOpen, bound)
	}
	eventually(t, "the sandbox is told (I-8)", func() bool {
		return slices.ContainsFunc(inside.since(0), func(s sniffed) bool { return !s.out && s.b[9] == 1 && s.b[20] == 3 })
	})
	c.check(t)
	g.a2.connect(t, 0, endpoint(0, 0)).check(t)
	g.clock.advance(241 * time.Second)
	g.a.sweep()
	if s := g.a.stats(); s.halfOpen != 0 {
		t.Errorf("%d half-open connections are left after their time", s.halfOpen)
	}
	c.check(t)
	g.a1.connect(t, 0, endpoint(1, 0)).check(t)
}

// TestFloodInward: spoofed SYNs, datagrams and echoes make no state and do not
// stand in the way. A-4: tuples that somebody squats from outside can be used.
func TestFloodInward(t *testing.T) {
	g := newGround(t)
	g.serve()
	c := g.a1.connect(t, 0, endpoint(0, 0))
	random, w := rand.New(rand.NewPCG(7, 8)), g.wire()
	before := g.a.stats()
	for range size(100_000, 1_000_000) / 500 {
		var batch [][]byte
		for range 500 {
			a := netip.AddrFrom4([4]byte{byte(1 + random.IntN(9)), byte(random.Uint32()), byte(random.Uint32()), byte(1 + random.IntN(250))})
			from := netip.AddrPortFrom(a, uint16(1+random.IntN(65535)))
			to := netip.AddrPortFrom(pairA[random.IntN(2)], uint16(1+random.IntN(65535)))
			switch random.IntN(4) {
			case 0:
				batch = append(batch, tcp(from, to, packet.SYN, random.Uint32(), 0))
			case 1:
				batch = append(batch, udp(from, to, "flood"))
			case 2:
				batch = append(batch, echo(a, to.Addr(), to.Port(), random.IntN(2) == 0))
			default: // a squatter in the name of a host that will be asked
				batch = append(batch, tcp(endpoint(1, 1), to, packet.SYN|packet.ACK, 1, 1))
			}
		}
		w.send(batch...)
	}
	after := g.a.stats()
	if after.sessions != before.sessions || after.mappings != before.mappings || after.halfOpen != before.halfOpen {
		t.Errorf("the flood left %+v, before %+v", after, before)
	}
	c.check(t)
	for range size(50, 1000) {
		n := g.a1.connect(t, 0, endpoint(1, 1))
		n.check(t)
		_ = n.Close()
	}
}
