package sidecar

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

// networkStatus is a network in which the worker has sandboxes.
type networkStatus struct {
	ID        string     `json:"id"`
	Worker    netip.Addr `json:"worker"`
	Sandboxes int        `json:"sandboxes"`
	// Paths are the tunnels that its sandboxes may use, those to passive networks too.
	Paths []pathStatus `json:"paths"`
	// Groups are its sandboxes by the gateways that they prefer.
	Groups []groupStatus `json:"groups"`
	// Switches are the last decisions, the oldest first.
	Switches []switchRecord `json:"switches"`
}

// pathStatus is one tunnel.
type pathStatus struct {
	Gateway spec.Gateway `json:"gateway"`
	// Network is that of the tunnel, by ID, and Region is its region.
	Network string `json:"network"`
	Region  string `json:"region"`
	// State is new, good, suspect or dead; Alive says that it is good or suspect.
	State     string `json:"state"`
	Alive     bool   `json:"alive"`
	RTTMicros int64  `json:"rttMicros"` // smoothed; 0 before the first answer
	// Misses are those since the last answer, SilenceMillis is the time since then.
	Misses        int   `json:"misses"`
	SilenceMillis int64 `json:"silenceMillis"`
	Health        uint8 `json:"health"` // bits that the gateway reported; 0 is healthy
	// Unlisted says that the control plane names the gateway no more.
	Unlisted     bool         `json:"unlisted,omitempty"`
	Probes       uint64       `json:"probes"`
	Answers      uint64       `json:"answers"`
	Missed       uint64       `json:"missed"` // of all probes
	FalseAnswers uint64       `json:"falseAnswers"`
	Egress       spec.Traffic `json:"egress"`
	Ingress      spec.Traffic `json:"ingress"`
	Handshake    time.Time    `json:"handshake,omitzero"`
}

// groupStatus are sandboxes that prefer the same gateways in the same order.
type groupStatus struct {
	// Prefers is the host that is used while all is well; Passive the ID of the
	// passive network, empty where there is none.
	Prefers string `json:"prefers"`
	Passive string `json:"passive,omitempty"`
	// Order are the hosts that may be used, Choice is the one that new flows take.
	Order  []hostName `json:"order"`
	Choice *hostName  `json:"choice,omitempty"`
	// State is preferred, alarmed, stranded, away or held, as package failover says.
	State     string `json:"state"`
	Sandboxes int    `json:"sandboxes"`
	// Switches counts changes of the choice, Failbacks those back to a preferred host.
	Switches  uint64 `json:"switches"`
	Failbacks uint64 `json:"failbacks"`
	// Lingering are the hosts that were left and may still carry older flows.
	Lingering []hostName `json:"lingering,omitempty"`
}

// status reads everything that is known of a network. The caller holds the sidecar's
// lock.
func (n *network) status(now packet.Instant) networkStatus {
	v := networkStatus{
		ID: n.info.ID, Worker: n.worker, Sandboxes: n.attached,
		Paths: []pathStatus{}, Groups: n.watch.groupStatus(), Switches: n.watch.records.read(),
	}
	for _, t := range n.watch.followed() {
		v.Paths = append(v.Paths, t.status(now))
	}
	slices.SortStableFunc(v.Paths, func(a, b pathStatus) int {
		return slices.Compare([]string{a.Region, a.Gateway.Host}, []string{b.Region, b.Gateway.Host})
	})
	// The network's own come first.
	slices.SortStableFunc(v.Paths, func(a, b pathStatus) int {
		return boolRank(a.Gateway.Role == spec.RolePassive) - boolRank(b.Gateway.Role == spec.RolePassive)
	})
	return v
}

func boolRank(last bool) int {
	if last {
		return 1
	}
	return 0
}

// status reads one tunnel as a watch sees it. The caller holds the sidecar's lock.
func (t *track) status(now packet.Instant) pathStatus {
	t.watch.mu.Lock()
	p := t.watch.monitor.Path(t.id)
	t.watch.mu.Unlock()
	l := t.link
	v := pathStatus{
		Gateway: l.gateway, Network: t.host.Network, Region: t.host.Region, State: p.State.String(),
		Alive:     p.State == failover.PathGood || p.State == failover.PathSuspect,
		RTTMicros: p.RTT.Microseconds(), Misses: p.Run, Health: uint8(p.Health), Unlisted: !l.unlisted.IsZero(),
		Probes: p.Asked, Answers: p.Answers, Missed: p.Misses, FalseAnswers: l.path.falseAnswers.Load(),
		Egress: l.path.toGateway.read(), Ingress: l.path.toSandbox.read(),
	}
	if p.Answers > 0 {
		v.SilenceMillis = time.Duration(now - packet.Instant(p.Answered)).Milliseconds()
	}
	if peers, err := l.tunnel.Peers(); err == nil && len(peers) == 1 {
		v.Handshake = peers[0].LastHandshake
	}
	return v
}

// groupStatus reads the groups, those with the most sandboxes first.
func (w *watch) groupStatus() []groupStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]groupStatus, 0, len(w.groups))
	for _, g := range w.groups {
		m := w.monitor.Group(g.id)
		v := groupStatus{
			Prefers: g.key.host, Passive: g.key.passive, Order: make([]hostName, 0, len(g.order)),
			State: m.State.String(), Sandboxes: g.entries, Switches: m.Switches, Failbacks: m.Failbacks,
		}
		for _, t := range g.order {
			v.Order = append(v.Order, t.host)
		}
		if t := w.tracks[m.Choice]; t != nil {
			v.Choice = &t.host
		}
		for id := range g.lingering {
			if t := w.tracks[id]; t != nil {
				v.Lingering = append(v.Lingering, t.host)
			}
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b groupStatus) int {
		return slices.Compare([]string{a.Prefers, a.Passive}, []string{b.Prefers, b.Passive})
	})
	return out
}
