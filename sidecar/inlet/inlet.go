// Package inlet makes a sandbox's interface in a network namespace that somebody
// else made: a runtime that wants its sandbox attached and not started by us.
//
// There are three kinds. All of them end with this process, because the end that
// is not the sandbox's is a descriptor here, or lies in a namespace that only a
// descriptor here keeps:
//
//   - TUN: an interface that carries IP packets. It is made in a namespace of our own
//     and moved from there, because its descriptor keeps the namespace that it was
//     opened in: so the sandbox's can end, which ends the TUN and is seen here.
//   - Veth: a veth pair for who wants Ethernet, such as gVisor. Its far end lies
//     in our namespace, under a packet socket.
//   - TAP: one more for who opens a TAP by its name, such as Firecracker: a TAP and
//     one end of a pair in a bridge, in the sandbox's namespace. The stack to be
//     addressed is that of the guest behind the TAP.
//
// In this order: [Find] the namespace, [Place.Check] it, [Maker.Open] the interface.
// Before the interface is there, everything is refused (unreachable routes of both
// families), and so it is when the interface has gone. Undo takes everything away where
// the sandbox could not be attached after all.
package inlet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/tundev"
)

// Kind is how the sandbox's packets come out of it.
type Kind string

// The kinds.
const (
	TUN  Kind = "tun"
	Veth Kind = "veth"
	TAP  Kind = "tap"
)

const (
	// lastMetric is that of the routes that refuse: behind any that programs expect.
	lastMetric = 1 << 20
	// The links behind a TAP, in the sandbox's namespace.
	bridgeName = "sallybr0"
	portName   = "sallyport0"
	// usualMTU is what a guest behind a TAP sends that was not told of another: it
	// must arrive, so that it can be answered.
	usualMTU = 1500
	// carrierTimeout is how long the kernel may take to open a pair's queues.
	carrierTimeout = 5 * time.Second
)

// exec is what is left where the sidecar may not, or cannot.
const exec = "or start the command with `sallyport-sidecar exec`, which needs no privilege"

// gatewayMAC is the Ethernet address of every sandbox's gateway: each has an
// Ethernet of its own, and a guest may be thawed in another.
func gatewayMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x53, 0x61, 0x50, 0, 2} }

// sandboxMAC is that of the sandbox with an inner address: locally administered.
func sandboxMAC(inner netip.Addr) net.HardwareAddr {
	b := inner.As4()
	return net.HardwareAddr{0x02, 0x53, b[0], b[1], b[2], b[3]}
}

// Config is an interface that shall be.
type Config struct {
	Kind Kind
	// Link is its name; empty for tun0, eth0 or tap0, by kind.
	Link string
	// Owner is the ID of the user who may open a TAP besides root; negative for nobody.
	Owner int
	// OtherLinks allows that the namespace has links already. What goes by them is none
	// of ours.
	OtherLinks bool
	// Inner is the sandbox's address, Gateway the one that Ethernet kinds send everything to.
	Inner, Gateway netip.Addr
	// Device is what the devices of all sandboxes have in common. Its MTU is also the
	// interface's, in bytes.
	Device tundev.Config
}

// Named returns c with the name that its kind has for the link, if it has none.
func (c Config) Named() Config {
	if c.Link == "" {
		c.Link = map[Kind]string{TUN: "tun0", Veth: "eth0", TAP: "tap0"}[c.Kind]
	}
	return c
}

// validate says what cannot be.
func (c Config) validate() error {
	switch {
	case c.Kind != TUN && c.Kind != Veth && c.Kind != TAP:
		return fmt.Errorf("there is no interface of kind %q: write %q, %q or %q", c.Kind, TUN, Veth, TAP)
	case !c.Inner.Is4() || !c.Gateway.Is4():
		return fmt.Errorf("the sandbox's address %v or its gateway's %v is not an IPv4 address", c.Inner, c.Gateway)
	}
	return nil
}

