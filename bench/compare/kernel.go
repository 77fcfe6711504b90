package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// kernelLink is the kernel's WireGuard interface, in a namespace of its own.
const kernelLink = "wg0"

// errNotPossible says that this machine cannot have a variant, which is no failure.
var errNotPossible = errors.New("not possible here")

// kernelWireGuard is a gateway of the kernel alone. No process is its own: only the core's
// time counts.
type kernelWireGuard struct{}

func (kernelWireGuard) start(_ context.Context, c *chain, peers []*peer) (*tunnel, int, error) {
	if err := c.gateway.Run(exec.Command("ip", "link", "add", kernelLink, "type", "wireguard")); err != nil {
		if strings.Contains(err.Error(), "Unknown device type") || strings.Contains(err.Error(), "not supported") {
			return nil, 0, fmt.Errorf("%w: this kernel has no WireGuard (module wireguard, CONFIG_WIREGUARD)", errNotPossible)
		}
		return nil, 0, err
	}
	t, text, err := stockGateway(peers)
	if err != nil {
		return nil, 0, err
	}
	configure := exec.Command("wg", "setconf", kernelLink, "/dev/stdin")
	configure.Stdin = strings.NewReader(text)
	own := netip.PrefixFrom(innerCIDR.Addr().Next(), innerCIDR.Bits())
	for _, cmd := range []*exec.Cmd{
		configure,
		exec.Command("ip", "address", "add", own.String(), "dev", kernelLink),
		exec.Command("ip", "link", "set", kernelLink, "mtu", strconv.Itoa(innerMTU), "up"),
	} {
		if err := c.gateway.Run(cmd); err != nil {
			return nil, 0, err
		}
	}
	return t, 0, masquerade(c.gateway)
}

func (kernelWireGuard) stop() error { return nil } // it ends with its namespace

// stockGateway gives peers addresses, and makes the gateway's end of a tunnel for them: what
// they know of it, and its configuration as wg takes it.
func stockGateway(peers []*peer) (*tunnel, string, error) {
	private, public, err := netlab.NewWireGuardKey()
	if err != nil {
		return nil, "", err
	}
	text := fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = %d\n", private, firstPort)
	last := innerCIDR.Addr().Next() // the gateway's
	for _, p := range peers {
		last = last.Next()
		p.inner = last
		text += fmt.Sprintf("[Peer]\nPublicKey = %s\nAllowedIPs = %v/32\n", p.public, p.inner)
	}
	return &tunnel{public: public, endpoint: netip.AddrPortFrom(gatewayIn.Addr(), firstPort), mtu: innerMTU}, text, nil
}
