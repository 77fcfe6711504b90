package gateway

import (
	"fmt"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// sink is an uplink that takes everything and gives the same batch again and again.
type sink struct {
	*fakeUplink
	batch  [][]byte       // as Read gives it
	trains []packet.Train // as ReadTrains does, which says so by its type
	heads  [][]byte       // the headers of trains, as they came
}

func (u *sink) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }

func (u *sink) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, b := range u.batch {
		sizes[i] = copy(bufs[i][offset:], b)
	}
	return len(u.batch), nil
}

// trainSink is a sink that carries trains.
type trainSink struct{ *sink }

func (u trainSink) WriteTrains(trains []packet.Train) (int, error) { return len(trains), nil }

func (u trainSink) ReadTrains(trains []packet.Train) (int, error) {
	n := copy(trains, u.trains)
	for i := range n {
		copy(trains[i].Head, u.heads[i])
	}
	return n, nil
}

// load is what a benchmark carries: established flows, of which a batch has so many
// packets each.
func load(b testing.TB, carriesTrains bool, perFlow int) (*rig, *sink, [][]byte) {
	b.Helper()
	s := &sink{fakeUplink: &fakeUplink{}}
	r := newRigOf(b, nat.Config{MaxSessions: 1 << 16})
	var out [][]byte
	var in []packet.Packet
	m := newTraffic(b, 1)
	m.flows = nil
	for i := range batchSize / perFlow {
		m.flows = append(m.flows, &stream{proto: packet.TCP, inner: at(alice, uint16(5000+i)), remote: origin})
	}
	m.open(r)
	for _, f := range m.flows {
		for i := range perFlow {
			h := packet.TCPHeader{Src: f.inner, Dst: f.remote, Flags: packet.ACK, Seq: f.out + uint32(i*1380), Ack: f.in, Window: 60000, TTL: 64}
			seg := make([]byte, 1420)
			out = append(out, frame(seg[:packet.BuildTCP(seg, h, stuff(1380))]))
			h.Src, h.Dst, h.Seq, h.Ack = f.remote, f.external, f.in+uint32(i*1380), f.out
			back := make([]byte, 1420)
			back = back[:packet.BuildTCP(back, h, stuff(1380))]
			s.batch = append(s.batch, back)
			var p packet.Packet
			packet.Parse(&p, append([]byte(nil), back...))
			in = append(in, p)
		}
	}
	for _, t := range packet.NewCoalescer(batchSize).Coalesce(in) {
		head := append([]byte(nil), t.Head...)
		for _, more := range t.Rest {
			head = append(head, more...)
		}
		t.Head, t.Rest = head, nil
		s.trains = append(s.trains, t)
		s.heads = append(s.heads, append([]byte(nil), head[:40]...))
	}
	r.f.uplink = s
	if carriesTrains {
		u := trainSink{s}
		r.f.uplink, r.f.trains = u, u
	}
	return r, s, out
}

// kinds runs a benchmark of one flow and of many, with trains and without.
func kinds(b *testing.B, run func(b *testing.B, trains bool, perFlow int)) {
	for _, perFlow := range []int{batchSize, 8, 1} {
		for _, trains := range []bool{false, true} {
			b.Run(fmt.Sprintf("flows=%d/trains=%v", batchSize/perFlow, trains), func(b *testing.B) { run(b, trains, perFlow) })
		}
	}
}

// BenchmarkTrainsEgress is Write without the uplink: where trains are carried, the time for
// verifying sums is in it.
func BenchmarkTrainsEgress(b *testing.B) {
	kinds(b, func(b *testing.B, trains bool, perFlow int) {
		r, _, out := load(b, trains, perFlow)
		var bufs [][]byte
		for _, o := range out {
			bufs = append(bufs, append([]byte(nil), o...))
		}
		b.ReportAllocs()
		for b.Loop() {
			for i := range bufs {
				copy(bufs[i], out[i][:headroom+40])
			}
			if _, err := r.f.Write(bufs, headroom); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchSize), "ns/packet")
	})
}

// BenchmarkTrainsIngress is Read with one copy of each packet: by the uplink, or by cutting.
func BenchmarkTrainsIngress(b *testing.B) {
	kinds(b, func(b *testing.B, trains bool, perFlow int) {
		r, _, _ := load(b, trains, perFlow)
		bufs, sizes := readBuffers(), make([]int, batchSize)
		b.ReportAllocs()
		packets := 0
		for b.Loop() {
			n, err := r.f.Read(bufs, sizes, headroom)
			if err != nil || n == 0 {
				b.Fatal(n, err)
			}
			packets += n
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(packets), "ns/packet")
	})
}

// TestTrainsAllocateNothing: neither do those that have to wait for the next Read.
func TestTrainsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	r, _, out := load(t, true, batchSize)
	bufs := make([][]byte, len(out))
	for i := range bufs {
		bufs[i] = append([]byte(nil), out[i]...)
	}
	if n := testing.AllocsPerRun(100, func() {
		for i := range bufs {
			copy(bufs[i], out[i][:headroom+40])
		}
		if _, err := r.f.Write(bufs, headroom); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a batch outward allocates %v times", n)
	}
	in, sizes := readBuffers(), make([]int, batchSize)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := r.f.Read(in[:3*batchSize/4], sizes, headroom); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a batch inward allocates %v times", n)
	}
	if c := r.counts(); c["egress"] < 100*batchSize || c["ingress"] < 50*batchSize || len(c) != 2 {
		t.Errorf("counted %v", c)
	}
}
