package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The machines of these tests and their addresses:
//
//	worker ── hub ── iad1 (the gateway's host; the pairs are on its loopback)
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

const adminAt = "127.0.0.1:9469"

// builtAny says that a test has asked for the programs.
var builtAny atomic.Bool

// programs are built once, when the first test needs them.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sallyport-programs-")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", dir+"/",
		"github.com/sallyport-net/sallyport/cmd/sallyportd", "github.com/sallyport-net/sallyport/cmd/sallyport-sidecar").CombinedOutput()
	if err != nil {
		return dir, fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return dir, nil
})

// removePrograms removes them. It must not be the first to ask for them.
func removePrograms() error {
	if !builtAny.Load() {
		return nil
	}
	dir, _ := programs()
	return os.RemoveAll(dir)
}

// world is the machines and what runs on them.
type world struct {
	t                                     *testing.T
	lab                                   *netlab.Lab
	worker, hub, iad1, home, laptop, void *netlab.Namespace
	atWorker, atIad1, atOrigin, atLaptop  *netlab.Capture
	dir, bin, socket                      string
	api                                   *api.Client
	origin                                *origin
	gateway, sidecar                      *daemon
	bypasses                              bool // whether the worker's own address may reach the origin
	mayBeSilent                           bool // whether no packet at all may reach it
}

// newWorld builds the machines and the origin's servers, and writes the daemons'
// files; w.up starts the daemons. At the end of the test the captures are judged.
func newWorld(t *testing.T, replace ...string) *world {
	t.Helper()
	lab := netlab.Test(t)
	builtAny.Store(true)
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, lab: lab, bin: bin, dir: t.TempDir()}
	w.worker, w.hub, w.iad1 = lab.Namespace("worker"), lab.Namespace("hub"), lab.Namespace("iad1")
	w.home, w.laptop, w.void = lab.Namespace("origin"), lab.Namespace("laptop"), lab.Namespace("void")
	w.connect()
	w.writeFiles(replace)
	for link, c := range map[string]**netlab.Capture{"worker": &w.atWorker, "iad1": &w.atIad1, "origin": &w.atOrigin, "laptop": &w.atLaptop} {
		if *c, err = w.hub.Capture(link); err != nil {
			t.Fatal(err)
		}
	}
	w.origin = newOrigin(w)
	w.api, err = api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(w.dir, "run", "api.sock"), Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.end)
	return w
}

// connect makes links, addresses and routes.
func (w *world) connect() {
	for _, l := range []struct {
		n         *netlab.Namespace
		name      string
		near, far string
	}{
		{w.worker, "worker", "198.51.100.2/28", "198.51.100.1/28"},
		{w.iad1, "iad1", "198.51.100.18/28", "198.51.100.17/28"},
		{w.laptop, "laptop", "198.51.100.34/28", "198.51.100.33/28"},
		{w.void, "void", "198.51.100.50/28", "198.51.100.49/28"},
		{w.home, "origin", "192.0.2.80/24", "192.0.2.1/24"},
	} {
		far := netip.MustParsePrefix(l.far)
		w.lab.Connect(
			netlab.End{Namespace: l.n, Link: "eth0", Address: netip.MustParsePrefix(l.near)},
			netlab.End{Namespace: w.hub, Link: l.name, Address: far})
		if l.n != w.laptop { // its default is the tunnel
			l.n.Route(hostnet.DefaultIPv4, far.Addr())
		}
	}
	w.laptop.Route(netip.PrefixFrom(iad1Addr, 28).Masked(), netip.MustParseAddr("198.51.100.33"))
	w.home.Address("eth0", netip.PrefixFrom(nameServer, 24))
	w.hub.Forward(true)
	w.hub.Sysctl("net.ipv4.icmp_ratelimit", "0")
	w.hub.Route(pairsPool, iad1Addr)
	w.hub.Route(netip.PrefixFrom(lostAddr, 32), voidAddr)
	for n, a := range map[*netlab.Namespace]netip.Addr{w.hub: refusedByHub, w.iad1: refusedHere} {
		plan := hostnet.Plan{Routes: []hostnet.Route{{Prefix: netip.PrefixFrom(a, 32), Kind: hostnet.Unreachable}}}
		if err := n.Host().Apply(plan); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, a := range slices.Concat(acmePair, globexPair, quietPair) {
		w.iad1.Address("lo", netip.PrefixFrom(a, 32))
	}
	// Ping sockets are for a group, of which a user namespace may have but one.
	_ = w.iad1.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0\n"), 0)
	})
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
	netnsSidecar = `api: unix://run/api.sock
token_file: token
region: iad1
socket: run/sidecar.sock
`
)

