package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// hostSideRig is a hostSide on a host in memory, with the interface eth0 up.
type hostSideRig struct {
	*hostSide
	t    *testing.T
	fake *hostnet.Fake
	log  *lockedBuffer
	cut  atomic.Bool
}

// tunDaemon is a configuration with something of everything.
func tunDaemon() config.Daemon {
	return config.Daemon{
		Uplink: config.UplinkTun,
		Tun:    config.Tun{Interface: "eth0", AnnounceARP: true, NextHop: netip.MustParseAddr("198.51.100.1"), Table: 8300},
		DNS:    config.DNS{Upstreams: []netip.AddrPort{resolver}},
	}
}

// testGround is the host before.
func testGround() hostnet.Plan {
	return hostnet.Plan{
		Links:     []hostnet.Link{{Name: "lo"}, {Name: "eth0"}},
		Addresses: []hostnet.Address{{Link: "eth0", Prefix: netip.MustParsePrefix("198.51.100.18/28")}},
		Routes:    []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "eth0", Via: netip.MustParseAddr("198.51.100.1")}},
		Sysctls:   []hostnet.Sysctl{{Name: "net.ipv4.ip_forward", Value: "1"}},
	}
}

func newHostSideRig(t *testing.T, d config.Daemon, before ...hostnet.Plan) *hostSideRig {
	t.Helper()
	r := &hostSideRig{t: t, fake: hostnet.NewFake("eth0"), log: new(lockedBuffer)}
	for _, p := range append([]hostnet.Plan{testGround()}, before...) {
		if err := r.fake.Apply(p); err != nil {
			t.Fatal(err)
		}
	}
	r.start(d)
	return r
}

// start is a new life of the gateway on the same host.
func (r *hostSideRig) start(d config.Daemon) {
	r.hostSide = &hostSide{
		daemon: d, host: r.fake, hook: hook{d.Tun.Hook, d.Tun.HookTimeout},
		log: slog.New(slog.NewTextHandler(r.log, nil)), served: map[string]*hostShare{},
	}
}

