package gateway

import (
	"bytes"
	"maps"
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
)

func (r *rig) wantCounts(want map[string]uint64) {
	r.t.Helper()
	if got := r.counts(); !maps.Equal(got, want) {
		r.t.Errorf("counters are %v, want %v", got, want)
	}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// TestRoundTrip: each sandbox leaves from its own IP of the pair, and the
// answer comes back to it alone.
func TestRoundTrip(t *testing.T) {
	r := newRig(t)
	r.write(udp(t, at(alice, 5000), origin, []byte("a")), udp(t, at(bob, 5000), origin, []byte("b")))
	if len(r.up.sent) != 2 {
		t.Fatalf("uplink got %d packets, want 2", len(r.up.sent))
	}
	byPayload := map[string]packet.Packet{}
	for _, b := range r.up.sent {
		p := parsed(t, b)
		byPayload[string(p.Data())] = p
		if p.TTL != 63 || !p.ChecksumOK() {
			t.Errorf("TTL %d, checksum good %v; want 63, true", p.TTL, p.ChecksumOK())
		}
	}
	for payload, inner := range map[string]netip.Addr{"a": alice, "b": bob} {
		p := byPayload[payload]
		if want := pair[spec.EgressIndex(inner)]; p.Src != want {
			t.Errorf("%v left from %v, want %v", inner, p.Src, want)
		}
		r.up.queue = append(r.up.queue, udp(t, origin, at(p.Src, p.SrcPort), []byte("re "+payload)))
	}
	got := r.read()
	if len(got) != 2 {
		t.Fatalf("%d packets came back, want 2", len(got))
	}
	for i, inner := range []netip.Addr{alice, bob} {
		want := map[string]netip.Addr{"re a": alice, "re b": bob}[string(got[i].Data())]
		if got[i].Dst != want || got[i].DstPort != 5000 || got[i].Src != origin.Addr() || !got[i].ChecksumOK() {
			t.Errorf("answer %d for %v is %v -> %v:%d", i, inner, got[i].Src, got[i].Dst, got[i].DstPort)
		}
	}
	r.wantCounts(map[string]uint64{"egress": 2, "ingress": 2})
}

// TestRefusals (I-8, I-9, R-1, R-2, S-6): what may not leave is counted under its reason, and the
// sandbox is told at once where it is due.
func TestRefusals(t *testing.T) {
	mid := packet.TCPHeader{Src: at(alice, 5000), Dst: origin, Flags: packet.ACK, Seq: 1, Ack: 1, Window: 1000, TTL: 64}
	last := udp(t, at(alice, 5000), origin, []byte("x"))
	last[8], last[10], last[11] = 1, 0, 0
	fixHeader(last)
	for name, c := range map[string]struct {
		packet    []byte
		reason    string
		kind      packet.Kind // of the answer; KindUnknown for none
		typ, code uint8
	}{
		"policy":      {udp(t, at(alice, 1), forbidden, nil), "policy_rejected", packet.KindICMPError, 3, 13},
		"unattached":  {udp(t, at(stranger, 1), origin, nil), "unattached", 0, 0, 0},
		"private":     {udp(t, at(alice, 1), netip.MustParseAddrPort("10.99.0.1:80"), nil), "private_destination", packet.KindICMPError, 3, 13},
		"metadata":    {udp(t, at(alice, 1), netip.MustParseAddrPort("169.254.169.254:80"), nil), "martian", packet.KindICMPError, 3, 13},
		"multicast":   {udp(t, at(alice, 1), netip.MustParseAddrPort("224.0.0.1:80"), nil), "martian", 0, 0, 0},
		"own address": {udp(t, at(alice, 1), at(neighbour, 80), nil), "own_address", packet.KindICMPError, 3, 13},
		"no service":  {udp(t, at(alice, 1), at(gw, 9999), nil), "no_local_service", packet.KindICMPError, 3, 3},
		"mid-flow":    {tcp(t, mid), "no_session", packet.KindTCP, 0, 0},
		"TTL":         {last, "ttl_expired", packet.KindICMPError, 11, 0},
		"worker":      {udp(t, at(worker, 1), origin, nil), "policy_dropped", 0, 0, 0},
		"IPv6":        {append([]byte{0x60}, make([]byte, 59)...), "not_ipv4", 0, 0, 0},
		"nonsense":    {[]byte("nonsense"), "malformed", 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write(c.packet)
			if len(r.up.sent) != 0 {
				t.Fatal("the packet left")
			}
			want := map[string]uint64{"egress " + c.reason: 1}
			if c.reason == "malformed" && r.counts()["egress not_ipv4"] == 1 {
				want = map[string]uint64{"egress not_ipv4": 1} // version is 6 by chance
			}
			got := r.read()
			if c.kind != packet.KindUnknown {
				want["replies"] = 1
				if len(got) != 1 || got[0].Kind != c.kind || got[0].ICMPType != c.typ || got[0].ICMPCode != c.code || got[0].Dst != alice {
					t.Errorf("the sandbox is told %+v", got)
				}
				if r.up.wakes.Load() == 0 {
					t.Error("a blocked Read was not woken")
				}
			} else if len(got) != 0 {
				t.Errorf("the sandbox is told %+v, want nothing", got)
			}
			r.wantCounts(want)
		})
	}
}

