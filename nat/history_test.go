package nat

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// faulty is a Memory that refuses now and then.
type faulty struct {
	dice *rand.Rand
	rate int // one request in so many is refused; 0: none
}

func (m *faulty) Alloc(n int) []byte {
	if m.rate > 0 && m.dice.IntN(m.rate) == 0 {
		return nil
	}
	return make([]byte, n)
}

func (m *faulty) Free([]byte) {}

// chronicle is all that may happen to a table, in any order.
type chronicle struct {
	*twins
	tb     testing.TB
	change func(*Config)
	memory *faulty
	did    map[string]int
}

func newChronicle(tb testing.TB, seed uint64) *chronicle {
	h := &chronicle{tb: tb, did: map[string]int{}, memory: &faulty{dice: rand.New(rand.NewPCG(seed, 2))}}
	mode := Mapping(seed % 3)
	h.change = func(c *Config) {
		c.Memory, c.EventBuffer, c.MaxSessions = h.memory, 64, 3000
		c.Limits = Limits{Sessions: 1500, Ports: 300, HalfOpen: 200, NewPerSecond: -1}
		c.Network = NetworkLimits{Ports: 500, HalfOpen: 300}
		if mode == 2 {
			c.Identity, c.External = true, netip.Addr{}
			return
		}
		c.TCPMapping, c.Ports = mode, PortRange{2000, 2400}
		if seed/3%2 == 1 {
			c.PortBlock = 64
		}
	}
	h.twins = newTwins(tb, seed, h.change)
	h.peers = 3 + int(seed%20)
	if seed%2 == 1 {
		h.single.now = lastTick - packet.Instant(20*time.Minute)
	}
	return h
}

// packets takes a batch of packets through the table.
func (h *chronicle) packets() {
	l, n, out := h.single, 1+h.dice.IntN(2*batchMax), h.dice.IntN(3) > 0
	h.fill(n, out)
	ps, got := make([]*packet.Packet, n), make([]packet.Outcome, n)
	for i := range ps {
		ps[i] = &h.views[1][i]
	}
	if !out {
		l.IngressBatch(ps, got, l.now)
		return
	}
	l.EgressBatch(ps, got, l.now)
	for i, p := range ps {
		if got[i] == packet.Pass && p.Kind != packet.KindICMPError {
			k := seenPort{p.SrcPort, netip.AddrPortFrom(p.Dst, p.DstPort)}
			h.seen[spaceOf(p.Proto)] = append(h.seen[spaceOf(p.Proto)], k)
			h.did["passed"]++
		}
	}
}

// flow is one that has left, or any.
func (h *chronicle) flow() Flow {
	which := h.dice.IntN(3)
	f := Flow{Proto: [...]packet.Proto{packet.TCP, packet.UDP, packet.ICMP}[which]}
	port, remote := uint16(2000+h.dice.IntN(401)), h.remote()
	if s := h.seen[which]; len(s) > 0 && h.dice.IntN(8) > 0 {
		k := s[h.dice.IntN(len(s))]
		port, remote = k.port, k.remote
	}
	f.External = netip.AddrPortFrom(external, port)
	if h.single.config.Identity {
		f.External = h.inner()
	}
	if which == tcpSpace || h.dice.IntN(2) == 0 {
		f.Remote = remote
	}
	return f
}

// crowd opens, and mostly ends, many connections to one remote.
func (h *chronicle) crowd() {
	l := h.single
	for range 30 + h.dice.IntN(300) {
		from := netip.AddrPortFrom(h.inner().Addr(), uint16(h.dice.Uint32()))
		n := packet.BuildTCP(l.buf[:], packet.TCPHeader{Src: from, Dst: web, TTL: 64, Window: 1000, Flags: packet.SYN, Seq: h.dice.Uint32()}, nil)
		l.parse(n)
		if l.Egress(&l.p, l.now) != packet.Pass {
			continue
		}
		h.did["crowd"]++
		f := Flow{packet.TCP, l.src(), web}
		switch isn := l.p.Seq; h.dice.IntN(4) {
		case 0:
			l.Close(f, l.now)
		case 1, 2: // both FINs, all acknowledged
			for _, s := range []struct {
				in bool
				seg
			}{
				{true, seg{flags: packet.SYN | packet.ACK, seq: 100, ack: isn + 1}},
				{false, seg{flags: packet.ACK, seq: isn + 1, ack: 101}},
				{true, seg{flags: packet.FIN | packet.ACK, seq: 101, ack: isn + 1}},
				{false, seg{flags: packet.FIN | packet.ACK, seq: isn + 1, ack: 102}},
				{true, seg{flags: packet.ACK, seq: 102, ack: isn + 2}},
			} {
				if s.in {
					l.parse(l.build(web, f.External, s.seg))
					l.Ingress(&l.p, l.now)
				} else {
					l.parse(l.build(from, web, s.seg))
					l.Egress(&l.p, l.now)
				}
			}
		}
	}
}

