package nat

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// The figures of these benchmarks are of the table's calls alone: packets are made
// from whole bytes between the readings of the clock. A batch is of 128.

// population is a table with n established TCP connections from 256 inner
// addresses to many remotes, and a way to make packets of them.
type population struct {
	*lab
	n        int
	external []uint16 // external port of each connection
	bufs     [batchMax][64]byte
	sizes    [batchMax]int
	views    [batchMax]packet.Packet
	ps       [batchMax]*packet.Packet
	out      [batchMax]packet.Outcome
	dice     *rand.Rand
}

func populate(tb testing.TB, n int) *population { return populateIn(tb, n, nil) }

func populateIn(tb testing.TB, n int, change func(*Config)) *population {
	p := &population{n: n, external: make([]uint16, n), dice: rand.New(rand.NewPCG(1, 2)), lab: newLab(tb, func(c *Config) {
		c.MaxSessions = 1 << 21
		c.Limits = Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1}
		if change != nil {
			change(c)
		}
	})}
	for i := range p.ps {
		p.ps[i] = &p.views[i]
	}
	for i := range n {
		p.handshake(i)
	}
	return p
}

// handshake opens connection i, segment by segment.
func (p *population) handshake(i int) {
	p.view(packet.SYN, inside(i), remote(i))
	p.must(p.Egress(&p.p, p.now))
	p.external[i] = p.p.SrcPort
	p.view(packet.SYN|packet.ACK, remote(i), p.externalPort(p.external[i]))
	p.must(p.Ingress(&p.p, p.now))
	p.view(packet.ACK, inside(i), remote(i))
	p.must(p.Egress(&p.p, p.now))
}

func (p *population) must(o packet.Outcome) {
	if o != packet.Pass {
		p.Fatal(o)
	}
}

func inside(i int) netip.AddrPort {
	return makeEndpoint(0x0a000000+uint32(i&255), uint16(1024+i>>8%40000)).addrPort()
}
func remote(i int) netip.AddrPort { return makeEndpoint(0xcb007100+uint32(i%50021), 443).addrPort() }

// view makes p.p a segment between the endpoints.
func (p *population) view(f packet.TCPFlags, from, to netip.AddrPort) {
	packet.Parse(&p.p, p.buf[:p.segment(p.buf[:], f, from, to)])
}

// segment writes a segment as an open connection has it, or one of the handshake before.
func (p *population) segment(b []byte, f packet.TCPFlags, from, to netip.AddrPort) int {
	h := packet.TCPHeader{Src: from, Dst: to, Seq: 1001, Ack: 1001, Flags: f, Window: 65535, TTL: 64}
	if f&packet.SYN != 0 {
		h.Seq = 1000
	}
	return packet.BuildTCP(b, h, nil)
}

// load makes packet k of the next batch.
func (p *population) load(k int, from, to netip.AddrPort) {
	p.sizes[k] = p.segment(p.bufs[k][:], packet.ACK, from, to)
}

// parse makes views of the batch.
func (p *population) parse() {
	for k := range p.views {
		packet.Parse(&p.views[k], p.bufs[k][:p.sizes[k]])
	}
}

// stopwatch adds up the processor's time that calls take: others on the machine
// make any call wait. The reading itself takes 2 ns of each packet of a batch.
type stopwatch struct {
	began   time.Duration
	total   time.Duration
	packets int
}

func (s *stopwatch) start() {
	runtime.LockOSThread()
	s.began = threadTime()
}

func (s *stopwatch) stop(packets int) {
	s.total += threadTime() - s.began
	runtime.UnlockOSThread()
	s.packets += packets
}

// report replaces ns/op, which has the making of the packets in it.
func (s *stopwatch) report(b *testing.B) {
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(s.total.Nanoseconds())/float64(s.packets), "ns/packet")
}

var sizes = []struct {
	name string
	n    int
}{{"1k", 1_000}, {"1M", 1_000_000}}

