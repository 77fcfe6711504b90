package hostnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Fake is a Host in memory, for tests. It keeps the rules that callers run
// into: addresses and routes need their link, next hops must be reachable,
// links take their addresses and routes with them, sysctls must exist. Ends of
// veth pairs in other namespaces are not followed.
type Fake struct {
	mu         sync.Mutex
	links      map[string]*fakeLink
	addresses  []heldAddress
	routes     []heldRoute
	rules      []heldRule
	neighbours []heldNeighbour
	drops      []Drop
	sysctls    map[string]string
	announced  []netip.Addr
	// The changes that are still made before the next ones fail, and how many do.
	working, failing int
}

// heldRoute and heldRule carry who put them there.
type (
	heldRoute struct {
		Route
		tag Tag
	}
	heldRule struct {
		Rule
		tag Tag
	}
)

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
		links: map[string]*fakeLink{},
		sysctls: map[string]string{
			"net/ipv4/ip_forward":             "0",
			"net/ipv4/ping_group_range":       "1 0",
			"net/ipv4/conf/all/rp_filter":     "0",
			"net/ipv6/conf/all/disable_ipv6":  "0",
			"net/ipv6/conf/default/accept_ra": "1",
		},
	}
	f.addLink("lo", &fakeLink{mtu: 65536})
	for _, name := range links {
		f.addLink(name, &fakeLink{mtu: 1500})
	}
	return f
}

// SetLink makes a link, as a program does that opens a TUN, or removes it.
func (f *Fake) SetLink(name string, there bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.remove(name); there {
		f.addLink(name, &fakeLink{mtu: 1500})
	}
}

// Announced returns the addresses that were announced, in that order.
func (f *Fake) Announced() []netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.announced)
}

func (f *Fake) addLink(name string, l *fakeLink) {
	f.links[name] = l
	f.sysctls["net/ipv4/conf/"+name+"/forwarding"] = f.sysctls["net/ipv4/ip_forward"]
	f.sysctls["net/ipv4/conf/"+name+"/rp_filter"] = "0"
	f.sysctls["net/ipv6/conf/"+name+"/disable_ipv6"] = f.sysctls["net/ipv6/conf/all/disable_ipv6"]
}

// Fail has the host make so many changes more, links, addresses and so on counted one by
// one, and fail at as many that come then: at one as where something is in the way, at
// all as where the process is dead that asks for them.
func (f *Fake) Fail(after, failing int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.working, f.failing = after, failing
}

// errFail is what changes fail with.
var errFail = errors.New("the test has this fail")

// fails is asked before each change.
func (f *Fake) fails() error {
	switch {
	case f.failing == 0:
		return nil
	case f.working > 0:
		f.working--
		return nil
	}
	f.failing--
	return errFail
}

// Apply implements Host.
func (f *Fake) Apply(p Plan) error {
	if err := p.validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, step := range p.steps() {
		if err := f.fails(); err != nil {
			return failed("apply "+step.String(), err)
		}
		if err := f.apply(step); err != nil {
			return err
		}
	}
	return nil
}

