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
	// network is the ID of the other network where the range is one's CIDR, and begins
	// says whose sandboxes begin: two connections may go opposite ways.
	network string
	begins  bool
}

// shares reports whether two ranges are one network's, reached in opposite directions.
func (t taken) shares(o taken) bool {
	return t.network != "" && t.network == o.network && t.begins != o.begins
}

// wire is an interface of a host.
type wire struct {
	region, host, name string
}

// wired is a connection by an interface: the inner addresses that come and go there.
type wired struct {
	network, peering string
	cidr             netip.Prefix
}

func (c *checker) checkPeerings() {
	reaches := make(map[string]*reach)
	wires := make(map[wire][]wired)
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
		if !c.checkKind(i, p) || !p.State.Open() {
			continue
		}
		n := c.state.Networks[j]
		r := c.reachOf(reaches, n, i)
		if c.carried(p) && n.Site == nil {
			c.add(at("peerings", i, "network"), fmt.Sprintf("peering %q is in state %s, but network %q has no site tunnel", p.ID, p.State, n.ID),
				"give the network a site (a host and a port)")
		}
		switch p.By() {
		case ByWireGuard:
			c.checkPeeringRanges(i, p, r)
			c.checkPeer(i, p, n, r)
		case ByInterface:
			c.checkPeeringRanges(i, p, r)
			c.checkWire(i, p, n, wires)
		case ByNetwork:
			c.checkPeerNetwork(i, p, n, reaches)
		}
	}
}

// carried reports whether the connection needs what carries its packets, or will once it
// is accepted.
func (c *checker) carried(p Peering) bool {
	return p.State == PeeringProvisioning || p.State == PeeringActive || c.state.PeeringState(p) == PeeringActive
}

// reachOf returns what the peerings of a network have taken, and counts one more, the
// i-th of the state.
func (c *checker) reachOf(reaches map[string]*reach, n Network, i int) *reach {
	r := reaches[n.ID]
	if r == nil {
		r = &reach{keys: make(map[string]string), ranges: []taken{{cidr: n.CIDR, who: fmt.Sprintf("network %q", n.ID)}}}
		reaches[n.ID] = r
	}
	if r.open++; r.open == MaxPeerings+1 {
		c.add(at("peerings", i), fmt.Sprintf("network %q has more than %d open peerings", n.ID, MaxPeerings), "delete some of them")
	}
	return r
}

// checkKind reports whether a connection's kind is one, and objects to fields of others.
func (c *checker) checkKind(i int, p Peering) bool {
	kind := p.By()
	switch kind {
	case ByWireGuard, ByInterface, ByNetwork:
	default:
		c.add(at("peerings", i, "kind"), fmt.Sprintf("there is no kind %q", p.Kind), "use wireguard (the default), interface or network")
		return false
	}
	for _, f := range []struct {
		name string
		set  bool
		of   PeeringKind
	}{
		{"publicKey", p.PublicKey != "", ByWireGuard},
		{"endpoint", p.Endpoint != (netip.AddrPort{}), ByWireGuard},
		{"interface", p.Interface != "", ByInterface},
		{"nextHop", p.NextHop != (netip.Addr{}), ByInterface},
		{"peerNetwork", p.PeerNetwork != "", ByNetwork},
	} {
		if f.set && f.of != kind {
			c.add(at("peerings", i, f.name), fmt.Sprintf("peering %q is of kind %s, which has no %s", p.ID, kind, f.name), fmt.Sprintf("leave it out, or make the kind %s", f.of))
		}
	}
	if kind == ByNetwork && len(p.CIDRs) > 0 {
		c.add(at("peerings", i, "cidrs"), fmt.Sprintf("peering %q is of kind network and lists ranges", p.ID), "leave them out: the range is the other network's CIDR")
	}
	return true
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
		c.take(path, r, taken{cidr: cidr, who: who})
	}
}

// take adds a range to those that a network reaches, and objects where it overlaps one.
func (c *checker) take(path string, r *reach, t taken) {
	for _, o := range r.ranges {
		if o.cidr == t.cidr && o.who == t.who {
			c.add(path, fmt.Sprintf("%v is in %s twice", t.cidr, t.who), "list each range once")
			break
		}
		if o.cidr.Overlaps(t.cidr) && !o.shares(t) {
			c.add(path, fmt.Sprintf("%v of %s overlaps %v of %s", t.cidr, t.who, o.cidr, o.who), "only one of the two can be reached; change one of them")
			break
		}
	}
	r.ranges = append(r.ranges, t)
}

