package spec

import "fmt"

// checkAcceptances holds what networks accept against the connections that there are: an
// acceptance is of one connection from one network, and of no other that may come.
func (c *checker) checkAcceptances() {
	for i, n := range c.state.Networks {
		seen := make(map[string]bool)
		for j, a := range n.AcceptedPeerings {
			path := at("networks", i, "acceptedPeerings", j)
			k, ok := c.peerings[a.Peering]
			if !ok {
				c.add(path, fmt.Sprintf("network %q accepts peering %q of network %q, which there is not", n.ID, a.Peering, a.Network),
					"name a peering of kind network by its ID, or take it out")
				continue
			}
			switch p := c.state.Peerings[k]; {
			case p.By() != ByNetwork:
				c.add(path, fmt.Sprintf("network %q accepts peering %q of network %q, which is of kind %s", n.ID, p.ID, p.Network, p.By()),
					"take it out: only peerings of kind network are accepted here")
			case p.PeerNetwork != n.ID:
				c.add(path, fmt.Sprintf("network %q accepts peering %q, which network %q asks of network %q", n.ID, p.ID, p.Network, p.PeerNetwork),
					fmt.Sprintf("write it under network %q, or take it out", p.PeerNetwork))
			case p.Network != a.Network:
				c.add(path, fmt.Sprintf("network %q accepts peering %q of network %q, but network %q asks for it", n.ID, p.ID, a.Network, p.Network),
					fmt.Sprintf("write network: %s if that is meant, or take it out", p.Network))
			case seen[p.ID]:
				c.add(path, fmt.Sprintf("network %q accepts peering %q of network %q twice", n.ID, p.ID, p.Network), "write it once")
			}
			seen[a.Peering] = true
		}
	}
}
