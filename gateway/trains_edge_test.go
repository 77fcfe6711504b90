package gateway

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net/netip"
	"testing"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// trainOf is a train of whole segments of size bytes each, as a kernel hands it over.
func trainOf(t *testing.T, single []byte, size int) packet.Train {
	t.Helper()
	return packet.Train{Head: bytes.Clone(single), Size: size, Partial: true}
}

// stuff is a payload that differs from place to place.
func stuff(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 / 3)
	}
	return b
}

// connected is a rig with one TCP connection and one UDP mapping of alice.
func connected(t *testing.T) (*rig, *fakeTrains, *stream, *stream) {
	t.Helper()
	r, up := newTrainsRig(t)
	m := newTraffic(t, 1)
	m.flows = []*stream{m.flows[0], m.flows[4]}
	m.open(r)
	return r, up, m.flows[0], m.flows[1]
}

func segmentFrom(s *stream, payload []byte) []byte {
	b := make([]byte, 40+len(payload))
	return b[:packet.BuildTCP(b, packet.TCPHeader{Src: s.remote, Dst: s.external, Flags: packet.ACK | packet.PSH, Seq: s.in, Ack: s.out, Window: 60000, TTL: 64}, payload)]
}

func datagramFrom(s *stream, payload []byte, id uint16) []byte {
	b := make([]byte, 28+len(payload))
	return b[:packet.BuildUDP(b, s.remote, s.external, payload, 64, id)]
}

// TestTrainsAreCutForTheTunnel: segments that were joined to longer ones than the tunnel
// takes are cut to its MTU and arrive in sequence, with sums that are right.
func TestTrainsAreCutForTheTunnel(t *testing.T) {
	for _, size := range []int{100, 1380, 1381, 1448, 9000, 0} {
		r, up, s, _ := connected(t)
		payload := stuff(20000)
		if size == 0 { // no train, but its sum is left to a device
			payload = payload[:1380]
		}
		up.ready = []packet.Train{trainOf(t, segmentFrom(s, payload), size)}
		var got []byte
		list := r.readAll(batchSize)
		for i, b := range list {
			p := parsed(t, b)
			if len(b) > 1420 || !p.ChecksumOK() || p.Seq != s.in+uint32(len(got)) || p.TTL != 63 || p.Dst != s.inner.Addr() {
				t.Fatalf("size %d, packet %d: %d bytes, sum right: %v, %d behind", size, i, len(b), p.ChecksumOK(), p.Seq-s.in-uint32(len(got)))
			}
			if last := i == len(list)-1; last != (p.Flags&packet.PSH != 0) {
				t.Errorf("size %d, packet %d of %d: PSH %v", size, i, len(list), !last)
			}
			got = append(got, p.Data()...)
		}
		if !bytes.Equal(got, payload) {
			t.Errorf("size %d: %d bytes come of %d", size, len(got), len(payload))
		}
		if n := r.f.counters.Packets(Ingress); n != uint64(len(list))+1 { // the handshake's one
			t.Errorf("size %d: %d packets counted, %d came", size, n, len(list))
		}
	}
}

// TestTooBigTrains (R-11, U-13): datagrams are never cut but into fragments. Those that
// must not be are counted each, and their sender is told once, with the external
// address; so is who sends a single segment that is too long.
func TestTooBigTrains(t *testing.T) {
	r, up, c, s := connected(t)
	r.up.sent = nil
	up.ready = []packet.Train{
		trainOf(t, datagramFrom(s, stuff(4*1400), 0), 1400),
		{Head: segmentFrom(c, stuff(1400))},
	}
	if list := r.readAll(batchSize); len(list) != 0 {
		t.Fatalf("%d packets come that are too long", len(list))
	}
	if n := r.f.counters.Drops(Ingress, packet.TooBig); n != 5 {
		t.Errorf("%d dropped, want 5", n)
	}
	if len(r.up.sent) != 2 {
		t.Fatalf("%d errors told, want 2", len(r.up.sent))
	}
	for i, want := range []netip.AddrPort{s.external, c.external} {
		p := parsed(t, r.up.sent[i])
		if p.ICMPType != 3 || p.ICMPCode != 4 || binary.BigEndian.Uint16(p.B[26:]) != 1420 ||
			netip.AddrPortFrom(p.Inner.Dst, p.Inner.DstPort) != want || p.Src != want.Addr() || p.B[p.Inner.Off+8] != 64 {
			t.Errorf("told %x", p.B)
		}
	}
	up.ready = []packet.Train{trainOf(t, datagramFrom(s, stuff(3*2000), 9), 2000)}
	list := r.readAll(batchSize)
	if len(list) != 6 {
		t.Fatalf("three datagrams of 2,000 bytes come in %d fragments, want 6", len(list))
	}
	whole, err := packet.NewReassembler(packet.ReassemblyConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for _, b := range list {
		p := parsed(t, b)
		if d, o := whole.Add(&p, 1); d != nil {
			q := parsed(t, d)
			if !q.ChecksumOK() {
				t.Error("a datagram's sum is wrong")
			}
			got = append(got, q.Data()...)
		} else if o != packet.Pass {
			t.Fatal(o)
		}
	}
	if !bytes.Equal(got, stuff(6000)) {
		t.Errorf("of 6,000 bytes %d come", len(got))
	}
}

// TestTrainsWhoseTimeIsOver: each segment is dropped, the sender is told, and what it is
// told quotes the packet as it came.
func TestTrainsWhoseTimeIsOver(t *testing.T) {
	r, up, s, _ := connected(t)
	r.up.sent = nil
	b := segmentFrom(s, stuff(5000))
	b[8] = 1
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], onesComplement(b[:20]))
	up.ready = []packet.Train{trainOf(t, b, 1000)}
	if list := r.readAll(batchSize); len(list) != 0 || r.f.counters.Drops(Ingress, packet.TTLExpired) != 5 || len(r.up.sent) != 1 {
		t.Errorf("%d packets come, %v, %d errors", len(list), r.counts(), len(r.up.sent))
	}
}

