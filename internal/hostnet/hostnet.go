// Package hostnet changes what the kernel's network stack of one network
// namespace holds: links, addresses, routes, rules, neighbours and sysctls.
//
// A [Plan] says what shall be there. [Host.Apply] brings it about and may be
// repeated; [Host.Undo] takes it away and may be repeated, too, also after an
// Apply that failed half-way. There are two hosts: [Kernel] speaks netlink to a
// real namespace, [Fake] keeps the same state in memory.
//
// A plan with a [Tag] marks what it adds, so that [Host.Tagged] finds it again
// after a crash; what is there without the mark is somebody else's and stays.
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
	// Apply brings the plan about, in the order links, addresses, routes, rules,
	// neighbours, drops, sysctls. What is already as it should be is left alone. After
	// an error the part before it stays; Undo takes it away.
	Apply(Plan) error
	// Undo removes the plan's drops, neighbours, rules, routes and addresses and the
	// links that the plan makes (those with Veth), last first. What is not there is
	// not an error, and of a plan with a Tag what does not carry it is left alone.
	// Sysctls and the settings of links that were there before are left as they are.
	Undo(Plan) error
	// Tagged returns the addresses, routes, rules and neighbours of IPv4 that carry the
	// tag, in a plan that Undo removes them by.
	Tagged(Tag) (Plan, error)
	// Addresses returns every address of every link, each with the length of its prefix.
	Addresses() ([]netip.Prefix, error)
	// LinkOf returns the name of the link that an address is on, and "" if it is on none.
	LinkOf(netip.Addr) (string, error)
	// LinkTo returns the name of the link by which packets to an address leave.
	LinkTo(netip.Addr) (string, error)
	// Trace asks what becomes of an IPv4 packet that comes in by a link. It returns the
	// link by which the packet would leave ("lo": it would be this host's own), and an
	// error that says why it would be dropped.
	Trace(from, to netip.Addr, in string) (out string, err error)
	// Sysctl reads a kernel parameter, whose fields are separated by one space.
	Sysctl(name string) (string, error)
	// Announce tells everybody on an Ethernet link that an IPv4 address is at it, by an
	// ARP announcement (RFC 5227 section 2.3). It needs CAP_NET_RAW.
	Announce(link string, a netip.Addr) error
}

// Plan is a wanted state. Things that it does not mention are left alone.
type Plan struct {
	// Tag marks the plan's addresses, routes, rules and neighbours; 0: they get no mark.
	Tag        Tag
	Links      []Link
	Addresses  []Address
	Routes     []Route
	Rules      []Rule
	Neighbours []Neighbour
	Drops      []Drop
	Sysctls    []Sysctl
}

// Tag marks what one owner has put into a network stack. To the kernel it is the
// protocol that a route comes from (rtnetlink(7), rtm_protocol; `ip route show proto
// NUMBER`), and rules, neighbours and addresses have a field of the same meaning.
// Numbers below 16 are the kernel's and the administrator's.
type Tag uint8

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
	// NoIPv6 has the kernel make no IPv6 address on the link when it comes up, and
	// so send nothing of its own there.
	NoIPv6 bool
	// Forward has the kernel pass on the IPv4 packets that come in by the link, also where
	// /proc/sys is read-only. False leaves that as it is.
	Forward bool
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

// Drop makes a router lose IPv4 packets without a word to anyone, as a cable does
// that is cut somewhere beyond: carrier and neighbours stay. It holds for what is
// forwarded and, with Local, for packets to the router itself. The key is all
// fields; one of From and To may be missing.
type Drop struct {
	From string       // only what comes in by this link
	To   netip.Prefix // only what goes to these addresses
	// Local takes what is addressed to the host, too. It needs From: what the host
	// sends to itself stays.
	Local bool
}

// Sysctl is a kernel parameter by its name under /proc/sys, with dots or, where
// a part contains a dot itself, with slashes: "net.ipv4.ip_forward".
type Sysctl struct{ Name, Value string }

// Everything, for both families, for routes.
var (
	DefaultIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	DefaultIPv6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
)

// minTag is the first tag that an owner may choose.
const minTag = 16

// maxName is the longest name of an interface (IFNAMSIZ less its end).
const maxName = 15

func (p Plan) validate() error {
	var errs []error
	if p.Tag != 0 && p.Tag < minTag {
		errs = append(errs, fmt.Errorf("tag %d: below %d they are the kernel's and the administrator's", p.Tag, minTag))
	}
	for _, l := range p.Links {
		errs = append(errs, l.validate())
	}
	for _, a := range p.Addresses {
		errs = append(errs, CheckName(a.Link))
		if !a.Prefix.IsValid() {
			errs = append(errs, fmt.Errorf("address of link %q: invalid prefix", a.Link))
		}
	}
	for _, r := range p.Routes {
		if err := r.validate(); err != nil {
			errs = append(errs, fmt.Errorf("route %v: %w", r, err))
		}
	}
	for _, r := range p.Rules {
		if err := r.validate(); err != nil {
			errs = append(errs, fmt.Errorf("%v: %w", r, err))
		}
	}
	for _, n := range p.Neighbours {
		if err := n.validate(); err != nil {
			errs = append(errs, fmt.Errorf("%v: %w", n, err))
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
	if err := CheckName(l.Name); err != nil {
		return err
	}
	if l.MTU < 0 || l.MTU > 65535 {
		return fmt.Errorf("link %q: MTU %d is outside 0 to 65535", l.Name, l.MTU)
	}
	if l.Veth == nil {
		return nil
	}
	if err := CheckName(l.Veth.Name); err != nil {
		return fmt.Errorf("peer of %q: %w", l.Name, err)
	}
	if l.Veth.Namespace == nil && l.Veth.Name == l.Name {
		return fmt.Errorf("link %q: both ends have one name in one namespace", l.Name)
	}
	return nil
}

// CheckName says why a name cannot be that of an interface.
func CheckName(name string) error {
	if name == "" || len(name) > maxName || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r%") {
		return fmt.Errorf("link %q: not a name of an interface (1 to %d bytes, without slash, colon, whitespace or %%, which the kernel takes for a pattern)", name, maxName)
	}
	return nil
}

func (d Drop) validate() error {
	switch {
	case d.From == "" && d.Local:
		return errors.New("packets to the host itself are dropped by the link that they come in by: name it")
	case d.From == "" && !d.To.IsValid():
		return errors.New("name a link or a destination: everything would be dropped")
	case d.To.IsValid() && (!d.To.Addr().Is4() || d.To != d.To.Masked()):
		return errors.New("the destination must be an IPv4 prefix without host bits")
	case d.From != "":
		return CheckName(d.From)
	}
	return nil
}

func (d Drop) String() string {
	s := "drop"
	if d.Local {
		s += " even what is for this host"
	}
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