// ours is what of the gateway is on the host.
func (r *hostSideRig) ours() hostnet.Plan {
	r.t.Helper()
	p, err := r.fake.Tagged(hostTag)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// open does what a network's opening does, with a TUN.
func (r *hostSideRig) open(id string) error {
	if err := r.check(pair[:]); err != nil {
		return err
	}
	r.fake.SetLink(linkName(id), true)
	err := r.lead(id, pair[:], &r.cut)
	if err != nil {
		r.fake.SetLink(linkName(id), false)
	}
	return err
}

// crash ends a life of the gateway: its interfaces go, and nothing is taken back.
func (r *hostSideRig) crash(ids ...string) {
	for _, id := range ids {
		r.fake.SetLink(linkName(id), false)
	}
}

func (r *hostSideRig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *hostSideRig) wants(want hostnet.Plan) {
	r.t.Helper()
	have := r.ours()
	if lost, more := want.Without(have), have.Without(want); lost.String() != "" || more.String() != "" {
		r.t.Errorf("on the host is missing: %v\ntoo much is: %v", lost, more)
	}
}

func wantedNetworks(ids ...string) map[string][]netip.Addr {
	w := map[string][]netip.Addr{}
	for _, id := range ids {
		w[id] = pair[:]
	}
	return w
}

// refusing is a host on which this process may change nothing.
type refusing struct{ hostnet.Host }

func (refusing) Apply(hostnet.Plan) error { return fmt.Errorf("add route: %w", fs.ErrPermission) }

func (refusing) Undo(hostnet.Plan) error {
	return errors.Join(fmt.Errorf("remove route: %w", fs.ErrPermission), fmt.Errorf("remove rule: %w", fs.ErrPermission))
}

// TestHostSideRefused: who may change nothing is told so once.
func TestHostSideRefused(t *testing.T) {
	r := newHostSideRig(t, tunDaemon())
	r.host = refusing{r.fake}
	for _, err := range []error{r.sweep(nil), r.lead("net_a", pair[:], &r.cut)} {
		if err == nil || !strings.Contains(err.Error(), "add route") || strings.Contains(err.Error(), "remove") {
			t.Errorf("the error is %v", err)
		}
	}
}

// TestHostSideNextHop: a next hop that is the host itself is refused before anything is
// changed. One that no address or route of the link speaks of may work, and is named.
func TestHostSideNextHop(t *testing.T) {
	netlab.Require(t)
	lab := netlab.Test(t)
	ns, far := lab.Namespace("host"), lab.Namespace("far")
	lab.Connect(
		netlab.End{Namespace: ns, Link: "eth0", Address: netip.MustParsePrefix("198.51.100.2/28")},
		netlab.End{Namespace: far, Link: "eth0", Address: netip.MustParsePrefix("198.51.100.1/28")})
	ns.Route(hostnet.DefaultIPv4, netip.MustParseAddr("198.51.100.1"))
	ns.Sysctl("net.ipv4.conf.eth0.forwarding", "1")
	for _, c := range []struct {
		hop, refused, warned string
	}{
		{hop: "198.51.100.1"},
		{hop: "198.51.100.2", refused: "is an address of interface eth0"},
		{hop: "10.77.0.1", warned: "is not on the link of interface eth0"},
	} {
		d := tunDaemon()
		d.Tun.NextHop, d.Tun.AnnounceARP = netip.MustParseAddr(c.hop), false
		log := &lockedBuffer{}
		err := ns.Do(func() error {
			warnings, err := CheckHost(d, spec.State{})
			warning := strings.Join(warnings, "")
			if (c.warned == "") != (warning == "") || !strings.Contains(warning, c.warned) {
				t.Errorf("%s: the check warns %q", c.hop, warning)
			}
			if (c.refused == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: the check says %v", c.hop, err)
			}
			s, err := newHostSide(d, slog.New(slog.NewTextHandler(log, nil)))
			if err != nil {
				return err
			}
			defer s.close()
			if err = s.sweep(nil); (c.refused == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: the start says %v", c.hop, err)
			}
			if held, err := s.host.Tagged(hostTag); err != nil || held.Empty() != (c.refused != "") {
				t.Errorf("%s: on the host is %v, %v", c.hop, held, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if (c.warned == "") != (log.String() == "") || !strings.Contains(log.String(), c.warned) {
			t.Errorf("%s: the log says %q", c.hop, log)
		}
	}
}

func TestHostSideTakesAllBack(t *testing.T) {
	r := newHostSideRig(t, tunDaemon())
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.open("net_a"))
	r.wants(standingPlan(r.daemon).Join(networkPlan(r.daemon, "net_a", pair[:])))
	if got := r.fake.Announced(); !slices.Equal(got, pair[:]) {
		t.Errorf("announced were %v", got)
	}
	r.mend()
	r.mend()
	if got := r.fake.Announced(); len(got) != announcements*len(pair) {
		t.Errorf("announced were %v; want each address %d times", got, announcements)
	}
	restore := r.leave("net_a")
	r.crash("net_a") // the uplink is closed
	if p := r.ours(); !slices.ContainsFunc(p.Routes, func(r hostnet.Route) bool { return r.Kind == hostnet.Blackhole && r.Prefix.Addr() == pair[0] }) {
		t.Errorf("while the network closes there is no blackhole in %v", p)
	}
	restore()
	r.leave("net_a")()
	r.close()
	r.close()
	r.wants(hostnet.Plan{})
}

func TestHostSideAfterCrash(t *testing.T) {
	d := tunDaemon()
	r := newHostSideRig(t, d)
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.open("net_a"))
	r.start(d)
	if err := r.sweep(wantedNetworks("net_a")); err == nil || !strings.Contains(err.Error(), linkName("net_a")) || !strings.Contains(err.Error(), "another gateway") {
		t.Errorf("beside a gateway that lives: %v", err)
	}
	r.crash("net_a")
	left := r.ours()

	// The same networks: all of it is taken over.
	r.start(d)
	r.must(r.sweep(wantedNetworks("net_a")))
	r.wants(left)
	r.must(r.open("net_a"))
	r.wants(standingPlan(d).Join(networkPlan(d, "net_a", pair[:])))
	r.crash("net_a")

	// Other ones, by another way: nothing is left of before.
	d.Tun = config.Tun{Interface: "eth0", Hook: script(t, "cat > /dev/null; echo $SALLYPORT_ACTION $SALLYPORT_ADDRESS \"<$SALLYPORT_NETWORK>\" >> $0.log"), HookTimeout: 5 * time.Second}
	r.start(d)
	r.must(r.sweep(wantedNetworks()))
	r.wants(hostnet.Plan{})
	if got, want := hookLog(t, d.Tun.Hook), []string{fmt.Sprintf("del %v <>", pair[0]), fmt.Sprintf("del %v <>", pair[1])}; !slices.Equal(got, want) {
		t.Errorf("the hook was told %q, want %q", got, want)
	}

	// A network that was wanted and never came up leaves nothing, either.
	d = tunDaemon()
	r.start(d)
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.open("net_a"))
	r.crash("net_a")
	r.start(d)
	r.must(r.sweep(wantedNetworks("net_a")))
	r.close()
	r.wants(hostnet.Plan{})
}

// What is in the way is said, with what to do and what would do without; nothing is
// left of the attempt.
func TestHostSideRefuses(t *testing.T) {
	on := func(link string) hostnet.Plan {
		return hostnet.Plan{Addresses: []hostnet.Address{{Link: link, Prefix: single(pair[1])}}}
	}
	sysctl := func(name, value string) hostnet.Plan {
		return hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: name, Value: value}}}
	}
	for _, c := range []struct {
		name   string
		change func(*config.Daemon)
		before hostnet.Plan
		want   []string
	}{
		{"address on the host", nil, on("lo"), []string{pair[1].String(), "interface lo", "ip address del", "`uplink: sockets`"}},
		{"no forwarding", nil, sysctl("net.ipv4.ip_forward", "0"), []string{"eth0", "sysctl -w net.ipv4.ip_forward=1", "set_sysctls", "`uplink: sockets`"}},
		{"no forwarding on the interface", nil, sysctl("net/ipv4/conf/eth0/forwarding", "0"), []string{"sysctl -w net/ipv4/conf/eth0/forwarding=1"}},
		{"no forwarding, resolver on the host", func(d *config.Daemon) {
			d.Tun = config.Tun{}
			d.DNS.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}
		}, sysctl("net.ipv4.ip_forward", "0"), []string{"eth0", "sysctl -w net.ipv4.ip_forward=1"}},
		{"interface missing", func(d *config.Daemon) { d.Tun.Interface = "eth7"; d.Tun.NextHop = netip.Addr{} }, hostnet.Plan{}, []string{"eth7", "tun.interface", "`uplink: sockets`"}},
		{"interface of the next hop missing", func(d *config.Daemon) { d.Tun.Interface = "eth7" }, hostnet.Plan{}, []string{"eth7", "no such link", "`uplink: sockets`"}},
		{"way back by another interface", func(d *config.Daemon) { d.Tun = config.Tun{Interface: "lo"} }, sysctl("net/ipv4/conf/all/rp_filter", "1"), []string{"net/ipv4/conf/lo/rp_filter=2"}},
		{"another's route", nil, hostnet.Plan{Routes: []hostnet.Route{{Prefix: single(pair[1]), Link: "eth0"}}}, []string{"not ours", pair[1].String()}},
		{"nothing to announce on", func(d *config.Daemon) { d.Tun.Hook, d.Tun.HookTimeout = "/no/such/hook", time.Second }, hostnet.Plan{}, []string{"/no/such/hook", "tun.hook", "add"}},
		{"sockets: address elsewhere", func(d *config.Daemon) {
			*d = config.Daemon{Uplink: config.UplinkSockets, Sockets: config.Sockets{AddAddressesTo: "eth0"}}
		}, on("lo"), []string{pair[1].String(), "interface lo", "add_addresses_to"}},
		{"sockets: interface missing", func(d *config.Daemon) {
			*d = config.Daemon{Uplink: config.UplinkSockets, Sockets: config.Sockets{AddAddressesTo: "eth7"}}
		}, hostnet.Plan{}, []string{"eth7", "no such link", "add_addresses_to"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := tunDaemon()
			if c.change != nil {
				c.change(&d)
			}
			r := newHostSideRig(t, d, c.before)
			err := r.sweep(wantedNetworks("net_a"))
			if err == nil {
				err = r.open("net_a")
			}
			for _, w := range c.want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("got %v; want %q in it", err, w)
				}
			}
			r.wants(r.standing)
			r.close()
			r.wants(hostnet.Plan{})
		})
	}
}

