package spec

import (
	"fmt"
	"net/netip"
	"slices"
)

func (c *checker) checkNetworks() {
	// Endpoints may be shared by hosts behind one address, but never lie in a pair.
	endpoints := make(map[netip.Addr]string)
	for _, r := range c.state.Regions {
		for _, h := range r.Hosts {
			endpoints[h.Endpoint] = fmt.Sprintf("the endpoint of host %q in region %q", h.Name, r.Name)
		}
	}
	users := c.projectsPerNetwork()
	seen := make(map[[2]string]bool)
	sites := make(map[sitePort]string)
	for i, n := range c.state.Networks {
		c.id(at("networks", i, "id"), "network", n.ID, c.networks[n.ID], i)
		c.name(at("networks", i, "name"), n.Name, n.Team, seen)
		c.team(at("networks", i, "team"), n.Team)
		if problem, bad := checkCIDR(n.CIDR); bad {
			c.addAt(at("networks", i, "cidr"), problem)
		}
		c.checkTranslation(i, n)
		if users[n.ID] > MaxProjects {
			c.add(at("networks", i), fmt.Sprintf("network %q is used by %d projects, more than %d", n.ID, users[n.ID], MaxProjects), "let some of them use another network")
		}
		c.checkPair(i, n, endpoints)
		c.checkDraining(at("networks", i, "draining"), n)
		c.checkNetworkHosts(i, n)
		if n.Site != nil {
			c.checkSite(at("networks", i, "site"), n, sites)
		}
		c.checkPolicy(at("networks", i, "policy"), n)
	}
}

func (c *checker) projectsPerNetwork() map[string]int {
	users := make(map[string]int)
	for _, p := range c.state.Projects {
		mine := make(map[string]bool)
		for _, e := range p.Environments {
			for _, id := range e.Active {
				mine[id] = true
			}
			if e.Passive != "" {
				mine[e.Passive] = true
			}
		}
		for id := range mine {
			users[id]++
		}
	}
	return users
}

func (c *checker) checkPair(i int, n Network, endpoints map[netip.Addr]string) {
	region, known := c.region(n.Region)
	if !known {
		c.add(at("networks", i, "region"), fmt.Sprintf("there is no region %q", n.Region), "name a region that is in regions, or add it")
	}
	for j, a := range n.Pair {
		path := at("networks", i, "pair", j)
		switch {
		case !a.Is4():
			c.add(path, fmt.Sprintf("%q is not an IPv4 address", addrText(a)), "a pair is two IPv4 addresses from the pool of the region")
			continue
		case j == 1 && a == n.Pair[0]:
			c.add(path, fmt.Sprintf("both addresses of the pair are %v", a), "choose two different ones")
			continue
		case known && !inPool(region.Pool, a):
			c.add(path, fmt.Sprintf("%v is not in the pool of region %q", a, n.Region), fmt.Sprintf("choose an address from %v", region.Pool))
		}
		if who, taken := endpoints[a]; taken {
			c.add(path, fmt.Sprintf("%v is a dedicated address of network %q, and also %s", a, n.ID, who), "use another: a dedicated address carries no service")
		}
		c.own(path, a, fmt.Sprintf("a dedicated address of network %q", n.ID))
	}
}

// checkDraining wants one address of the pair left that new flows leave from.
func (c *checker) checkDraining(path string, n Network) {
	for j, a := range n.Draining {
		if a != n.Pair[0] && a != n.Pair[1] {
			c.add(fmt.Sprintf("%s[%d]", path, j), fmt.Sprintf("%q is not in the pair of network %q", addrText(a), n.ID),
				fmt.Sprintf("name %s or %s", addrText(n.Pair[0]), addrText(n.Pair[1])))
		}
	}
	if len(n.Draining) > 1 {
		c.add(path, fmt.Sprintf("%d addresses of network %q are drained at once", len(n.Draining), n.ID), "drain one; the other takes its new flows")
	}
}

func (c *checker) region(name string) (Region, bool) {
	i, ok := c.regions[name]
	if !ok {
		return Region{}, false
	}
	return c.state.Regions[i], true
}

