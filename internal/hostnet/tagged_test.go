package hostnet_test

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

const tag hostnet.Tag = 83

var (
	dedicated = netip.MustParsePrefix("203.0.113.2/32")
	nextHop   = netip.MustParseAddr("10.7.0.254")
)

// uplinkPlan is a tagged plan with something of everything that carries tags; the
// links are those of ground.
func uplinkPlan() hostnet.Plan {
	return hostnet.Plan{
		Tag:       tag,
		Addresses: []hostnet.Address{{Link: "eth0", Prefix: netip.MustParsePrefix("203.0.113.9/32")}},
		Routes: []hostnet.Route{
			{Prefix: dedicated, Kind: hostnet.Blackhole, Metric: 20000},
			{Prefix: hostnet.DefaultIPv4, Table: 8300, Link: "eth0", Via: nextHop, Source: inner.Addr()},
			{Prefix: hostnet.DefaultIPv4, Table: 8300, Kind: hostnet.Unreachable, Metric: 20000},
			{Prefix: dedicated, Link: "far"},
		},
		Rules: []hostnet.Rule{
			{From: dedicated, Table: 8300, Priority: 8300},
			{From: dedicated, Link: "far", Table: 99, Priority: 8301},
		},
		Neighbours: []hostnet.Neighbour{
			{Link: "eth0", Addr: dedicated.Addr(), Proxy: true},
			{Link: "far", Addr: netip.MustParseAddr("10.8.0.1"), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		},
	}
}

// ground is what is there before, and others' things that look alike.
func ground() hostnet.Plan {
	return hostnet.Plan{
		Links:     []hostnet.Link{{Name: "lo"}, {Name: "eth0", Veth: &hostnet.VethPeer{Name: "far"}}, {Name: "far"}},
		Addresses: []hostnet.Address{{Link: "eth0", Prefix: inner}},
		Routes: []hostnet.Route{
			{Prefix: dedicated, Kind: hostnet.Blackhole, Metric: 777},
			{Prefix: netip.MustParsePrefix("203.0.113.3/32"), Link: "far"},
		},
		Rules:      []hostnet.Rule{{From: netip.MustParsePrefix("203.0.113.3/32"), Table: 8300, Priority: 8300}},
		Neighbours: []hostnet.Neighbour{{Link: "eth0", Addr: netip.MustParseAddr("203.0.113.3"), Proxy: true}},
	}
}

func apply(t *testing.T, host hostnet.Host, p hostnet.Plan) {
	t.Helper()
	if err := host.Apply(p); err != nil {
		t.Fatal(err)
	}
}

func undo(t *testing.T, host hostnet.Host, p hostnet.Plan) {
	t.Helper()
	if err := host.Undo(p); err != nil {
		t.Fatal(err)
	}
}

func tagged(t *testing.T, host hostnet.Host, by hostnet.Tag) hostnet.Plan {
	t.Helper()
	p, err := host.Tagged(by)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// untagged is what others put there; to the kernel, their routes come "from the boot".
func untagged(t *testing.T, host hostnet.Host) hostnet.Plan {
	t.Helper()
	const boot = 3
	return tagged(t, host, 0).Join(tagged(t, host, boot))
}

func TestTaggedIsFoundAndRemoved(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		apply(t, host, ground())
		before := untagged(t, host)
		for range 2 {
			apply(t, host, uplinkPlan())
			apply(t, host, uplinkPlan())
			found := tagged(t, host, tag)
			if lost := uplinkPlan().Without(found); !lost.Empty() {
				t.Fatalf("not found again: %v", lost)
			}
			if other := found.Without(uplinkPlan()); !other.Empty() {
				t.Fatalf("found besides: %v", other)
			}
			// By what was found it is removed, as after a crash.
			undo(t, host, found)
			undo(t, host, uplinkPlan())
			if left := tagged(t, host, tag); !left.Empty() {
				t.Fatalf("left behind: %v", left)
			}
			after := untagged(t, host)
			if lost := before.Without(after); !lost.Empty() {
				t.Fatalf("others' things are gone: %v", lost)
			}
		}
	})
}

