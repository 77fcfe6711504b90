package gateway

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// forever is more changes than any test asks for.
const forever = 1 << 20

// life is a whole life of a gateway with two networks, of which one is removed.
func (r *hostSideRig) life(ids ...string) error {
	if err := r.sweep(allAddressesOf(ids)); err != nil {
		return err
	}
	for _, id := range ids {
		if err := r.openWith(id, addressesOf(id)); err != nil {
			return err
		}
	}
	r.mend()
	for _, id := range ids {
		restore := r.leave(id)
		r.crash(id) // the uplink is closed
		restore()
	}
	r.close()
	return nil
}

// addressesOf are a pair for each network of these tests.
func addressesOf(id string) []netip.Addr {
	last := id[len(id)-1]
	return []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, 2*last - 1}), netip.AddrFrom4([4]byte{203, 0, 113, 2 * last})}
}

func allAddressesOf(ids []string) map[string][]netip.Addr {
	all := map[string][]netip.Addr{}
	for _, id := range ids {
		all[id] = addressesOf(id)
	}
	return all
}

func (r *hostSideRig) openWith(id string, held []netip.Addr) error {
	if err := r.check(held); err != nil {
		return err
	}
	if r.daemon.Uplink == config.UplinkTun {
		r.fake.SetLink(linkName(id), true)
	}
	err := r.lead(id, held, &r.cut)
	if err != nil {
		r.crash(id)
	}
	return err
}

// Whatever change a gateway dies at, from its start to its end: the next one comes up, has
// all that a first one has, and leaves nothing at its end. Where one change fails, and
// the gateway lives on, nothing is left either.
func TestHostSideDiesAtAnyStep(t *testing.T) {
	ids := []string{"net_a", "net_b"}
	for name, d := range map[string]config.Daemon{
		"tun": tunDaemon(), "sockets": {Uplink: config.UplinkSockets, Sockets: config.Sockets{AddAddressesTo: "eth0"}},
	} {
		for _, failing := range []int{1, forever} {
			t.Run(fmt.Sprintf("%s, %d", name, failing), func(t *testing.T) {
				full := hostnet.Plan{Tag: hostTag}.Join(standingPlan(d))
				for _, id := range ids {
					full = full.Join(networkPlan(d, id, addressesOf(id)))
				}
				died := 0
				for step := 0; ; step++ {
					r := newHostSideRig(t, d)
					r.fake.Fail(step, failing)
					err := r.life(ids...)
					r.fake.Fail(0, 0)
					lost := strings.Contains(r.log.String(), "level=ERROR")
					if err == nil && !lost && len(r.ours().Routes)+len(r.ours().Addresses) == 0 {
						// Its life had fewer steps.
						break
					}
					died++
					r.crash(ids...)
					r.start(d)
					r.must(r.sweep(allAddressesOf(ids)))
					for _, id := range ids {
						r.must(r.openWith(id, addressesOf(id)))
					}
					r.wants(full)
					for _, id := range ids {
						r.leave(id)()
						r.crash(id)
					}
					r.close()
					r.wants(hostnet.Plan{})
					if t.Failed() {
						t.Fatalf("dead at step %d of its life (%v)", step, err)
					}
				}
				if died < 8 {
					t.Errorf("%d steps were tried", died)
				}
			})
		}
	}
}

// What another has put there already is as good as ours, is not said to be missing, and
// stays. Where it goes, ours takes its place.
func TestHostSideBesideAnothers(t *testing.T) {
	d := tunDaemon()
	theirs := networkPlan(d, "net_a", pair[:])
	theirs.Tag, theirs.Links, theirs.Routes, theirs.Sysctls = 0, nil, nil, nil
	r := newHostSideRig(t, d, theirs)
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.open("net_a"))
	for range 3 {
		r.mend()
	}
	if said := r.log.String(); said != "" || r.cut.Load() {
		t.Errorf("with rules and neighbours of another: cut %t, the log says %q", r.cut.Load(), said)
	}
	r.must(r.fake.Undo(theirs))
	r.mend()
	if said := r.log.String(); strings.Count(said, "mended") != 1 || !strings.Contains(said, theirs.Rules[0].String()) {
		t.Errorf("without them the log says %q", said)
	}
	r.wants(standingPlan(d).Join(networkPlan(d, "net_a", pair[:])))

	// An address on the interface, by the other uplink.
	d = config.Daemon{Uplink: config.UplinkSockets, Sockets: config.Sockets{AddAddressesTo: "eth0"}}
	r = newHostSideRig(t, d, hostnet.Plan{Addresses: []hostnet.Address{{Link: "eth0", Prefix: single(pair[0])}}})
	r.must(r.lead("net_a", pair[:], &r.cut))
	r.mend()
	if said := r.log.String(); said != "" {
		t.Errorf("with an address of another the log says %q", said)
	}
}

