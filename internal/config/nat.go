package config

import (
	"cmp"
	"net/netip"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/nat"
)

// NATConfig is what the daemon's settings, and what a network says for itself, make of
// the table of one of its dedicated addresses. The seed is the caller's.
//
// The ports on which the host listens at all of its addresses are reserved: no
// flow of a sandbox may look like one of its services.
func NATConfig(d Daemon, n spec.Network, external netip.Addr) nat.Config {
	l, t := n.Limits, n.Timers
	transitory := cmp.Or(t.TCPTransitory, d.Timers.TCPTransitory)
	return nat.Config{
		External:    external,
		MaxSessions: cmp.Or(l.SessionsPerIP, d.Limits.SessionsPerIP),
		TCPMapping:  tcpMapping(n.TCPMapping),
		PortBlock:   n.PortBlock,
		Limits: nat.Limits{
			Sessions:     cmp.Or(l.SessionsPerSandbox, d.Limits.SessionsPerSandbox),
			Ports:        cmp.Or(l.PortsPerSandbox, d.Limits.PortsPerSandbox),
			HalfOpen:     cmp.Or(l.HalfOpenPerSandbox, d.Limits.HalfOpenPerSandbox),
			NewPerSecond: cmp.Or(l.NewFlowsPerSecond, d.Limits.NewFlowsPerSecond),
		},
		Network: nat.NetworkLimits{
			Ports:        cmp.Or(l.PortsPerIP, d.Limits.PortsPerIP),
			HalfOpen:     cmp.Or(l.HalfOpenPerIP, d.Limits.HalfOpenPerIP),
			NewPerSecond: cmp.Or(l.NewFlowsPerSecondPerIP, d.Limits.NewFlowsPerSecondPerIP),
		},
		Timers: nat.Timers{
			UDP:            cmp.Or(t.UDP, d.Timers.UDP),
			TCPEstablished: cmp.Or(t.TCPEstablished, d.Timers.TCPEstablished),
			TCPOpening:     transitory,
			TCPClosing:     transitory,
			ICMP:           cmp.Or(t.ICMP, d.Timers.ICMP),
		},
		Reserved: reserved(d),
	}
}

func reserved(d Daemon) []uint16 {
	var ports []uint16
	if first, last := int(d.WireGuard.Ports.First), int(d.WireGuard.Ports.Last); first > 0 {
		for p := first; p <= last; p++ {
			ports = append(ports, uint16(p))
		}
	}
	if a := d.Admin.Listen; a.IsValid() && !a.Addr().IsLoopback() && a.Port() != 0 {
		ports = append(ports, a.Port())
	}
	return ports
}

// tcpMapping is the translator's word for a network's mapping.
func tcpMapping(m spec.TCPMapping) nat.Mapping {
	if m == spec.MapEndpointIndependent {
		return nat.EndpointIndependent
	}
	return nat.AddressAndPortDependent
}
