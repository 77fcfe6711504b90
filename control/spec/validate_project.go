package spec

import (
	"fmt"
	"net/netip"
)

func (c *checker) checkProjects() {
	seen := make(map[[2]string]bool)
	for i, p := range c.state.Projects {
		c.id(at("projects", i, "id"), "project", p.ID, c.projects[p.ID], i)
		c.name(at("projects", i, "name"), p.Name, p.Team, seen)
		c.team(at("projects", i, "team"), p.Team)
		names := make(map[string]bool)
		for j, e := range p.Environments {
			path := at("projects", i, "environments", j)
			if !ValidID(e.Name) {
				c.add(path+".name", fmt.Sprintf("%q is not the name of an environment", e.Name), "write one such as production")
			} else if names[e.Name] {
				c.add(path+".name", fmt.Sprintf("environment %q is in project %q twice", e.Name, p.ID), "give each environment a name of its own")
			}
			names[e.Name] = true
			c.checkEnvironment(path, p, e)
		}
	}
}

func (c *checker) checkEnvironment(path string, p Project, e Environment) {
	byRegion := make(map[string]string)
	for k, id := range e.Active {
		path := fmt.Sprintf("%s.active[%d]", path, k)
		n, ok := c.projectNetwork(path, p, id)
		if !ok {
			continue
		}
		if other, taken := byRegion[n.Region]; taken {
			c.add(path, fmt.Sprintf("networks %q and %q are both active in region %q", other, id, n.Region), "keep one active network per region")
			continue
		}
		byRegion[n.Region] = id
	}
	if e.Passive == "" {
		return
	}
	n, ok := c.projectNetwork(path+".passive", p, e.Passive)
	if !ok {
		return
	}
	if active, taken := byRegion[n.Region]; taken {
		c.add(path+".passive", fmt.Sprintf("the passive network %q is in region %q, where %q is active", e.Passive, n.Region, active), "choose one in a region without an active network")
	}
}

func (c *checker) projectNetwork(path string, p Project, id string) (Network, bool) {
	i, ok := c.networks[id]
	if !ok {
		c.add(path, fmt.Sprintf("there is no network %q", id), "name a network by its ID, or add it to networks")
		return Network{}, false
	}
	n := c.state.Networks[i]
	if n.Team != p.Team {
		c.add(path, fmt.Sprintf("network %q belongs to team %q, project %q to team %q", id, n.Team, p.ID, p.Team), "use a network of the project's own team")
		return Network{}, false
	}
	return n, true
}

// taken is a range that a network reaches: its own, or one of a peering.
type taken struct {
	cidr netip.Prefix
	who  string
}

func (c *checker) checkPeerings() {
	open := make(map[string]int)
	ranges := make(map[string][]taken)
	for i, p := range c.state.Peerings {
		c.id(at("peerings", i, "id"), "peering", p.ID, c.peerings[p.ID], i)
		if !p.State.Known() {
			c.add(at("peerings", i, "state"), fmt.Sprintf("there is no state %q", p.State),
				"use initiating-request, pending-acceptance, provisioning, active, rejected, expired, failed or deleted")
		}
		j, ok := c.networks[p.Network]
		if !ok {
			c.add(at("peerings", i, "network"), fmt.Sprintf("there is no network %q", p.Network), "name a network by its ID, or add it to networks")
			continue
		}
		if !p.State.Open() {
			continue
		}
		if open[p.Network]++; open[p.Network] == MaxPeerings+1 {
			c.add(at("peerings", i), fmt.Sprintf("network %q has more than %d open peerings", p.Network, MaxPeerings), "delete some of them")
		}
		if ranges[p.Network] == nil {
			ranges[p.Network] = []taken{{cidr: c.state.Networks[j].CIDR, who: fmt.Sprintf("network %q", p.Network)}}
		}
		ranges[p.Network] = c.checkPeeringRanges(i, p, ranges[p.Network])
	}
}

// checkPeeringRanges holds the ranges of one open peering against those that its
// network reaches already, and returns all of them.
func (c *checker) checkPeeringRanges(i int, p Peering, before []taken) []taken {
	if len(p.CIDRs) == 0 {
		c.add(at("peerings", i, "cidrs"), fmt.Sprintf("peering %q has no range", p.ID), "list the private ranges of the other side")
	}
	for j, cidr := range p.CIDRs {
		path := at("peerings", i, "cidrs", j)
		switch {
		case !cidr.IsValid() || !cidr.Addr().Is4():
			c.addAt(path, invalidCIDR(text(cidr)))
			continue
		case cidr != cidr.Masked():
			c.add(path, fmt.Sprintf("%v has bits set below its prefix length", cidr), fmt.Sprintf("write %v", cidr.Masked()))
			continue
		case !isPrivate(cidr) && !contains(sharedSpace, cidr):
			c.add(path, fmt.Sprintf("%v is not private", cidr), "a peering reaches private ranges only (RFC 1918, RFC 6598)")
			continue
		}
		for _, t := range before {
			if t.cidr.Overlaps(cidr) {
				c.add(path, fmt.Sprintf("%v of peering %q overlaps %v of %s", cidr, p.ID, t.cidr, t.who), "only one of the two can be reached; change one of them")
				break
			}
		}
		before = append(before, taken{cidr: cidr, who: fmt.Sprintf("peering %q", p.ID)})
	}
	return before
}
