package compare

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// comparator is the program's name in the folder of ours. It is built from the same
// module that our programs use: distributions have it years older.
const comparator = "wireguard-go"

// harness is the harness's own program, which has a gateway to compare with in it.
const harness = "sallyport-bench"

// The variants.
const (
	variantDirect    = "direct"
	variantWireGuard = "wireguard-go"
	variantGVisor    = "gvisor"
	variantKernel    = "kernel"
	variantSockets   = "sockets"
	variantTun       = "tun"
)

// Variants are all that can be compared.
func Variants() []string {
	return []string{variantDirect, variantWireGuard, variantGVisor, variantKernel, variantSockets, variantTun}
}

// variantTitle says what a variant is.
func variantTitle(name string) string {
	switch name {
	case variantDirect:
		return "no tunnel: the kernel forwards, nftables SNAT"
	case variantWireGuard:
		return "wireguard-go with its TUN, nftables SNAT"
	case variantGVisor:
		return "wireguard-go with its TUN, gVisor's NAT between them"
	case variantKernel:
		return "the kernel's WireGuard, nftables SNAT; it encrypts on all cores, of which one is counted"
	default:
		return "sallyportd, uplink " + name
	}
}

func (b *bench) newGateway(variant string) gateway {
	switch variant {
	case variantDirect:
		return direct{}
	case variantWireGuard:
		return &wireguardGo{cfg: b.cfg}
	case variantGVisor:
		return &wireguardGVisor{cfg: b.cfg}
	case variantKernel:
		return kernelWireGuard{}
	default:
		return &sallyport{cfg: b.cfg, dir: b.dir, uplink: variant}
	}
}

// masquerade lets the kernel translate what leaves by the gateway's far link.
func masquerade(gw *netlab.Namespace) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`table ip compare {
	chain postrouting {
		type nat hook postrouting priority srcnat;
		oifname "%s" ip saddr %v snat to %v
	}
}
`, linkOut, innerCIDR, pair[0]))
	if err := gw.Run(cmd); err != nil {
		return err
	}
	forgetSoon(gw)
	return nil
}

// direct is a gateway without a tunnel: what the chain itself can do.
type direct struct{}

func (direct) start(_ context.Context, c *chain, peers []*peer) (*tunnel, int, error) {
	peers[0].inner = innerCIDR.Addr().Next().Next()
	c.sandbox.Address(linkSide, netip.PrefixFrom(peers[0].inner, innerCIDR.Bits()))
	c.gateway.Address(linkIn, netip.PrefixFrom(innerCIDR.Addr().Next(), innerCIDR.Bits()))
	c.sandbox.Route(everything, innerCIDR.Addr().Next())
	if err := c.lab.Err(); err != nil {
		return nil, 0, err
	}
	return nil, 0, masquerade(c.gateway)
}

func (direct) stop() error { return nil }

// wireguardGo is the gateway that one would build without us.
type wireguardGo struct {
	cfg    *Config
	device *netlab.WireGuard
}

func (g *wireguardGo) start(ctx context.Context, c *chain, peers []*peer) (*tunnel, int, error) {
	var err error
	g.device, err = c.gateway.WireGuard(ctx, netlab.WireGuardConfig{Program: g.cfg.program(comparator), Wrap: testbed.OnCore(c.core)})
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
	if err := g.device.Up(innerMTU, []netip.Prefix{netip.PrefixFrom(innerCIDR.Addr().Next(), innerCIDR.Bits())}, nil); err != nil {
		return nil, 0, err
	}
	return t, g.device.PID(), masquerade(c.gateway)
}

func (g *wireguardGo) stop() error {
	if g.device == nil {
		return nil
	}
	return g.device.Stop()
}
