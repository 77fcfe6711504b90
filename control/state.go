package control

import (
	"fmt"
	"slices"

	"github.com/sallyport-net/sallyport/control/spec"
)

// Replace puts another desired state in force. It is refused, and the old one
// stays, when it is not valid or would take a network away under sandboxes, or
// move it: those keep their network until they are detached.
func (s *Store) Replace(state spec.State) error {
	if err := state.Validate().Err(); err != nil {
		return fmt.Errorf("replace the desired state: it is not valid: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	region, ok := state.Region(s.cfg.Region)
	if !ok {
		return fmt.Errorf("replace the desired state: region %q, which is served here, is not in it; put it back, or stop this control plane", s.cfg.Region)
	}
	for id, count := range s.attachmentsPerNetwork() {
		before, _ := s.state.Network(id)
		after, ok := state.Network(id)
		if !ok {
			return fmt.Errorf("replace the desired state: network %q is not in it, but %d sandboxes are attached; detach them first", id, count)
		}
		if after.CIDR != before.CIDR || after.Pair != before.Pair || after.Region != before.Region || after.Team != before.Team {
			return fmt.Errorf("replace the desired state: network %q has another CIDR, pair, region or team in it, but %d sandboxes are attached; detach them first, or make a new network", id, count)
		}
	}
	for id, net := range s.networks {
		if net.addresses.InUse() == 0 {
			delete(s.networks, id) // its CIDR may be another one now
		}
	}
	for name := range s.hosts { // one that is gone is refused from now on
		if !slices.ContainsFunc(region.Hosts, func(h spec.Host) bool { return h.Name == name }) {
			delete(s.hosts, name)
		}
	}
	s.state = &state
	s.log(change{state: true})
	return nil
}

// attachmentsPerNetwork counts sandboxes by the network's ID.
func (s *Store) attachmentsPerNetwork() map[string]int {
	counts := make(map[string]int)
	for _, e := range s.attachments {
		if e.Bypass == "" {
			counts[e.Network]++
		}
	}
	return counts
}
