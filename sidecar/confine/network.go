package confine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/tundev"
	"github.com/sallyport-net/sallyport/sidecar/handover"
)

const (
	tunName  = "tun0"
	nearName = "veth0" // the sandbox's end
	farName  = "far0"  // the sidecar's end
	// lastMetric is that of the routes that refuse: behind any that programs expect.
	lastMetric = 1 << 20
)

// The Ethernet addresses of the two ends of a veth pair, which nobody else ever
// sees: locally administered ones.
func nearMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x53, 0x61, 0x50, 0, 1} }
func farMAC() net.HardwareAddr  { return net.HardwareAddr{0x02, 0x53, 0x61, 0x50, 0, 2} }

// wire is the sandbox's interface, ready to be handed over.
type wire struct {
	message handover.Message
	file    *os.File
	notes   []string
}

// makeNetwork makes the sandbox's interface and its routes in the network
// namespace of this process.
func makeNetwork(s settings) (wire, error) {
	here, err := hostnet.Here()
	if err != nil {
		return wire{}, fmt.Errorf("open the sandbox's network namespace: %w", err)
	}
	defer func() { _ = here.Close() }()
	// Before the interface is made, so that not even a router is asked for by IPv6.
	// Where that cannot be had, its packets are dropped at the far end.
	_ = here.Apply(hostnet.Plan{Sysctls: []hostnet.Sysctl{futureNoIPv6()}})
	if s.Interface != Veth {
		w, err := makeTUN(s, here)
		switch {
		case !errors.Is(err, errNoTUN):
			return w, err
		case s.Interface == TUN:
			return w, fail("make the sandbox's interface, for which nothing but a TUN was allowed: %w", err)
		}
		note := fmt.Sprintf("a veth pair is used: %v", err)
		w, err = makeVeth(s, here)
		w.notes = append(w.notes, note)
		return w, err
	}
	return makeVeth(s, here)
}

// errNoTUN says that the machine gives no TUN; a veth pair may still be had.
var errNoTUN = errors.New("no TUN here")

// makeTUN makes a TUN and its routes.
func makeTUN(s settings, here *hostnet.Kernel) (wire, error) {
	f, err := tundev.CreateTUN(tunName, true)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: %w", errNoTUN, err)
	}
	if err != nil {
		return wire{}, err
	}
	if err := here.Apply(plan(s, hostnet.Link{Name: tunName, MTU: s.MTU})); err != nil {
		_ = f.Close()
		return wire{}, fmt.Errorf("set the sandbox's interface up: %w", err)
	}
	return wire{message: handover.Message{Type: handover.TUN}, file: f}, nil
}

// makeVeth makes a veth pair with its far end in a namespace of its own, and
// its routes. That namespace has neither process nor name, so that it ends with
// the packet socket, and the pair with it.
func makeVeth(s settings, here *hostnet.Kernel) (wire, error) {
	near, err := hostnet.CurrentNamespace()
	if err != nil {
		return wire{}, fmt.Errorf("open the sandbox's network namespace: %w", err)
	}
	defer func() { _ = near.Close() }()
	far, err := hostnet.NewNamespace()
	if err != nil {
		return wire{}, fmt.Errorf("make the network namespace of the sidecar's end: %w", err)
	}
	defer func() { _ = far.Close() }()
	err = hostnet.VethPair(
		hostnet.VethEnd{Namespace: near, Name: nearName, MAC: nearMAC()},
		hostnet.VethEnd{Namespace: far, Name: farName, MAC: farMAC()})
	if err != nil {
		return wire{}, fmt.Errorf("make the sandbox's interface: %w", err)
	}
	if err := raiseFar(s, far); err != nil {
		return wire{}, err
	}
	var f *os.File
	err = far.Do(func() (err error) {
		f, err = tundev.OpenPacket(farName)
		return err
	})
	if err != nil {
		return wire{}, fmt.Errorf("open the sidecar's end of the sandbox's interface: %w", err)
	}
	if err := here.Apply(plan(s, hostnet.Link{Name: nearName, MTU: s.MTU, NoARP: true})); err != nil {
		_ = f.Close()
		return wire{}, fmt.Errorf("set the sandbox's interface up: %w", err)
	}
	if err := awaitCarrier(here, far); err != nil {
		_ = f.Close()
		return wire{}, err
	}
	m := handover.Message{Type: handover.Packet, LocalMAC: handover.MAC(farMAC()), PeerMAC: handover.MAC(nearMAC())}
	return wire{message: m, file: f}, nil
}

