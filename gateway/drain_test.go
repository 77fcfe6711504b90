package gateway

import (
	"log/slog"
	"maps"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/tunnel"
)

// left says from which IP the packet with each payload left last.
func (r *rig) left() map[string]netip.AddrPort {
	r.t.Helper()
	all := map[string]netip.AddrPort{}
	for _, b := range r.up.sent {
		p := parsed(r.t, b)
		key := string(p.Data())
		if p.Kind == packet.KindTCP {
			key = "tcp"
		}
		all[key] = at(p.Src, p.SrcPort)
	}
	r.up.sent = nil
	return all
}

func (r *rig) drain(ip netip.Addr, on bool) {
	r.t.Helper()
	if err := r.f.SetDraining(ip, on); err != nil {
		r.t.Fatal(err)
	}
}

// U-2, C-2, A-28: while an IP drains its old flows live on where they are, new ones leave
// from the other IP; afterwards new ones leave from it again, and none ever changes its
// external endpoint.
func TestDrain(t *testing.T) {
	r := newRig(t)
	a := r.attach(0, 0)
	segment := func(port uint16, flags packet.TCPFlags, seq uint32) []byte {
		return tcp(t, packet.TCPHeader{Src: at(a, port), Dst: origin, Flags: flags, Seq: seq, Window: 1000, TTL: 64})
	}
	leave := func(p ...[]byte) map[string]netip.AddrPort { r.write(p...); return r.left() }
	old := leave(udp(t, at(a, 1), origin, []byte("old")))["old"]
	oldTCP := leave(segment(1, packet.SYN, 1))["tcp"]

	r.drain(pair[0], true)
	if !r.f.Draining(pair[0]) || r.f.Draining(pair[1]) {
		t.Error("the wrong IP drains")
	}
	got := leave(udp(t, at(a, 1), origin, []byte("old")), udp(t, at(a, 2), origin, []byte("new")), udp(t, at(a, 2), origin, []byte("new too")),
		udp(t, at(a, 1), resolver, []byte("old elsewhere")))
	moved := got["new"]
	if got["old"] != old || got["old elsewhere"] != old || moved.Addr() != pair[1] || got["new too"] != moved {
		t.Errorf("while it drains they leave from %v; old was %v", got, old)
	}
	if at := leave(segment(1, packet.ACK, 2))["tcp"]; at != oldTCP {
		t.Errorf("the old connection leaves from %v, was %v", at, oldTCP)
	}
	movedTCP := leave(segment(2, packet.SYN, 1))["tcp"]
	if movedTCP.Addr() != pair[1] || leave(segment(2, packet.ACK, 2))["tcp"] != movedTCP {
		t.Errorf("the new connection leaves from %v", movedTCP)
	}
	r.up.queue = [][]byte{udp(t, origin, moved, []byte("answer"))}
	if got := r.got(); len(got) != 1 || got[0].dst != at(a, 2) {
		t.Errorf("the answer comes as %v", got)
	}

	r.drain(pair[0], false)
	got = leave(udp(t, at(a, 1), origin, []byte("old")), udp(t, at(a, 2), origin, []byte("new")), udp(t, at(a, 3), origin, []byte("later")))
	if got["old"] != old || got["new"] != moved || got["later"].Addr() != pair[0] {
		t.Errorf("afterwards they leave from %v", got)
	}
	if leave(segment(2, packet.ACK, 2))["tcp"] != movedTCP {
		t.Error("the connection that began meanwhile moved")
	}
	r.f.settleReturns()
	if r.f.drains[0].Load() != returning {
		t.Error("it is over though flows stray")
	}
	r.f.withTable(pair[1], func(tb *nat.Table) { tb.Revoke(a, r.clock.Now(), 1000) })
	r.f.settleReturns()
	if r.f.drains[0].Load() != flowing {
		t.Error("it is not over")
	}
	// A connection that nobody knows ends, as ever.
	r.write(segment(9, packet.ACK, 2))
	r.wantCounts(map[string]uint64{"egress": 13, "ingress": 1, "egress no_session": 1, "replies": 1})
}

// C-11: a drain that begins, or moves to the other IP, while a batch is under way: each
// packet leaves from an IP that takes it, or is refused and counted, once.
func TestDrainBeginsAmidBatch(t *testing.T) {
	for name, c := range map[string]struct {
		before, after [2]bool
		want          map[string]uint64
	}{
		"the first":           {after: [2]bool{true, false}, want: map[string]uint64{"egress": 2}},
		"the second":          {after: [2]bool{false, true}, want: map[string]uint64{"egress": 2}},
		"from first to other": {before: [2]bool{true, false}, after: [2]bool{false, true}, want: map[string]uint64{"egress": 2}},
		"from other to first": {before: [2]bool{false, true}, after: [2]bool{true, false}, want: map[string]uint64{"egress": 2}},
		"both":                {after: [2]bool{true, true}, want: map[string]uint64{"egress draining": 2, "replies": 2}},
	} {
		r := newRig(t)
		set := func(on [2]bool) {
			for side, ip := range pair {
				r.drain(ip, on[side])
			}
		}
		set(c.before)
		b := new(egressBatch)
		b.rules = r.f.rules.Load()
		for side := range pair {
			inner := r.attach(side, 0)
			b.rules = r.f.rules.Load()
			r.f.admit(b, frame(udp(t, at(inner, 1), origin, nil)), headroom, r.clock.Now())
		}
		first := r.f.share(b, r.clock.Now())
		set(c.after)
		r.f.settle(b, first, r.clock.Now())
		r.f.counters.forwarded(Egress, len(b.out), 0)
		for _, out := range b.out {
			p := parsed(t, out[headroom:])
			if side := r.f.sideOf(p.Src); side < 0 || c.after[side] {
				t.Errorf("%s: left from %v", name, p.Src)
			}
		}
		if got := r.counts(); !maps.Equal(got, c.want) {
			t.Errorf("%s: counted %v, want %v", name, got, c.want)
		}
	}
}

