package conformance

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHairpin (U-9, I-7, A-17): two sandboxes of a network reach each other by
// external endpoints, and each sees the other's external one; but only after both
// have sent, because the filter does not open for neighbours either. Those of another
// network are not reached at all.
func TestHairpin(t *testing.T) {
	g := newGround(t)
	g.serve()
	one, two, three := g.a1.client(t, 0), g.a2.client(t, 0), g.b1.client(t, 0)
	seenOne, _ := one.ask(endpoint(0, 0))
	seenTwo, _ := two.ask(endpoint(0, 0))
	seenThree, _ := three.ask(endpoint(0, 0))
	say := func(c *client, to netip.AddrPort, text string) {
		t.Helper()
		if _, err := c.WriteTo([]byte(text), udpAddr(to)); err != nil {
			t.Fatal(err)
		}
	}
	say(one, seenTwo, "too early")
	say(one, seenThree, "another network")
	_, _ = one.ask(endpoint(0, 0)) // by now both have been dealt with
	say(two, seenOne, "hello from two")
	if text, from, err := one.hear(patience); text != "hello from two" || from != seenTwo || err != nil {
		t.Fatalf("one hears %q from %v, %v; want it from %v", text, from, err, seenTwo)
	}
	say(one, seenTwo, "hello from one")
	if text, from, err := two.hear(patience); text != "hello from one" || from != seenOne || err != nil {
		t.Fatalf("two hears %q from %v, %v; want it from %v", text, from, err, seenOne)
	}
	if _, others := three.ask(endpoint(0, 0)); len(others) > 0 {
		t.Errorf("another network hears %q", others)
	}
	// The neighbour's kernel says that nobody listens any more: the error turns, too.
	_ = two.Close()
	if err := one.refusal(seenTwo); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a neighbour's closed port says %v", err)
	}
}

// TestTraceInward: from outside, the way to a mapped endpoint shows the
// dedicated IP where the time is over at the Forwarder, and not what is behind it.
func TestTraceInward(t *testing.T) {
	g := newGround(t)
	c := g.a1.client(t, 0)
	port := netip.AddrPortFrom(serverAddrs[0], 7777)
	far, err := g.server.ListenPacket("udp4", port.String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := c.WriteTo([]byte("here I am"), udpAddr(port)); err != nil {
		t.Fatal(err)
	}
	_ = far.SetReadDeadline(time.Now().Add(patience))
	_, from, err := far.ReadFrom(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	mapped := addrPortOf(from)
	wan, out := g.watch(g.server, "wan"), raw(t, g.server)
	for ttl, want := range map[byte]netip.Addr{1: gatewayWAN, 2: mapped.Addr()} {
		mark := wan.mark()
		out.send(changed(udp(port, mapped, "probe"), 8, ttl))
		eventually(t, "an answer to a probe", func() bool {
			return slices.ContainsFunc(wan.since(mark), func(s sniffed) bool {
				return !s.out && s.b[9] == 1 && s.b[20] == 11 && netip.AddrFrom4([4]byte(s.b[12:])) == want
			})
		})
	}
	out.send(changed(udp(port, mapped, "arrives"), 8, 3))
	if text, _, err := c.hear(patience); text != "arrives" || err != nil {
		t.Errorf("with three hops to go, %q comes, %v", text, err)
	}
	g.a1.check(t)
}
