package main

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The machines of these tests and their addresses:
//
//	worker ── hub ── iad1 (the gateway's host; the pairs are on its loopback, or routed by it)
//	            ├── origin (whom sandboxes talk to)
//	            ├── laptop (another WireGuard client)
//	            └── void   (what is routed there is lost without a word)
//
// The captures are on the hub's ends of the first four links.
var (
	workerAddr = netip.MustParseAddr("198.51.100.2")
	iad1Addr   = netip.MustParseAddr("198.51.100.18")
	laptopAddr = netip.MustParseAddr("198.51.100.34")
	voidAddr   = netip.MustParseAddr("198.51.100.50")
	pairsPool  = netip.MustParsePrefix("203.0.113.0/28")

	acmePair   = []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")}
	globexPair = []netip.Addr{netip.MustParseAddr("203.0.113.4"), netip.MustParseAddr("203.0.113.5")}
	quietPair  = []netip.Addr{netip.MustParseAddr("203.0.113.6"), netip.MustParseAddr("203.0.113.7")}

	originAddr   = netip.MustParseAddr("192.0.2.80")
	nameServer   = netip.MustParseAddr("192.0.2.53")
	lostAddr     = netip.MustParseAddr("192.0.2.99") // the hub sends it to the void
	refusedByHub = netip.MustParseAddr("192.0.2.66") // the hub says that it is unreachable
	refusedHere  = netip.MustParseAddr("192.0.2.67") // iad1's kernel says so

	innerRange   = netip.MustParsePrefix("10.0.0.0/8")
	innerGateway = netip.MustParseAddr("10.20.0.1")
)

// world is the machines and what runs on them.
type world struct {
	*ground
	iad1, laptop, void                   *netlab.Namespace
	atWorker, atIad1, atOrigin, atLaptop *netlab.Capture
	api                                  *api.Client
	gateway, sidecar                     *daemon
	bypasses                             bool // whether the worker's own address may reach the origin
	mayBeSilent                          bool // whether no packet at all may reach it
}

// newWorld builds the machines and the origin's servers, and writes the daemons'
// files; w.up starts the daemons. At the end of the test the captures are judged.
func newWorld(t *testing.T, by uplinkKind, replace ...string) *world {
	t.Helper()
	w := &world{ground: newGround(t, by)}
	w.iad1, w.laptop, w.void = w.lab.Namespace("iad1"), w.lab.Namespace("laptop"), w.lab.Namespace("void")
	w.connect()
	w.writeFiles(replace)
	w.atWorker, w.atIad1, w.atOrigin, w.atLaptop = w.capture("worker"), w.capture("iad1"), w.capture("origin"), w.capture("laptop")
	w.origin = newOrigin(w.ground)
	var err error
	w.api, err = api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(w.dir, "run", "api.sock"), Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.end)
	return w
}

// connect makes links, addresses and routes.
func (w *world) connect() {
	w.join(w.iad1, "iad1", "198.51.100.18/28", "198.51.100.17/28").byDefault()
	laptop := w.join(w.laptop, "laptop", "198.51.100.34/28", "198.51.100.33/28") // its default is the tunnel
	w.laptop.Route(netip.PrefixFrom(iad1Addr, 28).Masked(), laptop.hub)
	w.join(w.void, "void", "198.51.100.50/28", "198.51.100.49/28").byDefault()
	w.hub.Route(pairsPool, iad1Addr)
	w.hub.Route(netip.PrefixFrom(lostAddr, 32), voidAddr)
	for n, a := range map[*netlab.Namespace]netip.Addr{w.hub: refusedByHub, w.iad1: refusedHere} {
		plan := hostnet.Plan{Routes: []hostnet.Route{{Prefix: netip.PrefixFrom(a, 32), Kind: hostnet.Unreachable}}}
		if err := n.Host().Apply(plan); err != nil {
			w.t.Fatal(err)
		}
	}
	w.uplink.provide(w.iad1, slices.Concat(acmePair, globexPair, quietPair)...)
	pings(w.iad1)
}

const (
	netnsState = `teams:
  - {id: acme}
  - {id: globex}
regions:
  - name: iad1
    pool: [203.0.113.0/28]
    hosts: [{name: gw-a, endpoint: 198.51.100.18}]
networks:
  - {id: net-acme, team: acme, region: iad1, cidr: 10.20.0.0/16, pair: [203.0.113.2, 203.0.113.3]}
  - {id: net-globex, team: globex, region: iad1, cidr: 10.20.0.0/16, pair: [203.0.113.4, 203.0.113.5]}
  - {id: net-quiet, team: globex, region: iad1, cidr: 10.21.0.0/24, pair: [203.0.113.6, 203.0.113.7], policy: {mode: deny}}
projects:
  - id: shop
    team: acme
    environments:
      - {name: production, active: [net-acme], builds: true}
      - {name: preview, active: [net-acme], builds: false}
  - id: bank
    team: globex
    environments:
      - {name: production, active: [net-globex]}
  - id: vault
    team: globex
    environments:
      - {name: production, active: [net-quiet]}
`
	netnsDaemon = `host: gw-a
region: iad1
secret_file: secret
desired_state: state.yaml
api: {listen: "unix://run/api.sock", token_file: token}
admin: {listen: "127.0.0.1:9469"}
wireguard: {ports: "51820-51899"}
dns: {upstreams: ["192.0.2.53"]}
limits: {pending_connects: 4096, pending_connects_per_destination: 1024}
`
	// However busy the machine that runs the tests is, nothing is dead before it is killed.
	netnsSidecar = `api: unix://run/api.sock
token_file: token
region: iad1
socket: run/sidecar.sock
failover: {misses: 12, misses_busy: 24}
`
)