func TestTaggedLeavesOthersAlone(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		others := uplinkPlan()
		others.Tag = 0
		apply(t, host, ground())
		apply(t, host, others)
		ours := uplinkPlan()
		ours.Routes = nil
		apply(t, host, ours) // what is there is good, whoever put it there
		undo(t, host, ours)
		ours.Routes = uplinkPlan().Routes
		for i, r := range ours.Routes {
			err := host.Apply(hostnet.Plan{Tag: tag, Routes: ours.Routes[i : i+1]})
			if err == nil || !strings.Contains(err.Error(), r.Prefix.String()) || !strings.Contains(err.Error(), "not ours") {
				t.Errorf("over another's %v: %v", r, err)
			}
		}
		undo(t, host, ours)
		if lost := others.Without(untagged(t, host)); !lost.Empty() {
			t.Errorf("others' things are gone: %v", lost)
		}
		if found := tagged(t, host, tag); !found.Empty() {
			t.Errorf("others' things carry our tag: %v", found)
		}
	})
}

// The blackhole takes over when the link goes, and the link when it is back.
func TestBlackholeOutlastsLink(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		apply(t, host, ground())
		apply(t, host, uplinkPlan())
		undo(t, host, hostnet.Plan{Links: ground().Links})
		found := tagged(t, host, tag)
		if len(found.Routes) < 2 || found.Routes[0].Kind == hostnet.Unicast || found.Routes[1].Kind == hostnet.Unicast || len(found.Neighbours)+len(found.Addresses) != 0 {
			t.Errorf("with the link gone there is %v", found)
		}
		if !slices.ContainsFunc(found.Routes, func(r hostnet.Route) bool { return r.Prefix == dedicated && r.Kind == hostnet.Blackhole }) {
			t.Errorf("no blackhole in %v", found)
		}
		if link, err := host.LinkTo(dedicated.Addr()); err == nil && link != "" {
			t.Errorf("packets to %v leave by %s", dedicated, link)
		}
		apply(t, host, ground())
		apply(t, host, uplinkPlan())
		if link, err := host.LinkTo(dedicated.Addr()); err != nil || link != "far" {
			t.Errorf("packets to %v leave by %q, %v", dedicated, link, err)
		}
	})
}

func TestApplyRefusesTagged(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		for _, c := range []struct {
			plan hostnet.Plan
			want string
		}{
			{hostnet.Plan{Tag: 4}, "below 16"},
			{hostnet.Plan{Rules: []hostnet.Rule{{Table: 9, Priority: 9}}}, "another way"},
			{hostnet.Plan{Rules: []hostnet.Rule{{From: dedicated, Priority: 9}}}, "number of a table"},
			{hostnet.Plan{Rules: []hostnet.Rule{{From: dedicated, Table: 9}}}, "priority"},
			{hostnet.Plan{Rules: []hostnet.Rule{{From: inner, Table: 9, Priority: 9}}}, "host bits"},
			{hostnet.Plan{Rules: []hostnet.Rule{{Link: "a/b", Table: 9, Priority: 9}}}, "not a name"},
			{hostnet.Plan{Neighbours: []hostnet.Neighbour{{Link: "lo", Addr: nextHop}}}, "either"},
			{hostnet.Plan{Neighbours: []hostnet.Neighbour{{Link: "lo", Addr: nextHop, MAC: net.HardwareAddr{1}}}}, "Ethernet"},
			{hostnet.Plan{Neighbours: []hostnet.Neighbour{{Link: "lo", Addr: netip.IPv6Loopback(), Proxy: true}}}, "IPv4"},
			{hostnet.Plan{Neighbours: []hostnet.Neighbour{{Link: "absent0", Addr: nextHop, Proxy: true}}}, "no such link"},
			{hostnet.Plan{Routes: []hostnet.Route{{Prefix: dedicated, Kind: hostnet.Blackhole, Link: "lo"}}}, "blackhole has neither"},
			{hostnet.Plan{Routes: []hostnet.Route{{Prefix: dedicated, Link: "lo", Table: -1}}}, "negative table"},
			{hostnet.Plan{Routes: []hostnet.Route{{Prefix: dedicated, Link: "lo", Source: netip.IPv6Loopback()}}}, "families"},
		} {
			if err := host.Apply(c.plan); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: got %v, want %q", c.plan, err, c.want)
			}
		}
	})
}

