package hostnet

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Fake is a Host in memory, for tests. It keeps the rules that callers run
// into: addresses and routes need their link, next hops must be reachable,
// links take their addresses and routes with them, sysctls must exist. Ends of
// veth pairs in other namespaces are not followed.
type Fake struct {
	mu        sync.Mutex
	links     map[string]*fakeLink
	addresses []Address
	routes    []Route
	drops     []Drop
	sysctls   map[string]string
}

type fakeLink struct {
	veth, up, noARP bool
	mtu             int
	peer            string
}

var _ Host = (*Fake)(nil)

// NewFake returns a host with a loopback interface, the links named, all down,
// and the sysctls that a new namespace has (those this project sets).
func NewFake(links ...string) *Fake {
	f := &Fake{
		links: map[string]*fakeLink{"lo": {mtu: 65536}},
		sysctls: map[string]string{
			"net/ipv4/ip_forward":             "0",
			"net/ipv4/ping_group_range":       "1 0",
			"net/ipv6/conf/all/disable_ipv6":  "0",
			"net/ipv6/conf/default/accept_ra": "1",
		},
	}
	for _, name := range links {
		f.links[name] = &fakeLink{mtu: 1500}
	}
	return f
}

// Apply implements Host.
func (f *Fake) Apply(p Plan) error {
	if err := p.validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range p.Links {
		if err := f.applyLink(l); err != nil {
			return failed("apply link "+l.Name, err)
		}
	}
	for _, a := range p.Addresses {
		if f.links[a.Link] == nil {
			return failed(fmt.Sprintf("put address %v on %s", a.Prefix, a.Link), unix.ENODEV)
		}
		if !slices.Contains(f.addresses, a) {
			f.addresses = append(f.addresses, a)
		}
	}
	for _, r := range p.Routes {
		if err := f.applyRoute(r); err != nil {
			return failed("add route "+r.String(), err)
		}
	}
	for _, d := range p.Drops {
		if !slices.Contains(f.drops, d) {
			f.drops = append(f.drops, d)
		}
	}
	for _, s := range p.Sysctls {
		if _, ok := f.sysctls[s.path()]; !ok {
			return failed(fmt.Sprintf("set sysctl %s to %q", s.Name, s.Value), unix.ENOENT)
		}
		f.sysctls[s.path()] = s.Value
	}
	return nil
}

// Undo implements Host.
func (f *Fake) Undo(p Plan) error {
	if err := p.validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drops = slices.DeleteFunc(f.drops, func(o Drop) bool { return slices.Contains(p.Drops, o) })
	for _, r := range p.Routes {
		f.routes = slices.DeleteFunc(f.routes, func(o Route) bool { return o.key() == r.key() && o.Kind == r.Kind })
	}
	for _, a := range p.Addresses {
		f.addresses = slices.DeleteFunc(f.addresses, func(o Address) bool { return o == a })
	}
	for _, l := range p.Links {
		if l.Veth != nil {
			f.remove(l.Name)
		}
	}
	return nil
}

// Addresses implements Host.
func (f *Fake) Addresses() ([]netip.Prefix, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	prefixes := make([]netip.Prefix, 0, len(f.addresses))
	for _, a := range f.addresses {
		prefixes = append(prefixes, a.Prefix)
	}
	return prefixes, nil
}

func (f *Fake) applyLink(l Link) error {
	have := f.links[l.Name]
	switch {
	case have == nil && l.Veth == nil:
		return unix.ENODEV
	case have != nil && l.Veth != nil && !have.veth:
		return fmt.Errorf("it exists and is no veth: %w", os.ErrExist)
	case have == nil:
		have = &fakeLink{veth: true, mtu: 1500}
		if l.Veth.Namespace == nil {
			if f.links[l.Veth.Name] != nil {
				return fmt.Errorf("make veth pair with peer %q: %w", l.Veth.Name, os.ErrExist)
			}
			have.peer = l.Veth.Name
			f.links[l.Veth.Name] = &fakeLink{veth: true, mtu: 1500, peer: l.Name}
		}
		f.links[l.Name] = have
	}
	if l.MTU != 0 {
		have.mtu = l.MTU
	}
	have.noARP = have.noARP || l.NoARP
	have.up = true
	return nil
}

func (f *Fake) applyRoute(r Route) error {
	if r.Kind == Unicast {
		if r.Link != "" && f.links[r.Link] == nil {
			return unix.ENODEV
		}
		if r.Link != "" && !f.links[r.Link].up {
			return unix.ENETDOWN
		}
		if r.Link == "" && !f.connected(r.Via) {
			return unix.ENETUNREACH
		}
	}
	f.routes = slices.DeleteFunc(f.routes, func(o Route) bool { return o.key() == r.key() })
	f.routes = append(f.routes, r)
	return nil
}

// routeKey is what makes two routes one to the kernel.
type routeKey struct {
	prefix netip.Prefix
	metric int
}

func (r Route) key() routeKey { return routeKey{r.Prefix, r.Metric} }

// connected says whether a link that is up reaches the next hop by itself.
func (f *Fake) connected(via netip.Addr) bool {
	for _, a := range f.addresses {
		if f.links[a.Link].up && a.Prefix.Contains(via) && a.Prefix.Addr() != via {
			return true
		}
	}
	for _, r := range f.routes {
		if r.Kind == Unicast && !r.Via.IsValid() && r.Prefix.Contains(via) {
			return true
		}
	}
	return false
}

// remove takes a link away, with its peer and all that was on them.
func (f *Fake) remove(name string) {
	l := f.links[name]
	if l == nil {
		return
	}
	delete(f.links, name)
	f.addresses = slices.DeleteFunc(f.addresses, func(a Address) bool { return a.Link == name })
	f.routes = slices.DeleteFunc(f.routes, func(r Route) bool { return r.Link == name })
	if l.peer != "" {
		f.remove(l.peer)
	}
}
