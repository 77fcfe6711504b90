package conformance

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// seeds are good packets of a sandbox, or to a live mapping, for a fuzz to change.
func seeds(from, to netip.AddrPort) [][]byte {
	good := udp(from, to, "a payload that is long enough to be cut")
	return [][]byte{
		good, tcp(from, to, packet.SYN, 1, 0), tcp(from, to, packet.ACK|packet.PSH, 2, 3), tcp(from, to, packet.RST, 1, 0),
		echo(from.Addr(), to.Addr(), from.Port(), false), echo(from.Addr(), to.Addr(), to.Port(), true),
		icmp(from.Addr(), to.Addr(), 3, 3, 0, udp(to, from, "quoted")),
		icmp(from.Addr(), to.Addr(), 3, 4, 1300, tcp(to, from, packet.ACK, 1, 1)),
		icmp(from.Addr(), to.Addr(), 11, 0, 0, echo(to.Addr(), from.Addr(), from.Port(), false)),
		withOptions(good, 148, 4, 0, 0), withOptions(good, 7, 7, 4, 1, 2, 3, 4),
		changed(good, 6, 0x20), changed(changed(good, 6, 0), 7, 4), changed(good, 9, 47),
	}
}

// mutate is a seed with a few bytes changed; mostly its checksums are put right
// again, so that it gets further than the first check.
func mutate(random *rand.Rand, seed []byte) []byte {
	b := append([]byte(nil), seed...)
	for range random.IntN(4) {
		b[random.IntN(len(b))] = byte(random.Uint32())
	}
	if random.IntN(8) == 0 {
		b = b[:20+random.IntN(len(b)-19)]
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	}
	if head := int(b[0]&15) * 4; random.IntN(10) > 0 && head >= 20 && head <= len(b) {
		fixed(b)
		if m := b[head:]; b[9] == 1 && len(m) >= 8 && random.IntN(4) > 0 {
			if q := m[8:]; (m[0] == 3 || m[0] == 11 || m[0] == 12) && len(q) >= 20 && int(q[0]&15)*4 <= len(q) && q[0]&15 >= 5 {
				fixed(q)
			}
			m[2], m[3] = 0, 0
			binary.BigEndian.PutUint16(m[2:], sum(m))
		}
	}
	return b
}

// TestLeak (A-18, A-26, I-11): a seeded fuzz from inside and from outside. The oracle of
// this package sees all that leaves: no source but the pair, no inner address in a
// quotation or an option, nothing that is not TCP, UDP or ICMP. In the sandbox nothing
// arrives but what is for it. Afterwards everything works.
func TestLeak(t *testing.T) {
	g := newGround(t)
	g.serve()
	c := g.a1.client(t, 0)
	live, _ := c.ask(endpoint(0, 0))
	inside, w := g.watch(g.a1.Namespace, "tun0"), g.wire()
	random := rand.New(rand.NewPCG(11, 12))
	out, in := seeds(netip.AddrPortFrom(inner1, c.port()), endpoint(0, 0)), seeds(endpoint(0, 0), live)
	end := time.Now().Add(3 * time.Second)
	if *long {
		end = time.Now().Add(*fuzzFor)
	}
	rounds, arrived := 0, 0
	for time.Now().Before(end) {
		for range 400 {
			b := mutate(random, out[random.IntN(len(out))])
			if random.IntN(10) > 0 && len(b) >= 16 { // WireGuard lets nothing else through
				copy(b[12:16], inner1.AsSlice())
				if head := int(b[0]&15) * 4; head >= 20 && head <= len(b) && random.IntN(10) > 0 {
					fixed(b)
				}
			}
			g.a1.send(b)
		}
		batch := make([][]byte, 0, 100)
		for range cap(batch) {
			batch = append(batch, mutate(random, in[random.IntN(len(in))]))
		}
		mark := inside.mark()
		w.send(batch...)
		for _, s := range inside.since(mark) {
			if s.out {
				continue
			}
			arrived++
			if len(s.b) < 20 || netip.AddrFrom4([4]byte(s.b[16:])) != inner1 || s.b[8] == 0 || sum(s.b[:int(s.b[0]&15)*4]) != 0 {
				t.Fatalf("%x came in", s.b)
			}
		}
		rounds++
		if rounds%200 == 0 {
			g.clock.advance(301 * time.Second)
			g.a.sweep()
		}
	}
	g.a1.check(t)
	g.a2.check(t)
	_, _ = g.a1.client(t, 0).ask(endpoint(0, 1))
	t.Logf("%d packets from inside, %d from outside, %d of which arrived", rounds*400, rounds*100, arrived)
}