// rounds runs batches of packets of uniformly random connections at both sizes.
func rounds(b *testing.B, load func(p *population, k, conn int), carry func(p *population, w *stopwatch)) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			p := populate(b, size.n)
			b.ReportAllocs()
			var w stopwatch
			for b.Loop() {
				for k := range batchMax {
					load(p, k, p.dice.IntN(p.n))
				}
				p.parse()
				carry(p, &w)
			}
			if p.stats.Egress.Of(packet.Pass)+p.stats.Ingress.Of(packet.Pass) != uint64(3*p.n+w.packets) {
				b.Fatal("packets were dropped")
			}
			w.report(b)
		})
	}
}

func outwards(p *population, k, conn int) { p.load(k, inside(conn), remote(conn)) }
func inwards(p *population, k, conn int) {
	p.load(k, remote(conn), p.externalPort(p.external[conn]))
}

func BenchmarkEgressEstablished(b *testing.B) {
	rounds(b, outwards, func(p *population, w *stopwatch) {
		w.start()
		p.EgressBatch(p.ps[:], p.out[:], p.now)
		w.stop(batchMax)
	})
}

// BenchmarkEgressEstablishedSingle is one call for each packet.
func BenchmarkEgressEstablishedSingle(b *testing.B) {
	rounds(b, outwards, func(p *population, w *stopwatch) {
		w.start()
		for _, q := range p.ps {
			p.Egress(q, p.now)
		}
		w.stop(batchMax)
	})
}

// BenchmarkEgressEstablishedParsed is a batch from its bytes on.
func BenchmarkEgressEstablishedParsed(b *testing.B) {
	rounds(b, outwards, func(p *population, w *stopwatch) {
		w.start()
		p.parse()
		p.EgressBatch(p.ps[:], p.out[:], p.now)
		w.stop(batchMax)
	})
}

func BenchmarkIngressEstablished(b *testing.B) {
	rounds(b, inwards, func(p *population, w *stopwatch) {
		w.start()
		p.IngressBatch(p.ps[:], p.out[:], p.now)
		w.stop(batchMax)
	})
}

// BenchmarkIngressEstablishedSingle is one call for each packet.
func BenchmarkIngressEstablishedSingle(b *testing.B) {
	rounds(b, inwards, func(p *population, w *stopwatch) {
		w.start()
		for _, q := range p.ps {
			p.Ingress(q, p.now)
		}
		w.stop(batchMax)
	})
}

// BenchmarkEgressRun is a batch of one flow, as a bulk transfer makes it.
func BenchmarkEgressRun(b *testing.B) {
	conn := 0
	rounds(b, func(p *population, k, c int) {
		if k == 0 {
			conn = c
		}
		outwards(p, k, conn)
	}, func(p *population, w *stopwatch) {
		w.start()
		p.EgressBatch(p.ps[:], p.out[:], p.now)
		w.stop(batchMax)
	})
}

// datagram makes packet k of the next batch a datagram.
func (p *population) datagram(k int, from, to netip.AddrPort) {
	p.sizes[k] = packet.BuildUDP(p.bufs[k][:], from, to, nil, 64, 0)
}

// chatter is who sends the i-th datagram, and where it goes: 16 remotes to a mapping.
func chatter(i int) (from, to netip.AddrPort) {
	return inside(i / 16), makeEndpoint(0xcb007100+uint32(i/16*7+i%16), 53).addrPort()
}

// BenchmarkEgressUDP is the two-step way: inner endpoint, mapping, session.
func BenchmarkEgressUDP(b *testing.B) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			p := populate(b, 0)
			p.chat(size.n)
			b.ReportAllocs()
			var w stopwatch
			for b.Loop() {
				for k := range batchMax {
					from, to := chatter(p.dice.IntN(size.n))
					p.datagram(k, from, to)
				}
				p.parse()
				w.start()
				p.EgressBatch(p.ps[:], p.out[:], p.now)
				w.stop(batchMax)
			}
			if slices.IndexFunc(p.out[:], func(o packet.Outcome) bool { return o != packet.Pass }) >= 0 {
				b.Fatal("packets were dropped")
			}
			w.report(b)
		})
	}
}

