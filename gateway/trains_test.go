package gateway

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// fakeTrains is a fakeUplink that carries trains: it cuts what it is given, and joins
// what the test queues.
type fakeTrains struct {
	*fakeUplink
	written int            // trains
	ready   []packet.Train // what Read gives first, as it is
	joins   *packet.Coalescer
	parsed  []packet.Packet
}

func newTrainsRig(t testing.TB) (*rig, *fakeTrains) {
	t.Helper()
	up := &fakeTrains{fakeUplink: &fakeUplink{}, joins: packet.NewCoalescer(batchSize)}
	return newRigOn(t, nat.Config{MaxSessions: 1 << 16}, up, up.fakeUplink), up
}

func (u *fakeTrains) WriteTrains(trains []packet.Train) (int, error) {
	if u.done {
		return 0, os.ErrClosed
	}
	var c packet.Cutter
	for i := range trains {
		u.written++
		for o := c.Start(&trains[i], 65535); ; {
			if o != packet.Pass {
				panic(fmt.Sprintf("a train that cannot be cut: %v: %x", o, trains[i].Head))
			}
			if !c.More() {
				break
			}
			b := make([]byte, c.Size())
			u.sent = append(u.sent, b[:c.Next(b)])
		}
	}
	return len(trains), nil
}

func (u *fakeTrains) ReadTrains(trains []packet.Train) (int, error) {
	if u.done || len(u.queue)+len(u.ready) == 0 && !u.woken.Load() {
		return 0, os.ErrClosed
	}
	u.woken.Store(false)
	if n := copy(trains, u.ready); n > 0 {
		u.ready = u.ready[n:]
		return n, nil
	}
	n := min(len(u.queue), len(trains))
	u.parsed = make([]packet.Packet, n)
	for i := range n {
		packet.Parse(&u.parsed[i], bytes.Clone(u.queue[i]))
	}
	u.queue = u.queue[n:]
	joined := u.joins.Coalesce(u.parsed)
	for i, t := range joined {
		t.Head = slices.Concat(append([][]byte{t.Head}, t.Rest...)...)
		t.Rest = nil
		trains[i] = t
	}
	return len(joined), nil
}

// traffic makes up what sandboxes send and what comes back, the same for the same seed.
type traffic struct {
	*rand.Rand
	t     testing.TB
	flows []*stream
}

// stream is a flow as both of its ends see it.
type stream struct {
	proto         packet.Proto
	inner, remote netip.AddrPort
	external      netip.AddrPort // once it is known
	out, in       uint32         // sequence numbers
}

func newTraffic(t testing.TB, seed uint64) *traffic {
	m := &traffic{Rand: rand.New(rand.NewPCG(seed, 1)), t: t}
	for i := range 6 {
		inner := at(alice, uint16(5000+i))
		if i%2 == 1 {
			inner = at(bob, uint16(5000+i))
		}
		s := &stream{proto: packet.TCP, inner: inner, remote: netip.AddrPortFrom(origin.Addr(), uint16(443+i)), out: m.Uint32(), in: m.Uint32()}
		if i >= 4 {
			s.proto = packet.UDP
		}
		m.flows = append(m.flows, s)
	}
	return m
}

// run is some packets of a flow in a row, between two ends, of which seq is next.
func (m *traffic) run(s *stream, src, dst netip.AddrPort, seq *uint32, ack uint32) (list [][]byte) {
	size := 1 + m.IntN(1300)
	n := 1 + m.IntN(12)
	for i := range n {
		payload := make([]byte, size)
		if i == n-1 && m.IntN(2) == 0 {
			payload = payload[:m.IntN(size+1)]
		}
		for i := range payload {
			payload[i] = byte(m.Uint32())
		}
		b := make([]byte, 40+len(payload))
		if s.proto == packet.UDP {
			id := uint16(0)
			if m.IntN(6) == 0 {
				id = 1 + uint16(m.IntN(100))
			}
			list = append(list, b[:packet.BuildUDP(b, src, dst, payload, 64, id)])
			continue
		}
		h := packet.TCPHeader{Src: src, Dst: dst, Flags: packet.ACK, Seq: *seq, Ack: ack, Window: 60000, TTL: 64}
		if i == n-1 && m.IntN(2) == 0 {
			h.Flags |= packet.PSH
		}
		list = append(list, b[:packet.BuildTCP(b, h, payload)])
		if m.IntN(20) > 0 { // else it comes again
			*seq += uint32(len(payload))
		}
	}
	if id := uint16(m.Uint32()); m.IntN(3) == 0 { // as kernels count
		for i, b := range list {
			if b[6] == 0x40 {
				binary.BigEndian.PutUint16(b[4:], id+uint16(i))
				b[10], b[11] = 0, 0
				binary.BigEndian.PutUint16(b[10:], onesComplement(b[:20]))
			}
		}
	}
	if m.IntN(4) == 0 { // damage, which must not be mended
		b := list[m.IntN(len(list))]
		b[len(b)-1] ^= 1
	}
	return list
}

