// Package hostnet changes what the kernel's network stack of one network
// namespace holds: links, addresses, routes and sysctls.
//
// A [Plan] says what shall be there. [Host.Apply] brings it about and may be
// repeated; [Host.Undo] takes it away and may be repeated, too, also after an
// Apply that failed half-way. There are two hosts: [Kernel] speaks netlink to a
// real namespace, [Fake] keeps the same state in memory.
//
// A [Namespace] is a network namespace held by a descriptor, so that a crash
// leaves nothing behind.
package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Host is the network stack of one namespace. Its methods may be called by many
// goroutines, but plans that speak of the same things should not be mixed.
type Host interface {
	// Apply brings the plan about, in the order links, addresses, routes, drops,
	// sysctls. What is already as it should be is left alone. After an error the
	// part before it stays; Undo takes it away.
	Apply(Plan) error
	// Undo removes the plan's drops, routes and addresses and the links that the
	// plan makes (those with Veth), last first. What is not there is not an error.
	// Sysctls and the settings of links that were there before are left as they are.
	Undo(Plan) error
	// Addresses returns every address of every link, each with the length of its prefix.
	Addresses() ([]netip.Prefix, error)
}

// Plan is a wanted state. Things that it does not mention are left alone.
type Plan struct {
	Links     []Link
	Addresses []Address
	Routes    []Route
	Drops     []Drop
	Sysctls   []Sysctl
}

// Link is an interface that shall be up.
type Link struct {
	Name string
	// MTU in bytes; 0 leaves it.
	MTU int
	// NoARP switches address resolution off: every neighbour is taken to be on
	// the link, as is right where a packet socket is the other end.
	NoARP bool
	// TxOffload keeps the transmit offloads of a veth. Without it, checksums are
	// computed and segments cut before packets leave, which readers by AF_PACKET
	// at the other end need. Links of other types keep theirs in any case.
	TxOffload bool
	// MAC is the Ethernet address of a veth that Apply makes; nil for a random one.
	MAC net.HardwareAddr
	// Veth, if not nil, says that the link is one end of a veth pair, which Apply
	// makes where it is missing and Undo removes. Otherwise the link must exist.
	Veth *VethPeer
}

// VethPeer is the other end of a veth pair. It is made down and without
// addresses; a plan for its own namespace brings it up.
type VethPeer struct {
	Name      string
	MAC       net.HardwareAddr // nil for a random one
	Namespace *Namespace       // nil for the link's own
}

// Address is an address on a link. The prefix keeps its host bits and makes a
// connected route, unless it is a single address.
type Address struct {
	Link   string
	Prefix netip.Prefix
}

// RouteKind is what a route does with a packet.
type RouteKind uint8

// The kinds of routes.
const (
	Unicast     RouteKind = iota // send it on
	Unreachable                  // refuse it, so that programs fail at once instead of waiting
)

func (k RouteKind) String() string {
	if k == Unreachable {
		return "unreachable"
	}
	return "unicast"
}

// Route is a route of the main table. The key is prefix and metric: a route
// with the same key is replaced.
type Route struct {
	Prefix netip.Prefix
	Kind   RouteKind
	// Link and Via belong to Unicast routes, which need one of them. With both,
	// Via is taken to be on the link even where no address of the link says so.
	Link string
	Via  netip.Addr
	// Metric decides between routes to one prefix, the lowest wins. 0 leaves the
	// choice to the kernel: 0 for IPv4, 1024 for IPv6.
	Metric int
}

// Drop makes a router lose IPv4 packets without a word to anyone, as a cable does
// that is cut somewhere beyond: carrier and neighbours stay. It holds for what is
// forwarded, not for packets to the router itself. The key is both fields, of
// which one may be missing.
type Drop struct {
	From string       // only what comes in by this link
	To   netip.Prefix // only what goes to these addresses
}