// onesComplement is the Internet checksum (RFC 1071) of a header.
func onesComplement(b []byte) uint16 {
	s := uint32(0)
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	s = s>>16 + s&0xffff
	return ^uint16(s>>16 + s&0xffff)
}

// TestTrainsWaitAndAreForgotten: what does not fit one Read comes with the next, in order and
// behind what the gateway itself has to say; and nothing of a sandbox comes after it was revoked.
func TestTrainsWaitAndAreForgotten(t *testing.T) {
	r, up, s, _ := connected(t)
	up.ready = []packet.Train{trainOf(t, segmentFrom(s, stuff(10000)), 1000), trainOf(t, segmentFrom(s, stuff(3000)), 1000)}
	bufs, sizes := readBuffers()[:4], make([]int, 4)
	read := func() (n int) {
		t.Helper()
		n, err := r.f.Read(bufs, sizes, headroom)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := read(); n != 4 || sizes[3] != 1040 {
		t.Fatalf("%d packets, want 4", n)
	}
	r.f.replies.push(ping(t, gw, alice, 1), 1420)
	if n := read(); n != 4 || sizes[0] > 100 || parsed(t, bufs[1][headroom:]).Seq != s.in+4000 {
		t.Fatalf("%d packets, want the gateway's own and three", n)
	}
	r.f.Revoke(s.inner.Addr())
	if list := r.readAll(4); len(list) != 0 {
		t.Errorf("%d packets for a sandbox that is gone", len(list))
	}
	if n := r.f.counters.Drops(Ingress, packet.Unattached); n != 13-4-3 {
		t.Errorf("%d dropped of 13, of which 7 have come", n)
	}
}

// TestBadTrains: what no kernel hands over harms nothing and is counted.
func TestBadTrains(t *testing.T) {
	r, up, c, s := connected(t)
	short := datagramFrom(s, stuff(1000), 0)
	binary.BigEndian.PutUint16(short[24:], 500) // UDP ends before its packet
	fragment := datagramFrom(s, stuff(1000), 7)
	fragment[6] = 0x20
	fragment[10], fragment[11] = 0, 0
	binary.BigEndian.PutUint16(fragment[10:], onesComplement(fragment[:20]))
	up.ready = []packet.Train{
		{Head: nil, Size: 100},
		{Head: segmentFrom(c, stuff(1000))[:500], Size: 100},
		trainOf(t, short, 100),
		trainOf(t, fragment, 100),
		trainOf(t, ping(t, s.remote.Addr(), s.external.Addr(), 5), 2),
		{Head: segmentFrom(c, nil), Size: 100, Partial: true},
	}
	before := r.counts()
	list := r.readAll(batchSize)
	if len(list) != 1 || len(list[0]) != 40 {
		t.Errorf("%d packets come, want the one without payload", len(list))
	}
	after := r.counts()
	for k, n := range before {
		if after[k] -= n; after[k] == 0 {
			delete(after, k)
		}
	}
	want := map[string]uint64{"ingress": 1, "ingress malformed": 2, "ingress malformed_l4": 10 + 1, "ingress fragment": 1}
	if !maps.Equal(after, want) {
		t.Errorf("counted %v, want %v", after, want)
	}
}

// TestTrainsOutwardAreRefusedOnce: each segment of a train for which there is no session
// is counted, the sandbox is told once, and a closed uplink drops what it is given.
func TestTrainsOutwardAreRefusedOnce(t *testing.T) {
	r, up, s, _ := connected(t)
	r.up.sent = nil
	other := *s
	other.inner = at(alice, 7777)
	m := newTraffic(t, 2)
	var batch [][]byte
	seq := uint32(1)
	for range 5 {
		b := make([]byte, 140)
		n := packet.BuildTCP(b, packet.TCPHeader{Src: other.inner, Dst: s.remote, Flags: packet.ACK, Seq: seq, Ack: 1, Window: 1000, TTL: 64}, stuff(100))
		batch, seq = append(batch, b[:n]), seq+100
	}
	r.write(batch...)
	if n := r.f.counters.Drops(Egress, packet.NoSession); n != 5 || r.f.counters.Replies() != 1 {
		t.Errorf("%v", r.counts())
	}
	sent := r.f.counters.Packets(Egress)
	up.done = true
	batch = m.run(s, s.inner, s.remote, &s.out, s.in)
	r.write(batch...)
	if n := r.f.counters.Drops(Egress, packet.Closed); n != uint64(len(batch)) || r.f.counters.Packets(Egress) != sent {
		t.Errorf("%d of %d counted as dropped by a closed uplink", n, len(batch))
	}
}

// TestAnswersToANetworkStaySingle: what sandboxes answer to a peered network does not go
// to the uplink, and leaves as it came although the uplink would carry it joined.
func TestAnswersToANetworkStaySingle(t *testing.T) {
	r, _ := newTrainsRig(t)
	p := &peeredRig{rig: r, count: &peeringCounters{}, way: &peered{accepts: new(bart.Fast[*lane])}}
	p.way.device = newSiteDevice("link", r.f, siteSlots)
	p.way.accepts.Insert(peeredRange, &lane{peeringCounters: p.count, device: p.way.device, mtu: r.f.mtu})
	r.f.setPeered(p.way)
	var batch [][]byte
	for seq := range uint32(4) {
		b := make([]byte, 140)
		h := packet.TCPHeader{Src: at(alice, 80), Dst: database, Flags: packet.ACK, Seq: 1 + 100*seq, Ack: 1, Window: 1000, TTL: 64}
		batch = append(batch, b[:packet.BuildTCP(b, h, stuff(100))])
	}
	r.write(batch...)
	got := p.tunneled()
	if len(got) != len(batch) {
		t.Fatalf("%d packets cross, want %d: %v", len(got), len(batch), r.counts())
	}
	for i := range got {
		if q := &got[i]; len(q.B) != 140 || !q.ChecksumOK() || q.Seq != 1+100*uint32(i) || q.TTL != 63 {
			t.Errorf("packet %d crosses as %x", i, q.B)
		}
	}
	p.wantPassed(4, 0)
}

// TestRefusedTrainsCountTheirSegments: of a train that is for nobody, or that says it comes
// from a dedicated address, each segment counts.
func TestRefusedTrainsCountTheirSegments(t *testing.T) {
	r, up, c, _ := connected(t)
	stray, forged := *c, *c
	stray.external = netip.AddrPortFrom(forbidden.Addr(), c.external.Port())
	forged.remote = netip.AddrPortFrom(c.external.Addr(), 9)
	up.ready = []packet.Train{
		trainOf(t, segmentFrom(&stray, stuff(500)), 100),
		trainOf(t, segmentFrom(&forged, stuff(300)), 100),
	}
	r.readAll(batchSize)
	if n, m := r.f.counters.Drops(Ingress, packet.NoMapping), r.f.counters.Drops(Ingress, packet.SpoofedSource); n != 5 || m != 3 {
		t.Errorf("%d and %d dropped, want 5 and 3", n, m)
	}
}

// TestOthersTrainsOutlastARevocation: what waits for other sandboxes than the revoked one
// arrives, unless there were more revocations than are remembered.
func TestOthersTrainsOutlastARevocation(t *testing.T) {
	for _, c := range []struct{ revocations, come int }{{1, 2 + 3}, {32, 2 + 3}, {33, 0}} {
		r, up := newTrainsRig(t)
		m := newTraffic(t, 1)
		m.flows = []*stream{m.flows[0], m.flows[1]} // alice's and bob's
		m.open(r)
		a, b := m.flows[0], m.flows[1]
		up.ready = []packet.Train{
			trainOf(t, segmentFrom(b, stuff(3000)), 1000), trainOf(t, segmentFrom(a, stuff(4000)), 1000),
			trainOf(t, segmentFrom(b, stuff(3000)), 1000),
		}
		bufs, sizes := readBuffers()[:1], make([]int, 1)
		if n, err := r.f.Read(bufs, sizes, headroom); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		for range c.revocations {
			r.f.Revoke(alice)
		}
		list := r.readAll(4)
		if n := r.f.counters.Drops(Ingress, packet.Unattached); len(list) != c.come || n != uint64(9-c.come) {
			t.Errorf("after %d revocations %d packets come, %d are dropped; want %d", c.revocations, len(list), n, c.come)
		}
		for _, pkt := range list {
			if p := parsed(t, pkt); p.Dst != bob {
				t.Errorf("a packet for %v comes", p.Dst)
			}
		}
	}
}
