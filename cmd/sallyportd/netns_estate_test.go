package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The machines of the tests with more than one host, and their addresses:
//
//	worker ── hub ── gw-a, gw-b (the hosts of iad1: each has one address of each pair)
//	            ├── gw-c     (the host of cle1, and its control plane)
//	            ├── office ── database (a private network, with a WireGuard of its own)
//	            ├── client   (another WireGuard client)
//	            └── origin   (whom sandboxes talk to)
//
// The control plane of iad1 is a process without a network; gateways and sidecar
// reach it at its socket. The captures are on the hub's ends of all links, and on
// the database's.
var (
	clientAddr   = netip.MustParseAddr("198.51.100.82")
	officeAddr   = netip.MustParseAddr("198.51.100.66")
	databaseAddr = netip.MustParseAddr("10.30.0.5")
	standbyPair  = []netip.Addr{netip.MustParseAddr("203.0.113.18"), netip.MustParseAddr("203.0.113.19")}
)

// gatewayHost is a machine on which a sallyportd is a gateway.
type gatewayHost struct {
	*netlab.Namespace
	name      string
	addr      netip.Addr
	dedicated []netip.Addr
	at        *netlab.Capture
	daemon    *daemon // nil before it was started
}

// estate is the machines and what runs on them.
type estate struct {
	*ground
	control, client, office, database              *netlab.Namespace
	a, b, c                                        *gatewayHost
	atWorker, atClient, atOffice, atOrigin, atData *netlab.Capture
	api, apiCle                                    *api.Client
	plane, sidecar                                 *daemon
}

// newEstate builds the machines and writes the daemons' files. Nothing is started.
// At the end of the test the captures are judged.
func newEstate(t *testing.T, by uplinkKind) *estate {
	t.Helper()
	e := &estate{ground: newGround(t, by)}
	e.control, e.client = e.lab.Namespace("control"), e.lab.Namespace("client")
	e.office, e.database = e.lab.Namespace("office"), e.lab.Namespace("database")
	e.a = e.host("gw-a", "198.51.100.18/28", "198.51.100.17/28", acmePair[0], globexPair[0])
	e.b = e.host("gw-b", "198.51.100.34/28", "198.51.100.33/28", acmePair[1], globexPair[1])
	e.c = e.host("gw-c", "198.51.100.50/28", "198.51.100.49/28", standbyPair...)
	// What has tunnels has no other way for what goes into them.
	outside := netip.MustParsePrefix("198.51.100.0/24")
	e.office.Route(outside, e.join(e.office, "office", "198.51.100.66/28", "198.51.100.65/28").hub)
	e.client.Route(outside, e.join(e.client, "client", "198.51.100.82/28", "198.51.100.81/28").hub)
	e.lab.Connect(
		netlab.End{Namespace: e.office, Link: "lan", Address: netip.MustParsePrefix("10.30.0.1/24")},
		netlab.End{Namespace: e.database, Link: "eth0", Address: netip.PrefixFrom(databaseAddr, 24)})
	cable{e.database, netip.MustParseAddr("10.30.0.1")}.byDefault()
	e.office.Forward(true)
	e.atWorker, e.atClient, e.atOffice, e.atOrigin = e.capture("worker"), e.capture("client"), e.capture("office"), e.capture("origin")
	var err error
	if e.atData, err = e.database.Capture("eth0"); err != nil {
		t.Fatal(err)
	}
	e.origin = newOrigin(e.ground)
	e.writeFiles()
	e.api = e.apiClient("run/api.sock", testToken)
	e.apiCle = e.apiClient("cle1/api.sock", cleToken)
	t.Cleanup(e.end)
	return e
}

// host makes a machine for a gateway, with dedicated addresses that are routed to it.
func (e *estate) host(name, near, far string, dedicated ...netip.Addr) *gatewayHost {
	h := &gatewayHost{Namespace: e.lab.Namespace(name), name: name, addr: netip.MustParsePrefix(near).Addr(), dedicated: dedicated}
	e.join(h.Namespace, name, near, far).byDefault()
	for _, a := range dedicated {
		e.hub.Route(netip.PrefixFrom(a, 32), h.addr)
	}
	e.uplink.provide(h.Namespace, dedicated...)
	pings(h.Namespace)
	h.at = e.capture(name)
	return h
}

func (e *estate) apiClient(socket, token string) *api.Client {
	e.t.Helper()
	c, err := api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(e.dir, socket), Token: token})
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(c.Close)
	return c
}

