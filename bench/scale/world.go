package scale

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// adminAddress is where each daemon serves metrics and health, to its own machine.
const adminAddress = "127.0.0.1:9469"

const (
	firstPort   = 51820
	startWithin = 60 * time.Second // 200 networks, on a busy machine
	endWithin   = 60 * time.Second
)

// Where everything is: documentation ranges (RFC 5737) outside.
var (
	workerLink = netip.MustParsePrefix("198.51.100.2/28")
	workerHub  = netip.MustParsePrefix("198.51.100.1/28")
	originLink = netip.MustParsePrefix("192.0.2.80/28")
	originHub  = netip.MustParsePrefix("192.0.2.81/28")
	anywhere   = netip.MustParsePrefix("0.0.0.0/0")
)

// hosts are up to three: the one that has all of the active region where it is alone,
// its sibling, and that of the passive region.
func hosts(n int) []hostPlan {
	return []hostPlan{
		{"gw-a", activeRegion, netip.MustParsePrefix("198.51.100.18/28"), netip.MustParsePrefix("198.51.100.17/28"), true},
		{"gw-b", activeRegion, netip.MustParsePrefix("198.51.100.34/28"), netip.MustParsePrefix("198.51.100.33/28"), false},
		{"gw-c", passiveRegion, netip.MustParsePrefix("198.51.100.50/28"), netip.MustParsePrefix("198.51.100.49/28"), true},
	}[:n]
}

// world is machines around a hub, and the daemons on them.
type world struct {
	cfg                 *Config
	plan                plan
	dir                 string // of files that go with the world
	token               string
	lab                 *netlab.Lab
	hub, worker, origin *netlab.Namespace
	machines            map[string]*netlab.Namespace // by host
	daemons             map[string]*daemon.Daemon    // by host
	sidecar             *daemon.Daemon               // nil: it was not started
	started             []*daemon.Daemon
	giveUp              context.CancelCauseFunc
}

// newWorld builds the machines and starts the gateways. Its context ends when a daemon
// does by itself. The world is returned with an error, too; close it then as well.
func newWorld(ctx context.Context, cfg *Config, p plan) (w *world, _ context.Context, err error) {
	lab := netlab.New()
	w = &world{cfg: cfg, plan: p, lab: lab, machines: make(map[string]*netlab.Namespace), daemons: make(map[string]*daemon.Daemon)}
	w.plan.Admin, w.plan.Origin, w.plan.Least = adminAddress, originLink.Addr(), firstPort
	ctx, w.giveUp = context.WithCancelCause(ctx)
	if w.dir, err = os.MkdirTemp("", "sallyport-scale-"); err != nil {
		return w, ctx, fmt.Errorf("make a folder: %w", err)
	}
	if w.token, err = w.plan.writeFiles(w.dir); err != nil {
		return w, ctx, err
	}
	w.hub, w.worker, w.origin = lab.Namespace("hub"), lab.Namespace("worker"), lab.Namespace("origin")
	w.connect(w.worker, "worker", workerLink, workerHub)
	w.connect(w.origin, "origin", originLink, originHub)
	for _, h := range p.Hosts {
		w.machines[h.Name] = lab.Namespace(h.Name)
		w.connect(w.machines[h.Name], h.Name, h.Link, h.Hub)
		w.machines[h.Name].Forward(true)
	}
	w.hub.Forward(true)
	w.hub.Route(netip.MustParsePrefix("198.18.0.0/16"), p.Hosts[0].Link.Addr())
	if err := lab.Err(); err != nil {
		return w, ctx, err
	}
	for _, h := range p.Hosts {
		if err := w.startGateway(ctx, h); err != nil {
			return w, ctx, err
		}
	}
	return w, ctx, nil
}

