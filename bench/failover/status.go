package failover

import (
	"errors"
	"fmt"
)

// sidecarStatus is what we read of /v1/status.
type sidecarStatus struct {
	Control struct {
		Reachable bool `json:"reachable"`
	} `json:"control"`
	Networks []struct {
		Paths []struct {
			Gateway struct {
				Host string `json:"host"`
			} `json:"gateway"`
			State  string `json:"state"`
			Health uint8  `json:"health"`
			Probes uint64 `json:"probes"`
			Missed uint64 `json:"missed"`
		} `json:"paths"`
		Groups []struct {
			State    string `json:"state"`
			Switches uint64 `json:"switches"`
		} `json:"groups"`
	} `json:"networks"`
}

// What the sidecar calls a path that answers, and a group that uses the path
// that it prefers.
const (
	pathGood       = "good"
	groupPreferred = "preferred"
)

// settled says what is missing until every sandbox uses the host that it prefers,
// and so many hosts answer.
func (s sidecarStatus) settled(hosts int) error {
	good := 0
	for _, n := range s.Networks {
		for _, p := range n.Paths {
			if p.State != pathGood || p.Health != 0 {
				return fmt.Errorf("the sidecar says that %s is %s, with health %d", p.Gateway.Host, p.State, p.Health)
			}
			good++
		}
		for _, g := range n.Groups {
			if g.State != groupPreferred {
				return fmt.Errorf("the sidecar says that sandboxes are %s, not %s", g.State, groupPreferred)
			}
		}
	}
	if good != hosts {
		return fmt.Errorf("the sidecar says that %d of %d hosts answer", good, hosts)
	}
	if !s.Control.Reachable {
		return errors.New("the sidecar says that the control plane does not answer")
	}
	return nil
}

// counts are the switches and the probes of all networks.
func (s sidecarStatus) counts() (switches, probes, missed uint64) {
	for _, n := range s.Networks {
		for _, g := range n.Groups {
			switches += g.Switches
		}
		for _, p := range n.Paths {
			probes, missed = probes+p.Probes, missed+p.Missed
		}
	}
	return switches, probes, missed
}