// apply brings about a plan of one thing.
func (f *Fake) apply(p Plan) error {
	for _, l := range p.Links {
		if err := f.applyLink(l); err != nil {
			return failed("apply link "+l.Name, err)
		}
	}
	for _, a := range p.Addresses {
		if f.links[a.Link] == nil {
			return failed(fmt.Sprintf("put address %v on %s", a.Prefix, a.Link), unix.ENODEV)
		}
		if !slices.ContainsFunc(f.addresses, func(h heldAddress) bool { return h.Address == a }) {
			f.addresses = append(f.addresses, heldAddress{a, p.Tag})
		}
	}
	for _, r := range p.Routes {
		if err := f.applyRoute(r, p.Tag); err != nil {
			return failed("add route "+r.String(), err)
		}
	}
	for _, r := range p.Rules {
		if !slices.ContainsFunc(f.rules, func(h heldRule) bool { return h.Rule == r }) {
			f.rules = append(f.rules, heldRule{r, p.Tag})
		}
	}
	for _, n := range p.Neighbours {
		if f.links[n.Link] == nil {
			return failed("add "+n.String(), unix.ENODEV)
		}
		if !slices.ContainsFunc(f.neighbours, func(h heldNeighbour) bool { return h.equal(n) }) {
			f.neighbours = append(f.neighbours, heldNeighbour{n, p.Tag})
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
		if s.path() != "net/ipv4/ip_forward" {
			continue
		}
		for name := range f.links { // as the kernel does
			f.sysctls["net/ipv4/conf/"+name+"/forwarding"] = s.Value
		}
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
	var errs []error
	for _, step := range slices.Backward(p.steps()) {
		if err := f.fails(); err != nil {
			errs = append(errs, failed("remove "+step.String(), err))
			continue
		}
		f.undo(step)
	}
	return errors.Join(errs...)
}

// undo takes a plan of one thing away.
func (f *Fake) undo(p Plan) {
	f.drops = slices.DeleteFunc(f.drops, func(o Drop) bool { return slices.Contains(p.Drops, o) })
	may := func(tag Tag) bool { return p.Tag == 0 || p.Tag == tag }
	f.neighbours = slices.DeleteFunc(f.neighbours, func(h heldNeighbour) bool {
		return may(h.tag) && slices.ContainsFunc(p.Neighbours, h.equal)
	})
	f.rules = slices.DeleteFunc(f.rules, func(h heldRule) bool { return may(h.tag) && slices.Contains(p.Rules, h.Rule) })
	f.routes = slices.DeleteFunc(f.routes, func(h heldRoute) bool {
		return may(h.tag) && slices.ContainsFunc(p.Routes, func(r Route) bool { return h.key() == r.key() && h.Kind == r.Kind })
	})
	f.addresses = slices.DeleteFunc(f.addresses, func(h heldAddress) bool {
		return may(h.tag) && slices.Contains(p.Addresses, h.Address)
	})
	for _, l := range p.Links {
		if l.Veth != nil {
			f.remove(l.Name)
		}
	}
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

// Tagged implements Host.
func (f *Fake) Tagged(tag Tag) (Plan, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := Plan{Tag: tag}
	for _, h := range f.addresses {
		if h.tag == tag {
			p.Addresses = append(p.Addresses, h.Address)
		}
	}
	for _, h := range f.routes {
		if h.tag == tag {
			p.Routes = append(p.Routes, h.Route)
		}
	}
	for _, h := range f.rules {
		if h.tag == tag {
			p.Rules = append(p.Rules, h.Rule)
		}
	}
	for _, h := range f.neighbours {
		if h.tag == tag {
			p.Neighbours = append(p.Neighbours, h.Neighbour)
		}
	}
	return p, nil
}

// LinkOf implements Host.
func (f *Fake) LinkOf(a netip.Addr) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.addresses {
		if h.Prefix.Addr() == a {
			return h.Link, nil
		}
	}
	return "", nil
}

// LinkTo implements Host. It asks the main table alone.
func (f *Fake) LinkTo(a netip.Addr) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.look(mainTable, a)
	if !ok || r.Kind != Unicast {
		return "", failed(fmt.Sprintf("look up the way to %v", a), unix.ENETUNREACH)
	}
	return r.Link, nil
}

// look finds the way to an address in a table.
func (f *Fake) look(table int, a netip.Addr) (way Route, ok bool) {
	better := func(r Route) bool {
		return r.Prefix.Contains(a) && (!ok || r.Prefix.Bits() > way.Prefix.Bits() || r.Prefix.Bits() == way.Prefix.Bits() && r.Metric < way.Metric)
	}
	for _, h := range f.addresses {
		if r := (Route{Prefix: h.Prefix.Masked(), Link: h.Link}); table == mainTable && better(r) {
			way, ok = r, true
		}
	}
	for _, h := range f.routes {
		if h.table() == table && better(h.Route) {
			way, ok = h.Route, true
		}
	}
	return way, ok
}

// Trace implements Host. Neither sources of nobody nor neighbours are looked at.
func (f *Fake) Trace(from, to netip.Addr, in string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	tried := fmt.Sprintf("a packet from %v to %v that comes in by %s", from, to, in)
	if l := f.links[in]; l == nil || !l.up {
		return "", failed(tried, unix.ENODEV)
	}
	if slices.ContainsFunc(f.addresses, func(h heldAddress) bool { return h.Prefix.Addr() == to }) {
		return "lo", nil
	}
	if f.sysctls["net/ipv4/conf/"+in+"/forwarding"] == "0" {
		return "", failed(tried, unix.EHOSTUNREACH)
	}
	rules := append(slices.Clone(f.rules), heldRule{Rule: Rule{Table: mainTable, Priority: 32766}})
	slices.SortStableFunc(rules, func(a, b heldRule) int { return a.Priority - b.Priority })
	for _, r := range rules {
		if r.From.IsValid() && !r.From.Contains(from) || r.To.IsValid() && !r.To.Contains(to) || r.Link != "" && r.Link != in {
			continue
		}
		if way, ok := f.look(r.Table, to); ok && way.Kind == Unicast {
			return way.Link, nil
		} else if ok {
			break
		}
	}
	return "", failed(tried, unix.ENETUNREACH)
}

// Sysctl implements Host.
func (f *Fake) Sysctl(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	value, ok := f.sysctls[Sysctl{Name: name}.path()]
	if !ok {
		return "", fmt.Errorf("hostnet: read sysctl %s: %w", name, os.ErrNotExist)
	}
	return value, nil
}

// Announce implements Host.
func (f *Fake) Announce(link string, a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.links[link] == nil {
		return failed(fmt.Sprintf("announce %v on %s", a, link), unix.ENODEV)
	}
	f.announced = append(f.announced, a)
	return nil
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
			f.addLink(l.Veth.Name, &fakeLink{veth: true, mtu: 1500, peer: l.Name})
		}
		f.addLink(l.Name, have)
	}
	if l.MTU != 0 {
		have.mtu = l.MTU
	}
	if l.Forward {
		f.sysctls[linkSysctl(l.Name, "forwarding")] = "1"
	}
	have.noARP = have.noARP || l.NoARP
	have.up = true
	return nil
}

func (f *Fake) applyRoute(r Route, tag Tag) error {
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
	i := slices.IndexFunc(f.routes, func(h heldRoute) bool { return h.key() == r.key() })
	if i < 0 {
		f.routes = append(f.routes, heldRoute{r, tag})
		return nil
	}
	if tag != 0 && f.routes[i].tag != tag {
		return fmt.Errorf("a route to %v that is not ours is there already: %w", r.Prefix, os.ErrExist)
	}
	f.routes[i] = heldRoute{r, tag}
	return nil
}

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
	for _, of := range []string{"net/ipv4/conf/" + name, "net/ipv6/conf/" + name} {
		maps.DeleteFunc(f.sysctls, func(s, _ string) bool { return strings.HasPrefix(s, of+"/") })
	}
	f.addresses = slices.DeleteFunc(f.addresses, func(h heldAddress) bool { return h.Link == name })
	f.routes = slices.DeleteFunc(f.routes, func(h heldRoute) bool { return h.Link == name })
	f.neighbours = slices.DeleteFunc(f.neighbours, func(h heldNeighbour) bool { return h.Link == name })
	if l.peer != "" {
		f.remove(l.peer)
	}
}