func TestHostSideSetsSysctls(t *testing.T) {
	d := tunDaemon()
	d.Tun.SetSysctls = true
	r := newHostSideRig(t, d, hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: "net.ipv4.ip_forward", Value: "0"}}})
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.open("net_a"))
	if v, err := r.fake.Sysctl("net.ipv4.ip_forward"); err != nil || v != "1" || !strings.Contains(r.log.String(), "ip_forward") {
		t.Errorf("net.ipv4.ip_forward is %s, %v; the log says %q", v, err, r.log)
	}
}

// Addresses that were there before are not the gateway's, and stay.
func TestHostSideAddsAddresses(t *testing.T) {
	d := config.Daemon{Uplink: config.UplinkSockets, Sockets: config.Sockets{AddAddressesTo: "eth0"}}
	r := newHostSideRig(t, d, hostnet.Plan{Addresses: []hostnet.Address{{Link: "eth0", Prefix: single(pair[0])}}})
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.check(pair[:]))
	r.must(r.lead("net_a", pair[:], &r.cut))
	r.wants(hostnet.Plan{Addresses: []hostnet.Address{{Link: "eth0", Prefix: single(pair[1])}}})
	if got := r.fake.Announced(); !slices.Equal(got, pair[:]) {
		t.Errorf("announced were %v", got)
	}
	r.start(d) // after a crash
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.check(pair[:]))
	r.must(r.lead("net_a", pair[:], &r.cut))
	r.leave("net_a")()
	r.close()
	for i, want := range []string{"eth0", ""} {
		if link, err := r.fake.LinkOf(pair[i]); err != nil || link != want {
			t.Errorf("at the end %v is on %q, %v; want %q", pair[i], link, err, want)
		}
	}
}

