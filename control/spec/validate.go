package spec

import (
	"fmt"
	"net/netip"
	"strings"
)

// Validate holds the state against every rule and returns all that is wrong, in
// the order of the state; nil: it is valid. Paths index the lists of this value.
func (s State) Validate() Problems {
	c := &checker{
		state:    s,
		teams:    make(map[string]int),
		regions:  make(map[string]int),
		networks: make(map[string]int),
		projects: make(map[string]int),
		peerings: make(map[string]int),
		owners:   make(map[netip.Addr]string),
	}
	// References point both ways between the lists, so everything is indexed first.
	// Of two with the same ID the first counts; the second is reported where it stands.
	index(c.teams, s.Teams, func(t Team) string { return t.ID })
	index(c.regions, s.Regions, func(r Region) string { return r.Name })
	index(c.networks, s.Networks, func(n Network) string { return n.ID })
	index(c.projects, s.Projects, func(p Project) string { return p.ID })
	index(c.peerings, s.Peerings, func(p Peering) string { return p.ID })
	c.checkTeams()
	c.checkRegions()
	c.checkNetworks()
	c.checkProjects()
	c.checkPeerings()
	c.checkAcceptances()
	return c.problems
}

func index[T any](m map[string]int, items []T, key func(T) string) {
	for i, item := range items {
		if _, dup := m[key(item)]; !dup {
			m[key(item)] = i
		}
	}
}

// checker collects problems. Its maps lead from IDs to positions in the state.
type checker struct {
	state          State
	teams, regions map[string]int
	networks       map[string]int
	projects       map[string]int
	peerings       map[string]int
	owners         map[netip.Addr]string // who uses a public address, in words
	problems       Problems
}

func (c *checker) add(path, message, remedy string) {
	c.problems = append(c.problems, Problem{Path: path, Message: message, Remedy: remedy})
}

// addAt gives a problem its path.
func (c *checker) addAt(path string, p Problem) { c.add(path, p.Message, p.Remedy) }

// id checks an ID: its form, and that it is the first of its name.
func (c *checker) id(path, what, id string, first, i int) {
	if !ValidID(id) {
		c.add(path, fmt.Sprintf("%q is not an ID", id), "use 1 to 64 letters, digits, - and _, beginning with a letter or digit")
	} else if first != i {
		c.add(path, fmt.Sprintf("%s %q is there twice", what, id), fmt.Sprintf("give each %s an ID of its own", what))
	}
}

// name checks an optional name, and that nothing in seen has it. The key tells
// the owners of names apart.
func (c *checker) name(path, name, owner string, seen map[[2]string]bool) {
	if name == "" {
		return
	}
	if err := checkName(name); err != nil {
		c.add(path, err.Error(), fmt.Sprintf("use a name that prints, of at most %d bytes", maxName))
		return
	}
	key := [2]string{owner, name}
	if seen[key] {
		c.add(path, fmt.Sprintf("the name %q is there twice", name), "give each one a name of its own")
	}
	seen[key] = true
}

func (c *checker) team(path, id string) {
	if _, ok := c.teams[id]; !ok {
		c.add(path, fmt.Sprintf("there is no team %q", id), "name a team by its ID, or add it to teams")
	}
}

func (c *checker) checkTeams() {
	seen := make(map[[2]string]bool)
	for i, t := range c.state.Teams {
		c.id(at("teams", i, "id"), "team", t.ID, c.teams[t.ID], i)
		c.name(at("teams", i, "name"), t.Name, "", seen)
	}
}

func (c *checker) checkRegions() {
	for i, r := range c.state.Regions {
		path := at("regions", i, "name")
		if !ValidLabel(r.Name) {
			c.add(path, fmt.Sprintf("%q is not the name of a region", r.Name), "use lower-case letters, digits, - and ., such as iad1")
		} else if c.regions[r.Name] != i {
			c.add(path, fmt.Sprintf("region %q is there twice", r.Name), "give each region a name of its own")
		}
		if r.API != "" && !apiAddress(r.API) {
			c.add(at("regions", i, "api"), fmt.Sprintf("%q is not the address of a control API", r.API), "write unix:///path or http://address:port, or leave it out")
		}
		c.checkPool(i, r)
		c.checkHosts(i, r)
	}
}

