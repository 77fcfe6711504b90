package compare

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The addresses of each chain.
var (
	sandboxLink = netip.MustParsePrefix("198.51.100.2/24")
	gatewayIn   = netip.MustParsePrefix("198.51.100.1/24")
	gatewayOut  = netip.MustParsePrefix("192.0.2.1/24")
	serverLink  = netip.MustParsePrefix("192.0.2.80/24")
	pairPool    = netip.MustParsePrefix("203.0.113.0/28")
	pair        = [2]netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")}
	innerCIDR   = netip.MustParsePrefix("10.20.0.0/16")
	everything  = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
)

const (
	innerMTU  = 1420
	firstPort = 51820
	lastPort  = 51829
)

// Names of links, as their namespaces have them.
const (
	linkIn   = "in"   // the gateway's, to the sandbox
	linkOut  = "out"  // the gateway's, to the server
	linkSide = "eth0" // the sandbox's and the server's
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
	lab                      *netlab.Lab
	sandbox, gateway, server *netlab.Namespace
	what                     gateway
	gatewayPID               int
	tunnel                   *tunnel // nil: there is none
	end                      *netlab.WireGuard
	small                    *source // of small packets, through a tunnel of its own
	remote                   *remote // where they go
	port                     int     // of the last transfer, counted from the first
}

// newChain starts a variant with all that measures it, and stops its processes.
// The chain is returned with an error, too; close it then as well.
func (b *bench) newChain(ctx context.Context, variant string) (c *chain, err error) {
	lab := netlab.New()
	c = &chain{name: variant, core: b.cfg.Core, lab: lab, what: b.newGateway(variant)}
	c.sandbox, c.gateway, c.server = lab.Namespace("sandbox"), lab.Namespace("gateway"), lab.Namespace("server")
	lab.Connect(
		netlab.End{Namespace: c.sandbox, Link: linkSide, Address: sandboxLink},
		netlab.End{Namespace: c.gateway, Link: linkIn, Address: gatewayIn})
	lab.Connect(
		netlab.End{Namespace: c.gateway, Link: linkOut, Address: gatewayOut},
		netlab.End{Namespace: c.server, Link: linkSide, Address: serverLink})
	c.server.Route(pairPool, gatewayOut.Addr())
	c.gateway.Forward(true)
	if err := lab.Err(); err != nil {
		return c, err
	}
	if err := c.steer(); err != nil {
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

// steer lets the kernel work for what arrives at the gateway on the gateway's core,
// and for what arrives elsewhere on the others: by itself a veth does it on the
// core of whoever sent.
func (c *chain) steer() error {
	var cores unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cores); err != nil { // without the gateway's by now
		return fmt.Errorf("ask for the cores: %w", err)
	}
	var others uint64
	for i := range 64 {
		if cores.IsSet(i) {
			others |= 1 << i
		}
	}
	for _, l := range []struct {
		on   *netlab.Namespace
		link string
		mask uint64
	}{{c.gateway, linkIn, 1 << c.core}, {c.gateway, linkOut, 1 << c.core}, {c.sandbox, linkSide, others}, {c.server, linkSide, others}} {
		// /sys shows the namespace of whoever mounted it.
		script := `mount -t sysfs sysfs /sys && for q in /sys/class/net/$0/queues/rx-*/rps_cpus; do echo $1 > $q || exit 1; done`
		cmd := exec.Command("unshare", "--mount", "sh", "-c", script, l.link, strconv.FormatUint(l.mask, 16))
		if err := l.on.Run(cmd); err != nil {
			return fmt.Errorf("steer packets of %s to cores: %w", l.on, err)
		}
	}
	return nil
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
	if c.remote, err = newRemote(c.server); err != nil {
		return err
	}
	c.small, err = newSource(c.sandbox, c.tunnel, peers[1])
	return err
}

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
	if c.small != nil {
		c.small.close()
	}
	if c.remote != nil {
		c.remote.close()
	}
	err := errors.Join(c.what.stop(), c.lab.Close())
	if err != nil {
		return fmt.Errorf("end %s: %s", c.name, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}