// Where the interface goes, the networks say that they are cut off; when it is back,
// everything is put back and announced.
func TestHostSideMends(t *testing.T) {
	r := newHostSideRig(t, tunDaemon())
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.open("net_a"))
	r.mend()
	if r.cut.Load() || r.log.String() != "" {
		t.Fatalf("nothing is missing: cut %t, the log says %q", r.cut.Load(), r.log)
	}
	r.fake.SetLink("eth0", false)
	for range 3 {
		r.mend()
	}
	if n := strings.Count(r.log.String(), "level=ERROR"); !r.cut.Load() || n != 1 || !strings.Contains(r.log.String(), "eth0") {
		t.Errorf("without its interface: cut %t, %d errors: %q", r.cut.Load(), n, r.log)
	}
	r.fake.SetLink("eth0", true)
	r.must(r.fake.Apply(testGround()))
	before := len(r.fake.Announced())
	r.mend()
	if r.cut.Load() || !strings.Contains(r.log.String(), "mended") || len(r.fake.Announced()) != before+len(pair) {
		t.Errorf("with the interface back: cut %t, announced %v: %q", r.cut.Load(), r.fake.Announced(), r.log)
	}
	r.wants(standingPlan(r.daemon).Join(networkPlan(r.daemon, "net_a", pair[:])))

	r.must(r.fake.Apply(hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: "net.ipv4.ip_forward", Value: "0"}}}))
	r.mend()
	if !r.cut.Load() || !strings.Contains(r.log.String(), "ip_forward=1") {
		t.Errorf("without forwarding: cut %t: %q", r.cut.Load(), r.log)
	}
}

