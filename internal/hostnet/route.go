package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// RouteKind is what a route does with a packet.
type RouteKind uint8

// The kinds of routes.
const (
	Unicast     RouteKind = iota // send it on
	Unreachable                  // refuse it, so that programs fail at once instead of waiting
	Blackhole                    // drop it without a word
)

func (k RouteKind) String() string {
	switch k {
	case Unreachable:
		return "unreachable"
	case Blackhole:
		return "blackhole"
	}
	return "unicast"
}

// Route is a route. The key is table, prefix and metric. A route with the same key is
// replaced, unless the plan has a Tag and the route does not carry it.
type Route struct {
	Prefix netip.Prefix
	Kind   RouteKind
	// Table is the number of the routing table; 0 is the main one.
	Table int
	// Link and Via belong to Unicast routes, which need one of them. With both,
	// Via is taken to be on the link even where no address of the link says so.
	Link string
	Via  netip.Addr
	// Source is the address that the kernel's own packets get which take a Unicast
	// route and have none yet. The zero value leaves the choice to the kernel.
	Source netip.Addr
	// Metric decides between routes to one prefix, the lowest wins. 0 leaves the
	// choice to the kernel: 0 for IPv4, 1024 for IPv6.
	Metric int
}

// mainTable is the number of the main table (rt_tables).
const mainTable = 254

func (r Route) table() int {
	if r.Table == 0 {
		return mainTable
	}
	return r.Table
}

// routeKey is what makes two routes one to the kernel.
type routeKey struct {
	table  int
	prefix netip.Prefix
	metric int
}

func (r Route) key() routeKey { return routeKey{r.table(), r.Prefix, r.Metric} }