// Maker makes interfaces. It holds the namespace in which their far ends are. Its
// methods may be called by many goroutines.
type Maker struct {
	mu   sync.Mutex // guards what follows
	back *hostnet.Namespace
	last uint64
}

// behind returns the namespace of the far ends, a handle of the caller's own there, and
// a name that is free. A handle does one thing after the other, and the kernel lets
// whoever makes or ends an interface wait for milliseconds.
func (m *Maker) behind() (*hostnet.Namespace, *hostnet.Kernel, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := m.back == nil
	if fresh {
		ns, err := hostnet.NewNamespace()
		if err != nil {
			return nil, nil, "", fmt.Errorf("make the namespace of the sidecar's ends: %w", err)
		}
		m.back = ns
	}
	k, err := m.back.Host()
	if err != nil {
		return nil, nil, "", fmt.Errorf("enter the namespace of the sidecar's ends: %w", err)
	}
	if fresh {
		_ = k.Apply(hostnet.Plan{Sysctls: noIPv6()}) // else its packets are dropped one by one
	}
	m.last++
	return m.back, k, "sp" + strconv.FormatUint(m.last, 36), nil
}

// Close gives the namespace back. Interfaces of Ethernet kinds end with it once their
// sockets are closed.
func (m *Maker) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.back == nil {
		return nil
	}
	err := m.back.Close()
	m.back = nil
	return err
}

// Inlet is a sandbox's interface, as the device at its other end. Close ends the
// interface, too.
type Inlet struct {
	*tundev.Device
	Link Link
	far  string // the link in the maker's namespace, back; empty for a TUN
	back *hostnet.Namespace
}

// Link is what a guest needs to know of its interface, beyond its address.
type Link struct {
	Name string
	// MAC is the sandbox's Ethernet address, and Gateway and GatewayMAC the neighbour
	// to whom it sends everything. A TUN has none of them.
	MAC        net.HardwareAddr
	Gateway    netip.Addr
	GatewayMAC net.HardwareAddr
}

// Close implements tun.Device.
func (i *Inlet) Close() error {
	err := i.Device.Close()
	if i.far == "" {
		return err
	}
	host, hostErr := i.back.Host()
	if hostErr != nil {
		return err // the maker was closed, and the link has ended then
	}
	_ = host.Delete(i.far)
	return errors.Join(err, host.Close())
}

// Open makes the interface in a namespace, and refuses everything that would leave
// another way. It returns when the interface takes packets; nobody reads them yet.
// After an error nothing is left; the error says what is missing, and what does
// without.
func (m *Maker) Open(p *Place, c Config) (*Inlet, error) {
	c = c.Named()
	if err := c.validate(); err != nil {
		return nil, err
	}
	var i *Inlet
	err := p.refuseAll()
	if err == nil {
		if c.Kind == TUN {
			i, err = m.openTUN(p, c)
		} else {
			i, err = m.openEthernet(p, c)
		}
	}
	if err != nil {
		p.Undo(c)
		return nil, fmt.Errorf("make the interface %s in %v: %w", c.Link, p, remedied(c.Kind, err))
	}
	return i, nil
}

// remedied adds what would do instead.
func remedied(kind Kind, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) && kind == TUN:
		return fmt.Errorf("%w; ask for a veth pair, which needs no TUN (--ethernet veth), %s", err, exec)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; %s", err, exec)
	}
	return err
}

