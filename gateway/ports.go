package gateway

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/sallyport-net/sallyport/control/spec"
)

// portRange is the UDP ports that the host's WireGuard devices listen on, both
// ends included.
type portRange struct{ First, Last uint16 }

// assign gives each network of this host its WireGuard port, and another to each
// whose site tunnel is on the other host. The ports of the region's site tunnels are
// left to those, on whichever host they are. Relays give way to networks: one that
// finds no port is left out.
func (h *Host) assign(wanted map[string]spec.Network) error {
	r := portRange(h.cfg.Daemon.WireGuard.Ports)
	sites := map[uint16]bool{}
	var relays []string
	for id, n := range wanted {
		if n.Site == nil {
			continue
		}
		sites[n.Site.Port] = true
		if n.Site.Host != h.cfg.Daemon.Host {
			relays = append(relays, id)
		}
	}
	kept := maps.Clone(sites)
	for _, id := range relays {
		if p, ok := h.relays[id]; ok {
			kept[p] = true
		}
	}
	ids := slices.Collect(maps.Keys(wanted))
	ports, err := assignPorts(ids, r, h.ports, kept)
	if err != nil {
		h.relays = nil
		ports, err = assignPorts(ids, r, h.ports, sites)
	}
	if err != nil {
		return err
	}
	h.ports = ports
	for _, p := range ports {
		sites[p] = true
	}
	slices.Sort(relays)
	for ; len(relays) > 0; relays = relays[:len(relays)-1] {
		if ports, err := assignPorts(relays, r, h.relays, sites); err == nil {
			h.relays = ports
			return nil
		}
	}
	h.relays = nil
	return nil
}

// assignPorts gives each network its WireGuard port. Networks that have one in
// held keep it, so that a new one never moves another's tunnels; nobody else gets one
// of kept. The choice depends on the ids alone (a hash, and the next free port where
// two meet, in the order of the ids), so that a restarted daemon listens where its
// peers expect it, as far as it can.
func assignPorts(ids []string, r portRange, held map[string]uint16, kept map[uint16]bool) (map[string]uint16, error) {
	size := int(r.Last) - int(r.First) + 1
	ids = slices.Sorted(slices.Values(ids))
	taken := make(map[uint16]bool, len(ids))
	ports := make(map[string]uint16, len(ids))
	for _, id := range ids {
		if p, ok := held[id]; ok {
			ports[id], taken[p] = p, true
		}
	}
	for p := range kept {
		if p >= r.First && p <= r.Last {
			taken[p] = true
		}
	}
	if left := size - len(taken); left < len(ids)-len(ports) {
		return nil, fmt.Errorf("%d networks need a WireGuard port each, but wireguard.ports %d-%d has room for %d: widen the range", len(ids), r.First, r.Last, len(ports)+left)
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
