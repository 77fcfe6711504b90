package uplink

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/packet"
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

// maxTraced bounds how many addresses of one range are followed.
const maxTraced = 16

// wireMetric is that of the routes that stay when an interface goes, and drop.
const wireMetric = 1 << 20

// ErrWireGone is the error of [Wire.Check] when the wire's own TUN was deleted: the wire
// carries nothing any more, and must be closed and opened anew.
var ErrWireGone = errors.New("the peering's own interface was deleted")

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
// drops what is for inner addresses, until the next wire of the connection takes it over:
// at no moment in between such packets go elsewhere.
//
// Read belongs to one goroutine; all else may be called by any.
type Wire struct {
	cfg    WireConfig
	name   string
	kernel *hostnet.Kernel
	dev    *tundev.Device
	plan   hostnet.Plan
	close  func() error

	mu   sync.Mutex
	mtu  int
	own  []netip.Addr
	gone bool // the TUN was deleted
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

func (w *Wire) open() (err error) {
	if _, err := w.look(); err != nil {
		return err
	}
	f, err := tundev.CreateTUN(w.name, true)
	if err != nil {
		return fmt.Errorf("%w; %s", err, instead)
	}
	if w.dev, err = tundev.FromTUN(f, tundev.Config{MTU: maxPacket, Offload: true}); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := claimWires(w.kernel); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.kernel.Release(wireTag)) }()
	found, err := findWires(w.kernel)
	if err != nil {
		return err
	}
	slot, err := found.place(w.name)
	if err != nil {
		return err
	}
	w.plan = w.planAt(wireBase + 2*slot)
	if err := w.kernel.Apply(w.plan); err != nil {
		return fmt.Errorf("%w; %s", err, instead)
	}
	former := found.of(func(n int) bool { return n == slot }).Without(w.plan)
	if err := w.kernel.Undo(former); err != nil {
		return fmt.Errorf("take away what a former process left: %w", err)
	}
	return w.trace()
}

// look takes note of what the interface and the machine's addresses are now, and says
// what of it is in the way.
func (w *Wire) look() (hostnet.LinkState, error) {
	link, err := w.kernel.Link(w.cfg.Interface)
	if err != nil {
		return link, w.missing(err)
	}
	held, err := w.kernel.Addresses()
	if err != nil {
		return link, err
	}
	w.mu.Lock()
	w.mtu, w.own = link.MTU, ownIn(w.cfg.Ranges, held)
	w.mu.Unlock()
	if err := w.conflict(held); err != nil {
		return link, err
	}
	return link, w.reachHop()
}

// reachHop says why the next hop cannot be one.
func (w *Wire) reachHop() error {
	c := w.cfg
	if !c.NextHop.IsValid() {
		return nil
	}
	if on, err := w.kernel.OnLink(c.Interface, c.NextHop); on || err != nil {
		return err
	}
	return fmt.Errorf("next hop %v is not on the link of interface %s (`ip address show %s`, `ip route get %v`): correct the peering's nextHop, or give the interface an address of the next hop's subnet, %s",
		c.NextHop, c.Interface, c.Interface, c.NextHop, instead)
}

// ownIn are the addresses in the ranges that a machine takes for itself: those that are
// on its links, and the broadcast addresses of their subnets, the old form among them
// (RFC 1122 section 3.3.6).
func ownIn(ranges, held []netip.Prefix) (own []netip.Addr) {
	for _, p := range held {
		if !p.Addr().Is4() {
			continue
		}
		list := []netip.Addr{p.Addr()}
		if p.Bits() < 31 {
			b := p.Masked().Addr().As4()
			last := binary.BigEndian.Uint32(b[:]) | (1<<(32-p.Bits()) - 1)
			list = append(list, p.Masked().Addr(), netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, last))))
		}
		for _, a := range list {
			if slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) }) && !slices.Contains(own, a) {
				own = append(own, a)
			}
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return own
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
func (w *Wire) conflict(held []netip.Prefix) error {
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
		Tag:   wireTag,
		Links: []hostnet.Link{{Name: w.name, MTU: maxPacket, NoIPv6: true, Forward: true}},
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

// Own are the addresses in the ranges that this machine takes for itself, in order, as of
// when the wire was looked at last. What is written to them would come to its own services.
func (w *Wire) Own() []netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.own
}

// Drops are the packets that were not carried, in both directions, by reason.
func (w *Wire) Drops() (drops [packet.NumOutcomes]uint64) {
	d := w.dev.Stats()
	drops[packet.NotIPv4], drops[packet.TooBig], drops[packet.QueueFull] = d.NotIPv4, d.TooBig, d.QueueFull
	drops[packet.SiteDown], drops[packet.Malformed] = d.WriteErrors, d.Malformed
	return drops
}