const (
	cleToken = "cle1-0123456789abcdef"

	// estateState is iad1's desired state, and cle1's with networkCle.
	estateState = `teams:
  - {id: acme}
  - {id: globex}
regions:
  - name: iad1
    pool: [203.0.113.0/28]
    hosts: [{name: gw-a, endpoint: 198.51.100.18}, {name: gw-b, endpoint: 198.51.100.34}]
  - name: cle1
    pool: [203.0.113.16/28]
    hosts: [{name: gw-c, endpoint: 198.51.100.50}]
networks:
  - {id: net-acme, team: acme, region: iad1, cidr: 10.20.0.0/16, pair: [203.0.113.2, 203.0.113.3], site: {host: gw-a, port: 51890}}
  - {id: net-globex, team: globex, region: iad1, cidr: 10.20.0.0/16, pair: [203.0.113.4, 203.0.113.5]}
  - {id: net-standby, team: acme, region: cle1, cidr: 10.21.0.0/16, pair: [203.0.113.18, 203.0.113.19]}
projects:
  - id: shop
    team: acme
    environments:
      - {name: production, active: [net-acme], passive: net-standby}
  - id: bank
    team: globex
    environments:
      - {name: production, active: [net-globex]}
`
	// estatePeering comes behind it where the office is peered. It needs a key.
	estatePeering = `peerings:
  - {id: peer-office, network: net-acme, cidrs: [10.30.0.0/24], publicKey: %q, state: active}
`
	controlSettings = `roles: [control]
region: iad1
desired_state: state.yaml
api: {listen: "unix://run/api.sock", token_file: token}
`
	gatewaySettings = `roles: [gateway]
host: HOST
region: iad1
secret_file: HOST-secret
region_secret_file: region-secret
state_file: HOST-state.json
control: {api: "unix://run/api.sock", token_file: token}
wireguard: {ports: "51820-51899"}
dns: {upstreams: ["192.0.2.53"]}
drain: 100ms
`
	cleSettings = `host: gw-c
region: cle1
secret_file: gw-c-secret
state_file: gw-c-state.json
desired_state: cle1-state.yaml
api: {listen: "unix://cle1/api.sock", token_file: cle1-token}
wireguard: {ports: "51820-51899"}
dns: {upstreams: ["192.0.2.53"]}
drain: 100ms
`
	estateSidecar = `api: unix://run/api.sock
token_file: token
region: iad1
socket: run/sidecar.sock
regions: {cle1: {api: "unix://cle1/api.sock", token_file: cle1-token}}
failover: {misses: 12, misses_busy: 24, hold: 300ms, hold_jitter: 1ms, failbacks: 100}
`
)

func (e *estate) writeFiles() {
	e.t.Helper()
	if err := os.Mkdir(filepath.Join(e.dir, "cle1"), 0o755); err != nil {
		e.t.Fatal(err)
	}
	for name, text := range map[string]string{
		"state.yaml": estateState, "cle1-state.yaml": estateState, "control.yaml": controlSettings,
		"gw-a.yaml": strings.ReplaceAll(gatewaySettings, "HOST", "gw-a") + e.uplink.settings(), "gw-b.yaml": strings.ReplaceAll(gatewaySettings, "HOST", "gw-b") + e.uplink.settings(),
		"gw-c.yaml": cleSettings + e.uplink.settings(), "sidecar.yaml": estateSidecar, "token": testToken + "\n", "cle1-token": cleToken + "\n",
		"region-secret": "0123456789abcdef0123456789ABCDEF",
	} {
		e.write(name, text)
	}
}

// startControl starts iad1's control plane and waits until it serves.
func (e *estate) startControl() {
	e.t.Helper()
	e.plane = e.runOurs(e.control, "control", "sallyportd", "control.yaml")
	e.awaitReady(e.plane, e.control)
}

// startHost starts a gateway and does not wait for it.
func (e *estate) startHost(h *gatewayHost) {
	e.t.Helper()
	h.daemon = e.runOurs(h.Namespace, h.name, "sallyportd", h.name+".yaml")
}

func (e *estate) awaitHosts(hosts ...*gatewayHost) {
	e.t.Helper()
	for _, h := range hosts {
		e.awaitReady(h.daemon, h.Namespace)
	}
}

// startRegion starts all of iad1.
func (e *estate) startRegion() {
	e.t.Helper()
	e.startControl()
	e.startHost(e.a)
	e.startHost(e.b)
	e.awaitHosts(e.a, e.b)
}

func (e *estate) startSidecar() {
	e.t.Helper()
	e.sidecar = e.runOurs(e.worker, "sidecar", "sallyport-sidecar", "sidecar.yaml")
	e.awaitSocket(e.sidecar, e.socket)
}

// cli runs the sallyport command as an operator does, and returns its output.
func (e *estate) cli(args ...string) (string, error) {
	return e.cliOn(e.control, args...)
}

