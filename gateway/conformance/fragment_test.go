package conformance

import (
	"crypto/sha256"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// orders are all orders of three things.
func orders() [][3]int {
	return [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
}

// TestFragments (U-14, A-13 d): a datagram in three fragments, in each of their six
// orders and both directions, arrives whole and unchanged. U-13: what is longer than
// the tunnel and may be cut is cut.
func TestFragments(t *testing.T) {
	eachSubject(t, func(t *testing.T, g *ground) {
		server := g.serve()
		c := g.a1.client(t, 0)
		mapped, _ := c.ask(endpoint(0, 0))
		far, err := g.server.ListenPacket("udp4", netip.AddrPortFrom(serverAddrs[0], 9999).String())
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		inside, outside := raw(t, g.a1.Namespace), raw(t, g.server)
		random := rand.New(rand.NewPCG(1, 2))
		for i, order := range orders() {
			payload := make([]byte, 3000)
			for i := range payload {
				payload[i] = byte(random.Uint32())
			}
			send := func(s *rawSocket, from, to netip.AddrPort) {
				b := make([]byte, 28+len(payload))
				cut := fragments(t, b[:packet.BuildUDP(b, from, to, payload, 64, uint16(1000+i))], 1100)
				if len(cut) != 3 {
					t.Fatalf("%d fragments", len(cut))
				}
				for _, k := range order {
					s.send(cut[k])
				}
			}
			send(inside, netip.AddrPortFrom(inner1, c.port()), netip.AddrPortFrom(serverAddrs[0], 9999))
			b := make([]byte, 65535)
			_ = far.SetReadDeadline(time.Now().Add(patience))
			n, from, err := far.ReadFrom(b)
			if err != nil || sha256.Sum256(b[:n]) != sha256.Sum256(payload) {
				t.Fatalf("outward in order %v: %d bytes from %v, %v", order, n, from, err)
			}
			send(outside, endpoint(0, 0), mapped)
			text, sender, err := c.hear(patience)
			if err != nil || sender != endpoint(0, 0) || sha256.Sum256([]byte(text)) != sha256.Sum256(payload) {
				t.Fatalf("inward in order %v: %d bytes from %v, %v", order, len(text), sender, err)
			}
		}
		whole := make([]byte, 60000)
		if _, err := server.udp[0][0].WriteTo(whole, udpAddr(mapped)); err != nil {
			t.Fatal(err)
		}
		if text, _, err := c.hear(patience); len(text) != len(whole) || err != nil {
			t.Errorf("of 60,000 bytes inward %d came, %v", len(text), err)
		}
		if _, err := c.WriteTo(whole, udpAddr(netip.AddrPortFrom(serverAddrs[0], 9999))); err != nil {
			t.Fatal(err)
		}
		_ = far.SetReadDeadline(time.Now().Add(patience))
		if n, _, err := far.ReadFrom(make([]byte, 65535)); n != len(whole) || err != nil {
			t.Errorf("of 60,000 bytes outward %d came, %v", n, err)
		}
	})
}

// TestBadFragments (A-13 a, b, c): overlapping ones, tiny first ones and those that
// go past 65,535 bytes bring nothing to either side, and the next good datagram is
// not disturbed.
func TestBadFragments(t *testing.T) {
	g := newGround(t)
	g.serve()
	c := g.a1.client(t, 0)
	mapped, _ := c.ask(endpoint(0, 0))
	w := g.wire()
	far := g.watch(g.server, "wan")
	bad := func(from, to netip.AddrPort, id uint16) (list [][]byte) {
		b := make([]byte, 2028)
		good := fragments(t, b[:packet.BuildUDP(b, from, to, make([]byte, 2000), 64, id)], 1000)
		list = append(list, good[0], changed(good[1], 7, good[1][7]-2), good[1], good[2]) // an overlap
		tiny := tcp(from, to, packet.SYN, 1, 0)
		tiny[4] = byte(id>>8) + 1
		tiny[6] &^= 0x40                                      // DF
		list = append(list, fragments(t, fixed(tiny), 28)...) // eight bytes of TCP each
		past := changed(changed(good[1], 4, byte(id>>8)+2), 6, 0x1f)
		return append(list, changed(past, 7, 0xff))
	}
	mark := far.mark()
	for _, b := range bad(netip.AddrPortFrom(inner1, c.port()), endpoint(0, 0), 256) {
		g.a1.send(b)
	}
	w.send(bad(endpoint(0, 0), mapped, 512)...)
	_, others := c.ask(endpoint(0, 0))
	if len(others) > 0 {
		t.Errorf("a bad datagram came in: %q", others)
	}
	for _, s := range far.since(mark) {
		if !s.out && s.b[9] != 17 || !s.out && len(s.b) > 100 {
			t.Errorf("a bad fragment came out: %x", s.b[:28])
		}
	}
}
