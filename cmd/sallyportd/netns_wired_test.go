package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The private networks of these tests are on links of gw-a, which has the sites. Both
// have the same ranges, and both are reached from a network with the same inner
// addresses; net-books is another network of globex's, and the far host has its
// sandboxes, too.
//
//	gw-a eth1 10.9.0.2 ── 10.9.0.1 vault, a router with 10.50.0.5   net-acme
//	     eth2 10.9.1.2 ── 10.9.1.1 till, a router with 10.50.0.5    net-globex
var (
	vaultAddr     = netip.MustParseAddr("10.50.0.5")
	booksFunction = subject{"books", "production", acmeFunction.kind, acmeFunction.runtime}
)

const wiredPeerings = `peerings:
  - {id: peer-vault, network: net-acme, kind: interface, cidrs: [10.50.0.0/24], interface: eth1, nextHop: 10.9.0.1, state: active}
  - {id: peer-till, network: net-globex, kind: interface, cidrs: [10.50.0.0/24], interface: eth2, nextHop: 10.9.1.1, state: active}
  - {id: peer-books, network: net-acme, kind: network, peerNetwork: net-books, state: active}
`

// booksAccept is the word of net-books for the peering that net-acme asks for.
const booksAccept = ", acceptedPeerings: [{peering: peer-books, network: net-acme}]"

// wiredState is estateState with a site for all networks of iad1, and net-books.
func wiredState(peerings string) string {
	s := strings.Replace(estateState, "pair: [203.0.113.4, 203.0.113.5]}", `pair: [203.0.113.4, 203.0.113.5], site: {host: gw-a, port: 51891}}
  - {id: net-books, team: globex, region: iad1, cidr: 10.44.0.0/16, pair: [203.0.113.6, 203.0.113.7], site: {host: gw-a, port: 51892}`+booksAccept+`}`, 1)
	return s + "  - id: books\n    team: globex\n    environments:\n      - {name: production, active: [net-books]}\n" + peerings
}

// wired is an estate with those networks, all peered.
type wired struct {
	*peered
	vault, till     *netlab.Namespace
	atVault, atTill *netlab.Capture
	inVault         *origin
	globex, books   *sandbox
}

// lan connects gw-a with a private network of one machine.
func (w *wired) lan(name, link, near, hop string) (*netlab.Namespace, *netlab.Capture) {
	n := w.lab.Namespace(name)
	w.lab.Connect(
		netlab.End{Namespace: w.a.Namespace, Link: link, Address: netip.MustParsePrefix(near)},
		netlab.End{Namespace: n, Link: "eth0", Address: netip.MustParsePrefix(hop)})
	n.Address("lo", netip.PrefixFrom(vaultAddr, 32))
	n.Route(netip.MustParsePrefix("10.20.0.0/16"), netip.MustParsePrefix(near).Addr())
	w.a.Sysctl("net.ipv4.conf."+link+".forwarding", "1")
	w.a.Sysctl("net.ipv4.conf."+link+".rp_filter", "1")
	c, err := n.Capture("eth0")
	if err != nil {
		w.t.Fatal(err)
	}
	return n, c
}

func newWired(t *testing.T, by uplinkKind) *wired {
	t.Helper()
	netlab.Require(t)
	e := newEstate(t, by)
	w := &wired{peered: &peered{estate: e}}
	e.a.Sysctl("net.ipv4.conf.default.rp_filter", "1") // the strictest setting must do
	w.vault, w.atVault = w.lan("vault", "eth1", "10.9.0.2/24", "10.9.0.1/24")
	w.till, w.atTill = w.lan("till", "eth2", "10.9.1.2/24", "10.9.1.1/24")
	for i, h := range []*gatewayHost{e.a, e.b} {
		a := netip.AddrFrom4([4]byte{203, 0, 113, byte(6 + i)})
		e.uplink.provide(h.Namespace, a)
		e.hub.Route(netip.PrefixFrom(a, 32), h.addr)
		h.dedicated = append(h.dedicated, a)
	}
	w.inVault = newFarSide(t, w.vault, vaultAddr)
	t.Cleanup(w.inVault.close)
	inTill := newFarSide(t, w.till, vaultAddr)
	t.Cleanup(inTill.close)
	e.write("state.yaml", wiredState(wiredPeerings))
	e.startRegion()
	e.startSidecar()
	w.near, w.far = e.sandboxOn(t, acmeFunction, e.a), e.sandboxOn(t, acmeFunction, e.b)
	w.globex, w.books = e.sandbox(t, globexFunction), e.sandbox(t, booksFunction)
	return w
}

