package failover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// adminAddress is where each daemon serves metrics and health, to its own machine.
const adminAddress = "127.0.0.1:9469"

// stage is everything that the runs need.
type stage struct {
	cfg     Config
	dir     string // of files that go with the stage
	logs    string
	self    string // this program
	giveUp  context.CancelCauseFunc
	world   *world
	origin  *originServer
	sidecar *sidecarClient

	control   map[string]*process // by region
	gateways  map[string]*process // by host
	processes []*process          // all, in the order of their start
	sandboxes []*sandbox

	meter *sandbox // the function that measures
	// active is the host that the meter's connections leave from, at egress.
	active *gatewayHost
	egress netip.Addr
	judge  *judge
}

// newStage builds the machines, starts the daemons and the function that
// measures. giveUp is called when a daemon ended by itself. The stage is returned
// with an error, too, for its logs; close it then as well.
func newStage(ctx context.Context, cfg Config, giveUp context.CancelCauseFunc) (s *stage, err error) {
	s = &stage{cfg: cfg, giveUp: giveUp, control: make(map[string]*process), gateways: make(map[string]*process)}
	if s.self, err = os.Executable(); err != nil {
		return s, fmt.Errorf("find this program: %w", err)
	}
	if err = s.makeFiles(); err != nil {
		return s, err
	}
	if s.world, err = newWorld(); err != nil {
		return s, err
	}
	s.judge = newJudge(s.world)
	if s.origin, err = startOrigin(s.world.origin); err != nil {
		return s, err
	}
	if err = s.startDaemons(ctx); err != nil {
		return s, err
	}
	return s, s.startMeter(ctx)
}

// makeFiles makes the folders and what the daemons read.
func (s *stage) makeFiles() (err error) {
	if s.dir, err = os.MkdirTemp("", "sallyport-failover-"); err != nil {
		return fmt.Errorf("make a folder for the daemons' files: %w", err)
	}
	if s.logs = s.cfg.KeepLogs; s.logs == "" {
		s.logs = filepath.Join(s.dir, "logs")
	}
	// The sidecar hides the folder of its socket from sandboxes; nothing else is in it.
	for _, d := range []string{filepath.Dir(s.socket()), s.logs} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
	}
	return writeFiles(s.dir)
}

// socket is the sidecar's.
func (s *stage) socket() string { return filepath.Join(s.dir, "sidecar", "sidecar.sock") }

// startDaemons starts all of them, each once those are ready that it needs.
func (s *stage) startDaemons(ctx context.Context) error {
	for _, region := range []string{activeRegion, passiveRegion} {
		machine := s.world.control[region]
		s.control[region] = s.add("control-"+region, "sallyportd", region, machine, httpReady(machine, "http://"+adminAddress+"/readyz"))
	}
	for _, h := range s.world.hosts {
		s.gateways[h.name] = s.add(h.name, "sallyportd", h.name, h.machine, httpReady(h.machine, "http://"+adminAddress+"/readyz"))
	}
	s.sidecar = newSidecarClient(s.socket())
	s.add("sidecar", "sallyport-sidecar", "sidecar", s.world.worker, socketReady(s.socket()))
	for _, p := range s.processes {
		_ = os.Remove(p.log) // of an earlier run, where logs are kept
		if err := p.start(); err != nil {
			return err
		}
		if err := p.ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// add makes a process, which is started later.
func (s *stage) add(name, program, file string, machine *netlab.Namespace, probe func(context.Context) error) *process {
	p := &process{
		name: name, program: s.cfg.program(program), args: []string{"run", "--config", filepath.Join(s.dir, file+".yaml")},
		machine: machine, log: filepath.Join(s.logs, name+".log"), probe: probe, giveUp: s.giveUp,
	}
	s.processes = append(s.processes, p)
	return p
}

// socketReady tries to connect to a unix socket.
func socketReady(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// startMeter starts the function that measures and learns where it leaves from.
func (s *stage) startMeter(ctx context.Context) (err error) {
	if s.meter, err = s.startFunction("the meter"); err != nil {
		return err
	}
	// Its first reply says that it is attached.
	if _, err := s.meter.do(ctx, order{Do: doPace, Every: idlePace}); err != nil {
		return err
	}
	list, err := s.sidecar.sandboxes(ctx)
	if err != nil {
		return err
	}
	if len(list.Sandboxes) != 1 || !list.Sandboxes[0].Inner.IsValid() {
		return fmt.Errorf("the sidecar lists %d sandboxes instead of one that is attached", len(list.Sandboxes))
	}
	s.egress = activePair[spec.EgressIndex(list.Sandboxes[0].Inner)]
	if s.active = s.world.holder(s.egress); s.active == nil {
		return fmt.Errorf("no host holds %v, from which the sandbox is to leave", s.egress)
	}
	return nil
}

// close ends everything, the newest first. What it returns are faults of ours.
func (s *stage) close() error {
	var errs []error
	for _, b := range s.sandboxes {
		errs = append(errs, b.end())
	}
	for i := len(s.processes) - 1; i >= 0; i-- {
		errs = append(errs, s.processes[i].stop())
	}
	if s.origin != nil {
		errs = append(errs, s.origin.close())
	}
	if s.world != nil {
		errs = append(errs, s.world.close())
	}
	return errors.Join(errs...)
}

// removeFiles removes what was written, but logs that are to be kept.
func (s *stage) removeFiles() error {
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}