// outward is a batch of what sandboxes send.
func (m *traffic) outward() (list [][]byte) {
	for range 1 + m.IntN(4) {
		s := m.flows[m.IntN(len(m.flows))]
		list = append(list, m.run(s, s.inner, s.remote, &s.out, s.in)...)
		switch m.IntN(12) {
		case 0:
			list = append(list, m.run(s, s.inner, netip.AddrPortFrom(forbidden.Addr(), s.remote.Port()), new(uint32), 1)...)
		case 1:
			list = append(list, m.run(s, at(stranger, 9), s.remote, new(uint32), 1)...)
		case 2: // no session
			list = append(list, m.run(&stream{proto: packet.TCP}, at(alice, 7777), s.remote, new(uint32), 1)...)
		case 3:
			list = append(list, ping(m.t, s.inner.Addr(), s.remote.Addr(), 7))
		case 4:
			a, b := m.flows[4], m.flows[5]
			list = append(list, m.run(a, a.inner, b.external, nil, 0)...)
			list = append(list, m.run(b, b.inner, a.external, nil, 0)...)
			list = append(list, udp(m.t, s.inner, at(pair[0], 4444), []byte("nobody")))
		case 5:
			list = append(list, fragmentsOf(udp(m.t, s.inner, m.flows[5].remote, make([]byte, 3000)))...)
		}
	}
	return list
}

func ping(t testing.TB, from, to netip.Addr, ident uint16) []byte {
	t.Helper()
	b := make([]byte, 64)
	return b[:packet.BuildICMPEcho(b, packet.Echo{Src: from, Dst: to, Ident: ident, Seq: 1, TTL: 64}, []byte("echo"))]
}

// inward is a batch of what comes back.
func (m *traffic) inward() (list [][]byte) {
	for range 1 + m.IntN(4) {
		s := m.flows[m.IntN(len(m.flows))]
		list = append(list, m.run(s, s.remote, s.external, &s.in, s.out)...)
		switch m.IntN(8) {
		case 0: // no mapping
			list = append(list, m.run(s, s.remote, at(pair[1], 1), new(uint32), 1)...)
		case 1: // from nobody who was asked
			list = append(list, m.run(&stream{proto: packet.UDP}, at(forbidden.Addr(), 1), m.flows[5].external, new(uint32), 1)...)
		case 2: // too long for the tunnel, may be cut
			list = append(list, udp(m.t, m.flows[4].remote, m.flows[4].external, make([]byte, 2000)))
		}
	}
	return list
}

// open begins the flows and learns their external ports.
func (m *traffic) open(rigs ...*rig) {
	for _, s := range m.flows {
		var first []byte
		if s.proto == packet.TCP {
			first = tcp(m.t, packet.TCPHeader{Src: s.inner, Dst: s.remote, Flags: packet.SYN, Seq: s.out, Window: 60000, MSS: 1460, TTL: 64})
			s.out++
		} else {
			first = udp(m.t, s.inner, s.remote, nil)
		}
		for _, r := range rigs {
			r.up.sent = nil
			r.write(first)
			if len(r.up.sent) != 1 {
				m.t.Fatalf("a flow does not begin: %v", r.counts())
			}
			p := parsed(m.t, r.up.sent[0])
			if s.external = netip.AddrPortFrom(p.Src, p.SrcPort); s.proto == packet.TCP {
				r.up.queue = [][]byte{tcp(m.t, packet.TCPHeader{Src: s.remote, Dst: s.external, Flags: packet.SYN | packet.ACK, Seq: s.in, Ack: s.out, Window: 60000, TTL: 64})}
				r.read()
			}
			r.up.sent = nil
		}
		if s.proto == packet.TCP {
			s.in++
		}
	}
}

// byFlow sorts packets by their flow, in the order of each. What the gateway itself says is
// left out: a train is refused once.
func byFlow(t testing.TB, list [][]byte) map[string][]string {
	t.Helper()
	m := make(map[string][]string)
	for _, b := range list {
		var p packet.Packet
		if o := packet.Parse(&p, b); o != packet.Pass {
			t.Fatalf("%v: %x", o, b)
		}
		if p.Kind == packet.KindICMPError || p.Kind == packet.KindTCP && p.Flags&packet.RST != 0 {
			continue
		}
		k := fmt.Sprint(p.Proto, p.Src, p.SrcPort, p.Dst, p.DstPort)
		m[k] = append(m[k], string(b))
	}
	return m
}

