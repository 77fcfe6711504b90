package gateway

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/gaissmai/bart"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
)

var (
	peeredRange = netip.MustParsePrefix("10.40.0.0/16")
	database    = netip.MustParseAddrPort("10.40.0.5:5432")
	closedPort  = netip.MustParseAddrPort("10.40.0.5:22") // a rule rejects it
)

// peeredRig is a rig whose network is peered.
type peeredRig struct {
	*rig
	way   *peered
	count *peeringCounters
	small [][]byte // of tunneled
}

// newPeeredRig makes the Forwarder of the host with the site, or of the other one.
func newPeeredRig(t testing.TB, role siteRole) *peeredRig {
	t.Helper()
	r := &peeredRig{rig: newRig(t), count: &peeringCounters{}, way: &peered{ranges: new(bart.Fast[*lane])}}
	r.way.device = newSiteDevice("site", r.f, siteSlots)
	r.way.ranges.Insert(peeredRange, &lane{peeringCounters: r.count, device: r.way.device, mtu: r.f.mtu})
	if role == holdsSite {
		table, err := newPeeredTable(nat.Config{Identity: true, Seed: [32]byte{9}, MaxSessions: 1 << 16})
		if err != nil {
			t.Fatal(err)
		}
		r.way.table = table
	}
	r.f.setPeered(r.way)
	r.rules(peeredRange)
	return r
}

