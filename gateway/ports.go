package gateway

import (
	"fmt"
	"hash/fnv"
	"slices"
)

// PortRange is the UDP ports that the host's WireGuard devices listen on, both
// ends included.
type PortRange struct{ First, Last uint16 }

// assignPorts gives each network its WireGuard port. Networks that have one in
// held keep it, so that a new one never moves another's tunnels. The choice
// depends on the ids alone (a hash, and the next free port where two meet, in the
// order of the ids), so that a restarted daemon listens where its peers expect it,
// as far as it can.
func assignPorts(ids []string, r PortRange, held map[string]uint16) (map[string]uint16, error) {
	size := int(r.Last) - int(r.First) + 1
	if size < len(ids) {
		return nil, fmt.Errorf("%d networks need a WireGuard port each, but wireguard.ports %d-%d has room for %d: widen the range", len(ids), r.First, r.Last, size)
	}
	ids = slices.Sorted(slices.Values(ids))
	taken := make(map[uint16]bool, len(ids))
	ports := make(map[string]uint16, len(ids))
	for _, id := range ids {
		if p, ok := held[id]; ok {
			ports[id], taken[p] = p, true
		}
	}
	for _, id := range ids {
		if _, ok := ports[id]; ok {
			continue
		}
		h := fnv.New32a()
		h.Write([]byte(id)) // never fails
		at := int(h.Sum32() % uint32(size))
		for taken[r.First+uint16(at)] {
			at = (at + 1) % size
		}
		ports[id] = r.First + uint16(at)
		taken[ports[id]] = true
	}
	return ports, nil
}