// fixHeader computes an IPv4 header's checksum anew.
func fixHeader(b []byte) {
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	b[10], b[11] = ^byte(sum>>8), ^byte(sum)
}

// TestIngressMiss: strangers reach nobody.
func TestIngressMiss(t *testing.T) {
	r := newRig(t)
	r.write(udp(t, at(alice, 5000), origin, nil))
	p := parsed(t, r.up.sent[0])
	foreign := netip.MustParseAddrPort("198.51.100.7:443")
	r.up.queue = [][]byte{
		udp(t, foreign, at(p.Src, p.SrcPort), nil),   // not asked: filtered
		udp(t, origin, at(p.Src, p.SrcPort^1), nil),  // no such port
		udp(t, origin, at(stranger, p.SrcPort), nil), // not one of ours
	}
	if got := r.read(); len(got) != 0 {
		t.Errorf("strangers got through: %+v", got)
	}
	r.wantCounts(map[string]uint64{"egress": 1, "ingress filtered": 1, "ingress no_mapping": 2})
}

// TestFragments (U-14): a datagram is translated when it is whole, and what is larger
// than the tunnel comes back in fragments, in order.
func TestFragments(t *testing.T) {
	r := newRig(t)
	payload := bytes.Repeat([]byte("0123456789abcdef"), 300)
	whole := udp(t, at(alice, 5000), origin, payload)
	var parts [][]byte
	for at := 0; ; {
		buf := make([]byte, 1420)
		n, next := packet.NextFragment(buf, whole, 1420, at)
		parts = append(parts, buf[:n])
		if at = next; at == 0 {
			break
		}
	}
	for i := len(parts) - 1; i >= 0; i-- { // last first
		r.write(parts[i])
	}
	if len(r.up.sent) != 1 {
		t.Fatalf("uplink got %d packets, want the datagram", len(r.up.sent))
	}
	p := parsed(t, r.up.sent[0])
	if !bytes.Equal(p.Data(), payload) || !p.ChecksumOK() || p.Src != pair[spec.EgressIndex(alice)] {
		t.Fatalf("datagram of %d bytes from %v is not what was sent", len(p.Data()), p.Src)
	}
	r.up.queue = [][]byte{udp(t, origin, at(p.Src, p.SrcPort), payload)}
	re, err := packet.NewReassembler(packet.ReassemblyConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var back []byte
	for _, part := range r.read() {
		if len(part.B) > 1420 || part.Dst != alice {
			t.Errorf("fragment of %d bytes to %v", len(part.B), part.Dst)
		}
		if b, _ := re.Add(&part, 0); b != nil {
			back = b
		}
	}
	if back == nil {
		t.Fatal("the fragments make no datagram")
	}
	if q := parsed(t, back); !bytes.Equal(q.Data(), payload) || !q.ChecksumOK() {
		t.Error("the datagram came back damaged")
	}
	r.wantCounts(map[string]uint64{"egress": 1, "ingress": 1})
}

// TestLocal: the network's own services reach sandboxes and resolvers, and
// nothing else.
func TestLocal(t *testing.T) {
	r := newRig(t)
	query := udp(t, at(alice, 5000), at(gw, 53), []byte("query"))
	probe := udp(t, at(worker, 5000), at(gw, packet.ProbePort), []byte("probe"))
	r.write(query, probe)
	if len(r.local.got) != 2 || len(r.up.sent) != 0 {
		t.Fatalf("services got %d packets, uplink %d; want 2, 0", len(r.local.got), len(r.up.sent))
	}
	r.f.WriteLocal([][]byte{
		udp(t, at(gw, 53), at(alice, 5000), []byte("answer")),
		udp(t, at(gw, 4000), resolver, []byte("upstream")),
		udp(t, at(gw, 4000), origin, []byte("elsewhere")),
		udp(t, at(stranger, 4000), resolver, []byte("spoofed")),
		udp(t, at(stranger, 53), at(alice, 5000), []byte("spoofed")),
	}, 0)
	got := r.read()
	if len(got) != 1 || got[0].Dst != alice || string(got[0].Data()) != "answer" {
		t.Errorf("sandbox got %+v", got)
	}
	if len(r.up.sent) != 1 {
		t.Fatalf("uplink got %d packets, want the query to the resolver", len(r.up.sent))
	}
	p := parsed(t, r.up.sent[0])
	if p.Src != pair[spec.EgressIndex(gw)] || p.Dst != resolver.Addr() {
		t.Errorf("query went %v -> %v", p.Src, p.Dst)
	}
	// The resolver's answer goes to the services, not into the tunnel.
	r.up.queue = [][]byte{udp(t, resolver, at(p.Src, p.SrcPort), []byte("resolved"))}
	if got := r.read(); len(got) != 0 {
		t.Errorf("tunnel got %+v", got)
	}
	if len(r.local.got) != 3 {
		t.Errorf("services got %d packets, want 3", len(r.local.got))
	}
	r.wantCounts(map[string]uint64{
		"egress": 1, "ingress": 1, "local": 2, "replies": 1,
		"egress policy_dropped": 1, "egress spoofed_source": 2,
	})
}

// TestRevoke: what is detached loses its flows at once.
func TestRevoke(t *testing.T) {
	r := newRig(t)
	r.write(udp(t, at(alice, 5000), origin, nil))
	p := parsed(t, r.up.sent[0])
	s, workers := r.f.Policy()
	r.f.SetPolicy(s.Without(alice), workers)
	if n := r.f.Revoke(alice); n != 1 {
		t.Errorf("%d sessions revoked, want 1", n)
	}
	r.up.queue = [][]byte{udp(t, origin, at(p.Src, p.SrcPort), nil)}
	if got := r.read(); len(got) != 0 {
		t.Errorf("an answer reached a sandbox that is gone: %+v", got)
	}
	r.write(udp(t, at(alice, 5000), origin, nil))
	r.wantCounts(map[string]uint64{"egress": 1, "ingress no_mapping": 1, "egress unattached": 1})
}

// TestErrorsAreLimited (I-8, R-8, S-4): a flood of refused packets makes a bounded number of
// errors, and leaves the other sandboxes theirs.
func TestErrorsAreLimited(t *testing.T) {
	r := newRig(t)
	refused := func(inner netip.Addr, n int) uint64 {
		before := r.f.counters.Replies()
		for range n {
			r.write(udp(t, at(inner, 1), forbidden, nil))
		}
		return r.f.counters.Replies() - before
	}
	if n := refused(alice, 5000); n != sandboxBurst {
		t.Errorf("%d errors at one instant, want the sandbox's burst of %d", n, sandboxBurst)
	}
	if n := refused(bob, 10); n != 10 {
		t.Errorf("another sandbox got %d errors about 10 packets", n)
	}
	if c := r.counts(); c["egress policy_rejected"] != 5010 {
		t.Errorf("%d refusals counted, want 5010", c["egress policy_rejected"])
	}
	r.clock.now += 1e9
	if n := refused(alice, 5000); n != sandboxBurst {
		t.Errorf("%d errors a second later, want %d", n, sandboxBurst)
	}
}

// TestErrorBudget: many sandboxes together stay within the network's budget, which
// fills with time.
func TestErrorBudget(t *testing.T) {
	var b errorBudget
	flood := func(now packet.Instant) (n int) {
		for i := range 10000 {
			if b.allow(netip.AddrFrom4([4]byte{10, 20, byte(i >> 8), byte(i)}), now) {
				n++
			}
		}
		return n
	}
	for _, step := range []struct {
		now  packet.Instant
		want int
	}{{1e9, networkBurst}, {1e9, 0}, {1e9 + 100e6, 100}, {10e9, networkBurst}} {
		if n := flood(step.now); n != step.want {
			t.Errorf("at %v: %d errors, want %d", step.now, n, step.want)
		}
	}
}

// TestNoAllocations: the path of an established flow allocates nothing.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector pools forget at random")
	}
	r := newRig(t)
	f, bufs, fresh := establishedBatch(r)
	sink := &countingUplink{fakeUplink: r.up}
	f.uplink = sink
	if n := testing.AllocsPerRun(200, func() {
		fresh()
		if _, err := f.Write(bufs, headroom); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per batch, want 0", n)
	}
	if sink.n == 0 {
		t.Fatal("nothing was forwarded")
	}
}

