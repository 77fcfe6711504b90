package gateway

import (
	"bytes"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

// attach lets an inner address of a side send, the k'th from the network's start.
func (r *rig) attach(side, k int) netip.Addr {
	r.t.Helper()
	for a := stranger; ; a = a.Next() {
		if spec.EgressIndex(a) != side {
			continue
		}
		if k--; k < 0 {
			s, workers := r.f.Policy()
			r.f.SetPolicy(s.With(a, policy.Subject{}), workers)
			return a
		}
	}
}

// external learns where an inner endpoint is seen from outside.
func (r *rig) external(inner netip.AddrPort) netip.AddrPort {
	r.t.Helper()
	n := len(r.up.sent)
	r.write(udp(r.t, inner, origin, nil))
	if len(r.up.sent) != n+1 {
		r.t.Fatalf("%v did not get out: %v", inner, r.counts())
	}
	p := parsed(r.t, r.up.sent[n])
	return at(p.Src, p.SrcPort)
}

// passed is one packet that a sandbox got, as its essence.
type passed struct {
	src, dst netip.AddrPort
	data     string
}

func (r *rig) got() (all []passed) {
	r.t.Helper()
	for _, p := range r.read() {
		if !p.ChecksumOK() {
			r.t.Errorf("checksum of %v -> %v is wrong", p.Src, p.Dst)
		}
		all = append(all, passed{at(p.Src, p.SrcPort), at(p.Dst, p.DstPort), string(p.Data())})
	}
	return all
}

// eachPairing runs a test for sandboxes on the two IPs of the pair and on the same one.
func eachPairing(t *testing.T, c nat.Config, run func(t *testing.T, r *rig, a, b netip.Addr)) {
	for name, sides := range map[string][2]int{"two IPs": {0, 1}, "same IP": {1, 1}} {
		t.Run(name, func(t *testing.T) {
			r := newRigOf(t, c)
			run(t, r, r.attach(sides[0], 0), r.attach(sides[1], 1))
		})
	}
}

// U-9, X-14, A-17: two sandboxes punch a hole: each sees the other's external endpoint, and nothing
// passes to one that has not sent to it. Nothing of it reaches the uplink.
func TestHairpinHolePunching(t *testing.T) {
	eachPairing(t, nat.Config{}, func(t *testing.T, r *rig, a, b netip.Addr) {
		innerA, innerB := at(a, 5000), at(b, 6000)
		extA, extB := r.external(innerA), r.external(innerB)
		r.write(udp(t, innerA, extB, []byte("knock")))
		if got := r.got(); len(got) != 0 {
			t.Fatalf("B got %v before it sent", got)
		}
		r.wantCounts(map[string]uint64{"egress": 3, "ingress filtered": 1})
		r.write(udp(t, innerB, extA, []byte("hello")))
		if got := r.got(); len(got) != 1 || got[0] != (passed{extB, innerA, "hello"}) {
			t.Fatalf("A got %v", got)
		}
		r.write(udp(t, innerA, extB, []byte("one")), udp(t, innerA, extB, []byte("two")))
		if got := r.got(); len(got) != 2 || got[0] != (passed{extA, innerB, "one"}) || got[1] != (passed{extA, innerB, "two"}) {
			t.Fatalf("B got %v", got)
		}
		if len(r.up.sent) != 2 {
			t.Errorf("the uplink got %d packets, want the first two", len(r.up.sent))
		}
		r.wantCounts(map[string]uint64{"egress": 6, "ingress": 3, "ingress filtered": 1})
	})
}

// T-2, T-8: a simultaneous open through both tables, where TCP is mapped
// endpoint-independently.
func TestHairpinSimultaneousOpen(t *testing.T) {
	eachPairing(t, nat.Config{TCPMapping: nat.EndpointIndependent}, func(t *testing.T, r *rig, a, b netip.Addr) {
		innerA, innerB := at(a, 5000), at(b, 6000)
		segment := func(from, to netip.AddrPort, flags packet.TCPFlags, seq, ack uint32) []byte {
			return tcp(t, packet.TCPHeader{Src: from, Dst: to, Flags: flags, Seq: seq, Ack: ack, Window: 1000, TTL: 64, MSS: 1460})
		}
		learn := func(inner netip.AddrPort) netip.AddrPort {
			r.write(segment(inner, origin, packet.SYN, 1, 0))
			p := parsed(t, r.up.sent[len(r.up.sent)-1])
			return at(p.Src, p.SrcPort)
		}
		extA, extB := learn(innerA), learn(innerB)
		r.write(segment(innerA, extB, packet.SYN, 100, 0)) // crosses nothing yet: T-4
		if got := r.got(); len(got) != 0 {
			t.Fatalf("B got %v", got)
		}
		r.write(segment(innerB, extA, packet.SYN, 200, 0))
		if got := r.read(); len(got) != 1 || got[0].Dst != a || got[0].DstPort != 5000 || got[0].Seq != 200 || at(got[0].Src, got[0].SrcPort) != extB {
			t.Fatalf("A got %+v", got)
		} else if mss := got[0].B[got[0].L4+22 : got[0].L4+24]; !bytes.Equal(mss, []byte{1380 >> 8, 1380 & 0xff}) {
			t.Errorf("MSS %x, want 1380 (R-12)", mss)
		}
		r.write(segment(innerA, extB, packet.SYN, 100, 0)) // again
		r.write(segment(innerA, extB, packet.SYN|packet.ACK, 100, 201), segment(innerB, extA, packet.SYN|packet.ACK, 200, 101))
		r.write(segment(innerA, extB, packet.ACK, 101, 201), segment(innerB, extA, packet.ACK, 201, 101))
		if got := r.got(); len(got) != 5 {
			t.Fatalf("%d packets of the handshake came, want 5: %v", len(got), r.counts())
		}
		for side, ip := range pair {
			r.f.withTable(ip, func(tb *nat.Table) {
				all, _ := tb.AppendSessions(nil, 0, 1<<20)
				for _, s := range all {
					if s.Remote != origin && s.State != "established" {
						t.Errorf("on IP %d %v - %v is %s", side, s.Inner, s.Remote, s.State)
					}
				}
			})
		}
	})
}

// I-5, I-7, X-14, R-1: errors turn, too: port unreachable from the sandbox that was reached, time
// exceeded from the external address, and no inner address of the other sandbox in them.
func TestHairpinErrors(t *testing.T) {
	eachPairing(t, nat.Config{}, func(t *testing.T, r *rig, a, b netip.Addr) {
		innerA, innerB := at(a, 33000), at(b, 33434)
		extA, extB := r.external(innerA), r.external(innerB)
		r.write(udp(t, innerB, extA, nil))                  // opens B for A
		r.write(udp(t, innerA, extB, []byte("traceroute"))) // and A for B
		r.read()
		probe := udp(t, innerA, extB, []byte("traceroute"))
		probe[8], probe[10], probe[11] = 2, 0, 0
		fixHeader(probe)
		r.write(probe)
		check := func(what string, e packet.Packet, typ, code uint8) {
			t.Helper()
			if e.Kind != packet.KindICMPError || e.ICMPType != typ || e.ICMPCode != code || e.Src != extB.Addr() || e.Dst != a ||
				at(e.Inner.Src, e.Inner.SrcPort) != innerA || at(e.Inner.Dst, e.Inner.DstPort) != extB {
				t.Errorf("%s: A got %+v", what, e)
			}
			if bytes.Contains(e.B, b.AsSlice()) {
				t.Errorf("%s shows the inner address of B", what)
			}
		}
		if got := r.read(); len(got) != 1 {
			t.Fatalf("A got %d packets: %v", len(got), r.counts())
		} else {
			check("time exceeded", got[0], 11, 0)
		}
		probe[8], probe[10], probe[11] = 3, 0, 0
		fixHeader(probe)
		r.write(udp(t, innerA, extB, []byte("traceroute")))
		reached := r.read()[0]
		answer := make([]byte, 576)
		r.write(answer[:packet.BuildICMPError(answer, 3, 3, 0, b, &reached)])
		if got := r.read(); len(got) != 1 {
			t.Fatalf("A got %d packets: %v", len(got), r.counts())
		} else {
			check("port unreachable", got[0], 3, 3)
		}
		if len(r.up.sent) != 2 {
			t.Errorf("the uplink got %d packets", len(r.up.sent))
		}
	})
}

// LAND in every form is dropped and counted; nothing goes round.
func TestA14Land(t *testing.T) {
	r := newRig(t)
	a := r.attach(0, 0)
	innerA := at(a, 5000)
	extA := r.external(innerA)
	r.write(udp(t, innerA, extA, nil)) // to itself, from outside
	r.wantCounts(map[string]uint64{"egress": 2, "ingress martian": 1})
	other := at(pair[1], 7000)
	r.up.queue = [][]byte{
		udp(t, extA, extA, nil),                       // from itself
		udp(t, other, extA, nil),                      // from the other of the pair
		udp(t, at(pair[0], extA.Port()^1), extA, nil), // from a port of its own
		echoRequest(t, pair[1], pair[0]),              // the same as an echo
		udp(t, origin, extA, nil),                     // and one that is good
	}
	if got := r.got(); len(got) != 1 || got[0].dst != innerA {
		t.Errorf("A got %v", got)
	}
	r.write(udp(t, extA, origin, nil), udp(t, innerA, innerA, nil)) // as an inner source; inner to inner
	r.wantCounts(map[string]uint64{"egress": 2, "ingress martian": 1, "ingress spoofed_source": 4, "ingress": 1,
		"egress spoofed_source": 1, "egress private_destination": 1, "replies": 1})
	if len(r.up.sent) != 1 {
		t.Errorf("the uplink got %d packets, want 1", len(r.up.sent))
	}
}

func echoRequest(t *testing.T, src, dst netip.Addr) []byte {
	t.Helper()
	b := make([]byte, 64)
	return b[:packet.BuildICMPEcho(b, packet.Echo{Src: src, Dst: dst, Ident: 9, TTL: 64}, nil)]
}

// an error from the uplink about a packet that never left by it is a forgery.
func TestHairpinForgedErrors(t *testing.T) {
	r := newRig(t)
	innerA, innerB := at(r.attach(0, 0), 5000), at(r.attach(1, 0), 6000)
	extA, extB := r.external(innerA), r.external(innerB)
	r.write(udp(t, innerA, extB, nil), udp(t, innerB, extA, nil))
	r.read()
	about := parsed(t, udp(t, extA, extB, nil))
	b := make([]byte, 576)
	r.up.queue = [][]byte{b[:packet.BuildICMPError(b, 3, 1, 0, origin.Addr(), &about)]}
	if got := r.got(); len(got) != 0 {
		t.Errorf("A got %v", got)
	}
	if n := r.f.counters.Drops(Ingress, packet.Filtered); n != 1 {
		t.Errorf("filtered %d, want 1 (the first knock came before B's): %v", n, r.counts())
	}
}

// a declared departure: an external address answers no echo, not even to its own network.
func TestHairpinEchoStaysUnanswered(t *testing.T) {
	r := newRig(t)
	a := r.attach(0, 0)
	r.write(echoRequest(t, a, pair[0]), echoRequest(t, a, pair[1]))
	if got := r.read(); len(got) != 0 || len(r.up.sent) != 0 {
		t.Errorf("A got %v, the uplink %d packets", got, len(r.up.sent))
	}
	r.wantCounts(map[string]uint64{"egress": 2, "ingress no_mapping": 2})
}

// a packet between two sandboxes that answer everything ends by its TTL: each turn takes two,
// and makes one copy.
func TestHairpinLoopEnds(t *testing.T) {
	r := newRig(t)
	innerA, innerB := at(r.attach(0, 0), 5000), at(r.attach(0, 1), 6000)
	extA, extB := r.external(innerA), r.external(innerB)
	r.write(udp(t, innerA, extB, nil), udp(t, innerB, extA, nil))
	r.read()
	b := udp(t, innerA, extB, []byte("ball"))
	turns := 0
	for ; ; turns++ {
		r.write(b)
		got := r.read()
		if len(got) != 1 {
			t.Fatalf("turn %d: %d copies", turns, len(got))
		}
		if got[0].Kind != packet.KindUDP {
			break // told that its time is over
		}
		// Sent back as it came, with what is left of its TTL.
		p := got[0]
		to := at(p.Src, p.SrcPort)
		b = udp(t, at(p.Dst, p.DstPort), to, []byte("ball"))
		b[8], b[10], b[11] = p.TTL, 0, 0
		fixHeader(b)
	}
	if turns != 31 {
		t.Errorf("%d turns with a TTL of 64, want 31", turns)
	}
}

// rules govern the network's own addresses as any others.
func TestHairpinDenied(t *testing.T) {
	r := newRig(t)
	s, err := policy.Compile(policy.Config{
		Network: network16, Gateway: gw, Own: []netip.Addr{neighbour}, Pair: pair[:], Mode: policy.ModeAllow,
		Rules: []policy.Rule{{CIDRs: []netip.Prefix{netip.PrefixFrom(pair[1], 32)}, Verdict: policy.RuleReject}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.f.SetPolicy(s.With(alice, policy.Subject{}), nil)
	r.write(udp(t, at(alice, 1), at(pair[1], 4000), nil), udp(t, at(alice, 1), at(pair[0], 4000), nil), udp(t, at(alice, 1), at(neighbour, 4000), nil))
	r.wantCounts(map[string]uint64{"egress policy_rejected": 1, "egress own_address": 1, "replies": 2, "egress": 1, "ingress no_mapping": 1})
}

// an IP of the pair that the sibling host holds is reached by the uplink, as any
// destination; and what comes from it is no forgery.
func TestHairpinSibling(t *testing.T) {
	r := newRig(t)
	r.f.tables[1].nat = nil
	inner := at(r.attach(0, 0), 5000)
	remote := at(pair[1], 7000)
	r.write(udp(t, inner, remote, nil))
	if len(r.up.sent) != 1 {
		t.Fatalf("the uplink got %d packets: %v", len(r.up.sent), r.counts())
	}
	p := parsed(t, r.up.sent[0])
	r.up.queue = [][]byte{udp(t, remote, at(p.Src, p.SrcPort), []byte("re"))}
	if got := r.got(); len(got) != 1 || got[0] != (passed{remote, inner, "re"}) {
		t.Errorf("got %v", got)
	}
}

// TestHairpinQueue: what finds the queue full is counted, and what is larger than the
// tunnel is cut for it, or refused where it must not be.
func TestHairpinQueue(t *testing.T) {
	r := newRig(t)
	innerA, innerB := at(r.attach(0, 0), 5000), at(r.attach(1, 0), 6000)
	extA, extB := r.external(innerA), r.external(innerB)
	r.write(udp(t, innerA, extB, nil), udp(t, innerB, extA, nil))
	r.read()
	r.write(repeat(udp(t, innerA, extB, []byte("x")), hairpinSlots+5)...)
	if n := r.f.counters.Drops(Ingress, packet.QueueFull); n != 5 {
		t.Errorf("%d were dropped for want of room, want 5", n)
	}
	n := 0
	for got := r.read(); len(got) > 0; got = r.read() {
		n += len(got)
	}
	if n != hairpinSlots {
		t.Errorf("%d came, want %d", n, hairpinSlots)
	}
	large := udp(t, innerA, extB, make([]byte, 3000))
	r.write(fragmentsOf(large)...)
	if got := r.read(); len(got) != 3 || got[0].Kind != packet.KindFragment {
		t.Fatalf("%d packets came, want 3 fragments: %v", len(got), r.counts())
	}
}

// TestHairpinRevoked: what waits for a sandbox that is revoked is not for the next one
// that has its address; what waits for others is theirs still.
func TestHairpinRevoked(t *testing.T) {
	r := newRig(t)
	innerA, innerB := at(r.attach(0, 0), 5000), at(r.attach(1, 0), 6000)
	extA, extB := r.external(innerA), r.external(innerB)
	r.write(udp(t, innerA, extB, nil), udp(t, innerB, extA, nil))
	r.read()
	r.write(udp(t, innerA, extB, []byte("for B")), udp(t, innerB, extA, []byte("for A")),
		udp(t, innerB, forbidden, nil)) // which B would be told of
	r.f.Revoke(innerB.Addr())
	if got := r.got(); len(got) != 1 || got[0].data != "for A" {
		t.Errorf("after B was revoked there came %v", got)
	}
}

// U-9, A-17: many goroutines turn packets between both tables while sandboxes come and
// go: no lock waits for another, and every packet counts once each way.
func TestHairpinConcurrent(t *testing.T) {
	const sandboxes, rounds = 8, 200
	r := newRig(t)
	r.f.clock = steadyClock{}
	quiet := &countingUplink{fakeUplink: r.up}
	var inner, ext []netip.AddrPort
	for k := range sandboxes {
		inner = append(inner, at(r.attach(k%2, k/2), 5000))
		ext = append(ext, r.external(inner[k]))
	}
	r.f.uplink = quietUplink{quiet}
	before := r.f.counters.Packets(Egress)
	var writers, reader sync.WaitGroup
	stop := make(chan struct{})
	var came atomic.Uint64
	reader.Go(func() {
		bufs, sizes := readBuffers(), make([]int, batchSize)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if q := r.f.hairpins.Load(); q != nil {
				came.Add(uint64(q.take(bufs, sizes, headroom)))
			}
		}
	})
	batches := make([][][]byte, sandboxes)
	for k := range sandboxes {
		for j := range sandboxes {
			if j != k {
				batches[k] = append(batches[k], frame(udp(t, inner[k], ext[j], []byte("x"))))
			}
		}
	}
	for k := range sandboxes {
		writers.Go(func() {
			for range rounds {
				bufs := make([][]byte, len(batches[k]))
				for i, b := range batches[k] {
					bufs[i] = bytes.Clone(b)
				}
				if _, err := r.f.Write(bufs, headroom); err != nil {
					t.Errorf("Write: %v", err)
				}
			}
		})
	}
	writers.Go(func() {
		for range rounds {
			r.f.Revoke(inner[0].Addr())
		}
	})
	writers.Wait()
	close(stop)
	reader.Wait()
	c := &r.f.counters
	sent := uint64(sandboxes * (sandboxes - 1) * rounds)
	if got := c.Packets(Egress) - before; got != sent {
		t.Errorf("%d left, want %d", got, sent)
	}
	back := c.Packets(Ingress)
	if back == 0 || came.Load() > back {
		t.Errorf("%d came, %d counted", came.Load(), back)
	}
	for o := range packet.Outcomes() {
		back += c.Drops(Ingress, o)
	}
	// What is forgotten while it waits for Read has been counted before, as having passed.
	if back < sent || back-c.Drops(Ingress, packet.Unattached) > sent || quiet.n != 0 {
		t.Errorf("%d counted on the way back, want %d; the uplink got %d: %v", back, sent, quiet.n, r.counts())
	}
}

// steadyClock stands still and takes no lock.
type steadyClock struct{}

func (steadyClock) Now() packet.Instant { return 2e9 }

// quietUplink may be woken by many.
type quietUplink struct{ *countingUplink }

func (quietUplink) Wake() {}

// U-9, T-8: with the kernel's sockets for an uplink a hairpin opens none, and what is for
// a port that nobody has ends in the table.
func TestHairpinOpensNoSocket(t *testing.T) {
	checkLeaks(t)
	r := newHostRig(t, testState(testNetwork("net_a", 1)))
	s := r.attach("net_a")
	n := r.find("net_a")
	inner := at(s.Attachment.Inner, 5000)
	s.dev.out <- udp(t, inner, at(n.pair[0], 4000), nil)
	s.dev.out <- tcp(t, packet.TCPHeader{Src: inner, Dst: at(n.pair[1], 4000), Flags: packet.SYN, Seq: 1, Window: 100, TTL: 64})
	r.await("both end in a table", func(spec.HostReport, spec.Cursor) bool {
		return n.fwd.counters.Drops(Ingress, packet.NoMapping) == 2
	})
	if up := n.up.Stats(); up.TCP+up.UDP+up.Pending != 0 {
		t.Errorf("sockets: %+v", up)
	}
	r.close()
}