// spread makes a mapping so large that it ends in steps.
func (h *chronicle) spread() {
	from := h.inner()
	for i := range atOnce + h.dice.IntN(300) {
		to := makeEndpoint(0xc6336400+uint32(i), 53).addrPort()
		h.single.parse(packet.BuildUDP(h.single.buf[:], from, to, nil, 64, 0))
		h.single.Egress(&h.single.p, h.single.now)
	}
	if h.dice.IntN(2) == 0 { // it ends with a packet of a batch
		h.single.wait(time.Hour)
		h.packets()
	}
}

// move takes what the table holds over to another one.
func (h *chronicle) move() {
	l := h.single
	l.wait(time.Second)
	b, c := []byte(nil), ExportCursor{}
	for !c.Done() {
		b, c = l.AppendExport(b, c, 500, l.now)
	}
	next := newLab(h.tb, h.change)
	next.now = l.now + packet.Instant(h.dice.IntN(3))*packet.Instant(time.Second)
	if h.dice.IntN(3) == 0 { // an export that is right but for one record
		bad := append([]byte(nil), b...)
		bad[headerSize+h.dice.IntN(len(bad)-headerSize)] ^= 1 << h.dice.IntN(8)
		if next.Import(seal(bad), next.now) == nil {
			h.did["odd import"]++
		}
		audit(h.tb, next.Table)
		next = newLab(h.tb, h.change)
		next.now = l.now
	}
	if err := next.Import(b, next.now); err != nil {
		if h.memory.rate == 0 {
			h.tb.Fatal(err)
		}
		h.did["import without memory"]++
		audit(h.tb, next.Table)
		return
	}
	h.did["import"]++
	h.single = next
}

// step does one thing.
func (h *chronicle) step() {
	l := h.single
	switch h.dice.IntN(14) {
	default:
		h.packets()
	case 0:
		h.crowd()
	case 1:
		if h.dice.IntN(3) == 0 {
			h.spread()
		}
	case 2:
		l.wait(time.Duration(h.dice.IntN(300)) * time.Second)
	case 3:
		h.did["expired"] += l.Expire(l.now, h.dice.IntN(2000))
	case 4:
		n, more := l.Table.Revoke(h.inner().Addr(), l.now, 1+h.dice.IntN(100))
		if h.did["revoked"] += n; more {
			h.did["revoked in part"]++
		}
	case 5:
		l.RevokeRemote(netip.PrefixFrom(h.remote().Addr(), 32), l.now)
	case 6:
		for range h.dice.IntN(20) {
			l.PortRefused(h.flow(), l.now)
			l.Close(h.flow(), l.now)
		}
	case 7:
		l.SetDraining(h.dice.IntN(3) == 0)
		h.memory.rate = [...]int{0, 0, 2, 10}[h.dice.IntN(4)]
	case 8:
		l.events()
	case 9:
		h.move()
	}
	if len(h.single.doomed) > 0 {
		h.did["doomed"]++
	}
	if len(h.single.crowds) > 0 {
		h.did["crowded"]++
	}
}

// Whatever happens to a table, in whatever order, all that it knows in several places
// is the same in each: packets in batches, crowds of connections, mappings that end in
// steps, port blocks, refusals of ports and of memory, revocations in steps, exports
// taken in whole, broken, or not at all.
func TestHistories(t *testing.T) {
	did := map[string]int{}
	for seed := range uint64(24) {
		h := newChronicle(t, seed)
		for range 60 {
			h.step()
			audit(t, h.single.Table)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		h.memory.rate = 0
		h.single.SetDraining(false)
		for range 3 { // what is doomed, then holds, blocks and hosts
			h.single.wait(10 * time.Hour)
			h.single.settle()
		}
		audit(t, h.single.Table)
		if s := h.single.Stats(); h.single.sessions.live+s.Mappings+s.HeldTuples+s.HeldPorts+s.Blocks+s.Hosts+s.Ports > 0 {
			t.Fatalf("seed %d: after all that the table holds %+v", seed, s)
		}
		for what, n := range h.did {
			did[what] += n
		}
	}
	t.Log(did)
	for _, what := range []string{"passed", "crowd", "crowded", "doomed", "expired", "revoked", "revoked in part", "import", "import without memory", "odd import"} {
		if did[what] == 0 {
			t.Errorf("no history has %s", what)
		}
	}
}
