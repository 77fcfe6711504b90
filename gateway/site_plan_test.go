package gateway

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/nat"
	"github.com/sallyport-net/sallyport/tunnel"
)

// siteRig is a network of a Forwarder between fakes whose site tunnel is real.
type siteRig struct {
	*memberRig
	plan sitePlan
}

func newSiteRig(t *testing.T) *siteRig {
	t.Helper()
	r := &siteRig{memberRig: newMemberRig(t)}
	r.n.cidr, r.n.clock = network16, r.clock
	r.plan = sitePlan{
		role: holdsSite, key: tunnel.NewKey(), table: nat.Config{Identity: true},
		peers: map[string]tunnel.Peer{}, ranges: map[string][]netip.Prefix{},
	}
	t.Cleanup(func() {
		r.n.siteMu.Lock()
		defer r.n.siteMu.Unlock()
		r.n.closeSite()
	})
	return r
}

// peering adds one to the plan, or changes it.
func (r *siteRig) peering(id string, key tunnel.Key, endpoint string, ranges ...string) {
	p := tunnel.Peer{PublicKey: key}
	for _, c := range ranges {
		p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(c))
	}
	if endpoint != "" {
		p.Endpoint, p.Keepalive = netip.MustParseAddrPort(endpoint), siteKeepalive
	}
	r.plan.peers[id], r.plan.ranges[id] = p, p.AllowedIPs
}

// drop takes one out of the plan.
func (r *siteRig) drop(id string) {
	delete(r.plan.peers, id)
	delete(r.plan.ranges, id)
}

func (r *siteRig) set() {
	r.t.Helper()
	plan := r.plan
	plan.peers, plan.ranges = maps.Clone(plan.peers), maps.Clone(plan.ranges)
	if err := r.n.setSite(plan); err != nil {
		r.t.Fatal(err)
	}
}

// want checks the peers that WireGuard has: their keys and what they are allowed.
func (r *siteRig) want(want map[tunnel.Key]string) map[tunnel.Key]tunnel.PeerStats {
	r.t.Helper()
	r.n.siteMu.Lock()
	defer r.n.siteMu.Unlock()
	got := r.n.sitePeers()
	if len(got) != len(want) {
		r.t.Errorf("%d peers, want %d", len(got), len(want))
	}
	for key, ranges := range want {
		var text []string
		for _, p := range got[key].AllowedIPs {
			text = append(text, p.String())
		}
		if strings.Join(text, " ") != ranges {
			r.t.Errorf("a peer is allowed %v, want %s", text, ranges)
		}
	}
	return got
}

// flows counts the flows that are tracked.
func (r *siteRig) flows() (n int) {
	r.f.withPeered(func(t *nat.Table) { n = sessions(t.Stats()) })
	return n
}

// begin tracks a flow to a peered address.
func (r *siteRig) begin(to string) {
	r.t.Helper()
	p := parsed(r.t, udp(r.t, at(alice, 5000), at(netip.MustParseAddr(to), 1), nil))
	r.f.withPeered(func(t *nat.Table) { t.Egress(&p, r.clock.now) })
}