// rules puts a policy in force that knows peered ranges.
func (r *peeredRig) rules(ranges ...netip.Prefix) {
	r.t.Helper()
	s, err := policy.Compile(policy.Config{
		Network: network16, Gateway: gw, Pair: pair[:], Mode: policy.ModeAllow, Peered: ranges,
		Rules: []policy.Rule{{Ports: []policy.PortRange{{First: 22, Last: 22}}, Verdict: policy.RuleReject}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, a := range []netip.Addr{alice, bob} {
		s = s.With(a, policy.Subject{Project: "prj"})
	}
	r.f.SetPolicy(s.With(worker, policy.Subject{Kind: workerKind}), map[netip.Addr]struct{}{worker: {}})
}

// unpeer does what the end of a peering does.
func (r *peeredRig) unpeer() {
	r.rules()
	r.f.setPeered(&peered{ranges: new(bart.Fast[*lane]), device: r.way.device, table: r.way.table})
	r.f.revokePeered(peeredRange)
}

// arrive is a batch of one of the site tunnel's peers.
func (r *peeredRig) arrive(packets ...[]byte) {
	r.t.Helper()
	var bufs [][]byte
	for _, p := range packets {
		bufs = append(bufs, frame(p))
	}
	if n, err := r.way.device.Write(bufs, headroom); n != len(bufs) || err != nil {
		r.t.Fatalf("Write = %d, %v; want %d", n, err, len(bufs))
	}
}

// tunneled returns what the site tunnel would send.
func (r *peeredRig) tunneled() (got []packet.Packet) {
	r.t.Helper()
	if r.small == nil {
		for range batchSize {
			r.small = append(r.small, make([]byte, headroom+frameSize))
		}
	}
	bufs, sizes := r.small, make([]int, batchSize)
	for n := r.way.device.queue.take(bufs, sizes, headroom); n > 0; n = r.way.device.queue.take(bufs, sizes, headroom) {
		for i := range n {
			got = append(got, parsed(r.t, bytes.Clone(bufs[i][headroom:headroom+sizes[i]])))
		}
	}
	return got
}

// one is the only packet of got.
func one(t testing.TB, got []packet.Packet) packet.Packet {
	t.Helper()
	if len(got) != 1 {
		t.Fatalf("%d packets, want one: %+v", len(got), got)
	}
	return got[0]
}

func (r *peeredRig) wantPassed(egress, ingress uint64) {
	r.t.Helper()
	if e, i := r.count.packets[Egress].Load(), r.count.packets[Ingress].Load(); e != egress || i != ingress {
		r.t.Errorf("the peering counts %d and %d packets, want %d and %d", e, i, egress, ingress)
	}
	if len(r.up.sent) != 0 {
		r.t.Errorf("the uplink got %d packets", len(r.up.sent))
	}
}

func segment(t testing.TB, from, to netip.AddrPort, flags packet.TCPFlags, seq, ack uint32) []byte {
	t.Helper()
	return tcp(t, packet.TCPHeader{Src: from, Dst: to, Flags: flags, Seq: seq, Ack: ack, Window: 60000, TTL: 64})
}

// connect opens a TCP connection of a sandbox through the site's host.
func (r *peeredRig) connect(from netip.AddrPort) {
	r.t.Helper()
	r.write(segment(r.t, from, database, packet.SYN, 100, 0))
	r.arrive(segment(r.t, database, from, packet.SYN|packet.ACK, 500, 101))
	r.write(segment(r.t, from, database, packet.ACK, 101, 501))
	if n := len(r.tunneled()); n != 2 {
		r.t.Fatalf("the other side got %d segments of the handshake, want 2: %v", n, r.counts())
	}
	if got := one(r.t, r.read()); got.Flags != packet.SYN|packet.ACK || got.Dst != from.Addr() {
		r.t.Fatalf("the sandbox got %+v", got)
	}
}

// TestPeeredRoundTrip (C-6): the source stays, both directions are hops, segments are
// clamped, and everything is counted.
func TestPeeredRoundTrip(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	syn := packet.TCPHeader{Src: at(alice, 5000), Dst: database, Flags: packet.SYN, Seq: 1, Window: 60000, MSS: 9000, TTL: 64}
	r.write(tcp(t, syn), udp(t, at(bob, 5000), database, []byte("query")))
	got := r.tunneled()
	if len(got) != 2 {
		t.Fatalf("the tunnel got %d packets, want 2: %v", len(got), r.counts())
	}
	if p := got[0]; p.Src != alice || p.SrcPort != 5000 || p.Dst != database.Addr() || p.TTL != 63 || !p.ChecksumOK() || p.B[42] != 1380>>8 || p.B[43] != 1380&255 {
		t.Errorf("the SYN is %+v", p)
	}
	if p := got[1]; p.Src != bob || p.SrcPort != 5000 || string(p.Data()) != "query" {
		t.Errorf("the query is %+v", p)
	}
	answer := packet.TCPHeader{Src: database, Dst: at(alice, 5000), Flags: packet.SYN | packet.ACK, Seq: 9, Ack: 2, Window: 60000, MSS: 9000, TTL: 60}
	r.arrive(tcp(t, answer), udp(t, database, at(bob, 5000), []byte("result")))
	back := r.read()
	if len(back) != 2 {
		t.Fatalf("%d packets came back, want 2: %v", len(back), r.counts())
	}
	if p := back[0]; p.Dst != alice || p.Src != database.Addr() || p.TTL != 59 || !p.ChecksumOK() || p.B[42] != 1380>>8 {
		t.Errorf("the answer is %+v", p)
	}
	if p := back[1]; p.Dst != bob || string(p.Data()) != "result" {
		t.Errorf("the result is %+v", p)
	}
	if r.up.wakes.Load() == 0 {
		t.Error("a blocked Read was not woken")
	}
	r.wantPassed(2, 2)
	if n := r.count.bytes[Egress].Load(); n != uint64(len(got[0].B)+len(got[1].B)) {
		t.Errorf("%d bytes counted out", n)
	}
	r.wantCounts(map[string]uint64{"egress": 2, "ingress": 2})
}

// TestPeeredOnlySandboxesBegin: the other side reaches nobody who has not asked, and
// is told nothing.
func TestPeeredOnlySandboxesBegin(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	echo := make([]byte, 28)
	packet.BuildICMPEcho(echo, packet.Echo{Src: database.Addr(), Dst: alice, Ident: 1, TTL: 64}, nil)
	foreign := netip.MustParseAddrPort("192.0.2.1:80")
	r.arrive(
		segment(t, database, at(alice, 5000), packet.SYN, 1, 0), udp(t, database, at(alice, 5000), nil), echo,
		udp(t, database, at(gw, 53), nil), udp(t, database, at(pair[0], 53), nil),
		udp(t, foreign, at(alice, 5000), nil), udp(t, at(pair[1], 1), at(alice, 5000), nil), []byte("nonsense"),
	)
	if got := r.read(); len(got) != 0 {
		t.Errorf("sandboxes got %+v", got)
	}
	if got := r.tunneled(); len(got) != 0 {
		t.Errorf("the other side is told %+v", got)
	}
	if len(r.local.got) != 0 {
		t.Errorf("the services got %d packets", len(r.local.got))
	}
	r.wantPassed(0, 0)
	got := r.counts()
	if got["ingress no_mapping"] != 7 || len(got) != 2 {
		t.Errorf("counters are %v", got)
	}
}

// TestPeeredRefusals: what cannot go to a peered network is counted, and the sandbox
// is told by its own tunnel.
func TestPeeredRefusals(t *testing.T) {
	large := udp(t, at(alice, 5000), database, make([]byte, 1450))
	large[6] |= 0x40 // DF
	reheader(large)
	last := udp(t, at(alice, 5000), database, nil)
	last[8] = 1
	reheader(last)
	for name, c := range map[string]struct {
		packet    []byte
		prepare   func(*peeredRig)
		reason    string
		kind      packet.Kind
		typ, code uint8
	}{
		"down":                  {udp(t, at(alice, 1), database, nil), func(r *peeredRig) { r.f.setPeered(&peered{}) }, "site_down", packet.KindICMPError, 3, 1},
		"down, mid-flow":        {segment(t, at(alice, 1), database, packet.ACK, 1, 1), func(r *peeredRig) { r.f.setPeered(&peered{}) }, "site_down", packet.KindICMPError, 3, 1},
		"range not known yet":   {udp(t, at(alice, 1), at(netip.MustParseAddr("10.41.0.1"), 1), nil), func(r *peeredRig) { r.rules(peeredRange, netip.MustParsePrefix("10.41.0.0/16")) }, "site_down", packet.KindICMPError, 3, 1},
		"no session":            {segment(t, at(alice, 1), database, packet.ACK, 1, 77), nil, "no_session", packet.KindTCP, 0, 0},
		"rule, SYN":             {segment(t, at(alice, 1), closedPort, packet.SYN, 1, 0), nil, "policy_rejected", packet.KindICMPError, 3, 13},
		"rule, mid-flow":        {segment(t, at(alice, 1), closedPort, packet.ACK, 1, 77), nil, "policy_rejected", packet.KindTCP, 0, 0},
		"not peered, SYN":       {segment(t, at(alice, 1), database, packet.SYN, 1, 0), (*peeredRig).unpeer, "private_destination", packet.KindICMPError, 3, 13},
		"not peered, mid-flow":  {segment(t, at(alice, 1), database, packet.ACK, 1, 77), (*peeredRig).unpeer, "private_destination", packet.KindTCP, 0, 0},
		"TTL":                   {last, nil, "ttl_expired", packet.KindICMPError, 11, 0},
		"too large":             {large, nil, "too_big", packet.KindICMPError, 3, 4},
		"a sidecar's own":       {udp(t, at(worker, 1), database, nil), nil, "policy_dropped", 0, 0, 0},
		"echo reply, unasked":   {echoReply(alice, database.Addr()), nil, "no_mapping", 0, 0, 0},
		"closing":               {udp(t, at(alice, 1), database, nil), func(r *peeredRig) { r.way.device.Close() }, "closed", 0, 0, 0},
		"from the pair, inside": {udp(t, at(pair[0], 1), database, nil), nil, "spoofed_source", 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newPeeredRig(t, holdsSite)
			if c.prepare != nil {
				c.prepare(r)
			}
			r.write(c.packet)
			want := map[string]uint64{"egress " + c.reason: 1}
			if c.kind != packet.KindUnknown {
				want["replies"] = 1
				p := one(t, r.read())
				if p.Kind != c.kind || p.ICMPType != c.typ && c.kind == packet.KindICMPError || p.Dst != alice {
					t.Errorf("the sandbox is told %+v", p)
				}
				if c.kind == packet.KindICMPError && (p.ICMPCode != c.code || p.Src != gw) {
					t.Errorf("the sandbox is told %+v", p)
				}
				if c.kind == packet.KindTCP && (p.Flags != packet.RST || p.Seq != 77) {
					t.Errorf("the reset is %+v", p)
				}
				if c.reason == "too_big" && (p.B[26] != 1420>>8 || p.B[27] != 1420&255) {
					t.Errorf("the MTU is %v", p.B[26:28])
				}
			} else if got := r.read(); len(got) != 0 {
				t.Errorf("the sandbox is told %+v", got)
			}
			if got := r.tunneled(); len(got) != 0 {
				t.Errorf("the tunnel got %+v", got)
			}
			r.wantPassed(0, 0)
			r.wantCounts(want)
		})
	}
}

// reheader makes the checksum of a changed IPv4 header right.
func reheader(b []byte) {
	b[10], b[11] = 0, 0
	fixHeader(b)
}

func echoReply(src, dst netip.Addr) []byte {
	b := make([]byte, 28)
	packet.BuildICMPEcho(b, packet.Echo{Src: src, Dst: dst, Reply: true, Ident: 1, TTL: 64}, nil)
	return b
}

// TestPeeringEnds: from the moment that a peering is no more, no packet passes in
// either direction, and the sandbox's connection is reset when it sends.
func TestPeeringEnds(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	from := at(alice, 5000)
	r.connect(from)
	r.unpeer()
	r.arrive(segment(t, database, from, packet.ACK, 501, 101))
	if got := r.read(); len(got) != 0 {
		t.Errorf("the sandbox got %+v", got)
	}
	r.write(segment(t, from, database, packet.ACK, 101, 501))
	if p := one(t, r.read()); p.Flags != packet.RST || p.Seq != 501 || p.Src != database.Addr() || p.DstPort != 5000 {
		t.Errorf("the sandbox is told %+v", p)
	}
	r.wantPassed(2, 1)
	r.f.withPeered(func(tb *nat.Table) {
		if n := sessions(tb.Stats()); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
	if got := r.tunneled(); len(got) != 0 {
		t.Errorf("the tunnel got %+v", got)
	}
}

// TestPeeredRevoke: what is detached loses its peered flows at once.
func TestPeeredRevoke(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	r.connect(at(alice, 5000))
	s, workers := r.f.Policy()
	r.f.SetPolicy(s.Without(alice), workers)
	if n := r.f.Revoke(alice); n != 1 {
		t.Errorf("%d sessions revoked, want 1", n)
	}
	r.arrive(segment(t, database, at(alice, 5000), packet.ACK, 501, 101))
	if got := r.read(); len(got) != 0 {
		t.Errorf("an answer reached a sandbox that is gone: %+v", got)
	}
}

// TestPeeredFragments: large datagrams are tracked whole, and cut for the tunnels in
// both directions.
func TestPeeredFragments(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	payload := bytes.Repeat([]byte("0123456789abcdef"), 300)
	for i, part := range fragmentsOf(udp(t, at(alice, 5000), database, payload)) {
		r.write(part)
		if i == 0 && len(r.tunneled()) != 0 {
			t.Error("a fragment passed alone")
		}
	}
	whole := func(parts []packet.Packet) packet.Packet {
		t.Helper()
		re, err := packet.NewReassembler(packet.ReassemblyConfig{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			if len(p.B) > 1420 {
				t.Errorf("a fragment of %d bytes", len(p.B))
			}
			if b, _ := re.Add(&p, 0); b != nil {
				return parsed(t, bytes.Clone(b))
			}
		}
		t.Fatalf("%d packets make no datagram: %v", len(parts), r.counts())
		return packet.Packet{}
	}
	if p := whole(r.tunneled()); !bytes.Equal(p.Data(), payload) || p.Src != alice || !p.ChecksumOK() {
		t.Error("the datagram went out damaged")
	}
	parts := fragmentsOf(udp(t, database, at(alice, 5000), payload))
	stray := fragmentsOf(udp(t, database, at(bob, 5000), payload))
	r.arrive(append(append([][]byte{stray[0], udp(t, database, at(alice, 5000), []byte("small"))}, parts...), stray[1:]...)...)
	back := r.read()
	if len(back) == 0 || string(back[0].Data()) != "small" {
		t.Fatalf("%d packets came back: %v", len(back), r.counts())
	}
	if p := whole(back[1:]); !bytes.Equal(p.Data(), payload) || p.Dst != alice || !p.ChecksumOK() {
		t.Error("the datagram came back damaged")
	}
	r.arrive(parts[0])
	r.clock.now += 31e9
	r.f.expireFragments(r.clock.now)
	r.wantPassed(1, 2)
	r.wantCounts(map[string]uint64{"egress": 1, "ingress": 2, "ingress no_mapping": 1, "ingress fragment_limit": 1})
}

// TestPeeredOtherSideIsTold: of its own flows the other side learns the MTU and that
// its packets' time is over.
func TestPeeredOtherSideIsTold(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	r.write(udp(t, at(alice, 5000), database, nil))
	r.tunneled()
	large := udp(t, database, at(alice, 5000), make([]byte, 1450))
	large[6] |= 0x40
	reheader(large)
	unasked := udp(t, database, at(bob, 5000), make([]byte, 1450))
	unasked[6] |= 0x40
	reheader(unasked)
	last := udp(t, database, at(alice, 5000), nil)
	last[8] = 1
	reheader(last)
	r.arrive(large, unasked, last)
	told := r.tunneled()
	if len(told) != 2 {
		t.Fatalf("the other side is told %d times, want 2: %v", len(told), r.counts())
	}
	for i, want := range []icmpError{{typ: 3, code: 4}, {typ: 11}} {
		if p := told[i]; p.Kind != packet.KindICMPError || p.Src != gw || p.Dst != database.Addr() || p.ICMPType != want.typ || p.ICMPCode != want.code {
			t.Errorf("message %d is %+v", i, p)
		}
	}
	if mtu := told[0].B[26:28]; mtu[0] != 1420>>8 || mtu[1] != 1420&255 {
		t.Errorf("the MTU is %v", mtu)
	}
	if got := r.read(); len(got) != 0 {
		t.Errorf("the sandbox got %+v", got)
	}
	r.wantCounts(map[string]uint64{"egress": 1, "replies": 2, "ingress too_big": 1, "ingress ttl_expired": 1, "ingress no_mapping": 1})
}

// TestPeeredErrorsOfOthers: the other side of one peering cannot end flows to that of
// another by errors, however well it guesses; a router of its own can.
func TestPeeredErrorsOfOthers(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	another := netip.MustParseAddr("10.41.0.1")
	r.way.ranges.Insert(netip.MustParsePrefix("10.41.0.0/16"), &lane{peeringCounters: &peeringCounters{}, device: r.way.device, mtu: r.f.mtu})
	r.rules(peeredRange, netip.MustParsePrefix("10.41.0.0/16"))
	r.write(udp(t, at(alice, 5000), database, nil))
	sent := one(t, r.tunneled())
	from := func(router netip.Addr) []byte {
		b := make([]byte, 600)
		return b[:packet.BuildICMPError(b, 3, 3, 0, router, &sent)]
	}
	r.arrive(from(another))
	if got := r.read(); len(got) != 0 {
		t.Errorf("the sandbox got %+v", got)
	}
	r.arrive(from(netip.MustParseAddr("10.40.9.9")))
	if p := one(t, r.read()); p.Kind != packet.KindICMPError || p.Dst != alice {
		t.Errorf("the sandbox got %+v", p)
	}
	r.wantCounts(map[string]uint64{"egress": 1, "ingress": 1, "ingress filtered": 1})
}

// TestPeeredQueuesAreBounded: what finds a queue full is lost and counted.
func TestPeeredQueuesAreBounded(t *testing.T) {
	r := newPeeredRig(t, holdsSite)
	r.write(repeat(udp(t, at(alice, 5000), database, nil), siteSlots+5)...)
	r.arrive(repeat(udp(t, database, at(alice, 5000), nil), returnedSlots+7)...)
	r.wantPassed(siteSlots, returnedSlots)
	r.wantCounts(map[string]uint64{
		"egress": siteSlots, "egress queue_full": 5, "ingress": returnedSlots, "ingress queue_full": 7,
	})
	if n := len(r.tunneled()); n != siteSlots {
		t.Errorf("the tunnel got %d packets", n)
	}
	// A flood of peered packets leaves room for the uplink's, and the other way round.
	r.write(udp(t, at(bob, 1), origin, nil))
	p := parsed(t, r.up.sent[0])
	r.up.queue = repeat(udp(t, origin, at(p.Src, p.SrcPort), nil), batchSize)
	from := map[netip.Addr]int{}
	for _, q := range r.read() {
		from[q.Src]++
	}
	if from[database.Addr()] < batchSize/2 || from[origin.Addr()] < batchSize/4 {
		t.Errorf("one Read brought %v", from)
	}
}

// TestPeeredAllocatesNothing: neither way out nor back, direct or relayed.
func TestPeeredAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector pools forget at random")
	}
	r := newPeeredRig(t, holdsSite)
	fill := func(b []byte) (bufs [][]byte, fresh func()) {
		for range batchSize {
			bufs = append(bufs, frame(b))
		}
		return bufs, func() {
			for i := range bufs {
				copy(bufs[i][headroom:], b)
			}
		}
	}
	out, freshOut := fill(udp(t, at(alice, 5000), database, make([]byte, 1000)))
	back, freshBack := fill(udp(t, database, at(alice, 5000), make([]byte, 1000)))
	bufs, sizes := readBuffers(), make([]int, batchSize)
	for name, write := range map[string]func([][]byte, int) (int, error){"direct": r.f.Write, "relayed": r.way.device.Write} {
		if n := testing.AllocsPerRun(50, func() {
			freshOut()
			freshBack()
			if _, err := write(out, headroom); err != nil {
				t.Fatal(err)
			}
			if n, err := r.way.device.Read(bufs, sizes, headroom); n != batchSize || err != nil {
				t.Fatalf("the tunnel read %d, %v", n, err)
			}
			if _, err := r.way.device.Write(back, headroom); err != nil {
				t.Fatal(err)
			}
			r.f.returned.Load().take(bufs, sizes, headroom)
			r.way.device.queue.take(bufs, sizes, headroom)
		}); n != 0 {
			t.Errorf("%s: %v allocations per batch", name, n)
		}
	}
	if c := r.counts(); len(c) != 2 {
		t.Errorf("counters are %v", c)
	}
}

func BenchmarkPeered(b *testing.B) {
	r := newPeeredRig(b, holdsSite)
	original := udp(b, at(alice, 5000), database, make([]byte, 1372))
	var bufs [][]byte
	for range batchSize {
		bufs = append(bufs, frame(original))
	}
	to, sizes := readBuffers(), make([]int, batchSize)
	b.ReportAllocs()
	for b.Loop() {
		for i := range bufs {
			copy(bufs[i][headroom:], original[:28])
		}
		if _, err := r.f.Write(bufs, headroom); err != nil {
			b.Fatal(err)
		}
		if n := r.way.device.queue.take(to, sizes, headroom); n != batchSize {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batchSize), "ns/packet")
}
