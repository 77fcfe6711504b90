package demo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/tunnel"
)

// stage is everything that the checks need: machines, daemons, sandboxes.
type stage struct {
	cfg    Config
	plan   *plan
	dir    string // of files that go with the demo
	logs   string
	self   string // this program
	token  string // of iad1's control API
	away   string // of cle1's
	socket string // the sidecar's
	giveUp context.CancelCauseFunc

	world  *world
	origin *originServer
	office *office

	daemons  []*daemon.Daemon  // in the order of their start
	control  *daemon.Daemon    // iad1's
	gateways [3]*daemon.Daemon // gw-c with cle1's control plane
	sidecar  *daemon.Daemon
	admins   [4]*http.Client // of the gateways, and last of the control plane
	api      *api.Client     // iad1's

	// The first function of each network stays to the end, so that both have the
	// same inner address at the same time.
	acme, globex *resident
	residents    []*resident
	bypassed     []netip.AddrPort // what the origin saw of those without a tunnel
	// failover is what the checks of the failover hand on to each other.
	failover failover
	// wrong are the packets with a wrong source that daemons had counted when they
	// were killed.
	wrong float64
}

// newStage builds the machines and starts what runs on them. It calls giveUp
// when a daemon ended, and the first reason counts. The stage is
// returned with an error, too, for its logs; close it then as well.
func newStage(ctx context.Context, cfg Config, p *plan, giveUp context.CancelCauseFunc) (s *stage, err error) {
	s = &stage{cfg: cfg, plan: p, token: rand.Text(), away: rand.Text(), giveUp: giveUp, office: &office{key: tunnel.NewKey()}}
	if s.self, err = os.Executable(); err != nil {
		return s, fmt.Errorf("find this program: %w", err)
	}
	if err = s.makeFiles(); err != nil {
		return s, err
	}
	if p.loopback() {
		s.world = newLoopback(p)
	} else if s.world, err = newNamespaces(p); err != nil {
		return s, err
	}
	if s.origin, err = startOrigin(s.world); err != nil {
		return s, err
	}
	if err = s.startDaemons(ctx); err != nil {
		return s, err
	}
	return s, s.startResidents(ctx)
}

// program is the path of one of our programs.
func (s *stage) program(name string) string { return filepath.Join(s.cfg.Bin, name) }

// makeFiles makes the folder of the demo's files and the files.
func (s *stage) makeFiles() (err error) {
	if s.dir, err = os.MkdirTemp("", "sallyport-demo-"); err != nil {
		return fmt.Errorf("make a folder for the demo's files: %w", err)
	}
	// The sidecar hides the folder of its socket from sandboxes; nothing else is in it.
	s.socket = filepath.Join(s.dir, "sidecar", "sidecar.sock")
	if s.logs = s.cfg.KeepLogs; s.logs == "" {
		s.logs = filepath.Join(s.dir, "logs")
	}
	for _, d := range []string{filepath.Dir(s.socket), s.logs} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make a folder of the demo: %w", err)
		}
	}
	files, err := s.configuration()
	if err != nil {
		return err
	}
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails: it ends the program instead
	files["region.secret"] = hex.EncodeToString(secret[:]) + "\n"
	files[regionActive+".token"], files[regionPassive+".token"] = s.token+"\n", s.away+"\n"
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write a file of the demo: %w", err)
		}
	}
	return nil
}

// startDaemons starts the control plane, the gateways once it is ready, and once
// they are, the sidecar.
func (s *stage) startDaemons(ctx context.Context) (err error) {
	for i, m := range append(s.world.gateways[:], s.world.control) {
		s.admins[i] = daemon.NewClient(m.Dial)
	}
	if s.control, err = s.newDaemon(s.world.control, regionActive, "sallyportd", s.adminReady(len(s.gateways))); err != nil {
		return err
	}
	for i, g := range s.plan.gateways {
		if s.gateways[i], err = s.newDaemon(s.world.gateways[i], g.Name, "sallyportd", s.adminReady(i)); err != nil {
			return err
		}
	}
	if s.sidecar, err = s.newDaemon(s.world.worker, "sidecar", "sallyport-sidecar", daemon.Socket(s.socket)); err != nil {
		return err
	}
	s.api, err = api.NewClient(api.ClientConfig{Address: "unix://" + s.apiSocket(regionActive), Token: s.token})
	if err != nil {
		return err
	}
	if err := startAll(ctx, s.control, s.gateways[atC]); err != nil {
		return err
	}
	// The host with the site tunnel first: the other one greets it when it starts.
	for _, d := range []*daemon.Daemon{s.gateways[atA], s.gateways[atB], s.sidecar} {
		if err := startAll(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// apiSocket is the path of a region's control API.
func (s *stage) apiSocket(region string) string { return filepath.Join(s.dir, region+".sock") }

// adminURL is where the i-th daemon serves metrics and health, by the order of admins.
func (s *stage) adminURL(i int, path string) string {
	at := s.plan.control
	if i < len(s.plan.gateways) {
		at = s.plan.gateways[i].Admin
	}
	return "http://" + at.String() + path
}

func (s *stage) adminReady(i int) daemon.Probe {
	return daemon.HTTP{Client: s.admins[i], URL: s.adminURL(i, "/readyz")}
}

// startResidents starts the two functions that stay.
func (s *stage) startResidents(ctx context.Context) (err error) {
	if s.acme, err = s.settle(ctx, function); err == nil {
		s.globex, err = s.settle(ctx, stranger)
	}
	return err
}

// local calls the sidecar's own API.
func (s *stage) local() *http.Client {
	return daemon.Socket(s.socket).Client()
}

// close ends everything, the newest first, and removes the files. What it
// returns are faults of the daemons.
func (s *stage) close() error {
	var errs []error
	for _, b := range s.residents {
		errs = append(errs, b.end())
	}
	// The gateways at once: each says for a while that it ends.
	for _, group := range [][]*daemon.Daemon{{s.sidecar}, s.gateways[:], {s.control}} {
		errs = append(errs, stopAll(group))
	}
	errs = append(errs, s.office.close())
	if s.api != nil {
		s.api.Close()
	}
	if s.origin != nil {
		errs = append(errs, s.origin.close())
	}
	if s.world != nil {
		errs = append(errs, s.world.close())
	}
	return errors.Join(errs...)
}

// removeFiles removes what the demo wrote, but logs that are to be kept.
func (s *stage) removeFiles() error {
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}