// chat makes n sessions of UDP.
func (p *population) chat(n int) {
	for i := range n {
		from, to := chatter(i)
		p.datagram(0, from, to)
		packet.Parse(&p.p, p.bufs[0][:p.sizes[0]])
		p.must(p.Egress(&p.p, p.now))
	}
}

// BenchmarkNewSessions makes connections on top of those that there are.
func BenchmarkNewSessions(b *testing.B) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			p := populate(b, size.n)
			b.ReportAllocs()
			var w stopwatch
			i := size.n
			for b.Loop() {
				for k := range batchMax {
					p.sizes[k] = p.segment(p.bufs[k][:], packet.SYN, inside(i), remote(i))
					i++
				}
				p.parse()
				w.start()
				p.EgressBatch(p.ps[:], p.out[:], p.now)
				w.stop(batchMax)
				if p.sessions.live > p.config.MaxSessions-batchMax || p.sessions.live > 2*size.n+100_000 {
					p.giveBack(i)
				}
			}
			w.report(b)
			b.ReportMetric(1e3/(float64(w.total.Nanoseconds())/float64(w.packets)), "M/s")
		})
	}
}

// giveBack ends all connections but the first p.n, and their holds.
func (p *population) giveBack(upTo int) {
	for k := p.n; k < upTo; k++ {
		f := Flow{Proto: packet.TCP, Remote: remote(k)}
		from, to := makeEndpoint(number(inside(k).Addr()), inside(k).Port()), makeEndpoint(number(f.Remote.Addr()), f.Remote.Port())
		if s := p.findOutbound(p.flowHash(packet.TCP, from, to), packet.TCP, from, to); s != 0 {
			p.removeSession(s, ReasonRevoked)
		}
	}
	p.wait(121 * time.Second)
	p.clock(p.now)
	p.releaseHolds(1 << 30)
	p.events()
}

// BenchmarkNewSessionsCrowded makes them towards one destination most of whose ports are taken.
func BenchmarkNewSessionsCrowded(b *testing.B) {
	p := populate(b, 0)
	fill := func(i int) packet.Outcome {
		p.view(packet.SYN, makeEndpoint(0x0a000000+uint32(i>>15), uint16(1024+i&0x7fff)).addrPort(), web)
		return p.Egress(&p.p, p.now)
	}
	for i := range 64_000 {
		if fill(i) != packet.Pass {
			b.Fatal("dropped")
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		if o := fill(64_000 + i); o == packet.PortsExhausted { // give all 512 back at once
			p.Revoke(makeEndpoint(0x0a000001, 0).addrPort().Addr(), p.now)
			p.wait(121e9)
			p.releaseHolds(1 << 20)
		}
	}
}

// BenchmarkBytesPerSession is what a table of a million sessions takes of memory, with
// all that belongs to it.
func BenchmarkBytesPerSession(b *testing.B) {
	const n = 1_000_000
	for _, c := range []struct {
		name string
		fill func(p *population)
		less Mapping
	}{
		{"TCP", func(p *population) { p.open(n) }, AddressAndPortDependent},
		{"TCPEndpointIndependent", func(p *population) { p.open(n) }, EndpointIndependent},
		{"UDP16", func(p *population) { p.chat(n) }, AddressAndPortDependent},
	} {
		b.Run(c.name, func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			p := populateIn(b, 0, func(f *Config) { f.TCPMapping = c.less })
			c.fill(p)
			runtime.GC()
			runtime.ReadMemStats(&after)
			for b.Loop() {
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(p.sessions.live), "B/session")
			runtime.KeepAlive(p)
		})
	}
}

// open makes n connections of 50,000 inner endpoints.
func (p *population) open(n int) {
	for i := range n {
		p.view(packet.SYN, inside(i%50_000), makeEndpoint(0xcb007100+uint32(i), 443).addrPort())
		p.must(p.Egress(&p.p, p.now))
	}
}

// BenchmarkExpireRound is the cost of a look at each record of a full table.
func BenchmarkExpireRound(b *testing.B) {
	p := populate(b, 1_000_000)
	b.ResetTimer()
	for b.Loop() {
		p.Expire(p.now, 8192)
	}
}
