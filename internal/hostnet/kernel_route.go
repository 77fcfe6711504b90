package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// applyRoute replaces what has the route's key, unless it should carry the tag and
// does not: then it is somebody else's.
func (k *Kernel) applyRoute(r Route, tag Tag) error {
	route, err := k.route(r, tag)
	if err != nil {
		return err
	}
	if tag == 0 {
		err = k.handle.RouteReplace(route)
	} else if err = k.handle.RouteAdd(route); errors.Is(err, unix.EEXIST) {
		if err = k.isOurs(r, tag); err == nil {
			err = k.handle.RouteReplace(route)
		}
	}
	if r.Kind == Unreachable && r.Prefix.Addr().Is6() && noIPv6(err) {
		return nil // a kernel without IPv6 sends nothing there anyway
	}
	return err
}

// isOurs looks at the route that has r's key.
func (k *Kernel) isOurs(r Route, tag Tag) error {
	family := netlink.FAMILY_V4
	if r.Prefix.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := redump(func() ([]netlink.Route, error) {
		return k.handle.RouteListFiltered(family, &netlink.Route{Table: r.table()}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return err
	}
	for _, have := range list {
		p, ok := fromIPNet(have.Dst)
		if ok && p == r.Prefix && have.Priority == r.Metric && Tag(have.Protocol) == tag {
			return nil
		}
	}
	return fmt.Errorf("a route to %v that is not ours is there already, see `ip route show table %d %v`: remove it: %w", r.Prefix, r.table(), r.Prefix, os.ErrExist)
}

func (k *Kernel) undoRoute(r Route, tag Tag) error {
	route, err := k.route(r, tag)
	if err == nil {
		err = k.handle.RouteDel(route)
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || absent(err) || (r.Prefix.Addr().Is6() && noIPv6(err)) {
		return nil
	}
	return err
}

func (k *Kernel) route(r Route, tag Tag) (*netlink.Route, error) {
	route := &netlink.Route{
		Dst: toIPNet(r.Prefix), Priority: r.Metric, Type: unix.RTN_UNICAST, Table: r.table(),
		Protocol: netlink.RouteProtocol(tag),
	}
	switch r.Kind {
	case Unreachable:
		route.Type = unix.RTN_UNREACHABLE
		return route, nil
	case Blackhole:
		route.Type = unix.RTN_BLACKHOLE
		return route, nil
	}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	} else {
		route.Scope = netlink.SCOPE_LINK
	}
	if r.Source.IsValid() {
		route.Src = r.Source.AsSlice()
	}
	if r.Link != "" {
		link, err := k.handle.LinkByName(r.Link)
		if err != nil {
			return nil, err
		}
		route.LinkIndex = link.Attrs().Index
		if r.Via.IsValid() {
			route.Flags = int(netlink.FLAG_ONLINK)
		}
	}
	return route, nil
}

// netlink returns the rule as netlink has it. Where it names no tag, one of any is
// removed.
func (r Rule) netlink(tag Tag) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table, rule.IifName, rule.Protocol = netlink.FAMILY_V4, r.Priority, r.Table, r.Link, uint8(tag)
	if r.From.IsValid() {
		rule.Src = toIPNet(r.From)
	}
	if r.To.IsValid() {
		rule.Dst = toIPNet(r.To)
	}
	return rule
}

// ruleError explains what a kernel without policy routing answers.
func ruleError(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("the kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES): %w", err)
	}
	return err
}

// Tagged implements Host.
func (k *Kernel) Tagged(tag Tag) (Plan, error) {
	names, err := k.names()
	if err != nil {
		return Plan{}, failed("list links", err)
	}
	p := Plan{Tag: tag}
	if p.Routes, err = k.taggedRoutes(tag, names); err != nil {
		return Plan{}, failed("list routes", err)
	}
	rules, err := redump(func() ([]netlink.Rule, error) { return k.handle.RuleList(netlink.FAMILY_V4) })
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return Plan{}, failed("list rules", err)
	}
	for _, r := range rules {
		if Tag(r.Protocol) == tag {
			from, _ := fromIPNet(r.Src)
			to, _ := fromIPNet(r.Dst)
			p.Rules = append(p.Rules, Rule{From: from, To: to, Link: r.IifName, Table: r.Table, Priority: r.Priority})
		}
	}
	if p.Neighbours, err = k.taggedNeighbours(tag, names); err != nil {
		return Plan{}, failed("list neighbours", err)
	}
	if p.Addresses, err = k.taggedAddresses(tag, names); err != nil {
		return Plan{}, failed("list addresses", err)
	}
	return p, nil
}

func (k *Kernel) taggedRoutes(tag Tag, names map[int]string) ([]Route, error) {
	list, err := redump(func() ([]netlink.Route, error) {
		return k.handle.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: netlink.RouteProtocol(tag)},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
	var routes []Route
	for _, have := range list {
		r := Route{Prefix: DefaultIPv4, Table: have.Table, Metric: have.Priority, Link: names[have.LinkIndex]}
		if p, ok := fromIPNet(have.Dst); ok {
			r.Prefix = p
		}
		if r.Table == mainTable {
			r.Table = 0
		}
		if via, ok := netip.AddrFromSlice(have.Gw); ok {
			r.Via = via.Unmap()
		}
		switch have.Type {
		case unix.RTN_UNREACHABLE:
			r.Kind, r.Link = Unreachable, ""
		case unix.RTN_BLACKHOLE:
			r.Kind, r.Link = Blackhole, ""
		}
		if src, ok := netip.AddrFromSlice(have.Src); ok && r.Kind == Unicast {
			r.Source = src.Unmap()
		}
		routes = append(routes, r)
	}
	return routes, err
}

// names are those of all links, by index.
func (k *Kernel) names() (map[int]string, error) {
	links, err := redump(k.handle.LinkList)
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, err
}

// LinkTo implements Host.
func (k *Kernel) LinkTo(a netip.Addr) (string, error) {
	routes, err := k.handle.RouteGet(a.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return "", failed(fmt.Sprintf("look up the way to %v", a), err)
	}
	link, err := k.handle.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", failed(fmt.Sprintf("look up the way to %v", a), err)
	}
	return link.Attrs().Name, nil
}

// Sysctl implements Host.
func (k *Kernel) Sysctl(name string) (value string, err error) {
	s := Sysctl{Name: name}
	if !s.valid() {
		return "", fmt.Errorf("hostnet: sysctl %q: not a name under /proc/sys", name)
	}
	err = k.ns.Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys", s.path()))
		value = strings.Join(strings.Fields(string(b)), " ")
		return err
	})
	if err != nil {
		return "", fmt.Errorf("hostnet: read sysctl %s: %w", name, err)
	}
	return value, nil
}