func (e *estate) mustCLI(args ...string) string {
	e.t.Helper()
	out, err := e.cli(args...)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

// sandboxOn starts sandboxes until one has its egress address on a host, and
// returns that one. Of any three in a row, not all leave by the same.
func (e *estate) sandboxOn(t *testing.T, who subject, h *gatewayHost) *sandbox {
	t.Helper()
	for range 4 {
		b := e.sandbox(t, who)
		if slices.Contains(h.dedicated, e.attachment(t, who, b.inner).Egress) {
			return b
		}
		b.end()
	}
	t.Fatalf("none of 4 sandboxes in a row has its egress address on %s", h.name)
	return nil
}

// attachment finds one by its project and inner address.
func (e *estate) attachment(t *testing.T, who subject, inner netip.Addr) spec.Attachment {
	t.Helper()
	list, err := e.api.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.Inner == inner && a.Project == who.project {
			return a
		}
	}
	t.Fatalf("no attachment of %s has %v: %+v", who.project, inner, list)
	return spec.Attachment{}
}

// end ends the daemons, judges, and shows the logs of a test that failed.
func (e *estate) end() {
	for _, h := range []*gatewayHost{e.a, e.b, e.c} {
		if h.daemon != nil && h.daemon.running() == nil {
			judgeMetrics(e.t, h.Namespace)
			if e.t.Failed() {
				showCounts(e.t, h.Namespace)
			}
		}
	}
	e.endAll()
	e.judge()
	e.origin.close()
	e.showLogs()
}

// judge is the oracle of every test: nothing was missed by the captures, no packet
// left a host with a source outside the addresses that it holds but those of its
// tunnels, the origin saw the pairs alone, and no inner address is on any link.
func (e *estate) judge() {
	e.t.Helper()
	hosts := []*gatewayHost{e.a, e.b, e.c}
	pairs := slices.Concat(e.a.dedicated, e.b.dedicated, e.c.dedicated)
	e.judgeLink("to the origin", e.atOrigin, true, pairs)
	e.judgeLink("from the worker", e.atWorker, false, []netip.Addr{workerAddr})
	e.judgeLink("from the client", e.atClient, false, []netip.Addr{clientAddr})
	e.judgeLink("from the office", e.atOffice, false, []netip.Addr{officeAddr})
	fromPairs := 0
	for _, h := range hosts {
		e.judgeLink("from "+h.name, h.at, false, append(slices.Clone(h.dedicated), h.addr))
		for _, p := range h.at.Packets() {
			switch {
			case p.Out || !p.Src.IsValid():
			case p.Src.Addr() != h.addr:
				fromPairs++
			case !e.ofTunnel(p):
				e.t.Errorf("%s sent from its own address what is not its tunnels': %v", h.name, p)
			}
		}
	}
	if fromPairs == 0 {
		e.t.Error("the captures saw nothing from the pairs: they prove nothing")
	}
}

// judgeLink looks at the sources in one direction of a link, and for inner addresses in both.
func (e *estate) judgeLink(name string, c *netlab.Capture, out bool, allowed []netip.Addr) {
	e.t.Helper()
	if err := c.Stats().Complete(); err != nil {
		e.t.Errorf("packets %s: %v", name, err)
	}
	for s, n := range c.Sources() {
		switch {
		case !s.Addr.IsValid(): // ARP
		case innerRange.Contains(s.Addr):
			e.t.Errorf("packets %s: %d with the inner source %v (out of the hub: %t)", name, n, s.Addr, s.Out)
		case s.Out == out && !slices.Contains(allowed, s.Addr):
			e.t.Errorf("packets %s: %d with the source %v", name, n, s.Addr)
		}
	}
	for _, p := range c.Packets() {
		if p.Dst.IsValid() && innerRange.Contains(p.Dst.Addr()) {
			e.t.Errorf("packet %s has an inner destination: %v", name, p)
		}
	}
}

// ofTunnel says whether a packet from a host's own address belongs to tunnels: their
// datagrams, or the kernel's word that nobody is there to take one.
func (e *estate) ofTunnel(p netlab.Packet) bool {
	const unreachable = 3
	peer := slices.Contains([]netip.Addr{workerAddr, clientAddr, officeAddr, e.a.addr, e.b.addr}, p.Dst.Addr())
	return peer && (p.Proto == protoUDP && p.Src.Port() >= 51820 && p.Src.Port() <= 51899 || p.Proto == protoICMP && p.ICMPType == unreachable)
}

// kill ends a daemon without a warning.
func (e *estate) kill(d *daemon) {
	e.t.Helper()
	d.end(e.t, syscall.SIGKILL)
}

// soon bounds what must be so at once but for the machine's load, and is less than what comes by
// itself takes: WireGuard calls again after 5 s, a task gives up after 10 s.
const soon = 4 * time.Second
