package hostnet_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// cut takes up to n things of the first kind of a plan, and says how many are left to take.
func cut[T any](s []T, n *int) []T {
	k := min(*n, len(s))
	*n -= k
	return s[:k]
}

// prefix is what a process has done of an Apply that dies after n things.
func prefix(p hostnet.Plan, n int) hostnet.Plan {
	return hostnet.Plan{
		Tag: p.Tag, Links: cut(p.Links, &n), Addresses: cut(p.Addresses, &n), Routes: cut(p.Routes, &n),
		Rules: cut(p.Rules, &n), Neighbours: cut(p.Neighbours, &n),
	}
}

// size is how many things a plan has.
func size(p hostnet.Plan) int {
	return len(p.Links) + len(p.Addresses) + len(p.Routes) + len(p.Rules) + len(p.Neighbours)
}

func sameTagged(t *testing.T, host hostnet.Host, want hostnet.Plan, when string) {
	t.Helper()
	found := tagged(t, host, tag)
	if lost, more := want.Without(found), found.Without(want); lost.String() != "" || more.String() != "" {
		t.Fatalf("%s: missing are %v; too much is %v", when, lost, more)
	}
}

// Whatever step a process dies at, of Apply or of Undo: what it left is found by its tag,
// the same plan completes it, and all of it can be taken away; nothing else is touched.
func TestCrashAtAnyStep(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		apply(t, host, ground())
		others, whole := untagged(t, host), uplinkPlan()
		for n := range size(whole) + 1 {
			at := fmt.Sprintf("after %d steps", n)
			apply(t, host, prefix(whole, n))
			sameTagged(t, host, prefix(whole, n), at)
			undo(t, host, tagged(t, host, tag))
			sameTagged(t, host, hostnet.Plan{}, at+", taken away")
			apply(t, host, prefix(whole, n))
			for range 2 {
				apply(t, host, whole)
				sameTagged(t, host, whole, at+", completed")
			}
			undo(t, host, whole.Without(prefix(whole, n)))
			sameTagged(t, host, prefix(whole, n), at+" of Undo")
			undo(t, host, whole)
			sameTagged(t, host, hostnet.Plan{}, at+" of Undo, completed")
			if lost := others.Without(untagged(t, host)); !lost.Empty() {
				t.Fatalf("%s: others' things are gone: %v", at, lost)
			}
		}
	})
}

// randomPlan has things of a small world, so that plans meet.
func randomPlan(r *rand.Rand, by hostnet.Tag) hostnet.Plan {
	p := hostnet.Plan{Tag: by}
	links := []string{"eth0", "far"}
	for i := range 4 {
		a := netip.AddrFrom4([4]byte{203, 0, 113, byte(16 + i)})
		single, link := netip.PrefixFrom(a, 32), links[r.IntN(len(links))]
		switch r.IntN(6) {
		case 0:
			p.Addresses = append(p.Addresses, hostnet.Address{Link: link, Prefix: single})
		case 1:
			p.Routes = append(p.Routes, hostnet.Route{Prefix: single, Link: link, Table: 8300 * r.IntN(2)})
		case 2:
			p.Routes = append(p.Routes, hostnet.Route{Prefix: single, Kind: hostnet.Blackhole, Metric: 20000})
		case 3:
			p.Rules = append(p.Rules, hostnet.Rule{From: single, Table: 8300, Priority: 8300})
		case 4:
			p.Neighbours = append(p.Neighbours, hostnet.Neighbour{Link: link, Addr: a, Proxy: true})
		case 5:
			p.Neighbours = append(p.Neighbours, hostnet.Neighbour{Link: link, Addr: a, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}})
		}
	}
	return p
}

// For any plan beside any other owner's: Apply of Apply is Apply, Undo of Undo is Undo,
// Undo takes back an Apply that failed at any step, and the other owner's things stay.
func TestAnyPlan(t *testing.T) {
	const seed, rounds = 6, 3000
	r := rand.New(rand.NewPCG(seed, 0))
	refused, broken := 0, 0
	for range rounds {
		host := hostnet.NewFake()
		apply(t, host, ground())
		other, ours := randomPlan(r, 77), randomPlan(r, tag)
		apply(t, host, other)
		others := untagged(t, host).Join(tagged(t, host, 77))
		steps := r.IntN(size(ours) + 1)
		host.Fail(steps, 1)
		err := host.Apply(ours)
		if err != nil {
			broken++
		}
		host.Fail(0, 0)
		if err == nil && steps < size(ours) {
			t.Fatalf("%v: step %d did not fail", ours, steps)
		}
		undo(t, host, ours)
		sameTagged(t, host, hostnet.Plan{}, "after an Undo of half an Apply of "+ours.String())
		if err := host.Apply(ours); err != nil {
			// The other owner's route is in the way, which is said.
			if refused++; !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "not ours") {
				t.Fatalf("%v beside %v: %v", ours, other, err)
			}
		} else {
			found := tagged(t, host, tag)
			apply(t, host, ours)
			sameTagged(t, host, found, "after a second Apply of "+ours.String())
		}
		for range 2 {
			undo(t, host, ours)
			sameTagged(t, host, hostnet.Plan{}, "after Undo of "+ours.String())
		}
		if lost := others.Without(untagged(t, host).Join(tagged(t, host, 77))); !lost.Empty() {
			t.Fatalf("%v beside %v: the latter has lost %v", ours, other, lost)
		}
	}
	if refused < rounds/100 || broken < rounds/10 {
		t.Errorf("of %d plans %d met another's route, and %d failed: the test proves little", rounds, refused, broken)
	}
}

