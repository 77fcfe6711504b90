package gateway

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/gateway/uplink"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/policy"
	"github.com/sallyport-net/sallyport/tunnel"
)

// TestRunEndsWithTheNetwork: a network that is closed ends its tasks although the
// host goes on.
func TestRunEndsWithTheNetwork(t *testing.T) {
	checkLeaks(t)
	store, err := control.NewStore(control.StoreConfig{State: testState(testNetwork("net_a", 1)), Region: "iad1"})
	if err != nil {
		t.Fatal(err)
	}
	h, err := OpenHost(t.Context(), HostConfig{
		Daemon: testDaemon(), Secret: bytes.Repeat([]byte{7}, 32), Source: store, Clock: NewMonotonicClock(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	n := h.list()[0]
	ended := make(chan error, 1)
	go func() { ended <- n.run(context.Background()) }()
	n.close()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("run: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the tasks did not end within 10 s")
	}
}

// memberRig is a network of a Forwarder between fakes and a real WireGuard device.
type memberRig struct {
	*rig
	n *network
}

func newMemberRig(t *testing.T) *memberRig {
	t.Helper()
	r := newRig(t)
	s, _ := r.f.Policy()
	r.f.SetPolicy(s.Without(alice).Without(bob).Without(worker), nil)
	tun, err := tunnel.New(tunnel.Config{PrivateKey: tunnel.NewKey(), Device: newMemTUN()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tun.Close)
	return &memberRig{rig: r, n: &network{
		id: "net_a", pair: pair, fwd: r.f, tun: tun, members: newMembers(), log: slog.New(slog.DiscardHandler),
	}}
}

// peers are WireGuard's, as text: allowed addresses by key.
func (r *memberRig) peers() map[tunnel.Key][]netip.Prefix {
	r.t.Helper()
	stats, err := r.n.tun.Peers()
	if err != nil {
		r.t.Fatal(err)
	}
	if int64(len(stats)) != r.n.peers.Load() {
		r.t.Errorf("%d peers are counted, WireGuard has %d", r.n.peers.Load(), len(stats))
	}
	got := map[tunnel.Key][]netip.Prefix{}
	for _, p := range stats {
		got[p.PublicKey] = p.AllowedIPs
	}
	return got
}

func (r *memberRig) wantPeers(want map[tunnel.Key][]netip.Addr) {
	r.t.Helper()
	got := r.peers()
	for key, addrs := range want {
		var allowed []netip.Prefix
		for _, a := range addrs {
			allowed = append(allowed, netip.PrefixFrom(a, 32))
		}
		if !slices.Equal(got[key], allowed) {
			r.t.Errorf("peer %s is allowed %v, want %v", key, got[key], allowed)
		}
		delete(got, key)
	}
	if len(got) > 0 {
		r.t.Errorf("WireGuard has peers too many: %v", got)
	}
}

// verdict is what the policy says about a packet of an address to the far side.
func (r *memberRig) verdict(inner netip.Addr) policy.Decision {
	p := parsed(r.t, udp(r.t, at(inner, 5000), origin, nil))
	return r.f.rules.Load().verdict(&p)
}

func (r *memberRig) wantForwarded(inner netip.Addr, want bool) {
	r.t.Helper()
	if d := r.verdict(inner); (d.Verdict == policy.Forward) != want {
		r.t.Errorf("%v: verdict %v (%v), want forwarding %v", inner, d.Verdict, d.Outcome, want)
	}
}

func attachment(id string, key tunnel.Key, inner, worker netip.Addr) spec.Attachment {
	return spec.Attachment{
		ID: id, Project: "prj", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo,
		PublicKey: key.String(), Inner: inner, Worker: worker, Created: time.Unix(1, 0),
	}
}

// TestMembers: peers and policy follow who is attached, step by step.
func TestMembers(t *testing.T) {
	r := newMemberRig(t)
	k1, k2 := tunnel.NewKey().Public(), tunnel.NewKey().Public()
	second := netip.MustParseAddr("10.20.0.10")
	a, b := attachment("a", k1, alice, worker), attachment("b", k1, bob, worker)

	r.n.apply(true, []spec.Attachment{a, b}, nil)
	r.wantPeers(map[tunnel.Key][]netip.Addr{k1: {alice, bob, worker}})
	r.wantForwarded(alice, true)
	r.wantForwarded(bob, true)
	r.wantForwarded(worker, false)
	r.wantForwarded(stranger, false)

	// The same again changes nothing.
	before, _ := r.f.Policy()
	r.n.apply(true, []spec.Attachment{b, a}, nil)
	if after, _ := r.f.Policy(); after != before {
		t.Error("an update without news made a new policy")
	}

	// One moves to another key, under the same id: its flows go.
	r.write(udp(t, at(alice, 5000), origin, nil))
	moved := attachment("a", k2, alice, second)
	r.n.apply(false, []spec.Attachment{moved}, nil)
	r.wantPeers(map[tunnel.Key][]netip.Addr{k1: {bob, worker}, k2: {alice, second}})
	r.wantForwarded(alice, true)
	r.wantForwarded(second, false)
	for _, ip := range pair {
		r.f.withTable(ip, func(tb *nat.Table) {
			if n := sessions(tb.Stats()); n != 0 {
				t.Errorf("%d sessions outlived the move", n)
			}
		})
	}

	// The last of a key goes with the worker's address, which is a sandbox's next.
	next := attachment("c", k2, worker, second)
	r.n.apply(false, []spec.Attachment{next}, []string{"b", "unknown"})
	r.wantPeers(map[tunnel.Key][]netip.Addr{k2: {alice, worker, second}})
	r.wantForwarded(worker, true)
	r.wantForwarded(bob, false)

	// And the other way round: a sandbox's address becomes a worker's.
	last := attachment("d", k1, bob, alice)
	r.n.apply(false, []spec.Attachment{last}, []string{"a"})
	r.wantPeers(map[tunnel.Key][]netip.Addr{k1: {alice, bob}, k2: {worker, second}})
	r.wantForwarded(alice, false)
	if d := r.verdict(alice); d.Outcome != packet.PolicyDropped {
		t.Errorf("a worker's packet is dropped for %v", d.Outcome)
	}

	// New rules keep everybody; a full update with nobody leaves nobody.
	deny, err := policy.Compile(policy.Config{Network: network16, Gateway: gw, Mode: policy.ModeAllow})
	if err != nil {
		t.Fatal(err)
	}
	r.n.setPolicy(deny)
	r.wantForwarded(bob, true)
	r.wantForwarded(alice, false)
	r.n.apply(true, nil, nil)
	r.wantPeers(nil)
	for _, inner := range []netip.Addr{alice, bob, worker, second} {
		r.wantForwarded(inner, false)
	}
	if _, workers := r.f.Policy(); len(workers) != 0 {
		t.Errorf("workers are left: %v", workers)
	}
}

// TestMembersAtRandom: whoever comes, goes and moves in whatever order, WireGuard has what
// follows from who is attached, as though it had been told all at once.
func TestMembersAtRandom(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	r := newMemberRig(t)
	var keys [3]tunnel.Key
	for i := range keys {
		keys[i] = tunnel.NewKey().Public()
	}
	address := func(last int) netip.Addr { return netip.AddrFrom4([4]byte{10, 20, 1, byte(last)}) }
	attached := map[string]spec.Attachment{} // by id; each has an address that no other has
	for step := range 400 {
		var come []spec.Attachment
		var gone []string
		for range 1 + random.IntN(4) {
			n := random.IntN(12)
			id := fmt.Sprint("sandbox-", n)
			if _, ok := attached[id]; ok && random.IntN(2) == 0 {
				gone = append(gone, id)
				delete(attached, id)
				come = slices.DeleteFunc(come, func(a spec.Attachment) bool { return a.ID == id })
				continue
			}
			k := random.IntN(len(keys))
			attached[id] = attachment(id, keys[k], address(n), address(100+k+10*random.IntN(2)*(step/100%2)))
			come = append(slices.DeleteFunc(come, func(a spec.Attachment) bool { return a.ID == id }), attached[id])
		}
		full := random.IntN(10) == 0
		if full {
			come, gone = slices.Collect(maps.Values(attached)), nil
		}
		r.n.apply(full, come, gone)
		want := map[tunnel.Key][]netip.Addr{}
		for key, p := range r.n.members.peers {
			for _, allowed := range p.allowed() {
				want[key] = append(want[key], allowed.Addr())
			}
			slices.SortFunc(want[key], netip.Addr.Compare)
			if len(p.inner) == 0 {
				t.Fatalf("seed %d, step %d: a peer without sandboxes is left", seed, step)
			}
		}
		r.wantPeers(want)
		if got := len(r.n.members.attached); got != len(attached) {
			t.Fatalf("seed %d, step %d: %d are attached, want %d", seed, step, got, len(attached))
		}
		for _, a := range attached {
			if r.n.members.attached[a.ID] != a {
				t.Fatalf("seed %d, step %d: %s is attached as %+v, want %+v", seed, step, a.ID, r.n.members.attached[a.ID], a)
			}
			r.wantForwarded(a.Inner, true)
		}
		workers := r.n.members.workers()
		if _, known := r.f.Policy(); !maps.Equal(known, workers) {
			t.Fatalf("seed %d, step %d: the policy knows the workers %v, want %v", seed, step, known, workers)
		}
		if t.Failed() {
			t.Fatalf("seed %d, step %d", seed, step)
		}
	}
}

// TestReportsAreFew: a host reports once a second, and not each time that somebody is
// attached; the attachments are acknowledged all the same.
func TestReportsAreFew(t *testing.T) {
	checkLeaks(t)
	r := newHostRig(t, testState(testNetwork("net_a", 1)))
	defer r.close()
	r.awaitNetworks("net_a")
	count := func() int {
		r.src.mu.Lock()
		defer r.src.mu.Unlock()
		return r.src.reports
	}
	const many = 200
	before, began := count(), time.Now()
	for range many {
		if _, err := r.src.Attach(t.Context(), api.AttachRequest{
			Project: "prj_net_a", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo,
			Region: "iad1", PublicKey: tunnel.Key{1}.Public().String(),
		}); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	if n, most := count()-before, 2+int(took/reportInterval); n > most {
		t.Errorf("%d reports while %d were attached within %v, want at most %d", n, many, took, most)
	}
}

// TestBadKey: an attachment with a key that is none does not keep others out.
func TestBadKey(t *testing.T) {
	r := newMemberRig(t)
	bad, good := attachment("a", tunnel.Key{}, alice, worker), attachment("b", tunnel.NewKey().Public(), bob, worker)
	bad.PublicKey = "no key"
	r.n.apply(true, []spec.Attachment{bad, good}, nil)
	r.wantForwarded(alice, false)
	r.wantForwarded(bob, true)
	r.n.apply(true, nil, nil)
	r.wantPeers(nil)
}

// TestRelease: the socket of a session that ended is closed, but not that of the
// connection that has taken over its ports.
func TestRelease(t *testing.T) {
	r := newRig(t)
	n := &network{pair: pair, fwd: r.f, up: r.up, clock: r.clock}
	at := netip.AddrPortFrom(pair[0], 5000)
	for _, e := range []nat.Event{
		{Kind: nat.Created, Proto: packet.TCP, External: at, Remote: origin},
		{Kind: nat.Closed, Reason: nat.ReasonReused, Proto: packet.TCP, External: at, Remote: origin},
		{Kind: nat.Closed, Reason: nat.ReasonExpired, Proto: packet.TCP, External: at, Remote: origin},
	} {
		n.release(e)
	}
	if want := []uplink.Flow{{Proto: packet.TCP, External: at, Remote: origin}}; !slices.Equal(r.up.released, want) {
		t.Errorf("released %v, want %v", r.up.released, want)
	}
}

// TestSweep: what is idle ends within its time, and its socket with it.
func TestSweep(t *testing.T) {
	r := newRig(t)
	n := &network{pair: pair, fwd: r.f, up: r.up, clock: r.clock}
	const flows = 3 * sweepBudget
	for i := range flows {
		r.write(udp(t, at(alice, uint16(1+i)), origin, nil))
		if i%1000 == 0 {
			n.sweep(make([]nat.Event, 512))
		}
	}
	r.clock.now += packet.Instant(301 * time.Second)
	for range sweepRound {
		n.sweep(make([]nat.Event, 512))
	}
	if len(r.up.released) != flows {
		t.Errorf("%d sockets released, want %d", len(r.up.released), flows)
	}
	if s := n.tableStats(spec.EgressIndex(alice)); sessions(s) != 0 || s.EventsLost != 0 {
		t.Errorf("%d sessions left, %d events lost", sessions(s), s.EventsLost)
	}
}
