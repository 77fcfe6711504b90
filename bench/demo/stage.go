package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// adminAddress is where the gateway's host serves metrics and health, to itself.
const adminAddress = "127.0.0.1:9469"

// The first and last port of the gateway's tunnels.
const (
	firstPort = 51820
	lastPort  = 51899
)

// stage is everything that the checks need: machines, daemons, sandboxes.
type stage struct {
	cfg     Config
	dir     string // of files that go with the demo
	logs    string
	self    string // this program
	token   string
	socket  string // the sidecar's
	world   *world
	origin  *originServer
	daemons []*daemon // in the order of their start
	giveUp  context.CancelCauseFunc
	admin   *http.Client
	api     *api.Client
	// The first function of each network stays to the end, so that both have the
	// same inner address at the same time.
	acme, globex *sandbox
	bypassed     []netip.AddrPort // what the origin saw of those without a tunnel
}

// newStage builds the machines and starts what runs on them. It calls giveUp
// when a daemon ended, and the first reason counts. The stage is
// returned with an error, too, for its logs; close it then as well.
func newStage(ctx context.Context, cfg Config, giveUp context.CancelCauseFunc) (s *stage, err error) {
	s = &stage{cfg: cfg, token: rand.Text(), giveUp: giveUp}
	if s.self, err = os.Executable(); err != nil {
		return s, fmt.Errorf("find this program: %w", err)
	}
	if err = s.makeFiles(); err != nil {
		return s, err
	}
	if s.world, err = newWorld(); err != nil {
		return s, err
	}
	if s.origin, err = startOrigin(s.world); err != nil {
		return s, err
	}
	s.admin = &http.Client{Transport: &http.Transport{DialContext: s.world.gateway.Dial}}
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
	for name, text := range map[string]string{
		"token": s.token + "\n", "state.yaml": stateFile, "sallyportd.yaml": daemonFile, "sidecar.yaml": sidecarFile,
	} {
		t, err := template.New(name).Parse(text)
		if err != nil {
			return fmt.Errorf("read the template of %s: %w", name, err)
		}
		var b strings.Builder
		if err := t.Execute(&b, s.values()); err != nil {
			return fmt.Errorf("fill the template of %s in: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(b.String()), 0o600); err != nil {
			return fmt.Errorf("write a file of the demo: %w", err)
		}
	}
	return nil
}

// values are what the templates name.
func (s *stage) values() map[string]any {
	return map[string]any{
		"Pool": pool, "Endpoint": gatewayLink.Addr(), "CIDR": innerCIDR, "Acme": acmePair, "Globex": globexPair,
		"Refused": refused, "NameServer": nameServer, "Admin": adminAddress, "FirstPort": firstPort, "LastPort": lastPort,
		"Socket": s.socket,
	}
}

// stateFile is the desired state: two teams that know nothing of each other.
const stateFile = `teams:
  - {id: acme}
  - {id: globex}
regions:
  - name: iad1
    pool: ["{{.Pool}}"]
    hosts: [{name: gw-a, endpoint: {{.Endpoint}}}]
networks:
  - id: net-acme
    team: acme
    region: iad1
    cidr: {{.CIDR}}
    pair: [{{index .Acme 0}}, {{index .Acme 1}}]
    policy: {rules: [{cidrs: [{{.Refused}}/32], verdict: reject}]}
  - id: net-globex
    team: globex
    region: iad1
    cidr: {{.CIDR}}
    pair: [{{index .Globex 0}}, {{index .Globex 1}}]
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
`

const daemonFile = `host: gw-a
region: iad1
secret_file: secret
desired_state: state.yaml
api: {listen: "unix://api.sock", token_file: token}
admin: {listen: "{{.Admin}}"}
wireguard: {ports: "{{.FirstPort}}-{{.LastPort}}"}
dns: {upstreams: ["{{.NameServer}}"]}
`

const sidecarFile = `api: unix://api.sock
token_file: token
region: iad1
socket: {{.Socket}}
`

// startDaemons starts the gateway and, once it is ready, the sidecar.
func (s *stage) startDaemons(ctx context.Context) error {
	gateway, err := s.startDaemon(s.world.gateway, "sallyportd", "run", "--config", filepath.Join(s.dir, "sallyportd.yaml"))
	if err != nil {
		return err
	}
	if err := gateway.ready(ctx, httpReady(s.admin, "http://"+adminAddress+"/readyz")); err != nil {
		return err
	}
	s.api, err = api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(s.dir, "api.sock"), Token: s.token})
	if err != nil {
		return err
	}
	sidecar, err := s.startDaemon(s.world.worker, "sallyport-sidecar", "run", "--config", filepath.Join(s.dir, "sidecar.yaml"))
	if err != nil {
		return err
	}
	return sidecar.ready(ctx, socketReady(s.socket))
}

// The subjects of the demo.
var (
	function = subject{"shop", "production", spec.KindFunction, spec.RuntimeNodeJS}
	stranger = subject{"bank", "production", spec.KindFunction, spec.RuntimeNodeJS}
	build    = subject{"shop", "production", spec.KindBuild, spec.RuntimeNodeJS}
	optedOut = subject{"shop", "preview", spec.KindBuild, spec.RuntimeNodeJS}
	edge     = subject{"shop", "production", spec.KindFunction, spec.RuntimeEdge}
)

// startResidents starts the two functions that stay.
func (s *stage) startResidents(ctx context.Context) (err error) {
	if s.acme, err = s.start(ctx, function); err != nil {
		return err
	}
	if s.globex, err = s.start(ctx, stranger); err != nil {
		return err
	}
	for _, b := range []*sandbox{s.acme, s.globex} {
		if _, err := b.do(task{Do: doAddress}); err != nil {
			return err
		}
	}
	return nil
}

// close ends everything, the newest first, and removes the files. What it
// returns are faults of the daemons.
func (s *stage) close() error {
	var errs []error
	for _, b := range []*sandbox{s.acme, s.globex} {
		if b != nil {
			errs = append(errs, b.end())
		}
	}
	for i := len(s.daemons) - 1; i >= 0; i-- {
		errs = append(errs, s.daemons[i].stop())
	}
	if s.admin != nil {
		s.admin.CloseIdleConnections()
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