// Sysctl is a kernel parameter by its name under /proc/sys, with dots or, where
// a part contains a dot itself, with slashes: "net.ipv4.ip_forward".
type Sysctl struct{ Name, Value string }

// Everything, for both families, for routes.
var (
	DefaultIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	DefaultIPv6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// maxName is the longest name of an interface (IFNAMSIZ less its end).
const maxName = 15

func (p Plan) validate() error {
	var errs []error
	for _, l := range p.Links {
		errs = append(errs, l.validate())
	}
	for _, a := range p.Addresses {
		errs = append(errs, checkName(a.Link))
		if !a.Prefix.IsValid() {
			errs = append(errs, fmt.Errorf("address of link %q: invalid prefix", a.Link))
		}
	}
	for _, r := range p.Routes {
		if err := r.validate(); err != nil {
			errs = append(errs, fmt.Errorf("route %v: %w", r, err))
		}
	}
	for _, d := range p.Drops {
		if err := d.validate(); err != nil {
			errs = append(errs, fmt.Errorf("%v: %w", d, err))
		}
	}
	for _, s := range p.Sysctls {
		if !s.valid() {
			errs = append(errs, fmt.Errorf("sysctl %q: not a name under /proc/sys", s.Name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("hostnet: plan: %w", err)
	}
	return nil
}

func (l Link) validate() error {
	if err := checkName(l.Name); err != nil {
		return err
	}
	if l.MTU < 0 || l.MTU > 65535 {
		return fmt.Errorf("link %q: MTU %d is outside 0 to 65535", l.Name, l.MTU)
	}
	if l.Veth == nil {
		return nil
	}
	if err := checkName(l.Veth.Name); err != nil {
		return fmt.Errorf("peer of %q: %w", l.Name, err)
	}
	if l.Veth.Namespace == nil && l.Veth.Name == l.Name {
		return fmt.Errorf("link %q: both ends have one name in one namespace", l.Name)
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) > maxName || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n") {
		return fmt.Errorf("link %q: not a name of an interface (1 to %d bytes)", name, maxName)
	}
	return nil
}

func (r Route) validate() error {
	switch {
	case !r.Prefix.IsValid():
		return errors.New("invalid prefix")
	case r.Prefix != r.Prefix.Masked():
		return fmt.Errorf("prefix has host bits: write %v", r.Prefix.Masked())
	case r.Metric < 0:
		return errors.New("negative metric")
	case r.Kind == Unreachable && (r.Link != "" || r.Via.IsValid()):
		return errors.New("an unreachable route has neither link nor next hop")
	case r.Kind == Unicast && r.Link == "" && !r.Via.IsValid():
		return errors.New("a unicast route needs a link or a next hop")
	case r.Via.IsValid() && r.Via.Is4() != r.Prefix.Addr().Is4():
		return errors.New("next hop and prefix are of different families")
	case r.Link != "":
		return checkName(r.Link)
	}
	return nil
}

func (r Route) String() string {
	s := r.Kind.String() + " " + r.Prefix.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Link != "" {
		s += " on " + r.Link
	}
	return s
}

func (d Drop) validate() error {
	switch {
	case d.From == "" && !d.To.IsValid():
		return errors.New("name a link or a destination: everything would be dropped")
	case d.To.IsValid() && (!d.To.Addr().Is4() || d.To != d.To.Masked()):
		return errors.New("the destination must be an IPv4 prefix without host bits")
	case d.From != "":
		return checkName(d.From)
	}
	return nil
}

func (d Drop) String() string {
	s := "drop"
	if d.From != "" {
		s += " from " + d.From
	}
	if d.To.IsValid() {
		s += " to " + d.To.String()
	}
	return s
}

func (s Sysctl) valid() bool {
	for part := range strings.SplitSeq(s.path(), "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// path returns the sysctl's path below /proc/sys.
func (s Sysctl) path() string {
	if strings.Contains(s.Name, "/") {
		return s.Name
	}
	return strings.ReplaceAll(s.Name, ".", "/")
}