// checkPeer checks what one open peering needs for its tunnel.
func (c *checker) checkPeer(i int, p Peering, n Network, r *reach) {
	path := at("peerings", i, "publicKey")
	if p.PublicKey == "" {
		if c.carried(p) {
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

// checkWire checks what one open peering needs that leaves by an interface: among the
// connections by it, the inner address of an answer must name the network.
func (c *checker) checkWire(i int, p Peering, n Network, wires map[wire][]wired) {
	path := at("peerings", i, "interface")
	if !validInterface(p.Interface) {
		c.add(path, fmt.Sprintf("%q is not the name of an interface of a host", p.Interface), "write the name of the interface that leads to the other side, 1 to 15 characters, such as eth1")
		return
	}
	if hop := p.NextHop; hop != (netip.Addr{}) {
		if !hop.Is4() || !unicast(hop) {
			c.add(at("peerings", i, "nextHop"), fmt.Sprintf("%q is not the address of a router", addrText(hop)), "write an IPv4 address on the interface's link, such as 10.9.0.1, or leave it out: then the ranges are on the link itself")
		} else if n.CIDR.Contains(hop) {
			c.add(at("peerings", i, "nextHop"), fmt.Sprintf("%v is an inner address of network %q (%v)", hop, n.ID, n.CIDR), "write the router's own address on the interface's link")
		}
	}
	if n.Site == nil {
		return
	}
	at := wire{n.Region, n.Site.Host, p.Interface}
	for _, o := range wires[at] {
		switch {
		case o.network == n.ID:
			c.add(path, fmt.Sprintf("peerings %q and %q of network %q both leave by interface %s of host %q", o.peering, p.ID, n.ID, p.Interface, at.host),
				"put the ranges into one of them, or give each an interface (a VLAN of its own will do)")
		case o.cidr.Overlaps(n.CIDR):
			c.add(path, fmt.Sprintf("peering %q of network %q and peering %q of network %q both leave by interface %s of host %q, and %v overlaps %v: answers would not tell whose they are", o.peering, o.network, p.ID, n.ID, p.Interface, at.host, o.cidr, n.CIDR),
				"give each an interface (a VLAN of its own will do), or use kind wireguard for one of them")
		default:
			continue
		}
		break
	}
	wires[at] = append(wires[at], wired{n.ID, p.ID, n.CIDR})
}

// validInterface reports whether s may name a network interface of Linux: up to 15
// bytes that a path may have. Loopback leads nowhere.
func validInterface(s string) bool {
	if len(s) == 0 || len(s) > 15 || s == "." || s == ".." || s == "lo" {
		return false
	}
	for i := range len(s) {
		if b := s[i]; b <= ' ' || b > '~' || b == '/' || b == ':' || b == '%' {
			return false
		}
	}
	return true
}

// checkPeerNetwork checks what one open peering needs whose other side is a network.
// Each of the two takes the other's CIDR.
func (c *checker) checkPeerNetwork(i int, p Peering, n Network, reaches map[string]*reach) {
	path := at("peerings", i, "peerNetwork")
	j, ok := c.networks[p.PeerNetwork]
	switch {
	case p.PeerNetwork == "":
		c.add(path, fmt.Sprintf("peering %q is of kind network and names none", p.ID), "name the other network by its ID")
		return
	case !ok:
		c.add(path, fmt.Sprintf("there is no network %q", p.PeerNetwork), "name a network of this installation by its ID; one elsewhere is reached by kind wireguard")
		return
	case p.PeerNetwork == p.Network:
		c.add(path, fmt.Sprintf("peering %q has network %q on both sides", p.ID, p.Network), "name another network; sandboxes of one reach each other by the pair only")
		return
	}
	other := c.state.Networks[j]
	far := c.reachOf(reaches, other, i)
	if n.CIDR.Overlaps(other.CIDR) {
		c.add(path, fmt.Sprintf("%v of network %q overlaps %v of network %q", other.CIDR, other.ID, n.CIDR, n.ID), "addresses would not tell which is meant: peer networks with different CIDRs")
	} else {
		who := func(id string) string { return fmt.Sprintf("network %q (peering %q)", id, p.ID) }
		c.take(path, reaches[n.ID], taken{cidr: other.CIDR, who: who(other.ID), network: other.ID, begins: true})
		c.take(path, far, taken{cidr: n.CIDR, who: who(n.ID), network: n.ID})
	}
	switch {
	case n.Region != other.Region:
		c.add(path, fmt.Sprintf("network %q is in region %q and network %q in region %q", n.ID, n.Region, other.ID, other.Region), "peer networks of one region; between regions use kind wireguard")
	case c.carried(p) && other.Site == nil:
		c.add(path, fmt.Sprintf("peering %q is in state %s, but network %q has no site tunnel", p.ID, p.State, other.ID), "give both networks a site on one host: there they meet")
	case c.carried(p) && n.Site != nil && n.Site.Host != other.Site.Host:
		c.add(path, fmt.Sprintf("the site of network %q is on host %q, that of network %q on host %q", n.ID, n.Site.Host, other.ID, other.Site.Host),
			"put both sites on one host, where they meet (their other hosts relay to it), or use kind wireguard")
	}
}
