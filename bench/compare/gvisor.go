package compare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/netstack/snat"
)

// GVisorCommand is the subcommand of the harness that runs [GVisor].
const GVisorCommand = "wireguard-gvisor"

// GVisor is wireguard-go with its TUN and its sockets, all unmodified, and gVisor's own
// NAT between WireGuard's device and the TUN, in one process. It makes a TUN by that
// name, takes configurations by wg as wireguard-go does, and ends with ctx.
func GVisor(ctx context.Context, name string) error {
	far, err := tun.CreateTUN(name, innerMTU)
	if err != nil {
		return fmt.Errorf("make the TUN %s: %w", name, err)
	}
	near, err := snat.New(far, snat.Config{Inside: innerCIDR, External: pair[0], MTU: innerMTU})
	if err != nil {
		return errors.Join(err, far.Close())
	}
	d := device.NewDevice(near, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, "("+name+") "))
	defer d.Close()
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return fmt.Errorf("make the socket that wg looks for: %w", err)
	}
	orders, err := ipc.UAPIListen(name, file)
	if err != nil {
		return fmt.Errorf("listen at the socket that wg looks for: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- obey(orders, d) }()
	select {
	case <-ctx.Done():
	case <-d.Wait():
		err = fmt.Errorf("the device %s has ended: %w", name, os.ErrClosed)
	case err = <-ended:
	}
	return errors.Join(err, orders.Close())
}

// obey lets wg configure a device until the listener fails or is closed.
func obey(orders net.Listener, d *device.Device) error {
	for {
		c, err := orders.Accept()
		if err != nil {
			return fmt.Errorf("take an order of wg: %w", err)
		}
		go d.IpcHandle(c)
	}
}

// wireguardGVisor is a gateway that one would build of modules alone.
type wireguardGVisor struct {
	cfg    *Config
	device *netlab.WireGuard
}

func (g *wireguardGVisor) start(ctx context.Context, c *chain, peers []*peer) (*tunnel, int, error) {
	wrap := append(testbed.OnCore(c.core), g.cfg.program(harness))
	var err error
	g.device, err = c.gateway.WireGuard(ctx, netlab.WireGuardConfig{Program: GVisorCommand, Wrap: wrap})
	if err != nil {
		return nil, 0, err
	}
	t, text, err := stockGateway(peers)
	if err != nil {
		return nil, 0, err
	}
	if err := g.device.Configure(text); err != nil {
		return nil, 0, err
	}
	// The kernel sees translated packets: what is for the external address goes to the TUN.
	if err := g.device.Up(innerMTU, nil, []netip.Prefix{netip.PrefixFrom(pair[0], pair[0].BitLen())}); err != nil {
		return nil, 0, err
	}
	return t, g.device.PID(), nil
}

func (g *wireguardGVisor) stop() error {
	if g.device == nil {
		return nil
	}
	return g.device.Stop()
}