// carrierTimeout is how long the kernel may take to open a pair's queues.
const carrierTimeout = 5 * time.Second

// awaitCarrier waits until both ends take packets, so that the command's first
// one is not lost.
func awaitCarrier(here *hostnet.Kernel, far *hostnet.Namespace) error {
	k, err := far.Host()
	if err != nil {
		return fmt.Errorf("open the network namespace of the sidecar's end: %w", err)
	}
	defer func() { _ = k.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), carrierTimeout)
	defer cancel()
	if err := errors.Join(here.AwaitCarrier(ctx, nearName), k.AwaitCarrier(ctx, farName)); err != nil {
		return fmt.Errorf("wait until the sandbox's interface takes packets: %w", err)
	}
	return nil
}

// raiseFar brings the sidecar's end up, without IPv6 where that can be had: its
// namespace has nothing to say.
func raiseFar(s settings, far *hostnet.Namespace) error {
	k, err := far.Host()
	if err != nil {
		return fmt.Errorf("open the network namespace of the sidecar's end: %w", err)
	}
	defer func() { _ = k.Close() }()
	_ = k.Apply(hostnet.Plan{Sysctls: noIPv6()})
	err = k.Apply(hostnet.Plan{Links: []hostnet.Link{{Name: farName, MTU: s.MTU, NoARP: true}}})
	if err != nil {
		return fmt.Errorf("set the sidecar's end of the sandbox's interface up: %w", err)
	}
	return nil
}

// plan is the whole network of a sandbox: loopback, one interface, one address.
// The routes that refuse speak up when the interface is gone, so that programs
// fail at once.
func plan(s settings, link hostnet.Link) hostnet.Plan {
	return hostnet.Plan{
		Links:     []hostnet.Link{{Name: "lo"}, link},
		Addresses: []hostnet.Address{{Link: link.Name, Prefix: netip.PrefixFrom(s.Inner, 32)}},
		Routes: []hostnet.Route{
			{Prefix: hostnet.DefaultIPv4, Link: link.Name},
			{Prefix: hostnet.DefaultIPv4, Kind: hostnet.Unreachable, Metric: lastMetric},
			{Prefix: hostnet.DefaultIPv6, Kind: hostnet.Unreachable, Metric: lastMetric},
		},
	}
}

// noIPv6 switches IPv6 off on all interfaces, present and future. Routes of
// IPv6 cannot be made any more then.
func noIPv6() []hostnet.Sysctl {
	return []hostnet.Sysctl{{Name: "net.ipv6.conf.all.disable_ipv6", Value: "1"}, futureNoIPv6()}
}

// futureNoIPv6 switches IPv6 off on interfaces that are made from now on.
func futureNoIPv6() hostnet.Sysctl {
	return hostnet.Sysctl{Name: "net.ipv6.conf.default.disable_ipv6", Value: "1"}
}

// quiet sets what makes the sandbox more pleasant and is no part of its
// confinement: IPv6 is off rather than refused, ping works without capabilities,
// and low ports may be bound. Containers often forbid it; the notes say so.
func quiet() []string {
	k, err := hostnet.Here()
	if err != nil {
		return []string{err.Error()}
	}
	defer func() { _ = k.Close() }()
	gid := strconv.Itoa(os.Getgid())
	wishes := append(noIPv6(), hostnet.Sysctl{Name: "net.ipv4.ip_unprivileged_port_start", Value: "0"})
	var notes []string
	// Written without a look: groups that do not exist here read as 65534, which a
	// caller of that very group could not tell from its own.
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(gid+" "+gid), 0); err != nil {
		notes = append(notes, fmt.Sprintf("let ping work without capabilities: %v", err))
	}
	for _, w := range wishes {
		if err := k.Apply(hostnet.Plan{Sysctls: []hostnet.Sysctl{w}}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			notes = append(notes, err.Error())
		}
	}
	return notes
}