// C-11: without another IP here new flows of one that drains are refused with 3/1.
func TestDrainWithoutSibling(t *testing.T) {
	r := newRig(t)
	a := r.attach(0, 0)
	r.f.tables[1].nat = nil
	r.write(udp(t, at(a, 1), origin, []byte("old")))
	r.drain(pair[0], true)
	r.write(udp(t, at(a, 1), origin, []byte("old")), udp(t, at(a, 2), origin, []byte("new")))
	if got := r.read(); len(got) != 1 || got[0].ICMPType != 3 || got[0].ICMPCode != 1 {
		t.Errorf("the sandbox is told %+v", got)
	}
	r.wantCounts(map[string]uint64{"egress": 2, "egress draining": 1, "replies": 1})
	if err := r.f.SetDraining(pair[1], true); err == nil {
		t.Error("an IP that is not held here drains")
	}
	r.drain(pair[0], false)
	r.write(udp(t, at(a, 2), origin, []byte("new")))
	if r.f.drains[0].Load() != flowing || len(r.up.sent) != 3 {
		t.Errorf("it does not give out ports again: %v", r.counts())
	}
}

// X-5, C-11: pairing is hard: where an IP has no port left its inner addresses are refused, though
// the other IP has some.
func TestExhaustedIsNotMoved(t *testing.T) {
	r := newRigOf(t, nat.Config{Ports: nat.PortRange{First: 2000, Last: 2000}})
	a := r.attach(0, 0)
	r.write(udp(t, at(a, 1), origin, []byte("first")), udp(t, at(a, 2), origin, []byte("second")))
	if got := r.left(); len(got) != 1 || got["first"].Addr() != pair[0] {
		t.Errorf("left: %v", got)
	}
	if got := r.read(); len(got) != 1 || got[0].ICMPType != 3 || got[0].ICMPCode != 1 {
		t.Errorf("the sandbox is told %+v", got)
	}
	r.wantCounts(map[string]uint64{"egress": 1, "egress ports_exhausted": 1, "replies": 1})
}

// U-2: an attachment that names the other IP of the pair leaves from that one.
func TestPinnedEgress(t *testing.T) {
	r := newRig(t)
	a := r.attach(0, 0)
	r.f.Pin(map[netip.Addr]int{a: 1})
	s, workers := r.f.Policy()
	r.f.SetPolicy(s, workers) // which keeps it
	r.write(udp(t, at(a, 1), origin, []byte("pinned")))
	if got := r.left(); got["pinned"].Addr() != pair[1] {
		t.Errorf("left: %v", got)
	}
}

// TestNetworkDrains: the desired state's word is in force without opening the network again,
// and probes hear of it where nothing else is held.
func TestNetworkDrains(t *testing.T) {
	r := newRig(t)
	host := &atomic.Bool{}
	n := &network{pair: pair, held: [2]bool{true, true}, fwd: r.f, log: slog.New(slog.DiscardHandler), health: health{draining: host}}
	n.setDraining(pair[1:])
	if r.f.Draining(pair[0]) || !r.f.Draining(pair[1]) || n.health.Health() != 0 {
		t.Error("not the second IP alone drains")
	}
	n.setDraining(pair[:1])
	if !r.f.Draining(pair[0]) || r.f.Draining(pair[1]) {
		t.Error("not the first IP alone drains")
	}
	n.held[1] = false
	n.setDraining(pair[:1])
	if n.health.Health() != packet.HealthDraining {
		t.Error("sidecars are not told to go to the sibling")
	}
	n.setDraining(nil)
	if r.f.Draining(pair[0]) || n.health.Health() != 0 {
		t.Error("it drains still")
	}
}

// U-2: the attachment is the authority on where a sandbox leaves from.
func TestAttachmentNamesEgress(t *testing.T) {
	r := newMemberRig(t)
	r.n.pair = pair
	for _, side := range []int{0, 1} {
		a := attachment("a", tunnel.NewKey().Public(), alice, worker)
		a.Egress = pair[side]
		r.n.apply(true, []spec.Attachment{a}, nil)
		r.write(udp(t, at(alice, uint16(10+side)), origin, []byte("named")))
		if got := r.left()["named"]; got.Addr() != pair[side] {
			t.Errorf("left from %v, the attachment says %v", got, pair[side])
		}
	}
	r.n.apply(true, nil, nil)
	if r.n.members.pinned[alice] != 0 || len(r.n.members.pinned) != 0 {
		t.Errorf("what went is remembered: %v", r.n.members.pinned)
	}
}