// TestNoAllocationsBack: nor does the way back.
func TestNoAllocationsBack(t *testing.T) {
	r := newRig(t)
	r.write(udp(t, at(alice, 5000), origin, nil))
	p := parsed(t, r.up.sent[0])
	answer := udp(t, origin, at(p.Src, p.SrcPort), make([]byte, 1000))
	f, queue := r.f, make([][]byte, batchSize)
	bufs, sizes := readBuffers(), make([]int, batchSize)
	for i := range queue {
		queue[i] = answer
	}
	if n := testing.AllocsPerRun(200, func() {
		r.up.queue = queue
		if n, err := f.Read(bufs, sizes, headroom); n != batchSize || err != nil {
			t.Fatalf("Read = %d, %v", n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per batch, want 0", n)
	}
}

// TestNoAllocationsTurned: nor does a hairpin, nor an IP that drains.
func TestNoAllocationsTurned(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector pools forget at random")
	}
	r := newRig(t)
	innerA, innerB := at(r.attach(0, 0), 5000), at(r.attach(1, 0), 6000)
	extA, extB := r.external(innerA), r.external(innerB)
	r.write(udp(t, innerA, extB, nil), udp(t, innerB, extA, nil))
	r.drain(pair[0], true)
	sent := append(repeat(frame(udp(t, innerA, extB, nil)), batchSize/2), repeat(frame(udp(t, innerB, extA, nil)), batchSize/2)...)
	batch, bufs, sizes := make([][]byte, batchSize), readBuffers(), make([]int, batchSize)
	for i := range batch {
		batch[i] = bytes.Clone(sent[i])
	}
	if n := testing.AllocsPerRun(200, func() {
		for i := range batch {
			copy(batch[i], sent[i])
		}
		if _, err := r.f.Write(batch, headroom); err != nil {
			t.Fatal(err)
		}
		for left := batchSize; left > 0; {
			n, err := r.f.Read(bufs, sizes, headroom)
			if err != nil {
				t.Fatal(err)
			}
			left -= n
		}
	}); n != 0 {
		t.Errorf("%v allocations per batch, want 0", n)
	}
}

// countingUplink takes packets without keeping them.
type countingUplink struct {
	*fakeUplink
	n int
}

func (u *countingUplink) Write(bufs [][]byte, _ int) (int, error) {
	u.n += len(bufs)
	return len(bufs), nil
}

// establishedBatch returns a batch of packets of established flows of both
// tables, and a function that puts their bytes back.
func establishedBatch(r *rig) (*Forwarder, [][]byte, func()) {
	var originals, bufs [][]byte
	for i := range batchSize {
		inner := []netip.Addr{alice, bob}[i%2]
		b := frame(udp(r.t, at(inner, uint16(5000+i/2)), origin, make([]byte, 1372)))
		originals = append(originals, b)
		bufs = append(bufs, append([]byte(nil), b...))
	}
	return r.f, bufs, func() {
		for i := range bufs {
			copy(bufs[i], originals[i][:headroom+28])
		}
	}
}

func BenchmarkForwarderEgress(b *testing.B) {
	r := newRig(b)
	f, bufs, fresh := establishedBatch(r)
	f.uplink = &countingUplink{fakeUplink: r.up}
	b.ReportAllocs()
	for b.Loop() {
		fresh()
		if _, err := f.Write(bufs, headroom); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchSize), "ns/packet")
}
