package testbed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// AdminAddress is where the daemon serves metrics and health, to the gateway's own namespace.
const AdminAddress = "127.0.0.1:9469"

// Names in the desired state.
const (
	Project     = "shop"
	Environment = "production"
	Region      = "iad1"
)

const (
	firstPort = 51820
	lastPort  = 51829
)

const stateText = `teams:
  - {id: acme}
regions:
  - name: iad1
    pool: ["%v"]
    hosts: [{name: gw-a, endpoint: %v}]
networks:
  - {id: net-main, team: acme, region: iad1, cidr: %v, pair: [%v, %v]}
projects:
  - id: shop
    team: acme
    environments:
      - {name: production, active: [net-main]}
`

const daemonText = `host: gw-a
region: iad1
secret_file: secret
state_file: memory.json
desired_state: state.yaml
api: {listen: "unix://api.sock", token_file: token}
admin: {listen: "%s"}
wireguard: {ports: "%d-%d"}
uplink: %s
dns: {upstreams: ["%v"]}
%s`

// Uplinks are those of sallyportd.
func Uplinks() []string { return []string{uplinkSockets, "tun"} }

const uplinkSockets = "sockets"

// SallyportConfig describes a gateway of ours. All fields but Settings are needed.
type SallyportConfig struct {
	Uplink string // one of [Uplinks]
	// Program is sallyportd's path. Dir is a folder for its files that is not there yet,
	// Log the path of its log.
	Program, Dir, Log string
	// GiveUp is told when it ends by itself.
	GiveUp context.CancelCauseFunc
	// Settings are more lines of its file, such as limits.
	Settings string
}

// Sallyport is sallyportd on the gateway, with one network that has the whole [Pair].
type Sallyport struct {
	daemon *daemon.Daemon
	client *api.Client
}

// StartSallyport starts the daemon on the gateway's core and waits until it serves. It is
// returned with an error, too; stop it then as well.
func (t *Testbed) StartSallyport(ctx context.Context, cfg SallyportConfig) (*Sallyport, error) {
	s := &Sallyport{}
	token := rand.Text()
	if err := writeFiles(cfg, token); err != nil {
		return s, err
	}
	if cfg.Uplink == uplinkSockets {
		for _, a := range Pair {
			t.Gateway.Address("lo", netip.PrefixFrom(a, 32))
		}
		if err := t.Lab.Err(); err != nil {
			return s, err
		}
	}
	client := daemon.NewClient(t.Gateway.Dial)
	client.Timeout = time.Second
	line := append(OnCore(t.core), cfg.Program, "run", "--config", filepath.Join(cfg.Dir, "sallyportd.yaml"))
	var err error
	s.daemon, err = daemon.New(daemon.Config{
		Name: "sallyportd with " + cfg.Uplink, Machine: t.Gateway, Program: line[0], Args: line[1:], Log: cfg.Log,
		Ready:  daemon.HTTP{Client: client, URL: "http://" + AdminAddress + "/readyz"},
		GiveUp: cfg.GiveUp, ReadyWithin: 15 * time.Second, EndWithin: 10 * time.Second,
	})
	if err != nil {
		return s, err
	}
	if err := s.daemon.Start(); err != nil {
		return s, err
	}
	if err := s.daemon.Await(ctx); err != nil {
		return s, fmt.Errorf("%w; it said: %s", err, s.daemon.Tail())
	}
	s.client, err = api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(cfg.Dir, "api.sock"), Token: token})
	return s, err
}

func writeFiles(cfg SallyportConfig, token string) error {
	if err := os.Mkdir(cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	for name, text := range map[string]string{
		"token":           token + "\n",
		"state.yaml":      fmt.Sprintf(stateText, Pool, GatewayIn.Addr(), InnerCIDR, Pair[0], Pair[1]),
		"sallyportd.yaml": fmt.Sprintf(daemonText, AdminAddress, firstPort, lastPort, cfg.Uplink, ServerLink.Addr(), cfg.Settings),
	} {
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write a file of the daemon: %w", err)
		}
	}
	return nil
}

// Attach attaches a sandbox of a worker with this public key, in base64. The answer has one gateway.
func (s *Sallyport) Attach(ctx context.Context, publicKey string) (api.AttachResponse, error) {
	a, err := s.client.Attach(ctx, api.AttachRequest{
		Project: Project, Environment: Environment, Kind: spec.KindFunction, Runtime: spec.RuntimeGo, Region: Region, PublicKey: publicKey,
	})
	if err != nil {
		return a, fmt.Errorf("attach a sandbox: %w", err)
	}
	if len(a.Gateways) != 1 {
		return a, fmt.Errorf("attach a sandbox: it has %d gateways", len(a.Gateways))
	}
	return a, nil
}

// Client calls the daemon's control API.
func (s *Sallyport) Client() *api.Client { return s.client }

// PID is the number of its process.
func (s *Sallyport) PID() int { return s.daemon.PID() }

// Tail is the end of its log.
func (s *Sallyport) Tail() string {
	if s.daemon == nil {
		return ""
	}
	return s.daemon.Tail()
}

// Signal sends it a signal.
func (s *Sallyport) Signal(signal syscall.Signal) error { return s.daemon.Signal(signal) }

// Stop ends it. The error holds the end of its log.
func (s *Sallyport) Stop() error {
	if s.client != nil {
		s.client.Close()
	}
	if s.daemon == nil {
		return nil
	}
	if err := s.daemon.Stop(); err != nil {
		return errors.Join(err, errors.New("it said: "+s.daemon.Tail()))
	}
	return nil
}
