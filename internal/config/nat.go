package config

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/nat"
)

// NATConfig is what the daemon's settings say of the table of one dedicated
// address. The seed and the network's own mapping ([TCPMapping]) are the caller's.
//
// The ports on which the host listens at all of its addresses are reserved: no
// flow of a sandbox may look like one of its services.
func NATConfig(d Daemon, external netip.Addr) nat.Config {
	return nat.Config{
		External:    external,
		MaxSessions: d.Limits.SessionsPerIP,
		Limits: nat.Limits{
			Sessions:     d.Limits.SessionsPerSandbox,
			Ports:        d.Limits.PortsPerSandbox,
			HalfOpen:     d.Limits.HalfOpenPerSandbox,
			NewPerSecond: d.Limits.NewFlowsPerSecond,
		},
		Network: nat.NetworkLimits{
			Ports:        d.Limits.PortsPerIP,
			HalfOpen:     d.Limits.HalfOpenPerIP,
			NewPerSecond: d.Limits.NewFlowsPerSecondPerIP,
		},
		Timers: nat.Timers{
			UDP:            d.Timers.UDP,
			TCPEstablished: d.Timers.TCPEstablished,
			TCPOpening:     d.Timers.TCPTransitory,
			TCPClosing:     d.Timers.TCPTransitory,
			ICMP:           d.Timers.ICMP,
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

// TCPMapping is the translator's word for a network's mapping.
func TCPMapping(m spec.TCPMapping) nat.Mapping {
	if m == spec.MapEndpointIndependent {
		return nat.EndpointIndependent
	}
	return nat.AddressAndPortDependent
}
