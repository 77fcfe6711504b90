package sidecar

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

// NetworkStatus is a network in which the worker has sandboxes.
type NetworkStatus struct {
	ID        string     `json:"id"`
	Worker    netip.Addr `json:"worker"`
	Sandboxes int        `json:"sandboxes"`
	// Paths are the tunnels that its sandboxes may use, those to passive networks too.
	Paths []PathStatus `json:"paths"`
	// Groups are its sandboxes by the gateways that they prefer.
	Groups []GroupStatus `json:"groups"`
	// Switches are the last decisions, the oldest first.
	Switches []SwitchRecord `json:"switches"`
}

// PathStatus is one tunnel.
type PathStatus struct {
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
	// Lost are the tunnel's datagrams that this machine did not send, or could not take,
	// by reason; those that there are.
	Lost      map[string]uint64 `json:"lost,omitempty"`
	Handshake time.Time         `json:"handshake,omitzero"`
}

// GroupStatus are sandboxes that prefer the same gateways in the same order.
type GroupStatus struct {
	// Prefers is the host that is used while all is well; Passive the ID of the
	// passive network, empty where there is none.
	Prefers string `json:"prefers"`
	Passive string `json:"passive,omitempty"`
	// Order are the hosts that may be used, Choice is the one that new flows take.
	Order  []HostName `json:"order"`
	Choice *HostName  `json:"choice,omitempty"`
	// Since is when the choice became that.
	Since time.Time `json:"since,omitzero"`
	// State is preferred, alarmed, stranded, away or held, as package failover says.
	State     string `json:"state"`
	Sandboxes int    `json:"sandboxes"`
	// Switches counts changes of the choice, Failbacks those back to a preferred host.
	Switches  uint64 `json:"switches"`
	Failbacks uint64 `json:"failbacks"`
	// Lingering are the hosts that were left and may still carry older flows.
	Lingering []HostName `json:"lingering,omitempty"`
}

// status reads everything that is known of a network. The caller holds the sidecar's
// lock.
func (n *network) status(now packet.Instant) NetworkStatus {
	v := NetworkStatus{
		ID: n.info.ID, Worker: n.worker, Sandboxes: n.attached,
		Paths: []PathStatus{}, Groups: n.watch.groupStatus(now), Switches: n.watch.records.read(),
	}
	for _, t := range n.watch.followed() {
		v.Paths = append(v.Paths, t.status(now))
	}
	slices.SortStableFunc(v.Paths, func(a, b PathStatus) int {
		return slices.Compare([]string{a.Region, a.Gateway.Host}, []string{b.Region, b.Gateway.Host})
	})
	// The network's own come first.
	slices.SortStableFunc(v.Paths, func(a, b PathStatus) int {
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
func (t *track) status(now packet.Instant) PathStatus {
	t.watch.mu.Lock()
	p := t.watch.monitor.Path(t.id)
	t.watch.mu.Unlock()
	l := t.link
	v := PathStatus{
		Gateway: l.gateway, Network: t.host.Network, Region: t.host.Region, State: p.State.String(),
		Alive:     p.State == failover.PathGood || p.State == failover.PathSuspect,
		RTTMicros: p.RTT.Microseconds(), Misses: p.Run, Health: uint8(p.Health), Unlisted: !l.unlisted.IsZero(),
		Probes: p.Asked, Answers: p.Answers, Missed: p.Misses, FalseAnswers: l.path.falseAnswers.Load(),
		Egress: l.path.toGateway.read(), Ingress: l.path.toSandbox.read(),
	}
	if p.Answers > 0 {
		v.SilenceMillis = time.Duration(now - packet.Instant(p.Answered)).Milliseconds()
	}
	for reason, n := range l.tunnel.SocketStats().Lost {
		if n == 0 {
			continue
		}
		if v.Lost == nil {
			v.Lost = make(map[string]uint64)
		}
		v.Lost[reason] = n
	}
	if peers, err := l.tunnel.Peers(); err == nil && len(peers) == 1 {
		v.Handshake = peers[0].LastHandshake
	}
	return v
}

// groupStatus reads the groups, those with the most sandboxes first.
func (w *watch) groupStatus(now packet.Instant) []GroupStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]GroupStatus, 0, len(w.groups))
	for _, g := range w.groups {
		m := w.monitor.Group(g.id)
		v := GroupStatus{
			Prefers: g.key.host, Passive: g.key.passive, Order: make([]HostName, 0, len(g.order)),
			State: m.State.String(), Sandboxes: g.entries, Switches: m.Switches, Failbacks: m.Failbacks,
		}
		for _, t := range g.order {
			v.Order = append(v.Order, t.host)
		}
		if t := w.tracks[m.Choice]; t != nil {
			v.Choice = &t.host
			v.Since = time.Now().Add(-time.Duration(now - packet.Instant(m.Since))).UTC()
		}
		for id := range g.lingering {
			if t := w.tracks[id]; t != nil {
				v.Lingering = append(v.Lingering, t.host)
			}
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b GroupStatus) int {
		return slices.Compare([]string{a.Prefers, a.Passive}, []string{b.Prefers, b.Passive})
	})
	return out
}
