package spec

import "fmt"

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
