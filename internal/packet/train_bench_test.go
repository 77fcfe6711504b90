package packet

import (
	"encoding/binary"
	"testing"
)

// stream is a batch of n segments of 1,420 bytes, of flows that take turns after each run.
func stream(t testing.TB, n, flows, run int) [][]byte {
	frames := make([][]byte, 0, n)
	seq := make([]uint32, flows)
	data := string(make([]byte, 1380))
	for flow := 0; len(frames) < n; flow = (flow + 1) % flows {
		for range run {
			h := TCPHeader{Src: inner, Dst: remote, Seq: seq[flow], Ack: 1, Flags: ACK, Window: 500}
			b := tcpPacket(t, h, data)
			binary.BigEndian.PutUint16(b[20:], uint16(1024+flow))
			frames = append(frames, sums(b))
			seq[flow] += uint32(len(data))
		}
	}
	return frames[:n]
}

func BenchmarkCoalesce(b *testing.B) {
	for _, c := range []struct {
		name             string
		n, flows, run, k int
	}{{"one-flow", 45, 1, 45, 1}, {"128-of-8-flows", 128, 8, 4, 8}, {"alternating", 128, 8, 1, 8}, {"singles", 128, 128, 1, 128}} {
		b.Run(c.name, func(b *testing.B) {
			frames, packets, co := stream(b, c.n, c.flows, c.run), make([]Packet, c.n), NewCoalescer(c.n)
			heads := make([][40]byte, c.n)
			for i, f := range frames {
				copy(heads[i][:], f)
			}
			b.SetBytes(int64(c.n) * 1420)
			b.ReportAllocs()
			for b.Loop() {
				for i, f := range frames {
					copy(f, heads[i][:]) // joining has changed it
					Parse(&packets[i], f)
				}
				if got := len(co.Coalesce(packets)); got != c.k {
					b.Fatalf("%d trains, want %d", got, c.k)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*c.n), "ns/segment")
		})
	}
}

func BenchmarkCut(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
	}{{"1380", 1380}, {"64", 64}} {
		b.Run(c.name, func(b *testing.B) {
			whole := make([]byte, maxTotal)
			whole = whole[:BuildTCP(whole, TCPHeader{Src: inner, Dst: remote, Flags: ACK, TTL: 64}, make([]byte, 40*c.size))]
			train := Train{Head: whole, Size: c.size, Partial: true}
			var cut Cutter
			buf := make([]byte, 1500)
			b.SetBytes(int64(train.Bytes()))
			b.ReportAllocs()
			for b.Loop() {
				if cut.Start(&train, 1420) != Pass {
					b.Fatal("refused")
				}
				for cut.More() {
					cut.Next(buf)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*40), "ns/segment")
		})
	}
}

func TestTrainsAllocateNothing(t *testing.T) {
	frames := stream(t, 64, 4, 3)
	packets, co, buf := make([]Packet, len(frames)), NewCoalescer(len(frames)), make([]byte, 1500)
	var cut Cutter
	n := testing.AllocsPerRun(100, func() {
		for i, f := range frames {
			Parse(&packets[i], f)
		}
		trains := co.Coalesce(packets)
		for i := range trains {
			_ = packets[co.Head(i)]
			if trains[i].Partial {
				trains[i].Checksum()
			}
			for o := cut.Start(&trains[i], 1420); o == Pass && cut.More(); {
				cut.Next(buf)
			}
		}
		co.Release()
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}
