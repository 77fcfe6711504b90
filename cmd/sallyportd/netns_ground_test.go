package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// ground is what the machines of all tests stand on: a worker, whom it talks to,
// the router between all of them, and a folder for the files of what runs there.
type ground struct {
	t                 *testing.T
	lab               *netlab.Lab
	worker, hub, home *netlab.Namespace
	dir, bin, socket  string
	uplink            uplinkKind
	origin            *origin
	daemons           []*daemon // in the order of their starts
	withdrawn         bool
}

func newGround(t *testing.T, by uplinkKind) *ground {
	t.Helper()
	lab := netlab.Test(t)
	g := &ground{t: t, lab: lab, uplink: by, bin: programs.Build(t), dir: t.TempDir()}
	g.worker, g.hub, g.home = lab.Namespace("worker"), lab.Namespace("hub"), lab.Namespace("origin")
	g.join(g.worker, "worker", "198.51.100.2/28", "198.51.100.1/28").byDefault()
	g.join(g.home, "origin", "192.0.2.80/24", "192.0.2.1/24").byDefault()
	g.home.Address("eth0", netip.PrefixFrom(nameServer, 24))
	g.hub.Forward(true)
	g.hub.Sysctl("net.ipv4.icmp_ratelimit", "0")
	// Both sockets are in one folder, as in the reference configuration, and nothing else.
	g.socket = filepath.Join(g.dir, "run", "sidecar.sock")
	if err := os.Mkdir(filepath.Dir(g.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	return g
}

// cable is the link from a machine to the hub, which has the machine's name there.
type cable struct {
	machine *netlab.Namespace
	hub     netip.Addr
}

func (g *ground) join(n *netlab.Namespace, name, near, far string) cable {
	hub := netip.MustParsePrefix(far)
	g.lab.Connect(
		netlab.End{Namespace: n, Link: "eth0", Address: netip.MustParsePrefix(near)},
		netlab.End{Namespace: g.hub, Link: name, Address: hub})
	return cable{n, hub.Addr()}
}

// byDefault sends all of the machine's packets by the cable.
func (c cable) byDefault() { c.machine.Route(hostnet.DefaultIPv4, c.hub) }

// capture captures on the hub's end of a machine's cable.
func (g *ground) capture(name string) *netlab.Capture {
	g.t.Helper()
	c, err := g.hub.Capture(name)
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// pings lets root on a machine have ping sockets: they are for a group, of which a
// user namespace may have but one.
func pings(n *netlab.Namespace) {
	_ = n.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0\n"), 0)
	})
}

// write writes a file into the folder.
func (g *ground) write(name, text string) string {
	g.t.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
	return path
}

// daemon is a process of ours that serves until it is ended.
type daemon struct {
	name, log string
	cmd       *exec.Cmd
	ended     chan struct{}
	err       error // of its end; valid once ended is closed
}

// run starts a program on a machine, and appends what it says to the log of that name.
func (g *ground) run(n *netlab.Namespace, name, program string, args ...string) *daemon {
	g.t.Helper()
	d := &daemon{name: name, ended: make(chan struct{}), cmd: exec.Command(program, args...)}
	d.log = filepath.Join(g.dir, d.name+".log")
	f, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	d.cmd.Stdout, d.cmd.Stderr = f, f
	if err := n.Start(d.cmd); err != nil {
		g.t.Fatal(err)
	}
	g.daemons = append(g.daemons, d)
	go func() {
		d.err = d.cmd.Wait()
		close(d.ended)
	}()
	return d
}

// runOurs starts one of our daemons with a file of the folder for its configuration.
func (g *ground) runOurs(n *netlab.Namespace, name, program, config string) *daemon {
	g.t.Helper()
	return g.run(n, name, filepath.Join(g.bin, program), "run", "--config", filepath.Join(g.dir, config))
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

func (d *daemon) running() error {
	select {
	case <-d.ended:
		return fmt.Errorf("%s ended: %w", d.name, d.err)
	default:
		return nil
	}
}

// endAll ends what still runs, the last that was started first.
func (g *ground) endAll() {
	g.t.Helper()
	if g.uplink == byTun {
		g.withdraw()
	}
	for i := len(g.daemons) - 1; i >= 0; i-- {
		if d := g.daemons[i]; d.running() == nil {
			d.end(g.t, syscall.SIGTERM)
		}
	}
}

// withdraw has the router send nothing more to dedicated addresses, as an operator does
// before a gateway with a tun uplink ends for good: what the far side still sends to
// connections that were would go back and forth between the two.
func (g *ground) withdraw() {
	g.t.Helper()
	if !g.withdrawn {
		g.withdrawn = true
		toolOn(g.t, g.hub, "ip", "rule", "add", "to", "203.0.113.0/24", "priority", "1", "blackhole")
	}
}

// said is what was written to the log of that name.
func (g *ground) said(name string) string {
	b, _ := os.ReadFile(filepath.Join(g.dir, name+".log"))
	return string(b)
}

// showLogs shows the ends of all logs of a test that failed.
func (g *ground) showLogs() {
	if !g.t.Failed() {
		return
	}
	shown := map[string]bool{}
	for _, d := range g.daemons {
		if text := g.said(d.name); !shown[d.name] {
			shown[d.name] = true
			g.t.Logf("%s said at last:\n%s", d.name, text[max(0, len(text)-6000):])
		}
	}
}

// showCounts shows what a machine's sallyportd has counted that a failure may come of.
func showCounts(t *testing.T, n *netlab.Namespace) {
	text, err := askAdmin(n, "/metrics")
	if err != nil {
		t.Logf("%v: no metrics: %v", n, err)
		return
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(name, "sallyport_") && strings.Contains(name, "_total") && value != "0" {
			t.Logf("%v: %s", n, strings.TrimSpace(line))
		}
	}
}

// awaitSocket waits until a daemon listens at a unix socket.
func (g *ground) awaitSocket(d *daemon, path string) {
	g.t.Helper()
	eventually(g.t, 15*time.Second, d.name+" listens", func() error {
		if err := d.running(); err != nil {
			return err
		}
		c, err := net.Dial("unix", path)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

// awaitReady waits until the daemon on a machine says that it is ready.
func (g *ground) awaitReady(d *daemon, n *netlab.Namespace) {
	g.t.Helper()
	eventually(g.t, 15*time.Second, d.name+" is ready", func() error {
		if err := d.running(); err != nil {
			return err
		}
		_, err := askAdmin(n, "/readyz")
		return err
	})
}

const adminAt = "127.0.0.1:9469"

// askAdmin asks the admin address on a machine's loopback.
func askAdmin(n *netlab.Namespace, path string) (string, error) {
	tr := &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}
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

// judgeMetrics looks whether the sallyportd on a machine itself caught a wrong source.
func judgeMetrics(t *testing.T, n *netlab.Namespace) {
	t.Helper()
	text, err := askAdmin(n, "/metrics")
	if err != nil {
		t.Errorf("read metrics of %v: %v", n, err)
		return
	}
	series := 0
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "sallyport_drops_total{") && strings.Contains(line, `reason="wrong_source"`) {
			series++
			if !strings.HasSuffix(strings.TrimSpace(line), " 0") {
				t.Errorf("sallyportd on %v stopped a packet at its last check: %s", n, line)
			}
		}
	}
	if series == 0 {
		t.Errorf("sallyportd on %v does not count wrong sources", n)
	}
}
