package scenario

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/far"
	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/bench/traffic"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// The far side of a chain, and its further addresses, of the range for benchmarks (RFC 2544).
const farPort = 9000

func chainRemotes() netip.Prefix { return netip.MustParsePrefix("198.18.0.0/22") }

// chain is a gateway of ours in namespaces, with a far side in this process.
type chain struct {
	bed     *testbed.Testbed
	gateway *testbed.Sallyport
	far     *far.Server
	key     [wire.KeySize]byte
	dir     string
	back    func() // to all cores
	facts   about
	ended   atomic.Pointer[error] // why the daemon is no more
	tell    context.CancelCauseFunc
}

// chainUsable says why no chain can be built here.
func chainUsable(cfg *Config) error {
	needs := testbed.Needs{Programs: []string{"ip"}, Built: []string{"sallyportd"}, Bin: cfg.Bin, Make: "make build", Core: cfg.Core}
	if cfg.Core != testbed.AnyCore {
		needs.Programs, needs.Alone, needs.Shared = append(needs.Programs, "taskset", "unshare", "mount"), true, " -1 shares"
		needs.Root = "only root may steer packets to cores: run it as root, or with --core -1, which needs a user namespace at least (unshare -Urn; --uplink sockets alone)"
	}
	if err := needs.Check(); err != nil {
		return fmt.Errorf("no chain can be built here: %w", err)
	}
	return nil
}

// newChain builds a chain. tell is told when its gateway ends by itself. The chain is
// returned with an error, too; close it then as well.
func newChain(ctx context.Context, cfg *Config, tell context.CancelCauseFunc) (c *chain, err error) {
	c = &chain{back: func() {}, tell: tell}
	if err := chainUsable(cfg); err != nil {
		return c, err
	}
	if cfg.Core != testbed.AnyCore {
		if c.back, err = testbed.LeaveCore(cfg.Core); err != nil {
			c.back = func() {}
			return c, err
		}
	}
	if c.dir, err = os.MkdirTemp("", "sallyport-run-"); err != nil {
		return c, fmt.Errorf("make a folder for the daemon's files: %w", err)
	}
	if c.bed, err = testbed.New(testbed.Config{Core: cfg.Core, Remotes: chainRemotes()}); err != nil {
		return c, err
	}
	_, _ = rand.Read(c.key[:]) // never fails
	c.far, err = far.New(far.Config{
		Listen:   netip.AddrPortFrom(testbed.ServerLink.Addr(), farPort),
		Prefixes: []netip.Prefix{chainRemotes()}, Key: c.key, In: c.bed.Server,
	})
	if err != nil {
		return c, err
	}
	logs := cfg.KeepLogs
	if logs == "" {
		logs = c.dir
	}
	dctx, giveUp := context.WithCancelCause(ctx)
	context.AfterFunc(dctx, func() {
		if why := context.Cause(dctx); ctx.Err() == nil {
			c.ended.Store(&why)
			tell(why)
		}
	})
	c.gateway, err = c.bed.StartSallyport(dctx, testbed.SallyportConfig{
		Uplink: cfg.Uplink, Program: filepath.Join(cfg.Bin, "sallyportd"), Dir: filepath.Join(c.dir, "gateway"),
		Log: filepath.Join(logs, "sallyportd-"+cfg.Uplink+".log"), GiveUp: giveUp,
	})
	c.facts = about{Kind: cfg.kind(), Uplink: cfg.Uplink, Pair: testbed.Pair[:], Far: netip.AddrPortFrom(testbed.ServerLink.Addr(), farPort)}
	return c, err
}

func (c *chain) about() about         { return c.facts }
func (c *chain) place() traffic.Place { return c.bed.Sandbox }
func (c *chain) fixed() []traffic.End { return nil }

func (c *chain) attach(ctx context.Context, public string) (attached, error) {
	a, err := c.gateway.Attach(ctx, public)
	if err != nil {
		return attached{}, err
	}
	return attachedOf(a), nil
}

// gone implements gateway. The error has the end of the daemon's log.
func (c *chain) gone() error {
	if why := c.ended.Load(); why != nil {
		return fmt.Errorf("the gateway is no more: %w; it said: %s", *why, c.gateway.Tail())
	}
	return nil
}

// kill ends the gateway as a fault would.
func (c *chain) kill() error { return unix.Kill(c.gateway.PID(), syscall.SIGKILL) }

// close ends all of it.
func (c *chain) close(context.Context) error {
	defer c.back()
	var errs []error
	if c.gateway != nil && c.ended.Load() == nil {
		errs = append(errs, c.gateway.Stop())
	}
	if c.far != nil {
		errs = append(errs, c.far.Close())
	}
	if c.bed != nil {
		errs = append(errs, c.bed.Close())
	}
	if c.dir != "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("end the chain: %w", err)
	}
	return nil
}
