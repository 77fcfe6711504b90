package conformance

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// Short names for what matches of captures read.
type pkt = packet.Packet

const kindQuery = packet.KindICMPQuery

// TestClass: the declared classes, as RFC 5780 finds them out.
// U-1: UDP mapping. T-1: TCP mapping, declared. U-8, T-3: filtering, declared.
// I-1: the identifier of an echo does not depend on the host.
func TestClass(t *testing.T) {
	eachSubject(t, func(t *testing.T, g *ground) {
		g.serve()
		if got := udpMapping(t, g.a1); got != independent {
			t.Errorf("UDP mapping is %s", got)
		}
		if got := udpFiltering(t, g.a1); got != byAddressPort {
			t.Errorf("UDP filtering is %s", got)
		}
		tcp := independent // the kernel keeps the port while nobody else has it
		if g.a != nil {
			tcp = byAddressPort
		}
		if got := tcpMapping(t, g.a1); got != tcp {
			t.Errorf("TCP mapping is %s, want %s", got, tcp)
		}
		wan := g.watch(g.server, "wan")
		one, two := echoIdent(t, g, g.a1, wan, 777, serverAddrs[0]), echoIdent(t, g, g.a1, wan, 777, serverAddrs[1])
		if one != two {
			t.Errorf("one identifier is %v towards one host and %v towards another", one, two)
		}
	})
}

// TestClassWhenFull (U-11): the class does not depend on how full the table is, and
// C-11: at the end a new flow is refused aloud, while those that exist live on.
// C-13: the range is used to the last port. T-1: also where the network chose
// endpoint-independent mapping of TCP.
func TestClassWhenFull(t *testing.T) {
	unlimited := nat.Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1}
	for _, mapping := range []nat.Mapping{nat.AddressAndPortDependent, nat.EndpointIndependent} {
		tcp := map[nat.Mapping]string{nat.AddressAndPortDependent: byAddressPort, nat.EndpointIndependent: independent}[mapping]
		t.Run("TCP "+tcp, func(t *testing.T) {
			g := newGround(t, withNAT(nat.Config{Limits: unlimited, TCPMapping: mapping}))
			g.serve()
			made, occupant := 0, sibling(g.a1.inner)
			for _, free := range []int{64512, 32256, 645} {
				made += g.a.fill(t, occupant, free)
				got := fmt.Sprintf("UDP %s, %s; TCP %s", udpMapping(t, g.a1), udpFiltering(t, g.a1), tcpMapping(t, g.a1))
				if want := fmt.Sprintf("UDP %s, %s; TCP %s", independent, byAddressPort, tcp); got != want {
					t.Errorf("with %d free ports it is %s; want %s", free, got, want)
				}
			}
			old := g.a1.client(t, 0)
			before, _ := old.ask(endpoint(0, 0))
			made += g.a.fill(t, sibling(occupant), 0)
			if made < 64400 {
				t.Errorf("%d of 64,512 ports were given out (C-13)", made)
			}
			late := g.a1.client(t, 0)
			if err := late.refusal(endpoint(0, 0)); !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("without a free port a socket is told %v; want EHOSTUNREACH (C-11)", err)
			}
			if after, _ := old.ask(endpoint(0, 0)); after != before {
				t.Errorf("an old mapping moved from %v to %v", before, after)
			}
			// The other IP of the pair is as free as before.
			_, _ = g.a2.client(t, 0).ask(endpoint(0, 0))
		})
	}
}

// sibling returns another inner address that leaves by the same dedicated IP.
func sibling(a netip.Addr) netip.Addr {
	for b := a.Next(); ; b = b.Next() {
		if spec.EgressIndex(a) == spec.EgressIndex(b) && b != inner1 && b != inner2 {
			return b
		}
	}
}

// refusal sends until the kernel tells the socket of an ICMP error about it.
func (c *client) refusal(to netip.AddrPort) error {
	var last error
	raw, err := c.raw()
	if err != nil {
		return err
	}
	_ = raw.Control(func(fd uintptr) {
		last = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	})
	if last != nil {
		return last
	}
	for range 10 {
		if _, last = c.WriteTo([]byte{askSame}, udpAddr(to)); last != nil {
			return last // an error that came after the wait for it
		}
		if _, _, last = c.hear(3 * time.Second); !errors.Is(last, os.ErrDeadlineExceeded) {
			return last
		}
	}
	return last
}

