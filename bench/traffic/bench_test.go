package traffic

import (
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/schedule"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// counted is a gateway that counts, and does nothing else.
type counted struct{ n atomic.Uint64 }

func (c *counted) answer(*packet.Packet) [][]byte {
	c.n.Add(1)
	return nil
}

// cpu is what this process has used.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkBlast says what a packet costs the source and a bare sink together, at more
// than they can do: both are in this process.
func BenchmarkBlast(b *testing.B) {
	for _, size := range []int{64, 1420} {
		for _, shape := range []struct{ ends, sandboxes, flows int }{{1, 1, 64}, {1, 10_000, 10_000}, {4, 2500, 1_000_000}} {
			b.Run(fmt.Sprintf("%d/%d-ends/%d-sandboxes/%d-flows", size, shape.ends, shape.ends*shape.sandboxes, shape.flows), func(b *testing.B) {
				there := new(counted)
				_, ends := newGateway(b, there, shape.ends, shape.sandboxes)
				s := newSource(b, Config{Ends: ends})
				l := Load{Rate: 2e6, For: 2 * time.Second, Size: size, Flows: shape.flows, Unasked: true}
				for i := range 100 {
					l.Remotes = append(l.Remotes, netip.AddrPortFrom(remoteA.Addr(), uint16(1000+i)))
				}
				for b.Loop() {
					before, used := there.n.Load(), cpu(b)
					l.Run++
					sent, err := s.Blast(b.Context(), l)
					if err != nil {
						b.Fatal(err)
					}
					arrived := there.n.Load() - before
					b.ReportMetric(float64(sent.Packets)/sent.Took.Seconds()/1000, "kpps")
					b.ReportMetric(float64(arrived)/sent.Took.Seconds()/1000, "kpps-arrived")
					b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(sent.Packets), "us/packet")
				}
			})
		}
	}
}

// BenchmarkBuild says what making packets costs without a tunnel.
func BenchmarkBuild(b *testing.B) {
	for _, size := range []int{64, 1420} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var inners []uint32
			for i := range 10_000 {
				inners = append(inners, uint32(10<<24+i))
			}
			sets := spread(1_000_000, wireFlows, [][]uint32{inners}, []remote{{1, 1}, {2, 1}, {3, 1}})
			r := &run{load: Load{Size: size, Run: 1}, kind: 1, template: newTemplate(size), source: &Source{began: time.Now()}}
			l := &lane{run: r, set: sets[0], end: &end{shard: newShard()}}
			r.lanes = []*lane{l}
			l.cursor = newCursor(&l.set)
			l.pace = schedule.Schedule{Rate: 1e9, Total: 1 << 62, Backlog: 1 << 40}
			bufs, sizes := make([][]byte, 129), make([]int, 129)
			for i := range bufs {
				bufs[i] = make([]byte, 1500)
			}
			n := 0
			for b.Loop() {
				k, _ := l.fill(bufs, sizes, 16)
				n += k
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/packet")
		})
	}
}

// BenchmarkTake says what taking answers in costs without a tunnel.
func BenchmarkTake(b *testing.B) {
	for _, size := range []int{64, 1420} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := &Source{began: time.Now()}
			e := &end{source: s, shard: newShard(), owners: map[uint32]owner{}}
			var inners []uint32
			for i := range 10_000 {
				inners = append(inners, uint32(10<<24+i))
				e.owners[inners[i]] = owner{began: true}
			}
			sets := spread(10_000, wireFlows, [][]uint32{inners}, []remote{{addressNumber(remoteA.Addr()), 1}})
			r := &run{load: Load{Size: size, Run: 1, Flows: 10_000, Patience: time.Hour}, kind: 2, template: newTemplate(size), source: s, seen: newSeen(10_000)}
			l := &lane{run: r, set: sets[0], end: e, quiet: new(quiet)}
			e.run.Store(l)
			l.cursor = newCursor(&l.set)
			var bufs [][]byte
			for range 10_000 {
				v := l.cursor.next()
				p := make([]byte, size)
				r.template.put(p, l.set.endpoints(v.flow), wire.Head{Kind: wire.KindEchoAnswer, Flow: v.number, Run: 1, Sequence: v.sequence})
				var q packet.Packet
				packet.Parse(&q, p)
				bufs = append(bufs, back(&q, q.Data()))
			}
			n := 0
			for b.Loop() {
				at := n % (len(bufs) - 128)
				_, _ = e.Write(bufs[at:at+128], 0)
				n += 128
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/packet")
		})
	}
}

// BenchmarkEnds says what a device and peer of its own costs.
func BenchmarkEnds(b *testing.B) {
	for _, n := range []int{10, 100, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			there := new(counted)
			_, ends := newGateway(b, there, n, 1)
			before := resident(b)
			began := time.Now()
			s := newSource(b, Config{Ends: ends})
			took := time.Since(began)
			l := Load{Run: 1, Rate: float64(n) * 20, For: 2 * time.Second, Size: 1420, Remotes: []netip.AddrPort{remoteA}, Unasked: true}
			if _, err := s.Blast(b.Context(), l); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
			}
			b.ReportMetric(float64(resident(b)-before)/float64(n)/1024, "KiB/end")
			b.ReportMetric(float64(took.Milliseconds())/float64(n), "ms/connect")
		})
	}
}

// resident is this process's memory in bytes.
func resident(b *testing.B) int64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(raw), &size, &pages); err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}
