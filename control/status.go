package control

import (
	"maps"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// List returns a page of attachments, those that bypass among them, by ID: those
// after an ID ("": from the first), at most limit.
func (s *Store) List(after string, limit int) api.AttachmentList {
	if limit < 1 || limit > api.MaxPage {
		limit = api.MaxPage
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.attachments))
	for id := range s.attachments {
		if id > after {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	page := api.AttachmentList{Attachments: make([]spec.Attachment, 0, min(limit, len(ids)))}
	if len(ids) > limit {
		ids = ids[:limit]
		page.Next = ids[limit-1]
	}
	for _, id := range ids {
		page.Attachments = append(page.Attachments, s.attachments[id].Attachment)
	}
	return page
}

// Status returns what the store knows.
func (s *Store) Status() api.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := api.Status{
		Region:        s.cfg.Region,
		Revision:      s.revision,
		Attachments:   s.attachedCount,
		Bypasses:      make(map[string]int),
		BypassesTotal: maps.Clone(s.bypassTotal),
	}
	for _, e := range s.attachments {
		if e.Bypass != "" {
			out.Bypasses[e.Bypass]++
		}
	}
	for _, r := range s.state.Regions {
		out.Regions = append(out.Regions, s.regionStatus(r))
	}
	counts := s.attachmentsPerNetwork()
	peerings := s.peeringsPerNetwork()
	for _, n := range s.state.Networks {
		if n.Region == s.cfg.Region {
			out.Networks = append(out.Networks, s.networkStatus(n, counts[n.ID], peerings[n.ID]))
		}
	}
	return out
}

func (s *Store) regionStatus(r spec.Region) api.RegionStatus {
	out := api.RegionStatus{Name: r.Name, Pool: r.Pool}
	for _, h := range r.Hosts {
		status := api.HostStatus{Name: h.Name, Endpoint: h.Endpoint}
		if known := s.hosts[h.Name]; known != nil && r.Name == s.cfg.Region {
			status.Revision, status.Reported, status.Draining = known.revision, known.reported, known.draining
			if silence := s.cfg.Clock.Now().Sub(known.heard); !known.heard.IsZero() && silence > s.cfg.HostSilence {
				status.SilentSeconds = int(silence / time.Second)
			}
		}
		out.Hosts = append(out.Hosts, status)
	}
	return out
}

func (s *Store) networkStatus(n spec.Network, attachments int, peerings map[spec.PeeringState]int) api.NetworkStatus {
	out := api.NetworkStatus{
		ID: n.ID, Name: n.Name, Team: n.Team, Region: n.Region, CIDR: n.CIDR, Pair: n.Pair, Attachments: attachments, Peerings: peerings,
	}
	for _, name := range slices.Sorted(maps.Keys(s.hosts)) {
		if report, ok := s.hosts[name].networks[n.ID]; ok {
			report.Drops = maps.Clone(report.Drops)
			out.Hosts = append(out.Hosts, api.NetworkHostState{Host: name, NetworkReport: report})
		}
	}
	return out
}