// A tag is one process's, until it lets go, in one namespace.
func TestClaim(t *testing.T) {
	a, b := newNamespace(t), newNamespace(t)
	first, err := a.Host()
	if err != nil {
		t.Fatal(err)
	}
	second, elsewhere := kernelOf(t, a), kernelOf(t, b)
	for _, k := range []*hostnet.Kernel{first, elsewhere} {
		if err := k.Claim(tag); err != nil {
			t.Error(err)
		}
	}
	if err := second.Claim(tag + 1); err != nil {
		t.Errorf("another tag: %v", err)
	}
	if err := second.Claim(tag); !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "sallyclaim83") {
		t.Errorf("beside one who has it: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := second.Claim(tag); err != nil {
		t.Errorf("after the first one let go: %v", err)
	}
	if err := second.Release(tag); err != nil {
		t.Error(err)
	}
	if err := second.Claim(tag); err != nil {
		t.Errorf("anew: %v", err)
	}
}

// Whoever takes the name that stands for a claim where there is no TUN keeps nobody from
// one who may make interfaces.
func TestClaimIsNobodysToTake(t *testing.T) {
	ns := newNamespace(t)
	squatter := -1
	if err := ns.Do(func() (err error) {
		if squatter, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(squatter, &unix.SockaddrUnix{Name: fmt.Sprintf("@sallyport-hostnet-%d", tag)})
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(squatter)
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		netlab.NotRun(t, "no /dev/net/tun, without which the claim is the name itself: "+err.Error())
	}
	if err := kernelOf(t, ns).Claim(tag); err != nil {
		t.Error(err)
	}
}

// What the host would do with a packet follows the rules, in their order.
func TestTraceFollowsRules(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		from, to := dedicated.Addr(), netip.MustParseAddr("198.51.100.9")
		apply(t, host, ground())
		apply(t, host, hostnet.Plan{
			Sysctls: []hostnet.Sysctl{{Name: "net.ipv4.ip_forward", Value: "1"}},
			Links:   []hostnet.Link{{Name: "in", NoIPv6: true, Veth: &hostnet.VethPeer{Name: "out"}}, {Name: "out"}},
			Routes:  []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "far"}, {Prefix: dedicated, Link: "in"}},
		})
		leaves := func(want string) {
			t.Helper()
			if out, err := host.Trace(from, to, "in"); err != nil || out != want {
				t.Errorf("it leaves by %q, %v; want %q", out, err, want)
			}
		}
		leaves("far")
		ours := uplinkPlan()
		ours.Routes = ours.Routes[:3]
		apply(t, host, ours)
		leaves("eth0")
		before := hostnet.Plan{
			Rules:  []hostnet.Rule{{From: netip.MustParsePrefix("203.0.113.0/24"), Table: 99, Priority: 100}},
			Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Table: 99, Link: "far"}},
		}
		apply(t, host, before)
		leaves("far")
		undo(t, host, before)
		if out, err := host.Trace(from, inner.Addr(), "in"); err != nil || out != "lo" {
			t.Errorf("to the host itself it goes by %q, %v", out, err)
		}
		undo(t, host, hostnet.Plan{Tag: tag, Routes: ours.Routes[1:2]})
		if out, err := host.Trace(from, to, "in"); err == nil {
			t.Errorf("it leaves by %q though the route left refuses it", out)
		}
		apply(t, host, hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: "net/ipv4/conf/in/forwarding", Value: "0"}}})
		if out, err := host.Trace(from, to, "in"); err == nil {
			t.Errorf("it leaves by %q without forwarding", out)
		}
	})
}

// A link without IPv6 addresses has none when it is up.
func TestNoIPv6(t *testing.T) {
	netlab.Require(t)
	k := kernelOf(t, newNamespace(t))
	for _, without := range []bool{false, true} {
		name := fmt.Sprintf("v%t", without)
		apply(t, k, hostnet.Plan{Links: []hostnet.Link{{Name: name, NoIPv6: without, Veth: &hostnet.VethPeer{Name: "far" + name}}, {Name: "far" + name}}})
	}
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return // the machine has no IPv6
	}
	// The kernel makes addresses a little after the far end is up.
	deadline, again := time.After(10*time.Second), time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		list, err := k.Addresses()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if on, err := k.LinkOf(p.Addr()); err != nil || on == "vtrue" {
				t.Fatalf("%v is on %q, %v", p, on, err)
			}
		}
		if len(list) == 3 {
			return
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("the addresses are %v; want three of IPv6", list)
		}
	}
}

// TestForward: one interface forwards, and no other does.
func TestForward(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		apply(t, host, hostnet.Plan{Links: []hostnet.Link{{Name: "in", Forward: true, Veth: &hostnet.VethPeer{Name: "out"}}, {Name: "out"}}})
		for link, want := range map[string]string{"in": "1", "out": "0"} {
			if got, err := host.Sysctl("net/ipv4/conf/" + link + "/forwarding"); err != nil || got != want {
				t.Errorf("forwarding of %s is %q, %v; want %s", link, got, err, want)
			}
		}
	})
}
