package compare

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// adminAddress is where the daemon serves health, to its own machine.
const adminAddress = "127.0.0.1:9469"

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
`

// sallyport is sallyportd with one of its uplinks.
type sallyport struct {
	cfg    *Config
	dir    string // of files; it gets a folder of its own there
	uplink string
	daemon *daemon.Daemon
}

func (g *sallyport) start(ctx context.Context, c *chain, peers []*peer) (*tunnel, int, error) {
	dir := filepath.Join(g.dir, g.uplink)
	token := rand.Text()
	if err := g.writeFiles(dir, token); err != nil {
		return nil, 0, err
	}
	if g.uplink == variantSockets {
		for _, a := range pair {
			c.gateway.Address("lo", netip.PrefixFrom(a, 32))
		}
		if err := c.lab.Err(); err != nil {
			return nil, 0, err
		}
	}
	if err := g.run(ctx, c, dir); err != nil {
		return nil, 0, err
	}
	client, err := api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(dir, "api.sock"), Token: token})
	if err != nil {
		return nil, 0, err
	}
	defer client.Close()
	t := &tunnel{}
	for _, p := range peers {
		a, err := client.Attach(ctx, api.AttachRequest{
			Project: "shop", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeGo, Region: "iad1", PublicKey: p.public,
		})
		if err != nil {
			return nil, 0, fmt.Errorf("attach a sandbox: %w", err)
		}
		if len(a.Gateways) != 1 {
			return nil, 0, fmt.Errorf("attach a sandbox: it has %d gateways", len(a.Gateways))
		}
		p.inner = a.Attachment.Inner
		*t = tunnel{public: a.Gateways[0].PublicKey, endpoint: a.Gateways[0].Endpoint, mtu: a.Network.MTU}
	}
	return t, g.daemon.PID(), nil
}

// run starts the daemon on its core and waits until it serves.
func (g *sallyport) run(ctx context.Context, c *chain, dir string) (err error) {
	logs := g.cfg.KeepLogs
	if logs == "" {
		logs = dir
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	client := daemon.NewClient(c.gateway.Dial)
	client.Timeout = time.Second
	wrap := onCore(c.core)
	g.daemon, err = daemon.New(daemon.Config{
		Name: "sallyportd with " + g.uplink, Machine: c.gateway, Program: wrap[0],
		Args:  append(wrap[1:], g.cfg.program("sallyportd"), "run", "--config", filepath.Join(dir, "sallyportd.yaml")),
		Log:   filepath.Join(logs, g.uplink+".log"),
		Ready: daemon.HTTP{Client: client, URL: "http://" + adminAddress + "/readyz"},
		// Later its end is found by the next signal to it.
		GiveUp: giveUp, ReadyWithin: 15 * time.Second, EndWithin: 10 * time.Second,
	})
	if err != nil {
		return err
	}
	if err := g.daemon.Start(); err != nil {
		return err
	}
	if err := g.daemon.Await(ctx); err != nil {
		return fmt.Errorf("%w; it said: %s", err, g.daemon.Tail())
	}
	return nil
}

func (g *sallyport) writeFiles(dir, token string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	for name, text := range map[string]string{
		"token":           token + "\n",
		"state.yaml":      fmt.Sprintf(stateText, pairPool, gatewayIn.Addr(), innerCIDR, pair[0], pair[1]),
		"sallyportd.yaml": fmt.Sprintf(daemonText, adminAddress, firstPort, lastPort, g.uplink, serverLink.Addr()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write a file of the daemon: %w", err)
		}
	}
	return nil
}

func (g *sallyport) stop() error {
	if g.daemon == nil {
		return nil
	}
	if err := g.daemon.Stop(); err != nil {
		return errors.Join(err, errors.New("it said: "+g.daemon.Tail()))
	}
	return nil
}