func TestLinkOf(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		apply(t, host, ground())
		for a, want := range map[string]string{"10.7.0.1": "eth0", "10.7.0.2": "", "203.0.113.2": ""} {
			if link, err := host.LinkOf(netip.MustParseAddr(a)); err != nil || link != want {
				t.Errorf("%s is on %q, %v; want %q", a, link, err, want)
			}
		}
	})
}

func TestSettings(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		apply(t, host, ground())
		set := func(name, value string) {
			t.Helper()
			apply(t, host, hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: name, Value: value}}})
		}
		forwarding := func(want ...hostnet.Sysctl) {
			t.Helper()
			got, err := hostnet.ForwardingNeeds(host, "eth0", "far")
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("forwarding needs %v, %v; want %v", got, err, want)
			}
		}
		reverse := func(want ...hostnet.Sysctl) {
			t.Helper()
			got, err := hostnet.ReverseNeeds(host, "far", nextHop)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("the way back needs %v, %v; want %v", got, err, want)
			}
		}
		set("net.ipv4.ip_forward", "0")
		forwarding(hostnet.Sysctl{Name: "net.ipv4.ip_forward", Value: "1"})
		set("net.ipv4.ip_forward", "1")
		forwarding()
		set("net/ipv4/conf/far/forwarding", "0")
		forwarding(hostnet.Sysctl{Name: "net/ipv4/conf/far/forwarding", Value: "1"})

		// The way to the next hop is eth0.
		set("net/ipv4/conf/all/rp_filter", "0")
		set("net/ipv4/conf/far/rp_filter", "0")
		reverse()
		set("net/ipv4/conf/all/rp_filter", "1")
		reverse(hostnet.Sysctl{Name: "net/ipv4/conf/far/rp_filter", Value: "2"})
		set("net/ipv4/conf/far/rp_filter", "2")
		reverse()
		if got, err := hostnet.ReverseNeeds(host, "eth0", nextHop); err != nil || len(got) != 0 {
			t.Errorf("on the link that leads there, the way back needs %v, %v", got, err)
		}
		if _, err := hostnet.ForwardingNeeds(host, "absent0"); err == nil || !strings.Contains(err.Error(), "absent0") {
			t.Errorf("an absent link: %v", err)
		}
	})
}

// A router that has asked for an address learns of an announcement who has it now.
func TestAnnounce(t *testing.T) {
	lab := netlab.Test(t)
	router, a := lab.Namespace("router"), lab.Namespace("a")
	lab.Connect(
		netlab.End{Namespace: router, Link: "lan", Address: netip.MustParsePrefix("10.7.0.254/24")},
		netlab.End{Namespace: a, Link: "eth0", Address: inner})

	apply(t, router.Host(), hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: "net.ipv4.conf.lan.arp_accept", Value: "1"}}})
	capture, err := router.Capture("lan")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Host().Announce("eth0", dedicated.Addr()); err != nil {
		t.Fatal(err)
	}
	mac, err := a.Host().HardwareAddr("eth0")
	if err != nil {
		t.Fatal(err)
	}
	learnt := func() bool {
		for line := range strings.Lines(arpTable(t, router)) {
			f := strings.Fields(line)
			if len(f) > 3 && f[0] == dedicated.Addr().String() && f[3] == mac.String() {
				return true
			}
		}
		return false
	}
	for deadline := time.Now().Add(5 * time.Second); !learnt(); {
		if time.Now().After(deadline) {
			t.Fatalf("the router has learnt %q; captured %v", arpTable(t, router), capture.Packets())
		}
	}
	for _, c := range []struct{ link, want string }{{"absent0", "no such link"}, {"lo", "lo"}} {
		if err := a.Host().Announce(c.link, netip.IPv6Loopback()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("announce on %s: %v", c.link, err)
		}
	}
}

func arpTable(t *testing.T, n *netlab.Namespace) (text string) {
	t.Helper()
	err := n.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/arp")
		text = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}
