package nat

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// population is a table with n established TCP connections from 256 inner
// addresses to many remotes, and a way to make packets of them. Packets are put
// together by hand, so that their making costs next to nothing beside the translation.
type population struct {
	*lab
	n        int
	external []uint16 // external port of each connection
	raw      [40]byte
}

func populate(tb testing.TB, n int) *population {
	p := &population{n: n, external: make([]uint16, n), lab: newLab(tb, func(c *Config) {
		c.MaxSessions = 1 << 21
		c.Limits = Limits{Sessions: -1, Ports: -1, HalfOpen: -1, NewPerSecond: -1}
	})}
	p.build(box, web, seg{flags: packet.ACK})
	copy(p.raw[:], p.buf[:40])
	for i := range n {
		p.view(packet.SYN, inside(i), remote(i))
		if o := p.Egress(&p.p, p.now); o != packet.Pass {
			tb.Fatal(o)
		}
		p.external[i] = p.p.SrcPort
	}
	for i := uint32(1); i < p.sessions.top; i++ {
		s := p.sessions.at(i)
		s.flags |= opened
		p.enter(s, stateEstablished)
		s.deadline = p.tick + 1 + p.ticks.established
	}
	return p
}

func inside(i int) netip.AddrPort {
	return makeEndpoint(0x0a000000+uint32(i&255), uint16(1024+i>>8%40000)).addrPort()
}
func remote(i int) netip.AddrPort { return makeEndpoint(0xcb007100+uint32(i%50021), 443).addrPort() }

// view makes p.p the view of a segment between the endpoints.
func (p *population) view(f packet.TCPFlags, from, to netip.AddrPort) {
	copy(p.buf[:40], p.raw[:])
	p.p = packet.Packet{
		B: p.buf[:40], Kind: packet.KindTCP, Proto: packet.TCP, L4: 20, Flags: f, Window: 65535,
		Src: from.Addr(), SrcPort: from.Port(), Dst: to.Addr(), DstPort: to.Port(),
	}
}

// scattered visits the connections in an order that no cache foresees.
func (p *population) scattered(i int) int {
	return int(uint64(i) * 0x9e3779b97f4a7c15 >> 20 % uint64(p.n))
}

var sizes = []int{1_000, 1_000_000}

func sized(b *testing.B, f func(b *testing.B, p *population)) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("%dk", n/1000), func(b *testing.B) {
			p := populate(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			f(b, p)
		})
	}
}

func BenchmarkEgressEstablished(b *testing.B) {
	sized(b, func(b *testing.B, p *population) {
		for i := 0; b.Loop(); i++ {
			k := p.scattered(i)
			p.view(packet.ACK, inside(k), remote(k))
			if p.Egress(&p.p, p.now) != packet.Pass {
				b.Fatal("dropped")
			}
		}
	})
}

func BenchmarkIngressEstablished(b *testing.B) {
	sized(b, func(b *testing.B, p *population) {
		for i := 0; b.Loop(); i++ {
			k := p.scattered(i)
			p.view(packet.ACK, remote(k), p.externalPort(p.external[k]))
			if p.Ingress(&p.p, p.now) != packet.Pass {
				b.Fatal("dropped")
			}
		}
	})
}

// BenchmarkEgressUDP is the two-step way: inner endpoint, mapping, session.
func BenchmarkEgressUDP(b *testing.B) {
	p := populate(b, 0)
	udp := func(i int) {
		p.view(0, inside(i%50_000), remote(i))
		p.p.Kind, p.p.Proto = packet.KindUDP, packet.UDP
		if o := p.Egress(&p.p, p.now); o != packet.Pass {
			b.Fatal(o)
		}
	}
	for i := range 200_000 {
		udp(i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		udp(int(uint64(i) * 0x9e3779b97f4a7c15 >> 20 % 200_000))
	}
}

// BenchmarkNewSessions makes connections on top of those that there are. Its bytes
// per session are those of the whole table, indexes and all.
func BenchmarkNewSessions(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("%dk", n/1000), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			p := populate(b, n)
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportAllocs()
			b.ResetTimer()
			i := n
			for b.Loop() {
				p.view(packet.SYN, inside(i), remote(i))
				if o := p.Egress(&p.p, p.now); o != packet.Pass {
					b.Fatal(o)
				}
				if i++; p.sessions.live == p.config.MaxSessions {
					b.StopTimer()
					for k := range 256 {
						p.Revoke(inside(k).Addr(), p.now)
					}
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/session")
			runtime.KeepAlive(p)
		})
	}
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

// BenchmarkExpireRound is the cost of a look at each record of a full table.
func BenchmarkExpireRound(b *testing.B) {
	p := populate(b, 1_000_000)
	b.ResetTimer()
	for b.Loop() {
		p.Expire(p.now, 8192)
	}
}

// Nothing is allocated for a packet of a known flow, and for new flows only a
// chunk now and then.
func TestNoAllocations(t *testing.T) {
	p := populate(t, 1000)
	at := must2(p.udpOut(box, web))(p.lab, packet.Pass)
	id := must2(p.echoOut(box, web.Addr()))(p.lab, packet.Pass)
	c := p.conn(box, web).open()
	quote := p.build(c.external, web, seg{flags: packet.ACK, seq: c.out})
	errIn := append([]byte{}, p.buf[:p.errorAbout(3, 1, 0, router, external, append([]byte{}, p.buf[:quote]...))]...)
	i := 0
	for name, f := range map[string]func(){
		"TCP out":  func() { p.view(packet.ACK, box, web); p.Egress(&p.p, p.now) },
		"TCP in":   func() { p.view(packet.ACK, web, c.external); p.Ingress(&p.p, p.now) },
		"UDP out":  func() { p.egress(packet.BuildUDP(p.buf[:], box, web, nil, 64, 0)) },
		"UDP in":   func() { p.ingress(packet.BuildUDP(p.buf[:], web, at, nil, 64, 0)) },
		"filtered": func() { p.ingress(packet.BuildUDP(p.buf[:], other, at, nil, 64, 0)) },
		"echo out": func() {
			p.egress(packet.BuildICMPEcho(p.buf[:], packet.Echo{Src: box.Addr(), Dst: web.Addr(), Ident: box.Port()}, nil))
		},
		"echo in": func() {
			p.ingress(packet.BuildICMPEcho(p.buf[:], packet.Echo{Src: web.Addr(), Dst: external, Reply: true, Ident: id}, nil))
		},
		"error in": func() { p.ingress(copy(p.buf[:], errIn)) },
		"new TCP": func() {
			i++
			p.view(packet.SYN, inside(i), remote(20_000+i))
			p.Egress(&p.p, p.now)
		},
		"expire": func() { p.wait(1e9); p.Expire(p.now, 1000) },
	} {
		if n := testing.AllocsPerRun(2000, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