func (r Route) validate() error {
	refuses := r.Kind == Unreachable || r.Kind == Blackhole
	switch {
	case !r.Prefix.IsValid():
		return errors.New("invalid prefix")
	case r.Prefix != r.Prefix.Masked():
		return fmt.Errorf("prefix has host bits: write %v", r.Prefix.Masked())
	case r.Metric < 0:
		return errors.New("negative metric")
	case r.Table < 0:
		return errors.New("negative table")
	case refuses && (r.Link != "" || r.Via.IsValid() || r.Source.IsValid()):
		return fmt.Errorf("a route that is %v has neither link nor next hop nor source", r.Kind)
	case r.Kind == Unicast && r.Link == "" && !r.Via.IsValid():
		return errors.New("a unicast route needs a link or a next hop")
	case r.Via.IsValid() && r.Via.Is4() != r.Prefix.Addr().Is4():
		return errors.New("next hop and prefix are of different families")
	case r.Source.IsValid() && r.Source.Is4() != r.Prefix.Addr().Is4():
		return errors.New("source and prefix are of different families")
	case r.Link != "":
		return CheckName(r.Link)
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
	if r.Table != 0 {
		s += fmt.Sprintf(" in table %d", r.Table)
	}
	return s
}

// Rule sends packets of IPv4 to a routing table of their own. Where that table knows
// no way, the rules behind it are asked.
type Rule struct {
	// From says whose packets; the zero value: everybody's.
	From netip.Prefix
	// To says which packets, by their destination; the zero value: all.
	To netip.Prefix
	// Link says which packets, by the link that they come in by; "": all, and those
	// that begin here; "lo" those that begin here alone. The kernel holds sources of what comes in against the routes
	// back (rp_filter), and asks those rules only that name no link.
	Link string
	// Table is the number of the routing table that is asked.
	Table int
	// Priority orders the rules, the lowest is asked first: the kernel's own have 0,
	// 32766 and 32767.
	Priority int
}

func (r Rule) validate() error {
	switch {
	case r.From.IsValid() && (!r.From.Addr().Is4() || r.From != r.From.Masked()):
		return errors.New("the source must be an IPv4 prefix without host bits")
	case r.To.IsValid() && (!r.To.Addr().Is4() || r.To != r.To.Masked()):
		return errors.New("the destination must be an IPv4 prefix without host bits")
	case r.Table <= 0:
		return errors.New("it needs the number of a table")
	case r.Priority <= 0 || r.Priority >= 32766:
		return errors.New("its priority must be 1 to 32765")
	case r.Link != "":
		return CheckName(r.Link)
	case !r.From.IsValid() && !r.To.IsValid():
		return errors.New("name a source, a destination or a link: everything would take another way")
	}
	return nil
}

func (r Rule) String() string {
	s := fmt.Sprintf("rule %d", r.Priority)
	if r.From.IsValid() {
		s += " from " + r.From.String()
	}
	if r.To.IsValid() {
		s += " to " + r.To.String()
	}
	if r.Link != "" {
		s += " in by " + r.Link
	}
	return s + fmt.Sprintf(" to table %d", r.Table)
}

// Neighbour is what the kernel takes for true of an IPv4 address on a link.
type Neighbour struct {
	Link string
	Addr netip.Addr
	// MAC is where the address is, for ever and without asking.
	MAC net.HardwareAddr
	// Proxy says instead that the kernel answers for the address (proxy ARP): who asks
	// on this link is told the link's own MAC, as long as the way to the address leads
	// by another link.
	Proxy bool
}

func (n Neighbour) validate() error {
	switch {
	case !n.Addr.Is4():
		return errors.New("the address must be IPv4")
	case n.Proxy == (n.MAC != nil):
		return errors.New("it needs either a MAC or Proxy")
	case n.MAC != nil && len(n.MAC) != 6:
		return fmt.Errorf("%v is no Ethernet address", n.MAC)
	}
	return CheckName(n.Link)
}

func (n Neighbour) String() string {
	if n.Proxy {
		return fmt.Sprintf("proxy neighbour %v on %s", n.Addr, n.Link)
	}
	return fmt.Sprintf("neighbour %v at %v on %s", n.Addr, n.MAC, n.Link)
}

func (n Neighbour) equal(o Neighbour) bool {
	return n.Link == o.Link && n.Addr == o.Addr && n.Proxy == o.Proxy && string(n.MAC) == string(o.MAC)
}

// Empty says whether the plan is about nothing.
func (p Plan) Empty() bool {
	return len(p.Links)+len(p.Addresses)+len(p.Routes)+len(p.Rules)+len(p.Neighbours)+len(p.Drops)+len(p.Sysctls) == 0
}

// Without returns the addresses, routes, rules and neighbours of the plan that o does
// not have, and all of its other parts. Metrics of routes count, sources do not.
func (p Plan) Without(o Plan) Plan {
	rest := Plan{Tag: p.Tag, Links: p.Links, Drops: p.Drops, Sysctls: p.Sysctls}
	for _, a := range p.Addresses {
		if !slices.ContainsFunc(o.Addresses, func(b Address) bool { return a == b }) {
			rest.Addresses = append(rest.Addresses, a)
		}
	}
	for _, r := range p.Routes {
		if !slices.ContainsFunc(o.Routes, func(b Route) bool {
			return r.key() == b.key() && r.Kind == b.Kind && r.Via == b.Via && (r.Link == b.Link || r.Link == "" || b.Link == "")
		}) {
			rest.Routes = append(rest.Routes, r)
		}
	}
	for _, r := range p.Rules {
		if !slices.ContainsFunc(o.Rules, func(b Rule) bool { return r == b }) {
			rest.Rules = append(rest.Rules, r)
		}
	}
	for _, n := range p.Neighbours {
		if !slices.ContainsFunc(o.Neighbours, n.equal) {
			rest.Neighbours = append(rest.Neighbours, n)
		}
	}
	return rest
}

// Join returns a plan with all parts of both, which must have one tag.
func (p Plan) Join(o Plan) Plan {
	return Plan{
		Tag:        p.Tag,
		Links:      append(p.Links[:len(p.Links):len(p.Links)], o.Links...),
		Addresses:  append(p.Addresses[:len(p.Addresses):len(p.Addresses)], o.Addresses...),
		Routes:     append(p.Routes[:len(p.Routes):len(p.Routes)], o.Routes...),
		Rules:      append(p.Rules[:len(p.Rules):len(p.Rules)], o.Rules...),
		Neighbours: append(p.Neighbours[:len(p.Neighbours):len(p.Neighbours)], o.Neighbours...),
		Drops:      append(p.Drops[:len(p.Drops):len(p.Drops)], o.Drops...),
		Sysctls:    append(p.Sysctls[:len(p.Sysctls):len(p.Sysctls)], o.Sysctls...),
	}
}

// steps are plans of one thing each, in the order in which Apply brings them about.
func (p Plan) steps() []Plan {
	var steps []Plan
	for i := range p.Links {
		steps = append(steps, Plan{Tag: p.Tag, Links: p.Links[i : i+1]})
	}
	for i := range p.Addresses {
		steps = append(steps, Plan{Tag: p.Tag, Addresses: p.Addresses[i : i+1]})
	}
	for i := range p.Routes {
		steps = append(steps, Plan{Tag: p.Tag, Routes: p.Routes[i : i+1]})
	}
	for i := range p.Rules {
		steps = append(steps, Plan{Tag: p.Tag, Rules: p.Rules[i : i+1]})
	}
	for i := range p.Neighbours {
		steps = append(steps, Plan{Tag: p.Tag, Neighbours: p.Neighbours[i : i+1]})
	}
	for i := range p.Drops {
		steps = append(steps, Plan{Tag: p.Tag, Drops: p.Drops[i : i+1]})
	}
	for i := range p.Sysctls {
		steps = append(steps, Plan{Tag: p.Tag, Sysctls: p.Sysctls[i : i+1]})
	}
	return steps
}

// String lists what the plan adds or removes, for a message.
func (p Plan) String() string {
	var parts []string
	for _, a := range p.Addresses {
		parts = append(parts, fmt.Sprintf("address %v on %s", a.Prefix, a.Link))
	}
	for _, r := range p.Routes {
		parts = append(parts, r.String())
	}
	for _, r := range p.Rules {
		parts = append(parts, r.String())
	}
	for _, n := range p.Neighbours {
		parts = append(parts, n.String())
	}
	return strings.Join(parts, ", ")
}
