package control

import (
	"fmt"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// gateways lists the hosts of a network in the order in which the attachment should
// use them: the host of its egress address, then the sibling. The first must be
// ready. While the host of the egress address is away, a sibling that is ready
// goes first.
func (s *Store) gateways(n spec.Network, e entry, called time.Time) ([]spec.Gateway, string) {
	hosts := s.state.HostsOf(n)
	active := spec.EgressIndex(e.Inner)
	order := []int{active, 1 - active}
	if hosts[0] == hosts[1] {
		order = order[:1]
	}
	missing := s.missing(hosts[active], e)
	if len(order) == 2 && s.patience(e, called) <= 0 {
		sibling := s.missing(hosts[1-active], e)
		switch {
		case sibling == "":
			order[0], order[1], missing = 1-active, active, ""
		case missing != "":
			missing += ", silent or draining, and " + sibling
		}
	}
	if missing != "" {
		return nil, missing
	}
	var list []spec.Gateway
	for _, i := range order {
		h, ok := s.hosts[hosts[i]]
		if !ok {
			continue
		}
		if report, ok := h.networks[n.ID]; ok {
			list = append(list, spec.Gateway{
				Role: role(e.Attachment, i == active), Host: hosts[i], Network: n.ID,
				PublicKey: report.PublicKey, Endpoint: report.Endpoint, EgressIP: n.Pair[i],
			})
		}
	}
	return list, ""
}

// role is what a host of a network is to an attachment.
func role(a spec.Attachment, active bool) spec.GatewayRole {
	switch {
	case a.Passive:
		return spec.RolePassive
	case active:
		return spec.RoleActive
	}
	return spec.RoleSibling
}

// missing says what a host has yet to do before the attachment can use it; empty:
// it is ready.
func (s *Store) missing(name string, e entry) string {
	h, err := s.host(name)
	if err != nil {
		return err.Error()
	}
	if h.revision < e.revision {
		return fmt.Sprintf("gateway host %q has acknowledged revision %d, not %d", name, h.revision, e.revision)
	}
	if _, ok := h.networks[e.Network]; !ok {
		return fmt.Sprintf("gateway host %q has not reported a tunnel for network %q", name, e.Network)
	}
	return ""
}

// patience is how much longer an attach that was called at a time waits for the
// host of its egress address alone. At 0 and below the host is away, and its
// sibling will do. One that drains is away at once: it is about to end.
func (s *Store) patience(e entry, called time.Time) time.Duration {
	n, _ := s.state.Network(e.Network)
	name := s.state.HostsOf(n)[spec.EgressIndex(e.Inner)]
	h := s.hosts[name]
	now := s.cfg.Clock.Now()
	switch {
	case h == nil || h.heard.IsZero():
		return s.cfg.FirstContact - now.Sub(called)
	case h.draining:
		return 0
	}
	return s.cfg.HostSilence - now.Sub(h.heard)
}