// Where the next hop's interface is gone while networks change, packets of those that are
// open are refused as before: they do not take the host's own way out.
func TestHostSideStandsWhileNetworksChange(t *testing.T) {
	r := newHostSideRig(t, tunDaemon())
	r.must(r.sweep(wantedNetworks("net_a")))
	r.must(r.open("net_a"))
	r.fake.SetLink("eth0", false)
	if err := r.sweep(wantedNetworks("net_a", "net_b")); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("without its interface the host is prepared: %v", err)
	}
	if p := r.ours(); !slices.ContainsFunc(p.Routes, func(r hostnet.Route) bool { return r.Kind == hostnet.Unreachable && r.Table == 8300 }) {
		t.Errorf("nothing keeps packets in the table; there is %v", p)
	}
	r.fake.SetLink("eth0", true)
	r.must(r.fake.Apply(testGround()))
	r.must(r.sweep(wantedNetworks("net_a", "net_b")))
	r.mend()
	r.wants(standingPlan(r.daemon).Join(networkPlan(r.daemon, "net_a", pair[:])))
}

func TestLinkNames(t *testing.T) {
	seen := map[string]string{}
	for i := range 20000 {
		id := fmt.Sprintf("net_%d", i)
		name := linkName(id)
		if other, taken := seen[name]; taken || len(name) > 15 || name != linkName(id) || strings.ContainsAny(name, "/: =") {
			t.Fatalf("%s has the interface %q, %q has it too", id, name, other)
		}
		seen[name] = id
	}
}

// script writes a hook.
func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

// hookLog is what a script has written behind its name, in order.
func hookLog(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile(name + ".log")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	slices.Sort(lines)
	return lines
}

func TestHook(t *testing.T) {
	good := hook{script(t, `echo "$SALLYPORT_ACTION $SALLYPORT_ADDRESS $SALLYPORT_NETWORK" >> $0.log`), 5 * time.Second}
	if err := good.each(hookAdd, "net_a", pair[:]); err != nil {
		t.Fatal(err)
	}
	if got := hookLog(t, good.program); len(got) != 2 || got[0] != fmt.Sprintf("add %v net_a", pair[0]) {
		t.Errorf("the hook was told %q", got)
	}
	if err := (hook{script(t, "sleep 3 & exit 0"), 5 * time.Second}).each(hookAdd, "net_a", pair[:1]); err != nil {
		t.Errorf("a hook that leaves a program behind: %v", err)
	}
	for _, c := range []struct {
		text string
		want []string
	}{
		{"echo no session with the router >&2; exit 3", []string{"exit status 3", "no session with the router", "SALLYPORT_ACTION=del", pair[0].String()}},
		{"while :; do echo it goes on and on; done", []string{"longer than tun.hook_timeout", "it goes on and on\\n"}},
		{"sleep 60 & wait", []string{"longer than tun.hook_timeout"}},
	} {
		began := time.Now()
		err := hook{script(t, c.text), 300 * time.Millisecond}.each(hookDelete, "net_a", pair[:])
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%q: got %v; want %q in it", c.text, err, w)
			}
		}
		if err != nil && len(err.Error()) > 2*(hookOutput+400) {
			t.Errorf("%q: the error has %d bytes", c.text, len(err.Error()))
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%q: it took %v", c.text, took)
		}
	}
	if err := (hook{}).each(hookAdd, "net_a", pair[:]); err != nil {
		t.Error(err)
	}
}