// writeFiles writes the files of both daemons, changed by replacing old by new.
func (w *world) writeFiles(replace []string) {
	w.t.Helper()
	r := strings.NewReplacer(replace...)
	for name, text := range map[string]string{
		"state.yaml": netnsState, "sallyportd.yaml": netnsDaemon + w.uplink.settings(), "sidecar.yaml": netnsSidecar, "token": testToken + "\n",
	} {
		w.write(name, r.Replace(text))
	}
}

// startGateway and startSidecar start a daemon and do not wait for it.
func (w *world) startGateway() {
	w.gateway = w.runOurs(w.iad1, "sallyportd", "sallyportd", "sallyportd.yaml")
}

func (w *world) startSidecar() {
	w.sidecar = w.runOurs(w.worker, "sallyport-sidecar", "sallyport-sidecar", "sidecar.yaml")
}

// up starts both and waits until they serve.
func (w *world) up() {
	w.t.Helper()
	w.startGateway()
	w.awaitGateway()
	w.startSidecar()
	w.awaitSidecar()
}

func (w *world) awaitGateway() {
	w.t.Helper()
	w.awaitReady(w.gateway, w.iad1)
}

func (w *world) awaitSidecar() {
	w.t.Helper()
	w.awaitSocket(w.sidecar, w.socket)
}

// end ends the daemons, judges, and shows the logs of a test that failed.
func (w *world) end() {
	w.api.Close()
	if w.gateway != nil && w.gateway.running() == nil {
		judgeMetrics(w.t, w.iad1)
	}
	w.endAll()
	w.judge()
	w.origin.close()
	w.showLogs()
}

// judge is the oracle of every test: nothing was missed by the captures, no
// packet left iad1 with a source outside the pairs but those of the tunnels, the
// origin saw the pairs alone, and no inner address is on any link.
func (w *world) judge() {
	w.t.Helper()
	pairs := slices.Concat(acmePair, globexPair, quietPair)
	fromPairs := 0
	for _, c := range []struct {
		name    string
		capture *netlab.Capture
		out     bool // the direction, as the hub sees it, in which only allowed sources may be
		allowed []netip.Addr
	}{
		{"from iad1", w.atIad1, false, append(slices.Clone(pairs), iad1Addr)},
		{"from the worker", w.atWorker, false, []netip.Addr{workerAddr}},
		{"from the laptop", w.atLaptop, false, []netip.Addr{laptopAddr}},
		{"to the origin", w.atOrigin, true, w.mayReachOrigin(pairs)},
	} {
		if err := c.capture.Stats().Complete(); err != nil {
			w.t.Errorf("packets %s: %v", c.name, err)
		}
		for s, n := range c.capture.Sources() {
			switch {
			case !s.Addr.IsValid(): // ARP
			case innerRange.Contains(s.Addr):
				w.t.Errorf("packets %s: %d with the inner source %v (out of the hub: %t)", c.name, n, s.Addr, s.Out)
			case s.Out != c.out:
			case !slices.Contains(c.allowed, s.Addr):
				w.t.Errorf("packets %s: %d with the source %v", c.name, n, s.Addr)
			case slices.Contains(pairs, s.Addr):
				fromPairs += int(n)
			}
		}
		for _, p := range c.capture.Packets() {
			if p.Dst.IsValid() && innerRange.Contains(p.Dst.Addr()) {
				w.t.Errorf("packet %s has an inner destination: %v", c.name, p)
			}
			if c.capture == w.atIad1 && !p.Out && p.Src.Addr() == iad1Addr && !ofTunnel(p) {
				w.t.Errorf("iad1 sent from its own address what is not its tunnels': %v", p)
			}
		}
	}
	if fromPairs == 0 && !w.mayBeSilent {
		w.t.Error("the captures saw nothing from the pairs: they prove nothing")
	}
}

func (w *world) mayReachOrigin(pairs []netip.Addr) []netip.Addr {
	if w.bypasses {
		return append(slices.Clone(pairs), workerAddr)
	}
	return pairs
}

// ofTunnel says whether a packet from iad1's own address belongs to the tunnels:
// their datagrams, fragments of them, which name no port, or the kernel's word that nobody is there to take one.
func ofTunnel(p netlab.Packet) bool {
	const icmp, udp, unreachable = 1, 17, 3
	client := p.Dst.Addr() == workerAddr || p.Dst.Addr() == laptopAddr
	return client && (p.Proto == udp && (p.Src.Port() >= 51820 && p.Src.Port() <= 51899 || p.Fragment && p.Src.Port() == 0) || p.Proto == icmp && p.ICMPType == unreachable)
}

// eventually waits until a condition holds.
func eventually(t *testing.T, within time.Duration, what string, holds func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := holds()
		if err == nil {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// allFrom fails the test unless there are n sources, all of the pair.
func allFrom(t *testing.T, sources []netip.AddrPort, n int, pair []netip.Addr) {
	t.Helper()
	if len(sources) != n {
		t.Errorf("%d sources, want %d", len(sources), n)
	}
	for _, s := range sources {
		if !slices.Contains(pair, s.Addr()) {
			t.Errorf("the origin saw %v; want one of %v", s, pair)
		}
	}
}
