package spec

import (
	"encoding/binary"
	"net/netip"
)

var loopback = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 0, 0, 0}), 8)

// Gateway is the network's first usable address: the gateway itself, where it
// answers probes and DNS. In 10.20.0.0/16 it is 10.20.0.1.
func (n Network) Gateway() netip.Addr { return n.CIDR.Masked().Addr().Next() }

// Loopback reports whether the region's whole pool lies in 127.0.0.0/8. Such a
// region is for trying things out: it reaches 127.0.0.0/8 and nothing else.
func (r Region) Loopback() bool {
	for _, p := range r.Pool {
		if !contains(loopback, p) {
			return false
		}
	}
	return len(r.Pool) > 0
}

// EgressIndex says which address of its network's pair an inner address leaves
// from: 0 or 1. It needs no memory and never changes.
//
// It is the top bit of the address times 2^32 over the golden ratio (Knuth's
// multiplicative hash). Parts of a run of addresses, such as every second or third
// one, which is what workers' sandboxes are given, are halved about as evenly as
// the whole; the lowest bit, or the parity of all bits, would not do that.
func EgressIndex(inner netip.Addr) int {
	b := inner.As16()
	return int(binary.BigEndian.Uint32(b[12:]) * 0x9e3779b1 >> 31)
}

// HostsOf names the hosts that hold the two addresses of a network's pair. A
// network that names none gets the only host of its region twice, or the first
// two hosts where there are more. The answer is empty while the region has no host.
func (s State) HostsOf(n Network) [2]string {
	if len(n.Hosts) == 2 {
		return [2]string(n.Hosts)
	}
	r, ok := s.Region(n.Region)
	if !ok || len(r.Hosts) == 0 {
		return [2]string{}
	}
	return [2]string{r.Hosts[0].Name, r.Hosts[min(1, len(r.Hosts)-1)].Name}
}

// Region finds a region by name.
func (s State) Region(name string) (Region, bool) {
	for i := range s.Regions {
		if s.Regions[i].Name == name {
			return s.Regions[i], true
		}
	}
	return Region{}, false
}

// Network finds a network by ID.
func (s State) Network(id string) (Network, bool) {
	for i := range s.Networks {
		if s.Networks[i].ID == id {
			return s.Networks[i], true
		}
	}
	return Network{}, false
}

// Project finds a project by ID.
func (s State) Project(id string) (Project, bool) {
	for i := range s.Projects {
		if s.Projects[i].ID == id {
			return s.Projects[i], true
		}
	}
	return Project{}, false
}

// contains reports whether every address of inner is in outer.
func contains(outer, inner netip.Prefix) bool {
	return inner.IsValid() && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