func inPool(pool []netip.Prefix, a netip.Addr) bool {
	for _, p := range pool {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (c *checker) checkNetworkHosts(i int, n Network) {
	path := at("networks", i, "hosts")
	if len(n.Hosts) != 0 && len(n.Hosts) != 2 {
		c.add(path, fmt.Sprintf("%d hosts are named for the two addresses of the pair", len(n.Hosts)), "name two hosts, which may be the same, or none")
		return
	}
	region, known := c.region(n.Region)
	for j, name := range n.Hosts {
		if known && !hasHost(region, name) {
			c.add(fmt.Sprintf("%s[%d]", path, j), fmt.Sprintf("region %q has no host %q", n.Region, name), "name one of the region's hosts")
		}
	}
}

// sitePort is the port of a site tunnel. It may come to any host of the region.
type sitePort struct {
	region string
	port   uint16
}

// checkSite checks the site tunnel of one network; ports holds the IDs of the
// networks before, by the port of theirs.
func (c *checker) checkSite(path string, n Network, ports map[sitePort]string) {
	hosts := c.state.HostsOf(n)
	if hosts != [2]string{} && n.Site.Host != hosts[0] && n.Site.Host != hosts[1] {
		c.add(path+".host", fmt.Sprintf("host %q holds no address of the pair of network %q", n.Site.Host, n.ID),
			fmt.Sprintf("name one that does: %s", list(slices.Compact(hosts[:]))))
	}
	key := sitePort{n.Region, n.Site.Port}
	if n.Site.Port == 0 {
		c.add(path+".port", fmt.Sprintf("the site tunnel of network %q has no port", n.ID), "write the UDP port that its WireGuard device listens on")
	} else if other, taken := ports[key]; taken {
		c.add(path+".port", fmt.Sprintf("the site tunnels of networks %q and %q both have port %d in region %q", other, n.ID, n.Site.Port, n.Region), "give each one a port of its own")
	} else {
		ports[key] = n.ID
	}
}

func hasHost(r Region, name string) bool {
	for _, h := range r.Hosts {
		if h.Name == name {
			return true
		}
	}
	return false
}

func (c *checker) checkPolicy(path string, n Network) {
	switch n.Policy.Mode {
	case "", ModeAllow, ModeDeny, ModeCustom:
	default:
		c.add(path+".mode", fmt.Sprintf("there is no mode %q", n.Policy.Mode), "use allow (the default), deny or custom")
	}
	for i, r := range n.Policy.Rules {
		c.checkRule(fmt.Sprintf("%s.rules[%d]", path, i), n, r)
	}
}

func (c *checker) checkRule(path string, n Network, r Rule) {
	for i, id := range r.Projects {
		if p, ok := c.projects[id]; !ok || c.state.Projects[p].Team != n.Team {
			c.add(fmt.Sprintf("%s.projects[%d]", path, i), fmt.Sprintf("team %q has no project %q", n.Team, id), "name a project by its ID")
		}
	}
	for i, e := range r.Environments {
		if !ValidID(e) {
			c.add(fmt.Sprintf("%s.environments[%d]", path, i), fmt.Sprintf("%q is not the name of an environment", e), "write one such as production")
		}
	}
	for i, k := range r.Kinds {
		if k != KindFunction && k != KindBuild {
			c.add(fmt.Sprintf("%s.kinds[%d]", path, i), fmt.Sprintf("there is no kind %q", k), "use function or build")
		}
	}
	for i, rt := range r.Runtimes {
		if !ValidRuntime(rt) {
			c.add(fmt.Sprintf("%s.runtimes[%d]", path, i), fmt.Sprintf("%q is not a runtime", rt), "write one in lower case, such as nodejs")
		}
	}
	for i, p := range r.CIDRs {
		rulePath := fmt.Sprintf("%s.cidrs[%d]", path, i)
		if !p.IsValid() || !p.Addr().Is4() {
			c.addAt(rulePath, invalidCIDR(text(p)))
		} else if p != p.Masked() {
			c.add(rulePath, fmt.Sprintf("%v has bits set below its prefix length", p), fmt.Sprintf("write %v", p.Masked()))
		}
	}
	c.checkTransport(path, r)
	switch r.Verdict {
	case VerdictAllow, VerdictReject, VerdictDrop:
	default:
		c.add(path+".verdict", fmt.Sprintf("there is no verdict %q", r.Verdict), "use allow, reject or drop")
	}
}

func (c *checker) checkTransport(path string, r Rule) {
	ported := len(r.Protocols) == 0
	for i, p := range r.Protocols {
		switch p {
		case ProtocolTCP, ProtocolUDP:
			ported = true
		case ProtocolICMP:
		default:
			c.add(fmt.Sprintf("%s.protocols[%d]", path, i), fmt.Sprintf("there is no protocol %q", p), "use tcp, udp or icmp")
		}
	}
	for i, r := range r.Ports {
		if r.First == 0 || r.First > r.Last {
			c.add(fmt.Sprintf("%s.ports[%d]", path, i), fmt.Sprintf("%v is not a range of ports", r), "write one like 443 or 1000-2000")
		}
	}
	if len(r.Ports) > 0 && !ported {
		c.add(path+".ports", "icmp has no ports, so that the rule would match nothing", "leave out the ports, or add tcp or udp to the protocols")
	}
}
