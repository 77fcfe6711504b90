package compare

import (
	"context"
	"path/filepath"

	"github.com/sallyport-net/sallyport/bench/testbed"
)

// sallyport is sallyportd with one of its uplinks.
type sallyport struct {
	cfg    *Config
	dir    string // of files; it gets a folder of its own there
	uplink string
	daemon *testbed.Sallyport
}

func (g *sallyport) start(ctx context.Context, c *chain, peers []*peer) (*tunnel, int, error) {
	dir := filepath.Join(g.dir, g.uplink)
	logs := g.cfg.KeepLogs
	if logs == "" {
		logs = dir
	}
	ctx, giveUp := context.WithCancelCause(ctx)
	var err error
	g.daemon, err = c.bed.StartSallyport(ctx, testbed.SallyportConfig{
		Uplink: g.uplink, Program: g.cfg.program("sallyportd"), Dir: dir, Log: filepath.Join(logs, g.uplink+".log"),
		Settings: lifted,
		GiveUp:   giveUp, // later its end is found by the next signal to it
	})
	if err != nil {
		return nil, 0, err
	}
	t := &tunnel{}
	for _, p := range peers {
		a, err := g.daemon.Attach(ctx, p.public)
		if err != nil {
			return nil, 0, err
		}
		p.inner = a.Attachment.Inner
		*t = tunnel{public: a.Gateways[0].PublicKey, endpoint: a.Gateways[0].Endpoint, mtu: a.Network.MTU}
	}
	return t, g.daemon.PID(), nil
}

func (g *sallyport) stop() error {
	if g.daemon == nil {
		return nil
	}
	return g.daemon.Stop()
}
