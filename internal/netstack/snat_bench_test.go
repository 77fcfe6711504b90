package netstack

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Each benchmark runs gVisor's translator, ours packet by packet and ours in batches of
// 128, on the same packets in the same order. Ours is timed from whole bytes on;
// gVisor from a packet of its own on, whose making is not counted. Its time has
// the forwarding in it (route, TTL): nothing else leads to its NAT.

// natSizes are the numbers of connections. gVisor's 16,384 buckets never grow: with a
// million, whose two tuples fill each with 122, its set-up alone takes a minute.
var natSizes = []struct {
	name string
	n    int
}{{"1k", 1_000}, {"100k", 100_000}}

var translators = []struct {
	name string
	make func(testing.TB) translator
}{
	{"gvisor", func(tb testing.TB) translator { return newGvisorNAT(tb) }},
	{"sallyport-single", func(tb testing.TB) translator { return newSallyportNAT(tb, false) }},
	{"sallyport-batch", func(tb testing.TB) translator { return newSallyportNAT(tb, true) }},
}

// meter keeps what pieces of work of the same size took. It reports their median, which
// does not care for what else the machine did in between.
type meter struct {
	took             []time.Duration
	mallocs, counted uint64
}

// carry times a batch as a piece of its own.
func (m *meter) carry(c *connections, outwards bool) {
	began := time.Now()
	c.carry(natBatch, outwards)
	m.took = append(m.took, time.Since(began))
}

// count counts a batch's allocations instead of its time.
func (m *meter) count(c *connections, outwards bool) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c.carry(natBatch, outwards)
	runtime.ReadMemStats(&after)
	m.mallocs += after.Mallocs - before.Mallocs
	m.counted += natBatch
}

// report replaces ns/op, which has the making of the packets in it, by the time of one
// packet of pieces of n. It returns that time in nanoseconds.
func (m *meter) report(b *testing.B, n int) float64 {
	slices.Sort(m.took)
	ns := float64(m.took[len(m.took)/2].Nanoseconds()) / float64(n)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ns, "ns/packet")
	if m.counted > 0 {
		b.ReportMetric(float64(m.mallocs)/float64(m.counted), "allocs/packet")
	}
	return ns
}

// established runs batches of packets of uniformly random connections.
func established(b *testing.B, outwards bool) {
	for _, size := range natSizes {
		for _, t := range translators {
			b.Run(size.name+"/"+t.name, func(b *testing.B) {
				c := establish(b, t.make(b), size.n)
				defer c.close()
				dice := rand.New(rand.NewPCG(1, 2))
				load := func() {
					for k := range natBatch {
						i := dice.IntN(size.n)
						if outwards {
							c.load(k, packet.ACK, natInside(i), natRemote(i))
						} else {
							c.load(k, packet.ACK, natRemote(i), c.external[i])
						}
					}
				}
				var m meter
				for b.Loop() {
					load()
					m.carry(c, outwards)
				}
				for range 10 {
					load()
					m.count(c, outwards)
				}
				if got, want := c.passed(), 3*size.n+natBatch*len(m.took)+int(m.counted); got != want {
					b.Fatalf("%d packets passed, want %d", got, want)
				}
				m.report(b, natBatch)
			})
		}
	}
}

func BenchmarkSNATEgress(b *testing.B)  { established(b, true) }
func BenchmarkSNATIngress(b *testing.B) { established(b, false) }

// BenchmarkSNATNewSessions fills an empty translator with 100,000 connections, the
// growth of its memory included: the SYN of each.
func BenchmarkSNATNewSessions(b *testing.B) {
	const n = 100_000 / natBatch * natBatch
	for _, t := range translators {
		b.Run(t.name, func(b *testing.B) {
			var m meter
			for b.Loop() {
				c := establish(b, t.make(b), 0)
				var filling meter
				for i := 0; i < n; i += natBatch {
					for k := range natBatch {
						c.load(k, packet.SYN, natInside(i+k), natRemote(i+k))
					}
					filling.carry(c, true)
				}
				if c.passed() != n {
					b.Fatalf("%d of %d passed", c.passed(), n)
				}
				c.close()
				var whole time.Duration
				for _, d := range filling.took {
					whole += d
				}
				m.took = append(m.took, whole)
			}
			b.ReportMetric(1e3/m.report(b, n), "M/s")
		})
	}
}

// BenchmarkSNATMemory is what 100,000 established connections take, with all that
// belongs to them.
func BenchmarkSNATMemory(b *testing.B) {
	const n = 100_000
	for _, t := range translators[:2] { // batches change nothing
		b.Run(t.name, func(b *testing.B) {
			var empty, full runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&empty)
			c := establish(b, t.make(b), n)
			external := uint64(cap(c.external)) * 32 // the benchmark's own
			runtime.GC()
			runtime.ReadMemStats(&full)
			for b.Loop() {
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(full.HeapAlloc-empty.HeapAlloc-external)/n, "B/session")
			c.close()
		})
	}
}