// A rule that comes before ours would lead packets out by another uplink.
func TestHostSideRuleBeforeOurs(t *testing.T) {
	d := tunDaemon()
	theirs := hostnet.Plan{
		Links:  []hostnet.Link{{Name: "lo"}},
		Rules:  []hostnet.Rule{{From: netip.MustParsePrefix("203.0.113.0/24"), Table: 99, Priority: 100}},
		Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Table: 99, Link: "eth1"}},
	}
	r := newHostSideRig(t, d)
	r.fake.SetLink("eth1", true)
	r.must(r.fake.Apply(hostnet.Plan{Links: []hostnet.Link{{Name: "eth1"}}}))
	r.must(r.fake.Apply(theirs))
	r.must(r.sweep(wantedNetworks("net_a")))
	err := r.openWith("net_a", addressesOf("net_a"))
	for _, want := range []string{"eth1", "priority 8300", "ip rule"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want %q in it", err, want)
		}
	}
	r.wants(standingPlan(d))
	r.must(r.fake.Undo(theirs))
	r.must(r.openWith("net_a", addressesOf("net_a")))
	r.mend()
	r.must(r.fake.Apply(theirs)) // while it runs
	r.mend()
	if !r.cut.Load() || !strings.Contains(r.log.String(), "ip rule") {
		t.Errorf("cut %t, the log says %q", r.cut.Load(), r.log)
	}

	// A table of the operator's own that leads nowhere.
	d.Tun.NextHop = netip.Addr{}
	r = newHostSideRig(t, d, hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Table: d.Tun.Table, Kind: hostnet.Unreachable}}})
	r.must(r.sweep(wantedNetworks("net_a")))
	if err := r.open("net_a"); err == nil || !strings.Contains(err.Error(), "table 8300") {
		t.Errorf("with a table without a way: %v", err)
	}
	r.wants(hostnet.Plan{})
}

// A hook that fails for one address is told to take back both, and one that was never
// told of any address is told nothing.
func TestHostSideHookFails(t *testing.T) {
	d := tunDaemon()
	d.Tun.Hook = script(t, `echo $SALLYPORT_ACTION $SALLYPORT_ADDRESS $SALLYPORT_NETWORK >> $0.log; test $SALLYPORT_ACTION-$SALLYPORT_ADDRESS != add-`+pair[1].String())
	d.Tun.HookTimeout = 5 * time.Second
	r := newHostSideRig(t, d)
	r.must(r.sweep(wantedNetworks("net_a")))
	if err := r.open("net_a"); err == nil || !strings.Contains(err.Error(), "SALLYPORT_ACTION=add") {
		t.Errorf("the hook failed: %v", err)
	}
	var want []string
	for _, action := range []string{hookAdd, hookDelete} {
		for _, a := range pair {
			want = append(want, fmt.Sprintf("%s %v net_a", action, a))
		}
	}
	if got := hookLog(t, d.Tun.Hook); strings.Join(got, ";") != strings.Join(want, ";") {
		t.Errorf("the hook was told %q, want %q", got, want)
	}
	r.wants(standingPlan(d))
	r.must(os.Remove(d.Tun.Hook + ".log"))
	r.fake.Fail(0, 1)
	if err := r.open("net_a"); err == nil {
		t.Error("a change that fails was not told")
	}
	if _, err := os.Stat(d.Tun.Hook + ".log"); err == nil {
		t.Errorf("the hook was told %q of addresses that never came", hookLog(t, d.Tun.Hook))
	}
}

// Without a use for the host's network stack there is nothing to check but whether the
// dedicated addresses that this host holds are here.
func TestCheckHostOfSockets(t *testing.T) {
	d := config.Daemon{Uplink: config.UplinkSockets, Region: "iad1", Host: "gw-a"}
	if _, err := CheckHost(d, spec.State{}); err != nil {
		t.Error(err)
	}
	state := spec.State{Networks: []spec.Network{
		{ID: "net_a", Region: "iad1", Hosts: []string{"gw-a", "gw-b"}, Pair: [2]netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("203.0.113.2")}},
		{ID: "net_b", Region: "fra1", Hosts: []string{"gw-a", "gw-a"}, Pair: [2]netip.Addr{netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")}},
	}}
	if _, err := CheckHost(d, state); err != nil {
		t.Errorf("addresses of another host, and of another region: %v", err)
	}
	state.Networks[0].Hosts[1] = "gw-a"
	_, err := CheckHost(d, state)
	if err == nil || !strings.Contains(err.Error(), "dedicated address 203.0.113.2 is not on this host") || strings.Contains(err.Error(), "127.0.0.2") {
		t.Errorf("of an address that is not here: %v", err)
	}
}