// connect links a machine with the hub and routes everything through it.
func (w *world) connect(machine *netlab.Namespace, name string, near, far netip.Prefix) {
	w.lab.Connect(
		netlab.End{Namespace: machine, Link: "eth0", Address: near},
		netlab.End{Namespace: w.hub, Link: name, Address: far})
	machine.Route(anywhere, far.Addr())
}

func (w *world) startGateway(ctx context.Context, h hostPlan) error {
	d, err := w.start(ctx, h.Name, w.machines[h.Name],
		w.wrap(w.cfg.program("sallyportd"), "run", "--config", filepath.Join(w.dir, h.Name+".yaml")))
	w.daemons[h.Name] = d
	return err
}

// wrap puts what is measured onto its core.
func (w *world) wrap(args ...string) []string {
	return append([]string{"taskset", "-c", fmt.Sprint(w.cfg.Core)}, args...)
}

// startSidecar starts the worker's.
func (w *world) startSidecar(ctx context.Context) (err error) {
	if err := os.Mkdir(filepath.Join(w.dir, "sidecar"), 0o700); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	w.sidecar, err = w.start(ctx, "sidecar", w.worker, []string{w.cfg.program("sallyport-sidecar"), "run", "--config", filepath.Join(w.dir, "sidecar.yaml")})
	return err
}

// start starts a daemon and waits until it serves.
func (w *world) start(ctx context.Context, name string, on *netlab.Namespace, args []string) (*daemon.Daemon, error) {
	logs := w.cfg.KeepLogs
	if logs == "" {
		logs = w.dir
	}
	d, err := daemon.New(daemon.Config{
		Name: name, Machine: on, Program: args[0], Args: args[1:], Log: filepath.Join(logs, name+".log"),
		Ready:  daemon.HTTP{Client: metricsOf(on), URL: "http://" + adminAddress + "/readyz"},
		GiveUp: w.giveUp, ReadyWithin: startWithin, EndWithin: endWithin,
	})
	if err != nil {
		return nil, err
	}
	if err := d.Start(); err != nil {
		return d, err
	}
	w.started = append(w.started, d)
	if err := d.Await(ctx); err != nil {
		return d, fmt.Errorf("%w; it said: %s", err, d.Tail())
	}
	return d, nil
}

// metricsOf makes requests to the daemon of a machine.
func metricsOf(on *netlab.Namespace) *http.Client {
	c := daemon.NewClient(on.Dial)
	c.Timeout = 10 * time.Second
	return c
}

// holds says what a gateway holds once it has come to rest.
func (w *world) holds(ctx context.Context, host string) (footprint, error) {
	return settle(ctx, w.daemons[host].PID(), metricsOf(w.machines[host]))
}

// client calls the control plane of the active region.
func (w *world) client() (*api.Client, error) {
	return api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(w.dir, activeRegion+".sock"), Token: w.token})
}

// newSpace makes a network namespace for a sandbox, and returns a path at which other
// processes find it until the world is closed.
func (w *world) newSpace(name string) string {
	n := w.lab.Namespace(name)
	if w.lab.Err() != nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Net().File().Fd())
}

// attachSpace has the sidecar attach a namespace, as a runtime does.
func (w *world) attachSpace(ctx context.Context, path, project string) error {
	cmd := exec.CommandContext(ctx, w.cfg.program("sallyport-sidecar"), "attach", "--socket", filepath.Join(w.dir, "sidecar", "sidecar.sock"),
		"--netns", path, "--project", project, "--environment", environment, "--runtime", "nodejs", "--ethernet", "veth")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("attach a sandbox of %s: %w: %s", project, err, out)
	}
	return nil
}

// close ends all of it.
func (w *world) close() error {
	var errs []error
	for i := len(w.started) - 1; i >= 0; i-- {
		if err := w.started[i].Stop(); err != nil {
			errs = append(errs, fmt.Errorf("%w; it said: %s", err, w.started[i].Tail()))
		}
	}
	w.giveUp(nil)
	errs = append(errs, w.lab.Close())
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}
