package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/sidecar"
)

// The worker of these tests has many sandboxes in many networks of one gateway. All
// networks have the same range, and each is peered with a machine of its own at the
// same address, on a link of its own:
//
//	worker ── hub ── iad1 p0 10.9.0.1 ── 10.9.0.2 machine 0 with 10.50.0.5
//	            │        p1 10.9.1.1 ── 10.9.1.2 machine 1 with 10.50.0.5
//	            └── origin, where network i asks port 8000+i
const (
	firstPort    = 8000
	attachAtOnce = 16
)

// crowded is one of the networks.
type crowded struct {
	pair     []netip.Addr
	who      subject
	answered atomic.Int64 // requests that the peered machine answered
}

// crowd is the machines and what runs on them.
type crowd struct {
	*ground
	iad1             *netlab.Namespace
	atIad1, atOrigin *netlab.Capture
	networks         []*crowded
	gateway, sidecar *daemon
}

func newCrowd(t *testing.T, by uplinkKind) *crowd {
	t.Helper()
	c := &crowd{ground: newGround(t, by)}
	c.iad1 = c.lab.Namespace("iad1")
	c.join(c.iad1, "iad1", "198.51.100.18/28", "198.51.100.17/28").byDefault()
	c.iad1.Sysctl("net.ipv4.conf.default.rp_filter", "1")
	c.hub.Route(netip.MustParsePrefix("203.0.113.0/26"), iad1Addr)
	var dedicated []netip.Addr
	for i := range manyNetworks {
		n := &crowded{who: subject{fmt.Sprint("project-", i), "production", spec.KindFunction, spec.RuntimeGo}}
		for k := range 2 {
			n.pair = append(n.pair, netip.AddrFrom4([4]byte{203, 0, 113, byte(2 + 2*i + k)}))
		}
		dedicated = append(dedicated, n.pair...)
		c.networks = append(c.networks, n)
		c.machine(i)
		c.serve(c.home, fmt.Sprintf("0.0.0.0:%d", firstPort+i), func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprint(w, r.RemoteAddr)
		})
	}
	c.uplink.provide(c.iad1, dedicated...)
	c.atIad1, c.atOrigin = c.capture("iad1"), c.capture("origin")
	c.write("state.yaml", crowdState(c.networks))
	c.write("sallyportd.yaml", strings.Replace(netnsDaemon, "51820-51899", "51820-51999", 1)+"region_secret_file: region-secret\n"+c.uplink.settings())
	c.write("region-secret", "0123456789abcdef0123456789ABCDEF")
	c.write("sidecar.yaml", netnsSidecar)
	c.write("token", testToken+"\n")
	t.Cleanup(c.end)
	c.gateway = c.runOurs(c.iad1, "sallyportd", "sallyportd", "sallyportd.yaml")
	c.awaitReady(c.gateway, c.iad1)
	c.sidecar = c.runOurs(c.worker, "sallyport-sidecar", "sallyport-sidecar", "sidecar.yaml")
	c.awaitSocket(c.sidecar, c.socket)
	return c
}

// machine makes the machine that network i is peered with. It answers the requests of
// that network's sandboxes, with their address, and none of others'.
func (c *crowd) machine(i int) {
	link := fmt.Sprint("p", i)
	near, far := netip.AddrFrom4([4]byte{10, 9, byte(i), 1}), netip.AddrFrom4([4]byte{10, 9, byte(i), 2})
	m := c.lab.Namespace(fmt.Sprint("machine ", i))
	c.lab.Connect(
		netlab.End{Namespace: c.iad1, Link: link, Address: netip.PrefixFrom(near, 24)},
		netlab.End{Namespace: m, Link: "eth0", Address: netip.PrefixFrom(far, 24)})
	m.Address("lo", netip.PrefixFrom(vaultAddr, 32))
	m.Route(netip.MustParsePrefix("10.20.0.0/16"), near)
	c.iad1.Sysctl("net.ipv4.conf."+link+".forwarding", "1")
	c.iad1.Sysctl("net.ipv4.conf."+link+".rp_filter", "1")
	n := c.networks[i]
	c.serve(m, "0.0.0.0:80", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/"+n.who.project {
			c.t.Errorf("the machine of %s got a request %s from %s", n.who.project, r.URL.Path, r.RemoteAddr)
			http.Error(w, "not yours", http.StatusForbidden)
			return
		}
		n.answered.Add(1)
		_, _ = fmt.Fprint(w, n.who.project, " ", r.RemoteAddr)
	})
}

// serve serves HTTP on a machine until the test ends.
func (c *crowd) serve(on *netlab.Namespace, address string, handle http.HandlerFunc) {
	l, err := on.Listen("tcp4", address)
	if err != nil {
		c.t.Fatal(err)
	}
	s := &http.Server{Handler: handle}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(l) }()
	c.t.Cleanup(func() { _ = s.Close(); <-ended })
}

// crowdState is a desired state with those networks.
func crowdState(networks []*crowded) string {
	var s strings.Builder
	s.WriteString("teams: [{id: acme}]\nregions: [{name: iad1, pool: [203.0.113.0/26], hosts: [{name: gw-a, endpoint: 198.51.100.18}]}]\nnetworks:\n")
	for i, n := range networks {
		fmt.Fprintf(&s, "  - {id: net-%d, team: acme, region: iad1, cidr: 10.20.0.0/16, pair: [%v, %v], site: {host: gw-a, port: %d}}\n", i, n.pair[0], n.pair[1], 51900+i)
	}
	s.WriteString("projects:\n")
	for i, n := range networks {
		fmt.Fprintf(&s, "  - {id: %s, team: acme, environments: [{name: production, active: [net-%d]}]}\n", n.who.project, i)
	}
	s.WriteString("peerings:\n")
	for i := range networks {
		fmt.Fprintf(&s, "  - {id: peer-%d, network: net-%d, kind: interface, cidrs: [10.50.0.0/24], interface: p%d, nextHop: 10.9.%d.2, state: active}\n", i, i, i, i)
	}
	return s.String()
}

