package sidecar

import (
	"slices"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/internal/tundev"
	"github.com/sallyport-net/sallyport/sidecar/proxy"
)

// Listing is the answer to GET /v1/sandboxes.
type Listing struct {
	Sandboxes []SandboxStatus `json:"sandboxes"`
	// Attached counts those with a tunnel, Bypassed the others by reason.
	Attached int            `json:"attached"`
	Bypassed map[string]int `json:"bypassed"`
	// BypassedTotal counts bypasses since the sidecar began, by reason.
	BypassedTotal map[string]uint64 `json:"bypassedTotal"`
}

// SandboxStatus is one sandbox.
type SandboxStatus struct {
	spec.Attachment
	// State is waiting until the sandbox's device came, then running.
	State string `json:"state"`
	// Sent and Received count what passed, from the sandbox and to it. Its address
	// of the pair is the attachment's egress.
	Sent     spec.Traffic      `json:"sent"`
	Received spec.Traffic      `json:"received"`
	Drops    map[string]uint64 `json:"drops,omitempty"` // both directions, by reason
	// Passive is the sandbox's attachment to its passive network.
	Passive PassiveStatus `json:"passive,omitzero"`
	// Proxied says that the sandbox has proxies only, which its command may pass by.
	Proxied bool         `json:"proxied,omitempty"`
	Proxy   *proxy.Stats `json:"proxy,omitempty"`
	// Namespace says where the sandbox's interface was made, if it brought none.
	Namespace string `json:"namespace,omitempty"`
}

// listing lists the sandboxes by ID.
func (s *Sidecar) listing() Listing {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Listing{Sandboxes: []SandboxStatus{}, Bypassed: map[string]int{}, BypassedTotal: map[string]uint64{}}
	for _, e := range s.entries {
		v := SandboxStatus{Attachment: e.attachment, State: "waiting"}
		if e.sw != nil || e.network == nil && e.claimed {
			v.State = "running"
		}
		if e.sw != nil {
			v.Sent, v.Received = e.sw.egress.read(), e.sw.ingress.read()
			v.Drops = map[string]uint64{}
			e.sw.dropped[0].into(v.Drops)
			e.sw.dropped[1].into(v.Drops)
			e.sw.addDeviceDrops(v.Drops, v.Drops)
		}
		if e.network != nil {
			v.Passive = e.passive.status()
		}
		if e.proxied != nil {
			stats := e.proxied.server.Stats()
			v.Proxied, v.Proxy = true, &stats
		}
		if e.place != nil {
			v.Namespace = e.place.name
		}
		if e.attachment.Bypass == "" {
			out.Attached++
		} else {
			out.Bypassed[e.attachment.Bypass]++
		}
		out.Sandboxes = append(out.Sandboxes, v)
	}
	for why, n := range s.bypassTotal {
		out.BypassedTotal[why] = n
	}
	slices.SortFunc(out.Sandboxes, func(a, b SandboxStatus) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// read makes a copy for a report.
func (t *traffic) read() spec.Traffic {
	return spec.Traffic{Packets: t.packets.Load(), Bytes: t.bytes.Load()}
}

// into adds the drops to a map by reason.
func (d *drops) into(m map[string]uint64) {
	for o := range packet.Outcomes() {
		if n := d[o].Load(); n > 0 {
			m[o.String()] += n
		}
	}
}

// deviceDrop is a number of packets that a sandbox's device dropped by itself.
type deviceDrop struct {
	direction int // 0 is egress, 1 ingress
	why       packet.Outcome
	n         uint64
}

// deviceDrops are the packets that the sandbox's device dropped, which were not
// seen here. What is too big, malformed or no IPv4 is nearly always the sandbox's.
func (s *sandbox) deviceDrops() []deviceDrop {
	dev, ok := s.dev.(interface{ Stats() tundev.Stats })
	if !ok {
		return nil
	}
	stats := dev.Stats()
	return []deviceDrop{
		{0, packet.NotIPv4, stats.NotIPv4}, {0, packet.TooBig, stats.TooBig}, {0, packet.Malformed, stats.Malformed},
		{0, packet.SpoofedSource, stats.Spoofed},
		{1, packet.QueueFull, stats.QueueFull},
	}
}

// retire takes the drops of a device that ends into those of the sidecar. The
// caller holds the lock.
func (s *Sidecar) retire(sw *sandbox) {
	for _, d := range sw.deviceDrops() {
		if d.direction == 0 {
			s.count.egress[d.why].Add(d.n)
		} else {
			s.count.ingress[d.why].Add(d.n)
		}
	}
}

// addDeviceDrops adds what the sandbox's device dropped to maps by reason.
func (s *sandbox) addDeviceDrops(egress, ingress map[string]uint64) {
	for _, d := range s.deviceDrops() {
		switch {
		case d.n == 0:
		case d.direction == 0:
			egress[d.why.String()] += d.n
		default:
			ingress[d.why.String()] += d.n
		}
	}
}

// Status is the answer to GET /v1/status.
type Status struct {
	Region    string        `json:"region"`
	PublicKey string        `json:"publicKey"`
	Control   ControlStatus `json:"control"`
	// Regions are the control planes of passive regions, by region.
	Regions  map[string]ControlStatus `json:"regions,omitempty"`
	Networks []NetworkStatus          `json:"networks"`
	// Drops are all drops of the sidecar, by direction and reason.
	Egress  map[string]uint64 `json:"egressDrops"`
	Ingress map[string]uint64 `json:"ingressDrops"`
}

// ControlStatus says whether a control plane answers.
type ControlStatus struct {
	Reachable bool      `json:"reachable"`
	Error     string    `json:"error,omitempty"`
	Since     time.Time `json:"since,omitzero"`
}

// status says how the control plane answered last. The caller holds the lock.
func (p *controlPlane) status() ControlStatus {
	return ControlStatus{Reachable: p.state.asked && p.state.unreachable == "", Error: p.state.unreachable, Since: p.state.since}
}

// status reads everything that is known.
func (s *Sidecar) status() Status {
	out := Status{
		Region: s.cfg.Region, PublicKey: s.key.Public().String(), Networks: []NetworkStatus{},
		Regions: map[string]ControlStatus{}, Egress: map[string]uint64{}, Ingress: map[string]uint64{},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count.egress.into(out.Egress)
	s.count.ingress.into(out.Ingress)
	for _, e := range s.entries {
		if e.sw != nil {
			e.sw.addDeviceDrops(out.Egress, out.Ingress)
		}
	}
	out.Control = s.home.status()
	for region, p := range s.planes {
		out.Regions[region] = p.status()
	}
	for _, n := range s.networks {
		if n.watch != nil {
			out.Networks = append(out.Networks, n.status(s.clock.now()))
		}
	}
	slices.SortFunc(out.Networks, func(a, b NetworkStatus) int { return strings.Compare(a.ID, b.ID) })
	return out
}