// blackhole does what the manual asks for: what private networks still send when their
// peering has ended leads nowhere.
func (w *wired) blackhole(t *testing.T) {
	t.Helper()
	w.onA(t, "route", "add", "blackhole", "10.20.0.0/16", "metric", "4000")
}

// onA runs ip(8) on gw-a.
func (w *wired) onA(t *testing.T, args ...string) string {
	t.Helper()
	var out, problems bytes.Buffer
	cmd := exec.Command("ip", args...)
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := w.a.Run(cmd); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, problems.String())
	}
	return out.String()
}

// left is what peerings by interface have in gw-a's kernel.
func (w *wired) left(t *testing.T) (rules, routes []string) {
	t.Helper()
	for line := range strings.Lines(w.onA(t, "rule")) {
		if strings.Contains(line, "proto 91") || strings.HasPrefix(line, "91") {
			rules = append(rules, strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(w.onA(t, "route", "show", "table", "all", "proto", "91")) {
		routes = append(routes, strings.TrimSpace(line))
	}
	slices.Sort(rules)
	slices.Sort(routes)
	return rules, routes
}

// TestPeeringKinds: two networks with the same inner addresses reach each their own
// private network with the same ranges by a link of the site's host, and one of them the
// sandboxes of another network, all with their own addresses; nothing mixes, nothing
// leaves elsewhere, and nothing is left behind.
func TestPeeringKinds(t *testing.T) { byEach(t, peeringKinds) }

func peeringKinds(t *testing.T, by uplinkKind) {
	w := newWired(t, by)
	t.Run("untranslated", w.reachVault)
	t.Run("other network", w.reachBooks)
	if by == bySockets { // these are about links, for which all uplinks are one
		t.Run("narrow", w.narrow)
		t.Run("accepted", w.accepted)
		t.Run("inward", w.knockFromVault)
		t.Run("interface down", w.linkDown)
		t.Run("interface missing", w.missing)
	} else {
		w.startLoad(t, w.near, vaultAddr)
	}
	t.Run("taken out", w.cutVault)
	t.Run("killed", w.killed)
	inner := map[*netlab.Capture][]netip.Addr{w.atVault: {w.near.inner, w.far.inner, innerGateway}, w.atTill: {w.globex.inner, innerGateway}}
	for c, own := range inner {
		if err := c.Stats().Complete(); err != nil {
			t.Error(err)
		}
		for s, n := range c.Sources() {
			if s.Addr.IsValid() && !s.Out && !slices.Contains(own, s.Addr) {
				t.Errorf("a private network got %d packets from %v; want %v alone", n, s.Addr, own)
			}
		}
	}
	w.blackhole(t)
	w.a.daemon.end(t, syscall.SIGTERM)
	if rules, routes := w.left(t); len(rules)+len(routes) != 0 {
		t.Errorf("left behind: %q, %q", rules, routes)
	}
	if by == bySockets {
		t.Run("unprivileged", w.unprivileged)
		return
	}
	w.startHost(w.a) // the estate judges its metrics
	w.awaitHosts(w.a)
}

func (w *wired) reachVault(t *testing.T) {
	for _, b := range []*sandbox{w.near, w.far, w.globex} {
		for _, what := range []task{
			{Do: "http", Target: at(vaultAddr, portHTTP), Count: 10},
			{Do: "udp", Target: at(vaultAddr, portUDP)},
		} {
			allFrom(t, b.must(t, what).Sources, max(what.Count, 1), []netip.Addr{b.inner})
		}
		b.must(t, task{Do: "ping", Target: vaultAddr.String()})
		const size = 4 << 20
		b.must(t, task{Do: "upload", Target: at(vaultAddr, portSum), Size: size})
		b.must(t, task{Do: "download", Target: at(vaultAddr, portGive), Size: size})
		if b != w.globex {
			allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
		}
	}
	text := w.mustCLI("peering", "list")
	for _, want := range []string{"eth1 via 10.9.0.1", "interface", "network"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %s", want, text)
		}
	}
	if text := w.mustCLI("peering", "show", "peer-vault"); !strings.Contains(text, "10.20.0.0/16 to the address of host gw-a on eth1, on 10.9.0.1") {
		t.Errorf("the command says %s", text)
	}
	// The machine's own address on the link is no destination, and the rest of its links neither.
	for _, to := range []string{"10.9.0.2:22", "10.9.0.1:22", "10.9.1.1:22"} {
		if a := w.near.fails(t, task{Do: "connect", Target: to}); a.Took > soon {
			t.Errorf("a connect to %s fails after %v: %s", to, a.Took, a.Failure)
		}
	}
}

func (w *wired) reachBooks(t *testing.T) {
	w.books.must(t, task{Do: "listen", Target: "0.0.0.0:8097"})
	for _, b := range []*sandbox{w.near, w.far} {
		b.must(t, task{Do: "connect", Target: at(w.books.inner, 8097)})
		b.must(t, task{Do: "ping", Target: w.books.inner.String()})
		eventually(t, 20*time.Second, "the sandbox sees whom it is reached by", func() error {
			if text := w.books.stderr.String(); !strings.Contains(text, "ARRIVED: "+b.inner.String()+":") {
				return fmt.Errorf("it says %q", text)
			}
			return nil
		})
		b.must(t, task{Do: "listen", Target: "0.0.0.0:8097"})
		if a := w.books.fails(t, task{Do: "connect", Target: at(b.inner, 8097)}); a.Took > soon {
			t.Errorf("the accepting side is refused after %v: %s", a.Took, a.Failure)
		}
	}
	// Not transitive: the private networks of the one are not the other's.
	if a := w.books.fails(t, task{Do: "connect", Target: at(vaultAddr, portHTTP)}); a.Took > soon {
		t.Errorf("the accepting side is refused after %v: %s", a.Took, a.Failure)
	}
	if a := w.globex.fails(t, task{Do: "connect", Target: at(w.books.inner, 8097)}); a.Took > soon {
		t.Errorf("another network is refused after %v: %s", a.Took, a.Failure)
	}
}

// knockFromVault: what the private network begins reaches nobody, whatever address it claims.
func (w *wired) knockFromVault(t *testing.T) {
	before := []uint64{settled(t, w.near), settled(t, w.far)}
	dropped := w.droppedInward(t)
	targets := []netip.AddrPort{netip.AddrPortFrom(w.near.inner, 8097), netip.AddrPortFrom(w.far.inner, 8097), netip.AddrPortFrom(innerGateway, 53)}
	sent := w.knock(t, w.vault, vaultAddr, targets...)
	for _, from := range []string{"10.99.0.1", "10.44.0.2"} {
		a := netip.MustParseAddr(from)
		w.vault.Address("lo", netip.PrefixFrom(a, 32))
		w.knock(t, w.vault, a, targets...) // strict rp_filter stops them
	}
	eventually(t, 20*time.Second, "the gateway drops what the vault sent", func() error {
		if n := w.droppedInward(t) - dropped; n < sent {
			return fmt.Errorf("%d of %d", n, sent)
		}
		return nil
	})
	w.a.Sysctl("net.ipv4.conf.eth1.rp_filter", "0")
	w.a.Sysctl("net.ipv4.conf.all.rp_filter", "0")
	sent = w.knock(t, w.vault, netip.MustParseAddr("10.99.0.1"), targets...)
	eventually(t, 20*time.Second, "the report counts what was sent with foreign sources", func() error {
		s, err := w.api.Peering(t.Context(), "peer-vault")
		if err != nil || s.Report == nil || s.Report.Foreign < uint64(sent) {
			return fmt.Errorf("%+v, %w; want %d", s.Report, err, sent)
		}
		return nil
	})
	w.quiet(t, before)
}

// linkDown takes the interface down under load: its own connection is down, which the
// log says once, and nothing else suffers; it comes back by itself.
func (w *wired) linkDown(t *testing.T) {
	w.startLoad(t, w.near, vaultAddr)
	w.startLoad(t, w.globex, vaultAddr)
	w.onA(t, "link", "set", "eth1", "down")
	eventually(t, 20*time.Second, "the log says it", func() error {
		if text := w.said("gw-a"); !strings.Contains(text, "interface eth1 is down") || !strings.Contains(text, "wireguard") {
			return fmt.Errorf("it says %q", text[max(0, len(text)-500):])
		}
		return nil
	})
	if a := w.near.fails(t, task{Do: "connect", Target: at(vaultAddr, portHTTP)}); a.Errno != syscall.EHOSTUNREACH || a.Took > soon {
		t.Errorf("a connect fails after %v with %s", a.Took, a.Failure)
	}
	r := w.globex.load(t)
	w.onA(t, "link", "set", "eth1", "up")
	n := w.near.load(t)
	eventually(t, 15*time.Second, "the load is answered again", func() error {
		if now := w.near.load(t); now.Answered < n.Answered+5 || now.AnsweredUDP < n.AnsweredUDP+5 {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	if now := w.globex.load(t); now.Failed != 0 || now.Ended != "" || now.Answered <= r.Answered {
		t.Errorf("the other network's load suffered: %+v", now)
	}
}

// cutVault takes one peering out under load, and puts it back.
func (w *wired) cutVault(t *testing.T) {
	w.blackhole(t)
	defer w.onA(t, "route", "del", "blackhole", "10.20.0.0/16", "metric", "4000")
	state := w.state(t)
	lines := strings.SplitAfter(wiredPeerings, "\n")
	w.reload(t, wiredState(strings.Join(slices.Delete(lines, 1, 2), "")), "desired state read anew")
	eventually(t, 2*time.Second, "the open connection ends", func() error {
		if r := w.near.load(t); r.Ended == "" {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	if r := w.near.load(t); r.Errno != syscall.ECONNRESET {
		t.Errorf("the open connection: %s; want a reset", r.Ended)
	}
	ended := time.Now()
	if a := w.near.fails(t, task{Do: "connect", Target: at(vaultAddr, portHTTP)}); a.Took > soon {
		t.Errorf("a connect to what is peered no more fails after %v: %s", a.Took, a.Failure)
	}
	w.near.must(t, task{Do: "connect", Target: at(w.books.inner, 8097)})
	for _, q := range w.atVault.Packets() {
		if !q.Out && q.Src.IsValid() && q.At.After(ended) {
			t.Errorf("%v after the end, the vault got %v", q.At.Sub(ended), q)
		}
	}
	eventually(t, 20*time.Second, "there are rules for one peering", func() error {
		if rules, _ := w.left(t); len(rules) != 3 {
			return fmt.Errorf("%q", rules)
		}
		return nil
	})
	w.reload(t, state, "desired state read anew")
	eventually(t, 20*time.Second, "the vault is reached again", func() error {
		return reaches(w.near, vaultAddr)
	})
}

// reaches says why a sandbox does not reach a far side.
func reaches(b *sandbox, to netip.Addr) error {
	a, err := b.ask(task{Do: "connect", Target: at(to, portHTTP)})
	if err == nil && a.Failure != "" {
		err = errors.New(a.Failure)
	}
	return err
}

// killed: after a kill nothing leads inner addresses anywhere, and the next start finds
// what is left.
func (w *wired) killed(t *testing.T) {
	rules, routes := w.left(t)
	w.kill(w.a.daemon)
	if text := w.onA(t, "link"); strings.Contains(text, "sallyp") {
		t.Errorf("a TUN outlives the daemon: %s", text)
	}
	w.knock(t, w.vault, vaultAddr, netip.AddrPortFrom(w.near.inner, 8097)) // the estate judges where that goes
	if _, left := w.left(t); len(left) == 0 || slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, "10.20.0.0") }) {
		t.Errorf("after the kill: %q", left)
	}
	w.startHost(w.a)
	w.awaitHosts(w.a)
	for _, b := range []*sandbox{w.near, w.far, w.globex} { // a worker whom nobody greets calls after 5 s
		eventually(t, 20*time.Second, "the private networks are reached again", func() error {
			return reaches(b, vaultAddr)
		})
	}
	// The state file that it has begun with may have been older than the last change.
	eventually(t, 20*time.Second, "rules and routes are as before", func() error {
		nowRules, nowRoutes := w.left(t)
		if !slices.Equal(rules, nowRules) || !slices.Equal(routes, nowRoutes) {
			return fmt.Errorf("rules %q and routes %q, before %q and %q", nowRules, nowRoutes, rules, routes)
		}
		return nil
	})
}
