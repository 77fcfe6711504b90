package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The addresses of each chain.
var (
	gatewayIn  = testbed.GatewayIn
	serverLink = testbed.ServerLink
	pair       = testbed.Pair
	innerCIDR  = testbed.InnerCIDR
	everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
)

const (
	innerMTU  = 1420
	firstPort = 51820

	linkIn   = testbed.LinkIn
	linkOut  = testbed.LinkOut
	linkSide = testbed.LinkSide
)

// peer is a sandbox's end of a tunnel, as the gateway knows it.
type peer struct {
	private, public string     // keys, in base64
	inner           netip.Addr // given by the gateway
}

// tunnel is the gateway's end, as sandboxes know it.
type tunnel struct {
	public   string // key, in base64
	endpoint netip.AddrPort
	mtu      int
}

// gateway is what is compared.
type gateway interface {
	// start starts it on the chain's gateway and lets the peers in, whose inner
	// addresses it fills in. A gateway without a tunnel returns nil. The process is
	// the one whose time counts; 0: the kernel does all.
	start(ctx context.Context, c *chain, peers []*peer) (t *tunnel, pid int, err error)
	stop() error
}

// chain is a sandbox, a gateway and a server in a row.
type chain struct {
	name                     string
	core                     int
	bed                      *testbed.Testbed
	lab                      *netlab.Lab
	sandbox, gateway, server *netlab.Namespace
	what                     gateway
	gatewayPID               int
	tunnel                   *tunnel // nil: there is none
	end                      *netlab.WireGuard
	datagrams                *datagrams // through a tunnel of its own
	short                    *short     // connections, through the tunnel of datagrams
	port                     int        // of the last transfer, counted from the first
}

// newChain starts a variant with all that measures it, and stops its processes.
// The chain is returned with an error, too; close it then as well.
func (b *bench) newChain(ctx context.Context, variant string) (c *chain, err error) {
	bed, err := testbed.New(testbed.Config{Core: b.cfg.Core})
	c = &chain{name: variant, core: b.cfg.Core, bed: bed, lab: bed.Lab, what: b.newGateway(variant),
		sandbox: bed.Sandbox, gateway: bed.Gateway, server: bed.Server}
	if err != nil {
		return c, err
	}
	var peers []*peer
	for range 2 {
		p := &peer{}
		if p.private, p.public, err = netlab.NewWireGuardKey(); err != nil {
			return c, err
		}
		peers = append(peers, p)
	}
	if c.tunnel, c.gatewayPID, err = c.what.start(ctx, c, peers); err != nil {
		return c, err
	}
	if c.tunnel != nil {
		if c.tunnel.mtu != innerMTU {
			return c, fmt.Errorf("its tunnel has an MTU of %d and not of %d as others: that is not the same work", c.tunnel.mtu, innerMTU)
		}
		if err := c.connect(ctx, b.cfg, peers); err != nil {
			return c, err
		}
	}
	if _, err := c.transfer(ctx, grace, "--bytes", "64K"); err != nil {
		return c, fmt.Errorf("the sandbox does not reach the server: %w", err)
	}
	return c, c.signal(unix.SIGSTOP)
}

// connect makes the sandbox's ends of the tunnels.
func (c *chain) connect(ctx context.Context, cfg *Config, peers []*peer) (err error) {
	if c.end, err = c.sandbox.WireGuard(ctx, netlab.WireGuardConfig{Program: cfg.program(comparator)}); err != nil {
		return err
	}
	if err := c.end.Configure(fmt.Sprintf("[Interface]\nPrivateKey = %s\n[Peer]\nPublicKey = %s\nEndpoint = %v\nAllowedIPs = %v\n",
		peers[0].private, c.tunnel.public, c.tunnel.endpoint, everything)); err != nil {
		return err
	}
	if err := c.end.Up(c.tunnel.mtu, []netip.Prefix{netip.PrefixFrom(peers[0].inner, 32)}, []netip.Prefix{everything}); err != nil {
		return err
	}
	if c.datagrams, err = newDatagrams(ctx, c, peers[1]); err != nil {
		return err
	}
	c.short, err = newShort(c, peers[1])
	return err
}

// spent is what the gateway has spent so far, with a process of its own or without.
func (c *chain) spent(ctx context.Context) (trial.Usage, error) { return c.meter().Read(ctx) }

func (c *chain) meter() trial.Meter { return trial.Local{PID: c.gatewayPID, Core: c.core} }

// processes are those that do nothing for other chains.
func (c *chain) processes() (pids []int) {
	if c.gatewayPID != 0 {
		pids = append(pids, c.gatewayPID)
	}
	if c.end != nil {
		pids = append(pids, c.end.PID())
	}
	return pids
}

// signal sends a signal to the chain's processes.
func (c *chain) signal(s syscall.Signal) error {
	for _, pid := range c.processes() {
		if err := unix.Kill(pid, s); err != nil {
			return fmt.Errorf("send %v to a process of %s, which has ended: %w", s, c.name, err)
		}
	}
	return nil
}

// close ends all of it.
func (c *chain) close() error {
	_ = c.signal(unix.SIGCONT) // what ended has said so before
	if c.datagrams != nil {
		c.datagrams.close()
	}
	if c.short != nil {
		c.short.close()
	}
	err := errors.Join(c.what.stop(), c.lab.Close())
	if err != nil {
		return fmt.Errorf("end %s: %s", c.name, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}