// TestSetSite: peers and ranges follow the plan while the tunnel stays open; what is
// peered no more loses its flows, and nothing else does.
func TestSetSite(t *testing.T) {
	r := newSiteRig(t)
	k1, k2, k3 := tunnel.NewKey().Public(), tunnel.NewKey().Public(), tunnel.NewKey().Public()
	r.peering("one", k1, "127.0.0.1:9", "10.40.0.0/16", "10.41.0.0/16")
	r.peering("two", k2, "", "10.50.0.0/24")
	r.set()
	stats := r.want(map[tunnel.Key]string{k1: "10.40.0.0/16 10.41.0.0/16", k2: "10.50.0.0/24"})
	if stats[k1].Keepalive != siteKeepalive || stats[k2].Keepalive != 0 || !stats[k1].Endpoint.IsValid() || stats[k2].Endpoint.IsValid() {
		t.Errorf("peers %+v", stats)
	}
	first := r.n.site.tun
	for _, a := range []string{"10.40.0.1", "10.41.0.1", "10.50.0.1"} {
		r.begin(a)
	}
	r.n.peerings["one"].counters.passed(Egress, 100)
	r.n.peerings["two"].counters.passed(Egress, 10)

	// A range goes, another moves to a third peering.
	r.peering("one", k1, "127.0.0.1:9", "10.40.0.0/16")
	r.peering("three", k3, "", "10.41.0.0/16")
	if r.set(); r.flows() != 2 {
		t.Errorf("%d flows are left, want 2", r.flows())
	}
	r.want(map[tunnel.Key]string{k1: "10.40.0.0/16", k2: "10.50.0.0/24", k3: "10.41.0.0/16"})

	// A peering ends, another changes its key: its flows go on.
	r.drop("two")
	r.peering("one", k2, "127.0.0.1:9", "10.40.0.0/16")
	if r.set(); r.flows() != 1 || r.f.peered.Load().find(netip.MustParseAddr("10.50.0.1")) != nil {
		t.Errorf("%d flows are left, want 1", r.flows())
	}
	r.want(map[tunnel.Key]string{k2: "10.40.0.0/16", k3: "10.41.0.0/16"})
	report := r.n.siteReport(netip.MustParseAddr("192.0.2.1"))
	if report.PublicKey != r.plan.key.Public().String() || len(report.Peerings) != 2 || report.Peerings[0].ID != "one" || report.Peerings[0].Egress != (spec.Traffic{Packets: 1, Bytes: 100}) {
		t.Errorf("the report is %+v", report)
	}
	if r.n.site.tun != first {
		t.Error("the tunnel is another")
	}

	// The tunnel moves to another key: flows and counters go on.
	r.plan.key = tunnel.NewKey()
	if r.set(); r.n.site.tun == first || r.flows() != 1 || r.n.siteReport(netip.Addr{}).Peerings[0].Egress.Packets != 1 {
		t.Errorf("%d flows after the tunnel has changed", r.flows())
	}
	<-first.Done()

	// The other host has the site now.
	moved := r.plan
	r.plan = sitePlan{role: relaysToSite, key: tunnel.NewKey(), ranges: moved.ranges, peers: map[string]tunnel.Peer{
		"gw-b": {PublicKey: k1, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
	}}
	r.set()
	r.want(map[tunnel.Key]string{k1: "0.0.0.0/0"})
	if w := r.f.peered.Load(); w.table != nil || w.find(netip.MustParseAddr("10.40.0.1")) == nil || r.n.siteReport(netip.Addr{}) != nil {
		t.Error("the host behaves as though it had the site")
	}
	// And comes back, with new state.
	r.plan = moved
	if r.set(); r.flows() != 0 {
		t.Errorf("%d flows have come back", r.flows())
	}
	r.plan = sitePlan{}
	r.set()
	if w := r.f.peered.Load(); w.device != nil || w.ranges != nil || w.table != nil || r.n.site != nil || len(r.n.peerings) != 0 {
		t.Error("something is left of the site")
	}
	r.n.closing.Store(true)
	r.plan = moved
	if r.set(); r.n.site != nil {
		t.Error("a network that is closing opened a site")
	}
}

// TestSetSiteRoams: where a peer has moved to is not overwritten by the desired state
// until that changes, and a new tunnel calls it there.
func TestSetSiteRoams(t *testing.T) {
	r := newSiteRig(t)
	other := newEndOfSite(t)
	r.peering("one", other.PublicKey(), "127.0.0.1:9", "10.40.0.0/16")
	r.set()
	other.call(t, r)
	at := r.awaitEndpoint(other)
	r.peering("one", other.PublicKey(), "127.0.0.1:9", "10.40.0.0/16", "10.41.0.0/16")
	r.set()
	if got := r.want(map[tunnel.Key]string{other.PublicKey(): "10.40.0.0/16 10.41.0.0/16"}); got[other.PublicKey()].Endpoint != at {
		t.Errorf("the endpoint is %v, was %v", got[other.PublicKey()].Endpoint, at)
	}
	r.peering("one", other.PublicKey(), "127.0.0.1:10", "10.40.0.0/16")
	r.set()
	if got := r.want(map[tunnel.Key]string{other.PublicKey(): "10.40.0.0/16"}); got[other.PublicKey()].Endpoint.Port() != 10 {
		t.Errorf("the endpoint is %v", got[other.PublicKey()].Endpoint)
	}
}

// endOfSite is the other end of a site tunnel.
type endOfSite struct{ *tunnel.Tunnel }

func newEndOfSite(t *testing.T) endOfSite {
	t.Helper()
	tun, err := tunnel.New(tunnel.Config{PrivateKey: tunnel.NewKey(), Device: newMemTUN()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tun.Close)
	return endOfSite{tun}
}

// call shakes hands with the site.
func (e endOfSite) call(t *testing.T, r *siteRig) {
	t.Helper()
	err := e.SetPeer(tunnel.Peer{
		PublicKey: r.n.site.tun.PublicKey(), AllowedIPs: []netip.Prefix{network16}, Keepalive: time.Second,
		Endpoint: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.n.site.tun.ListenPort()),
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitEndpoint waits until the site has heard of a peer, and says from where.
func (r *siteRig) awaitEndpoint(e endOfSite) netip.AddrPort {
	r.t.Helper()
	late, again := time.After(10*time.Second), time.NewTicker(5*time.Millisecond)
	defer again.Stop()
	for {
		if p := r.n.sitePeers()[e.PublicKey()]; !p.LastHandshake.IsZero() {
			return p.Endpoint
		}
		select {
		case <-again.C:
		case <-late:
			r.t.Fatal("no handshake within 10 s")
		}
	}
}

// TestInsist: a relay that nobody answered calls anew, and one that was answered
// does not.
func TestInsist(t *testing.T) {
	r := newSiteRig(t)
	r.n.insist() // there is none
	other := newEndOfSite(t)
	r.plan.role = relaysToSite
	r.plan.peers["gw-b"] = tunnel.Peer{
		PublicKey: other.PublicKey(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, Keepalive: siteKeepalive,
		Endpoint: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), other.ListenPort()),
	}
	r.set() // its first call meets a tunnel that does not know it
	if err := other.SetPeer(tunnel.Peer{PublicKey: r.plan.key.Public(), AllowedIPs: []netip.Prefix{network16}}); err != nil {
		t.Fatal(err)
	}
	// By itself it would call again after 5 s.
	late, again := time.After(4*time.Second), time.NewTicker(100*time.Millisecond)
	defer again.Stop()
	for !r.n.site.reached {
		select {
		case <-again.C:
			r.n.insist()
		case <-late:
			t.Fatal("the relay has not been answered within 4 s")
		}
	}
	before := r.n.sitePeers()[other.PublicKey()]
	r.n.insist()
	if after := r.n.sitePeers()[other.PublicKey()]; !after.LastHandshake.Equal(before.LastHandshake) {
		t.Error("a relay that was answered called anew")
	}
}

// TestAssignKeepsSitePorts: no network or relay gets the port of a site tunnel, a
// relay never takes a network's, and where ports are short it is relays that go without.
func TestAssignKeepsSitePorts(t *testing.T) {
	h := &Host{}
	h.cfg.Daemon = testDaemon()
	h.cfg.Daemon.WireGuard.Ports = spec.PortRange{First: 1000, Last: 1009}
	wanted := map[string]spec.Network{}
	for i, id := range []string{"net_a", "net_b", "net_c", "net_d"} {
		n := testNetwork(id, byte(1+2*i))
		n.Site = &spec.Site{Host: []string{"gw-a", "gw-b"}[i%2], Port: uint16(1000 + i)}
		wanted[id] = n
	}
	check := func(relays int) {
		t.Helper()
		if err := h.assign(wanted); err != nil {
			t.Fatal(err)
		}
		used := []uint16{1000, 1001, 1002, 1003}
		for _, ports := range []map[string]uint16{h.ports, h.relays} {
			for id, p := range ports {
				if slices.Contains(used, p) || p < 1000 || p > 1009 {
					t.Errorf("%s got port %d, which is taken", id, p)
				}
				used = append(used, p)
			}
		}
		if len(h.ports) != len(wanted) || len(h.relays) != relays {
			t.Errorf("%d networks and %d relays have ports, want %d and %d", len(h.ports), len(h.relays), len(wanted), relays)
		}
	}
	check(2)
	before := maps.Clone(h.ports)
	wanted["net_e"] = testNetwork("net_e", 9)
	h.relays = nil // they give way
	check(1)
	for id, p := range before {
		if h.ports[id] != p {
			t.Errorf("%s moved from %d to %d", id, p, h.ports[id])
		}
	}
	wanted["net_f"] = testNetwork("net_f", 11)
	check(0)
	wanted["net_g"] = testNetwork("net_g", 13)
	if err := h.assign(wanted); err == nil || !strings.Contains(err.Error(), "room for 6") {
		t.Errorf("7 networks on 6 ports: %v", err)
	}
}