// Check asks the kernel whether packets take the way that they should, and brings it
// back where it was lost, as it is when the interface goes down for a moment. The error
// satisfies errors.Is(err, [ErrWireGone]) when only another wire can.
func (w *Wire) Check() error {
	if _, err := w.kernel.Link(w.name); errors.Is(err, fs.ErrNotExist) {
		w.mu.Lock()
		w.gone = true
		w.mu.Unlock()
		return fmt.Errorf("%w: this machine has no interface %s any more, which the gateway made", ErrWireGone, w.name)
	}
	link, err := w.look()
	if err != nil {
		return err
	}
	if !link.Up {
		return fmt.Errorf("interface %s is down: bring it up, %s", w.cfg.Interface, instead)
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
		for tries := 1; err == nil && out == "lo" && tries < maxTraced && r.Contains(far.Next()); tries++ {
			far = far.Next() // the one before is this machine's own
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
	if out == "lo" {
		return fmt.Errorf("this machine takes %v for its own (`ip route show table local`), so that the peering's ranges are not beyond interface %s", to, w.cfg.Interface)
	}
	return fmt.Errorf("the kernel sends packets to %v out by %s, against the routes of the peering: is there a rule of lower priority than %d (`ip rule`)", to, out, wireBase)
}

// Close takes the wire away. It may be called more than once. Of a wire that is gone the
// table stays: until the connection's next wire takes it over, it drops what is for inner
// addresses, as after a crash.
func (w *Wire) Close() error { return w.close() }

func (w *Wire) end() error {
	var errs []error
	if w.dev != nil {
		errs = append(errs, w.dev.Close()) // its routes go with it
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.plan.Empty() && !w.gone {
		errs = append(errs, w.kernel.Undo(w.plan))
	}
	return errors.Join(append(errs, w.kernel.Close())...)
}

// SweepWires takes away what wires of processes that have died left behind. Before that,
// those that go on are opened.
func SweepWires() (err error) {
	k, err := hostnet.Here()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	if found, err := findWires(k); err != nil || found.held.Empty() {
		return err
	}
	if err := claimWires(k); err != nil {
		return err
	}
	found, err := findWires(k)
	if err != nil {
		return err
	}
	return k.Undo(found.of(func(n int) bool { return !found.live[n] }))
}

// claimPatience is how long another opening of a wire on this machine, by whatever
// process, is waited for; claimPause is the time between two tries.
const (
	claimPatience = 5 * time.Second
	claimPause    = 5 * time.Millisecond
)

// claimWires waits until nobody else on this machine looks for a number, or takes one.
func claimWires(k *hostnet.Kernel) error {
	for began := time.Now(); ; {
		err := k.Claim(wireTag)
		if !errors.Is(err, os.ErrExist) || time.Since(began) > claimPatience {
			return err
		}
		time.Sleep(claimPause)
	}
}

// foundWires is what there is in the kernel of all wires.
type foundWires struct {
	held hostnet.Plan
	// names are those of the wires' TUNs by number, live says which of them exist.
	names map[int]string
	live  map[int]bool
}

func findWires(k *hostnet.Kernel) (foundWires, error) {
	held, err := k.Tagged(wireTag)
	f := foundWires{held: held, names: map[int]string{}, live: map[int]bool{}}
	for _, r := range held.Rules {
		if strings.HasPrefix(r.Link, wirePrefix) {
			_, err := k.Link(r.Link)
			f.names[numberOf(r.Table)], f.live[numberOf(r.Table)] = r.Link, !errors.Is(err, fs.ErrNotExist)
		}
	}
	return f, err
}

// place returns the number of the wire of a name: the one that a former process left, or
// one that nobody has, which is the same at each start where names do not collide.
func (f foundWires) place(name string) (int, error) {
	used := make(map[int]bool, len(f.held.Rules))
	for _, r := range f.held.Rules {
		used[numberOf(r.Priority)] = true
	}
	for _, r := range f.held.Routes {
		used[numberOf(r.Table)] = true
	}
	for n, mine := range f.names {
		if mine == name {
			return n, nil
		}
	}
	sum := sha256.Sum256([]byte(name))
	first := int(binary.BigEndian.Uint32(sum[:]) % wireSlots)
	for i := range wireSlots {
		if n := (first + i) % wireSlots; !used[n] {
			return n, nil
		}
	}
	return 0, fmt.Errorf("all %d routing tables for peerings by interface are in use on this machine", wireSlots)
}

// of is what there is of the wires with some numbers.
func (f foundWires) of(wanted func(int) bool) hostnet.Plan {
	p := hostnet.Plan{Tag: wireTag}
	for _, r := range f.held.Routes {
		if wanted(numberOf(r.Table)) {
			p.Routes = append(p.Routes, r)
		}
	}
	for _, r := range f.held.Rules {
		if wanted(numberOf(r.Priority)) {
			p.Rules = append(p.Rules, r)
		}
	}
	return p
}

// numberOf is a wire's number, by a table or priority of its.
func numberOf(table int) int { return (table - wireBase) / 2 }
