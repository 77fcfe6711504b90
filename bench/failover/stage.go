package failover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// adminAddress is where each daemon serves metrics and health, to its own machine.
const adminAddress = "127.0.0.1:9469"

const (
	readyPatience = 15 * time.Second
	// endPatience is how long a program may take to end before it is killed.
	endPatience = 5 * time.Second
)

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

	control   map[string]*daemon.Daemon // by region
	gateways  map[string]*daemon.Daemon // by host
	daemons   []*daemon.Daemon          // all, in the order of their start
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
	s = &stage{cfg: cfg, giveUp: giveUp, control: make(map[string]*daemon.Daemon), gateways: make(map[string]*daemon.Daemon)}
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
func (s *stage) startDaemons(ctx context.Context) (err error) {
	for _, region := range []string{activeRegion, passiveRegion} {
		if s.control[region], err = s.addDaemon("control-"+region, region, s.world.control[region]); err != nil {
			return err
		}
	}
	for _, h := range s.world.hosts {
		if s.gateways[h.name], err = s.addDaemon(h.name, h.name, h.machine); err != nil {
			return err
		}
	}
	s.sidecar = newSidecarClient(s.socket())
	if _, err = s.add(daemon.Config{
		Name: "sidecar", Machine: s.world.worker, Program: s.cfg.program("sallyport-sidecar"), Ready: daemon.Socket(s.socket()),
	}, "sidecar"); err != nil {
		return err
	}
	for _, d := range s.daemons {
		if err := d.Start(); err != nil {
			return err
		}
		if err := d.Await(ctx); err != nil {
			return err
		}
	}
	return nil
}

// addDaemon describes a sallyportd with settings of a file's name.
func (s *stage) addDaemon(name, file string, machine *netlab.Namespace) (*daemon.Daemon, error) {
	client := daemon.NewClient(machine.Dial)
	client.Timeout = time.Second
	return s.add(daemon.Config{
		Name: name, Machine: machine, Program: s.cfg.program("sallyportd"),
		Ready: daemon.HTTP{Client: client, URL: "http://" + adminAddress + "/readyz"},
	}, file)
}

// add describes a daemon, which is started later. It fills in what all have.
func (s *stage) add(cfg daemon.Config, file string) (*daemon.Daemon, error) {
	cfg.Args = []string{"run", "--config", filepath.Join(s.dir, file+".yaml")}
	cfg.Log, cfg.GiveUp = filepath.Join(s.logs, cfg.Name+".log"), s.giveUp
	cfg.ReadyWithin, cfg.EndWithin = readyPatience, endPatience
	d, err := daemon.New(cfg)
	if err != nil {
		return nil, err
	}
	s.daemons = append(s.daemons, d)
	return d, nil
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
	for _, d := range slices.Backward(s.daemons) {
		errs = append(errs, d.Stop())
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