// writeFiles writes the files of both daemons, changed by replacing old by new.
// Both sockets are in one folder, as in the reference configuration, and nothing else.
func (w *world) writeFiles(replace []string) {
	w.t.Helper()
	w.socket = filepath.Join(w.dir, "run", "sidecar.sock")
	if err := os.Mkdir(filepath.Dir(w.socket), 0o755); err != nil {
		w.t.Fatal(err)
	}
	r := strings.NewReplacer(replace...)
	for name, text := range map[string]string{
		"state.yaml": netnsState, "sallyportd.yaml": netnsDaemon, "sidecar.yaml": netnsSidecar, "token": testToken + "\n",
	} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(r.Replace(text)), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

// daemon is a process of ours that serves until it is ended.
type daemon struct {
	name, log string
	cmd       *exec.Cmd
	ended     chan struct{}
	err       error // of its end; valid once ended is closed
}

// run starts a program on a machine, and appends what it says to its log.
func (w *world) run(n *netlab.Namespace, program string, args ...string) *daemon {
	w.t.Helper()
	d := &daemon{name: filepath.Base(program), ended: make(chan struct{}), cmd: exec.Command(program, args...)}
	d.log = filepath.Join(w.dir, d.name+".log")
	f, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	d.cmd.Stdout, d.cmd.Stderr = f, f
	if err := n.Start(d.cmd); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
	}()
	return d
}

// end sends a signal and waits for the end.
func (d *daemon) end(t *testing.T, s syscall.Signal) {
	t.Helper()
	_ = d.cmd.Process.Signal(s) // it may have ended
	select {
	case <-d.ended:
	case <-time.After(5 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.ended
		t.Errorf("%s did not end within 5 s of %v", d.name, s)
	}
	if d.err != nil && s != syscall.SIGKILL {
		t.Errorf("%s ended with %v", d.name, d.err)
	}
}

// startGateway and startSidecar start a daemon and do not wait for it.
func (w *world) startGateway() {
	w.gateway = w.run(w.iad1, filepath.Join(w.bin, "sallyportd"), "run", "--config", filepath.Join(w.dir, "sallyportd.yaml"))
}

func (w *world) startSidecar() {
	w.sidecar = w.run(w.worker, filepath.Join(w.bin, "sallyport-sidecar"), "run", "--config", filepath.Join(w.dir, "sidecar.yaml"))
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
	eventually(w.t, 15*time.Second, "sallyportd is ready", func() error {
		if err := w.gateway.running(); err != nil {
			return err
		}
		_, err := w.admin("/readyz")
		return err
	})
}

func (w *world) awaitSidecar() {
	w.t.Helper()
	eventually(w.t, 15*time.Second, "the sidecar listens", func() error {
		c, err := net.Dial("unix", w.socket)
		if err == nil {
			err = c.Close()
		}
		return errors.Join(err, w.sidecar.running())
	})
}

func (d *daemon) running() error {
	select {
	case <-d.ended:
		return fmt.Errorf("%s ended: %w", d.name, d.err)
	default:
		return nil
	}
}

// admin asks sallyportd's admin address, which is iad1's loopback.
func (w *world) admin(path string) (string, error) {
	tr := &http.Transport{DialContext: w.iad1.Dial, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+adminAt+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(b))
	}
	return string(b), err
}

// end ends the daemons, judges, and shows the logs of a test that failed.
func (w *world) end() {
	w.api.Close()
	if w.gateway != nil && w.gateway.running() == nil {
		w.judgeMetrics()
	}
	for _, d := range []*daemon{w.sidecar, w.gateway} {
		if d != nil && d.running() == nil {
			d.end(w.t, syscall.SIGTERM)
		}
	}
	w.judge()
	w.origin.close()
	if !w.t.Failed() {
		return
	}
	for _, d := range []*daemon{w.gateway, w.sidecar} {
		if d != nil {
			b, _ := os.ReadFile(d.log)
			w.t.Logf("%s said at last:\n%s", d.name, b[max(0, len(b)-6000):])
		}
	}
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
// their datagrams, or the kernel's word that nobody is there to take one.
func ofTunnel(p netlab.Packet) bool {
	const icmp, udp, unreachable = 1, 17, 3
	client := p.Dst.Addr() == workerAddr || p.Dst.Addr() == laptopAddr
	return client && (p.Proto == udp && p.Src.Port() >= 51820 && p.Src.Port() <= 51899 || p.Proto == icmp && p.ICMPType == unreachable)
}

// judgeMetrics looks whether sallyportd itself caught a wrong source.
func (w *world) judgeMetrics() {
	w.t.Helper()
	text, err := w.admin("/metrics")
	if err != nil {
		w.t.Errorf("read metrics: %v", err)
		return
	}
	series := 0
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "sallyport_drops_total{") && strings.Contains(line, `reason="wrong_source"`) {
			series++
			if !strings.HasSuffix(strings.TrimSpace(line), " 0") {
				w.t.Errorf("sallyportd stopped a packet at its last check: %s", line)
			}
		}
	}
	if series == 0 {
		w.t.Error("sallyportd does not count wrong sources")
	}
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
