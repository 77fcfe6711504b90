package uplink

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/tundev"
)

// How wires are known in the kernel: `ip route show table all proto 91` lists the routes
// of all of them, `ip rule` their rules. Wire number i has the priority wireBase+2i for
// its rules, the table of that number, and the next one, in which there is nothing.
const (
	wireTag    hostnet.Tag = 91
	wireBase               = 9100
	wireSlots              = 400
	wirePrefix             = "sallyp"
)

// wireMetric is that of the routes that stay when an interface goes, and drop.
const wireMetric = 1 << 20

// WireConfig is what a Wire is made of.
type WireConfig struct {
	// ID names the peering connection, from which the name of the TUN follows.
	ID string
	// Network is the inner addresses.
	Network netip.Prefix
	// Ranges are the other side's.
	Ranges []netip.Prefix
	// Interface is the interface of this machine that leads there.
	Interface string
	// NextHop is the router on its link; not set: the ranges are on the link itself.
	NextHop netip.Addr
}

// Equal reports whether two configurations are the same.
func (c WireConfig) Equal(o WireConfig) bool {
	return c.ID == o.ID && c.Network == o.Network && c.Interface == o.Interface && c.NextHop == o.NextHop && slices.Equal(c.Ranges, o.Ranges)
}

// Wire leads the packets of one peering connection out by an interface of this machine
// and back, as they are:
//
//	Write -> TUN -> rule: in by the TUN -> table: ranges -> interface, all else dropped
//	Read  <- TUN <- table: inner addresses <- rule: to inner addresses, in by the interface
//
// The table is the wire's own, so that networks with the same inner addresses do not
// meet. What this machine sends to inner addresses itself is dropped: it would be the
// answer to a mistake. When the process dies the TUN goes, and what is left of the table
// drops what is for inner addresses.
//
// Read belongs to one goroutine; all else may be called by any.
type Wire struct {
	cfg    WireConfig
	name   string
	kernel *hostnet.Kernel
	dev    *tundev.Device
	plan   hostnet.Plan
	close  func() error

	mu  sync.Mutex
	mtu int
}

// OpenWire sets a wire up. After an error nothing of it is left; the error says what is
// missing on this machine.
func OpenWire(c WireConfig) (*Wire, error) {
	k, err := hostnet.Here()
	if err != nil {
		return nil, err
	}
	w := &Wire{cfg: c, name: wireName(c.ID), kernel: k}
	w.close = sync.OnceValue(w.end)
	if err = w.open(); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// wireName is the name of the TUN of a connection.
func wireName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return fmt.Sprintf("%s%08x", wirePrefix, sum[:4])
}

// instead is what an error ends with where another kind would do.
const instead = "or reach the other side by kind wireguard, which needs no interface and no privilege"

func (w *Wire) open() error {
	link, err := w.kernel.Link(w.cfg.Interface)
	if err != nil {
		return w.missing(err)
	}
	w.mtu = link.MTU
	if err := w.conflict(); err != nil {
		return err
	}
	f, err := tundev.CreateTUN(w.name, true)
	if err != nil {
		return fmt.Errorf("%w; %s", err, instead)
	}
	if w.dev, err = tundev.FromTUN(f, tundev.Config{MTU: maxPacket}); err != nil {
		return errors.Join(err, f.Close())
	}
	slot, err := sweep(w.kernel, w.name)
	if err != nil {
		return err
	}
	w.plan = w.planAt(wireBase + 2*slot)
	if err := w.kernel.Apply(w.plan); err != nil {
		return fmt.Errorf("%w; %s", err, instead)
	}
	return w.trace()
}

// missing says that the interface is not there.
func (w *Wire) missing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("this machine has no interface %s (`ip link` lists those it has): bring it up, correct the peering's interface, %s: %w", w.cfg.Interface, instead, err)
	}
	return err
}

// conflict says which address of this machine is one of the network's: packets to it
// would never reach the sandbox.
func (w *Wire) conflict() error {
	held, err := w.kernel.Addresses()
	if err != nil {
		return err
	}
	for _, p := range held {
		if w.cfg.Network.Contains(p.Addr()) {
			on, _ := w.kernel.LinkOf(p.Addr())
			return fmt.Errorf("address %v on interface %s of this machine is an inner address of the network (%v): give the machine another, %s", p.Addr(), on, w.cfg.Network, instead)
		}
	}
	return nil
}