// TestPairing (U-2, C-2): whatever a sandbox does, it leaves by one IP of the pair;
// the two sandboxes here by different ones.
func TestPairing(t *testing.T) {
	eachSubject(t, func(t *testing.T, g *ground) {
		g.serve()
		wan := g.watch(g.server, "wan")
		used := map[netip.Addr]bool{}
		for _, s := range []*sandbox{g.a1, g.a2} {
			want := egress(pairA, s.inner)
			used[want] = true
			for i := range 8 {
				to := endpoint(i%2, i/2%2)
				if seen, _ := s.client(t, 0).ask(to); seen.Addr() != want {
					t.Errorf("UDP of %v left from %v, want %v", s.inner, seen, want)
				}
				if c := s.connect(t, 0, to); c.seen.Addr() != want {
					t.Errorf("TCP of %v left from %v, want %v", s.inner, c.seen, want)
				}
			}
			if seen := echoIdent(t, g, s, wan, 4711, serverAddrs[0]); seen.Addr() != want {
				t.Errorf("ICMP of %v left from %v, want %v", s.inner, seen, want)
			}
		}
		if len(used) != 2 {
			t.Errorf("the sandboxes of this test do not use both IPs: %v", used)
		}
	})
}

// TestOverlap (U-7): two networks with the same inner addresses, ports and
// destinations at the same time, by TCP and UDP: each has its own answers.
func TestOverlap(t *testing.T) {
	g := newGround(t)
	g.serve()
	const port = 40404
	a, b := g.a1.client(t, port), g.b1.client(t, port)
	for range 20 {
		seenA, strayA := a.ask(endpoint(0, 0))
		seenB, strayB := b.ask(endpoint(0, 0))
		if seenA.Addr() != egress(pairA, inner1) || seenB.Addr() != egress(pairB, inner1) {
			t.Fatalf("the networks left from %v and %v", seenA, seenB)
		}
		if len(strayA)+len(strayB) > 0 {
			t.Fatalf("one heard what was for the other: %q, %q", strayA, strayB)
		}
	}
	one, two := g.a1.connect(t, port, endpoint(0, 0)), g.b1.connect(t, port, endpoint(0, 0))
	for range 20 {
		one.check(t)
		two.check(t)
	}
}

// TestLifetime: how long a mapping lives, asked as RFC 5780 section 4.6 does, on a
// clock that is put forward. U-5: 300 s. U-6: what leaves refreshes. U-6a: what
// comes in does not. X-8: what is refused does not either.
func TestLifetime(t *testing.T) {
	g := newGround(t)
	server := g.serve()
	c := g.a1.client(t, 0)
	mapped, _ := c.ask(endpoint(0, 0))
	from, stranger := server.udp[0][0], server.udp[1][1]
	reached := func(within time.Duration) bool {
		// A stranger first, whom the filter refuses.
		for _, s := range []interface {
			WriteTo([]byte, netAddr) (int, error)
		}{stranger, from} {
			if _, err := s.WriteTo([]byte("hello"), udpAddr(mapped)); err != nil {
				t.Fatal(err)
			}
		}
		text, sender, err := c.hear(within)
		if err == nil && (text != "hello" || sender != endpoint(0, 0)) {
			t.Fatalf("%v said %q", sender, text)
		}
		return err == nil
	}
	g.clock.advance(290 * time.Second) // the other ten are for a machine that is slow
	g.a.sweep()
	if !reached(patience) {
		t.Fatal("nothing came in after 290 s")
	}
	if again, _ := c.ask(endpoint(0, 0)); again != mapped { // refreshes
		t.Fatalf("the mapping moved from %v to %v", mapped, again)
	}
	g.clock.advance(290 * time.Second)
	g.a.sweep()
	if !reached(patience) {
		t.Fatal("what left did not refresh the mapping")
	}
	g.clock.advance(11 * time.Second)
	g.a.sweep()
	if reached(300 * time.Millisecond) {
		t.Error("what came in kept the mapping alive")
	}
	if again, _ := c.ask(endpoint(0, 0)); again == mapped {
		t.Error("a port was given out again at once (C-8)")
	}
}

// TestEchoLifetime (I-2): an echo's identifier lives 60 s.
func TestEchoLifetime(t *testing.T) {
	g := newGround(t)
	wan := g.watch(g.server, "wan")
	first := echoIdent(t, g, g.a1, wan, 555, serverAddrs[0])
	g.clock.advance(50 * time.Second)
	g.a.sweep()
	if again := echoIdent(t, g, g.a1, wan, 555, serverAddrs[0]); again != first {
		t.Errorf("the identifier changed from %v to %v within 60 s", first, again)
	}
	g.clock.advance(61 * time.Second)
	g.a.sweep()
	if got := g.a.stats(); got.mappings != 0 || got.sessions != 0 {
		t.Errorf("after 61 s of silence %d mappings and %d sessions are left", got.mappings, got.sessions)
	}
	if again := echoIdent(t, g, g.a1, wan, 555, serverAddrs[0]); again == first {
		t.Error("an identifier was given out again at once (C-8)")
	}
}