// readAll reads all that there is, into k buffers at a time.
func (r *rig) readAll(k int) (list [][]byte) {
	r.t.Helper()
	bufs, sizes := readBuffers()[:k], make([]int, k)
	for {
		n, err := r.f.Read(bufs, sizes, headroom)
		if err == os.ErrClosed {
			return list
		}
		if err != nil {
			r.t.Fatal(err)
		}
		for i := range n {
			if sizes[i] > 0 {
				list = append(list, bytes.Clone(bufs[i][headroom:headroom+sizes[i]]))
			}
		}
	}
}

// compare carries the same traffic by two uplinks, one with trains, and holds what comes
// out, and what is counted, against each other.
func compare(t testing.TB, seed uint64, rounds int) {
	t.Helper()
	m := newTraffic(t, seed)
	plain := newRig(t)
	joined, up := newTrainsRig(t)
	m.open(plain, joined)
	a, b := m.flows[4], m.flows[5]
	for _, r := range []*rig{plain, joined} { // each asks the other, so that hairpins pass
		r.write(udp(t, a.inner, b.external, nil))
		r.write(udp(t, b.inner, a.external, nil))
		r.readAll(batchSize)
	}
	segments := 0
	for round := range rounds {
		plain.up.sent, joined.up.sent = nil, nil
		batch := m.outward()
		for _, b := range batch {
			plain.write(b) // nothing is remembered from one to the next
		}
		joined.write(batch...)
		same(t, round, "outward", plain.up.sent, joined.up.sent)
		segments += len(joined.up.sent)
		batch = m.inward()
		plain.up.queue, joined.up.queue = slices.Clone(batch), slices.Clone(batch)
		k := 1 + m.IntN(batchSize)
		same(t, round, "inward", plain.readAll(k), joined.readAll(k))
		same(t, round, "local", plain.local.got, joined.local.got)
	}
	x, y := plain.counts(), joined.counts()
	delete(x, "replies")
	delete(y, "replies")
	if !maps.Equal(x, y) {
		t.Errorf("seed %d: counted %v without trains, %v with", seed, x, y)
	}
	for d := range 2 {
		if x, y := plain.f.counters.Bytes(Direction(d)), joined.f.counters.Bytes(Direction(d)); x != y {
			t.Errorf("seed %d: %v bytes: %d without trains, %d with", seed, Direction(d), x, y)
		}
	}
	for i := range pair {
		x, y := plain.f.tables[i].nat.Stats(), joined.f.tables[i].nat.Stats()
		for o := range packet.Outcomes() {
			if x.Egress.Of(o) != y.Egress.Of(o) || x.Ingress.Of(o) != y.Ingress.Of(o) {
				t.Errorf("seed %d: table %d counts %v %d/%d without trains, %d/%d with", seed, i, o,
					x.Egress.Of(o), x.Ingress.Of(o), y.Egress.Of(o), y.Ingress.Of(o))
			}
		}
	}
	if rounds > 5 && up.written*2 > segments {
		t.Errorf("seed %d: %d segments went in %d trains: nothing was joined", seed, segments, up.written)
	}
}

func same(t testing.TB, round int, what string, plain, joined [][]byte) {
	t.Helper()
	a, b := byFlow(t, plain), byFlow(t, joined)
	for k := range a {
		if !slices.Equal(a[k], b[k]) {
			t.Fatalf("round %d, %s, flow %s: %d packets without trains, %d with", round, what, k, len(a[k]), len(b[k]))
		}
	}
	if len(a) != len(b) {
		t.Fatalf("round %d, %s: %d flows without trains, %d with", round, what, len(a), len(b))
	}
}

// TestTrainsChangeNothing: with trains and without, the same traffic comes out bit for bit,
// each flow in its order, and is counted alike.
func TestTrainsChangeNothing(t *testing.T) {
	for seed := range uint64(40) {
		compare(t, seed, 20)
	}
}

// FuzzTrainsChangeNothing is the same for the seeds that a fuzzer likes.
func FuzzTrainsChangeNothing(f *testing.F) {
	f.Add(uint64(1 << 40))
	f.Fuzz(func(t *testing.T, seed uint64) { compare(t, seed, 4) })
}
