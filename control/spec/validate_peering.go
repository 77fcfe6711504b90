package spec

import (
	"fmt"
	"net/netip"
)

// reach is what the open peerings of one network have taken.
type reach struct {
	open   int
	ranges []taken           // the network's own first
	keys   map[string]string // the ID of the peering, by public key
}

// taken is a range that a network reaches: its own, or one of a peering.
type taken struct {
	cidr netip.Prefix
	who  string
}

func (c *checker) checkPeerings() {
	reaches := make(map[string]*reach)
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
		n := c.state.Networks[j]
		r := reaches[n.ID]
		if r == nil {
			r = &reach{keys: make(map[string]string), ranges: []taken{{cidr: n.CIDR, who: fmt.Sprintf("network %q", n.ID)}}}
			reaches[n.ID] = r
		}
		if r.open++; r.open == MaxPeerings+1 {
			c.add(at("peerings", i), fmt.Sprintf("network %q has more than %d open peerings", n.ID, MaxPeerings), "delete some of them")
		}
		c.checkPeeringRanges(i, p, r)
		c.checkPeer(i, p, n, r)
	}
}

// checkPeeringRanges holds the ranges of one open peering against those that its
// network reaches already.
func (c *checker) checkPeeringRanges(i int, p Peering, r *reach) {
	if len(p.CIDRs) == 0 {
		c.add(at("peerings", i, "cidrs"), fmt.Sprintf("peering %q has no range", p.ID), "list the private ranges of the other side")
	}
	who := fmt.Sprintf("peering %q", p.ID)
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
		for _, t := range r.ranges {
			if t.cidr == cidr && t.who == who {
				c.add(path, fmt.Sprintf("%v is in peering %q twice", cidr, p.ID), "list each range once")
				break
			}
			if t.cidr.Overlaps(cidr) {
				c.add(path, fmt.Sprintf("%v of peering %q overlaps %v of %s", cidr, p.ID, t.cidr, t.who), "only one of the two can be reached; change one of them")
				break
			}
		}
		r.ranges = append(r.ranges, taken{cidr: cidr, who: who})
	}
}

// checkPeer checks what one open peering needs for its tunnel.
func (c *checker) checkPeer(i int, p Peering, n Network, r *reach) {
	carried := p.State == PeeringProvisioning || p.State == PeeringActive
	if carried && n.Site == nil {
		c.add(at("peerings", i, "network"), fmt.Sprintf("peering %q is in state %s, but network %q has no site tunnel", p.ID, p.State, n.ID),
			"give the network a site (a host and a port)")
	}
	path := at("peerings", i, "publicKey")
	if p.PublicKey == "" {
		if carried {
			c.add(path, fmt.Sprintf("peering %q is in state %s without a public key", p.ID, p.State), "write the WireGuard public key of the other side, as `wg pubkey` prints it")
		}
	} else if err := CheckPublicKey(p.PublicKey); err != nil {
		c.add(path, err.Error(), "write the WireGuard public key of the other side")
	} else if other, dup := r.keys[p.PublicKey]; dup {
		c.add(path, fmt.Sprintf("peerings %q and %q of network %q have the same public key", other, p.ID, n.ID), "give each other side a key of its own")
	} else {
		r.keys[p.PublicKey] = p.ID
	}
	if p.Endpoint != (netip.AddrPort{}) {
		c.checkPeerEndpoint(at("peerings", i, "endpoint"), p.Endpoint)
	}
}

func (c *checker) checkPeerEndpoint(path string, e netip.AddrPort) {
	if !unicast(e.Addr()) || e.Addr().Is4In6() || e.Port() == 0 {
		c.add(path, fmt.Sprintf("%q is not where a WireGuard device listens", e.String()), "write an address and a port, such as 192.0.2.66:51820, or leave it out: then the other side calls")
		return
	}
	for _, r := range c.state.Regions {
		if inPool(r.Pool, e.Addr()) {
			c.add(path, fmt.Sprintf("%v is in the pool of region %q", e.Addr(), r.Name), "write the other side's own address: what is in a pool carries no service")
			return
		}
	}
}