// apiAddress reports whether s looks like the address of a control API.
func apiAddress(s string) bool {
	if checkName(s) != nil {
		return false
	}
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		return len(path) > 1 && path[0] == '/'
	}
	host, ok := strings.CutPrefix(s, "http://")
	a, err := netip.ParseAddrPort(host)
	return ok && err == nil && a.Port() != 0
}

func (c *checker) checkPool(i int, r Region) {
	if len(r.Pool) == 0 {
		c.add(at("regions", i, "pool"), fmt.Sprintf("region %q has no addresses", r.Name), "list the public ranges that its pairs are taken from, such as 203.0.113.0/28")
	}
	for j, p := range r.Pool {
		path := at("regions", i, "pool", j)
		switch {
		case !p.IsValid() || !p.Addr().Is4():
			c.addAt(path, invalidCIDR(text(p)))
			continue
		case p != p.Masked():
			c.add(path, fmt.Sprintf("%v has bits set below its prefix length", p), fmt.Sprintf("write %v", p.Masked()))
			continue
		}
		if bad, why := notPublic(p); bad && !r.Loopback() {
			c.add(path, fmt.Sprintf("%v %s", p, why), "use public addresses that are routed to the hosts (or, to try things out, only addresses in 127.0.0.0/8)")
		}
		c.poolOverlap(path, i, j)
	}
}

// poolOverlap looks for a range of the pools before regions[i].pool[j] that shares addresses with it.
func (c *checker) poolOverlap(path string, i, j int) {
	p := c.state.Regions[i].Pool[j]
	for k, other := range c.state.Regions[:i+1] {
		for l, q := range other.Pool {
			if (k < i || l < j) && p.Overlaps(q) {
				c.add(path, fmt.Sprintf("%v overlaps %v of region %q", p, q, other.Name), "let each address be in one pool, once")
				return
			}
		}
	}
}

// notPublic says why a range cannot be public. Documentation ranges can.
func notPublic(p netip.Prefix) (bool, string) {
	for _, r := range private {
		if r.Overlaps(p) {
			return true, "is private (RFC 1918)"
		}
	}
	for _, r := range neverPublic {
		if r.Overlaps(p) {
			return true, fmt.Sprintf("is not public (it lies in %v)", r)
		}
	}
	return false, ""
}

func (c *checker) checkHosts(i int, r Region) {
	if len(r.Hosts) == 0 {
		c.add(at("regions", i, "hosts"), fmt.Sprintf("region %q has no host", r.Name), "list its gateway hosts, each with a name and an endpoint")
	}
	seen := make(map[string]bool)
	for j, h := range r.Hosts {
		path := at("regions", i, "hosts", j)
		if !ValidLabel(h.Name) {
			c.add(path+".name", fmt.Sprintf("%q is not the name of a host", h.Name), "use lower-case letters, digits, - and ., such as gw-a")
		} else if seen[h.Name] {
			c.add(path+".name", fmt.Sprintf("host %q is in region %q twice", h.Name, r.Name), "give each host a name of its own")
		}
		seen[h.Name] = true
		if !unicast(h.Endpoint) {
			c.add(path+".endpoint", fmt.Sprintf("%q is not the address of a host", addrText(h.Endpoint)), "write the address at which workers reach this host's WireGuard ports")
		}
		if h.Bypass.IsValid() {
			c.bypass(path+".bypass", r, h)
		}
	}
}

func (c *checker) bypass(path string, r Region, h Host) {
	p := netip.PrefixFrom(h.Bypass, h.Bypass.BitLen())
	bad, _ := notPublic(p)
	if bad = bad && !(r.Loopback() && contains(loopback, p)); bad || !h.Bypass.Is4() {
		c.add(path, fmt.Sprintf("%v is not a public IPv4 address", h.Bypass), "write the public address from which this host's own traffic leaves")
		return
	}
	c.own(path, h.Bypass, fmt.Sprintf("the bypass address of host %q in region %q", h.Name, r.Name))
}

// own records who uses a public address, and objects to a second user.
func (c *checker) own(path string, a netip.Addr, who string) {
	if other, taken := c.owners[a]; taken {
		c.add(path, fmt.Sprintf("%v is %s, and also %s", a, who, other), "use an address that nothing else uses")
		return
	}
	c.owners[a] = who
}

// unicast reports whether an address can be that of a host.
func unicast(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == "" &&
		!(a.Is4() && a.As4()[0] >= 240) && !(a.Is4() && a.As4()[0] == 0)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