// planAt is what the kernel shall hold.
func (w *Wire) planAt(table int) hostnet.Plan {
	c, empty := w.cfg, table+1
	drop := func(to netip.Prefix, in int) hostnet.Route {
		return hostnet.Route{Prefix: to, Kind: hostnet.Blackhole, Table: in, Metric: wireMetric}
	}
	p := hostnet.Plan{
		Tag:     wireTag,
		Links:   []hostnet.Link{{Name: w.name, MTU: maxPacket}},
		Sysctls: []hostnet.Sysctl{{Name: "net/ipv4/conf/" + w.name + "/forwarding", Value: "1"}},
		// What drops comes first: at no moment there is another way.
		Routes: []hostnet.Route{
			drop(hostnet.DefaultIPv4, empty), drop(hostnet.DefaultIPv4, table),
			{Prefix: c.Network, Link: w.name, Table: table},
		},
		Rules: []hostnet.Rule{
			{Link: "lo", To: c.Network, Table: empty, Priority: table},
			{Link: c.Interface, To: c.Network, Table: table, Priority: table},
			{Link: w.name, Table: table, Priority: table},
		},
	}
	for _, r := range c.Ranges {
		p.Routes = append(p.Routes, hostnet.Route{Prefix: r, Link: c.Interface, Via: c.NextHop, Table: table})
	}
	return p
}

// Read returns packets of the other side, as tun.Device does.
func (w *Wire) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return w.dev.Read(bufs, sizes, offset)
}

// Write sends packets to the other side, as tun.Device does.
func (w *Wire) Write(bufs [][]byte, offset int) (int, error) { return w.dev.Write(bufs, offset) }

// MTU is the interface's, in bytes, as it was when the wire was looked at last.
func (w *Wire) MTU() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mtu
}

// Check asks the kernel whether packets take the way that they should, and brings it
// back where it was lost, as it is when the interface goes down for a moment.
func (w *Wire) Check() error {
	link, err := w.kernel.Link(w.cfg.Interface)
	if err != nil {
		return w.missing(err)
	}
	w.mu.Lock()
	w.mtu = link.MTU
	w.mu.Unlock()
	if !link.Up {
		return fmt.Errorf("interface %s is down: bring it up, %s", w.cfg.Interface, instead)
	}
	if err := w.conflict(); err != nil {
		return err
	}
	if w.trace() == nil {
		return nil
	}
	if err := w.kernel.Apply(w.plan); err != nil {
		return err
	}
	return w.trace()
}

// trace follows a packet to each range and its answer.
func (w *Wire) trace() error {
	inner := w.cfg.Network.Addr().Next()
	for _, r := range w.cfg.Ranges {
		far := r.Addr()
		out, err := w.kernel.Trace(inner, far, w.name)
		for err == nil && out == "lo" && r.Contains(far.Next()) { // this machine's own address in the range
			far = far.Next()
			out, err = w.kernel.Trace(inner, far, w.name)
		}
		if err == nil && out != w.cfg.Interface {
			err = w.astray(far, out)
		}
		if err == nil {
			if out, err = w.kernel.Trace(far, inner, w.cfg.Interface); err == nil && out != w.name {
				err = w.astray(inner, out)
			}
		}
		if err != nil {
			return fmt.Errorf("%w; mend that, %s", err, instead)
		}
	}
	return nil
}

func (w *Wire) astray(to netip.Addr, out string) error {
	return fmt.Errorf("the kernel sends packets to %v out by %s, against the routes of the peering: is there a rule of lower priority than %d (`ip rule`)", to, out, wireBase)
}

// Close takes the wire away. It may be called more than once.
func (w *Wire) Close() error { return w.close() }

func (w *Wire) end() error {
	var errs []error
	if w.dev != nil {
		errs = append(errs, w.dev.Close()) // its routes go with it
	}
	if !w.plan.Empty() {
		errs = append(errs, w.kernel.Undo(w.plan))
	}
	return errors.Join(append(errs, w.kernel.Close())...)
}

// SweepWires takes away what wires of processes that have died left behind.
func SweepWires() error {
	k, err := hostnet.Here()
	if err != nil {
		return err
	}
	_, err = sweep(k, "")
	return errors.Join(err, k.Close())
}

// sweep takes away what belongs to wires whose TUN is gone, and what a former one of the
// name mine left, and returns the number of a wire that nobody has.
func sweep(k *hostnet.Kernel, mine string) (slot int, err error) {
	all, err := k.Tagged(wireTag)
	if err != nil {
		return 0, err
	}
	live := map[int]bool{}
	for _, r := range all.Rules {
		if name := r.Link; strings.HasPrefix(name, wirePrefix) && name != mine {
			_, err := k.Link(name)
			live[number(r.Table)] = live[number(r.Table)] || !errors.Is(err, fs.ErrNotExist)
		}
	}
	stale := hostnet.Plan{Tag: wireTag}
	for _, r := range all.Routes {
		if !live[number(r.Table)] {
			stale.Routes = append(stale.Routes, r)
		}
	}
	for _, r := range all.Rules {
		if !live[number(r.Priority)] {
			stale.Rules = append(stale.Rules, r)
		}
	}
	if !stale.Empty() {
		if err := k.Undo(stale); err != nil {
			return 0, fmt.Errorf("take away what a former process left: %w", err)
		}
	}
	for slot = range wireSlots {
		if !live[slot] {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("all %d routing tables for peerings by interface are in use on this machine", wireSlots)
}

// number is a wire's number, by a table or priority of its.
func number(table int) int { return (table - wireBase) / 2 }