func (c *crowd) end() {
	if c.gateway != nil && c.gateway.running() == nil {
		judgeMetrics(c.t, c.iad1)
		if c.t.Failed() {
			showCounts(c.t, c.iad1)
		}
	}
	c.endAll()
	c.judge()
	c.showLogs()
}

// judge is the oracle: what comes to the port of a network is from its pair, each
// packet of it, and nothing else comes.
func (c *crowd) judge() {
	c.t.Helper()
	seen := make([]int, len(c.networks))
	for _, l := range []*netlab.Capture{c.atOrigin, c.atIad1} {
		if s := l.Stats(); s.Complete() != nil || s.Forgotten != 0 {
			c.t.Errorf("the capture is not complete: %+v", s)
		}
		for s, n := range l.Sources() {
			if innerRange.Contains(s.Addr) {
				c.t.Errorf("%d packets with the inner source %v", n, s.Addr)
			}
		}
	}
	for _, p := range c.atOrigin.Packets() {
		if !p.Out || !p.Src.IsValid() { // what the origin sends, and ARP
			continue
		}
		i := int(p.Dst.Port()) - firstPort
		if i < 0 || i >= len(c.networks) || !slices.Contains(c.networks[i].pair, p.Src.Addr()) {
			c.t.Errorf("the origin got %v", p)
			continue
		}
		seen[i]++
	}
	if i := slices.Index(seen, 0); i >= 0 {
		c.t.Errorf("the origin got nothing from net-%d: the capture proves nothing", i)
	}
}

// TestManySandboxes: a worker has sandboxes in networks with the same range. Each
// reaches its own peered machine, which has the address of all others, and the internet
// from its own network's pair; and no other.
func TestManySandboxes(t *testing.T) { byEach(t, manySandboxesBy) }

func manySandboxesBy(t *testing.T, by uplinkKind) {
	requireTun(t)
	c := newCrowd(t, by)
	boxes := make([]*attached, manySandboxes)
	for i := range boxes {
		boxes[i] = &attached{ns: newNamespace(t)}
	}
	began := time.Now()
	c.eachOf(t, boxes, func(i int) (err error) {
		boxes[i], err = c.attach(t.Context(), c.networks[i%manyNetworks].who, boxes[i].ns, []string{"", "veth"}[i/manyNetworks%2])
		return err
	})
	t.Logf("%d sandboxes in %d networks were attached in %v", manySandboxes, manyNetworks, time.Since(began).Round(time.Millisecond))
	inner := make(map[netip.Addr]int)
	for _, b := range boxes {
		inner[b.Inner]++
	}
	if len(inner) != manySandboxes/manyNetworks {
		t.Errorf("the sandboxes have %d addresses, want the same %d in each network", len(inner), manySandboxes/manyNetworks)
	}
	c.eachOf(t, boxes, func(i int) error { return c.reach(t, boxes[i], i%manyNetworks) })
	for _, n := range c.networks {
		if got := n.answered.Load(); got != manySandboxes/manyNetworks {
			t.Errorf("the machine of %s answered %d requests, want %d", n.who.project, got, manySandboxes/manyNetworks)
		}
	}
	c.eachOf(t, boxes, func(i int) error { return sidecar.Detach(t.Context(), c.socket, boxes[i].ID) })
	if text, err := askAdmin(c.iad1, "/metrics"); err != nil || !strings.Contains(text, "sallyport_wireguard_peers{network=\"net-0\"} 0\n") {
		t.Errorf("after all were detached, the gateway has peers (%v): %s", err, grep(text, "sallyport_wireguard_peers"))
	}
}

// eachOf does something with each sandbox, some at a time.
func (c *crowd) eachOf(t *testing.T, boxes []*attached, do func(int) error) {
	t.Helper()
	var all errgroup.Group
	all.SetLimit(attachAtOnce)
	for i := range boxes {
		all.Go(func() error {
			if err := do(i); err != nil {
				return fmt.Errorf("sandbox %d: %w", i, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
}

// reach has a sandbox of network i ask its own machine, the origin, and the machine of
// another network by the link's address.
func (c *crowd) reach(t *testing.T, b *attached, i int) error {
	n := c.networks[i]
	text, err := b.get(t.Context(), fmt.Sprintf("http://%v/%s", vaultAddr, n.who.project))
	if err != nil {
		return err
	}
	if project, from, _ := strings.Cut(text, " "); project != n.who.project || !strings.HasPrefix(from, b.Inner.String()+":") {
		return fmt.Errorf("%s at %v is answered %q", n.who.project, b.Inner, text)
	}
	if text, err = b.get(t.Context(), fmt.Sprintf("http://%v:%d/", originAddr, firstPort+i)); err != nil {
		return err
	}
	from, err := netip.ParseAddrPort(text)
	if err != nil || !slices.Contains(n.pair, from.Addr()) {
		return fmt.Errorf("%s leaves from %q, want one of %v", n.who.project, text, n.pair)
	}
	other := fmt.Sprintf("10.9.%d.2:80", (i+1)%manyNetworks)
	return b.ns.Do(func() error {
		if conn, err := net.DialTimeout("tcp4", other, 10*time.Second); err == nil {
			return fmt.Errorf("%s reaches %s, another's: %w", n.who.project, other, conn.Close())
		}
		return nil
	})
}

// grep returns the lines that contain a part.
func grep(text, part string) string {
	var out []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, "\n")
}