// openTUN makes a TUN in our namespace, and moves it.
func (m *Maker) openTUN(p *Place, c Config) (*Inlet, error) {
	back, host, name, err := m.behind()
	if err != nil {
		return nil, err
	}
	defer func() { _ = host.Close() }()
	var f *os.File
	err = back.Do(func() (err error) {
		f, err = tundev.CreateTUN(name, c.Device.Offload)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = host.Send(name, p.host, c.Link)
	if err == nil {
		err = p.host.Apply(hostnet.Plan{
			Links:     []hostnet.Link{{Name: c.Link, MTU: c.Device.MTU}},
			Addresses: []hostnet.Address{{Link: c.Link, Prefix: netip.PrefixFrom(c.Inner, 32)}},
			Routes:    []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: c.Link}},
		})
	}
	var dev *tundev.Device
	if err == nil {
		dev, err = tundev.FromTUN(f, c.Device)
	}
	if err != nil {
		_ = f.Close() // and the TUN with it
		return nil, err
	}
	return &Inlet{Device: dev, Link: Link{Name: c.Link}}, nil
}

// openEthernet makes a veth pair, whose near end is the sandbox's, or for a TAP is
// bridged to it.
func (m *Maker) openEthernet(p *Place, c Config) (*Inlet, error) {
	back, host, name, err := m.behind()
	if err != nil {
		return nil, err
	}
	defer func() { _ = host.Close() }()
	i := &Inlet{far: name, back: back, Link: Link{
		Name: c.Link, MAC: sandboxMAC(c.Inner), Gateway: c.Gateway, GatewayMAC: gatewayMAC(),
	}}
	near := hostnet.VethEnd{Namespace: p.namespace, Name: c.Link, MAC: i.Link.MAC}
	mtu := c.Device.MTU
	if c.Kind == TAP {
		mtu = max(mtu, usualMTU)
		near = hostnet.VethEnd{Namespace: p.namespace, Name: portName}
		if err := p.addTAP(c); err != nil {
			return nil, err
		}
	}
	if err := hostnet.VethPair(near, hostnet.VethEnd{Namespace: back, Name: name, MAC: gatewayMAC()}); err != nil {
		return nil, err
	}
	f, err := raise(back, host, hostnet.Link{Name: name, MTU: mtu, NoARP: true})
	if err == nil {
		if c.Kind == TAP {
			err = p.bridge(c.Link, mtu)
		} else {
			err = p.settle(c, i.Link)
		}
	}
	if err == nil {
		err = awaitCarrier(p.host, near.Name, host, name)
	}
	if err == nil {
		d := c.Device
		d.LocalMAC, d.PeerMAC, d.LocalAddr, d.PeerAddr = gatewayMAC(), i.Link.MAC, c.Gateway, c.Inner
		i.Device, err = tundev.FromEthernet(f, d)
	}
	if err != nil {
		if f != nil {
			_ = f.Close()
		}
		_ = host.Delete(name)
		return nil, err
	}
	return i, nil
}

// raise brings our end up and opens a packet socket on it.
func raise(back *hostnet.Namespace, host *hostnet.Kernel, link hostnet.Link) (*os.File, error) {
	if err := host.Apply(hostnet.Plan{Links: []hostnet.Link{link}}); err != nil {
		return nil, err
	}
	var f *os.File
	err := back.Do(func() (err error) {
		f, err = tundev.OpenPacket(link.Name)
		return err
	})
	return f, err
}

// awaitCarrier waits until both ends of a pair take packets, so that the first one
// is not lost.
func awaitCarrier(here *hostnet.Kernel, near string, there *hostnet.Kernel, far string) error {
	ctx, cancel := context.WithTimeout(context.Background(), carrierTimeout)
	defer cancel()
	return errors.Join(here.AwaitCarrier(ctx, near), there.AwaitCarrier(ctx, far))
}

// noIPv6 switches IPv6 off on all interfaces, present and future.
func noIPv6() []hostnet.Sysctl {
	return []hostnet.Sysctl{{Name: "net.ipv6.conf.all.disable_ipv6", Value: "1"}, futureNoIPv6()}
}

// futureNoIPv6 switches IPv6 off on interfaces that are made from now on.
func futureNoIPv6() hostnet.Sysctl {
	return hostnet.Sysctl{Name: "net.ipv6.conf.default.disable_ipv6", Value: "1"}
}
