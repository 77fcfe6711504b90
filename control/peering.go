package control

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// Peerings returns the peering connections of the region's networks, by ID.
func (s *Store) Peerings() api.PeeringList {
	s.mu.Lock()
	defer s.mu.Unlock()
	networks := make(map[string]spec.Network)
	for _, n := range s.state.Networks {
		if n.Region == s.cfg.Region {
			networks[n.ID] = n
		}
	}
	now := s.cfg.Clock.Now()
	out := api.PeeringList{Peerings: []api.PeeringStatus{}}
	for _, p := range s.state.Peerings {
		if n, ok := networks[p.Network]; ok {
			out.Peerings = append(out.Peerings, s.peeringStatus(p, n, now))
		}
	}
	slices.SortFunc(out.Peerings, func(a, b api.PeeringStatus) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Peering returns one peering connection. The error is an [*api.Error]: there is
// none of that ID, or its network is in another region.
func (s *Store) Peering(id string) (api.PeeringStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.state.Peerings {
		if p.ID != id {
			continue
		}
		n, _ := s.state.Network(p.Network)
		if n.Region != s.cfg.Region {
			return api.PeeringStatus{}, s.wrongRegion(n.Region)
		}
		return s.peeringStatus(p, n, s.cfg.Clock.Now()), nil
	}
	return api.PeeringStatus{}, &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound,
		Message: fmt.Sprintf("there is no peering %q; `sallyport peering list` lists them", id)}
}

// peeringStatus puts together what is wished for and what the site tunnel's host reported.
func (s *Store) peeringStatus(p spec.Peering, n spec.Network, now time.Time) api.PeeringStatus {
	awaits := ""
	if !s.state.Accepted(p) {
		awaits = p.PeerNetwork
	}
	if p.State = s.state.PeeringStateAt(p, now); p.State != spec.PeeringPending {
		awaits = "" // it is final, or the other side does not know of it yet
	}
	out := api.PeeringStatus{Peering: p, Awaits: awaits, NetworkCIDR: n.CIDR, Ranges: s.state.RangesOf(p, n.ID)}
	if n.Site == nil {
		return out
	}
	out.Host = n.Site.Host
	h, ok := s.hosts[n.Site.Host]
	if !ok || h.networks[n.ID].Site == nil {
		return out
	}
	site := h.networks[n.ID].Site
	out.SitePublicKey, out.SiteEndpoint = site.PublicKey, site.Endpoint
	for _, r := range site.Peerings {
		if r.ID == p.ID {
			out.Report = &r
		}
	}
	return out
}

// peeringsPerNetwork counts peering connections by the network's ID and their state of now.
func (s *Store) peeringsPerNetwork() map[string]map[spec.PeeringState]int {
	now := s.cfg.Clock.Now()
	counts := make(map[string]map[spec.PeeringState]int)
	for _, p := range s.state.Peerings {
		if counts[p.Network] == nil {
			counts[p.Network] = make(map[spec.PeeringState]int)
		}
		counts[p.Network][s.state.PeeringStateAt(p, now)]++
	}
	return counts
}
