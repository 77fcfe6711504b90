package spec

import (
	"net/netip"
	"slices"
	"time"
)

// PeeringExpiry is how long a request for a peering waits to be accepted.
const PeeringExpiry = 7 * 24 * time.Hour

// PeeringKind is how the other side of a peering connection is reached.
type PeeringKind string

// The kinds. Packets keep their inner addresses in all of them.
const (
	// ByWireGuard: by the network's site tunnel; the other side is any WireGuard.
	ByWireGuard PeeringKind = "wireguard"
	// ByInterface: by an interface of the host that has the network's site.
	ByInterface PeeringKind = "interface"
	// ByNetwork: inside that host; the other side is another network.
	ByNetwork PeeringKind = "network"
)

// By is the connection's kind, which is never empty.
func (p Peering) By() PeeringKind {
	if p.Kind == "" {
		return ByWireGuard
	}
	return p.Kind
}

// RangesOf returns the ranges that a network reaches by a connection, which is its own
// or one that has it for the other side; nil: it is neither, or the other network does
// not exist.
func (s State) RangesOf(p Peering, network string) []netip.Prefix {
	other := ""
	switch {
	case p.By() == ByNetwork && p.Network == network:
		other = p.PeerNetwork
	case p.By() == ByNetwork && p.PeerNetwork == network:
		other = p.Network
	case p.Network == network:
		return p.CIDRs
	}
	if n, ok := s.Network(other); ok {
		return []netip.Prefix{n.CIDR}
	}
	return nil
}

// PeeringState is where in its life a peering connection is.
type PeeringState string

// The states. The customer's request makes a connection; the owner of the other
// network accepts it ([Network.AcceptedPeerings], where that is one of this
// installation) or rejects it; either side deletes it.
const (
	// PeeringInitiating: asked for, the other side does not know yet.
	PeeringInitiating PeeringState = "initiating-request"
	// PeeringPending: the other side may accept or reject it until [PeeringExpiry] is over.
	PeeringPending PeeringState = "pending-acceptance"
	// PeeringProvisioning: accepted, being set up; nothing passes yet.
	PeeringProvisioning PeeringState = "provisioning"
	// PeeringActive: traffic passes. The only state in which it does.
	PeeringActive PeeringState = "active"
	// PeeringRejected: the other side said no. Final.
	PeeringRejected PeeringState = "rejected"
	// PeeringExpired: nobody accepted it in time. Final.
	PeeringExpired PeeringState = "expired"
	// PeeringFailed: its ranges overlap others, or it could not be set up. Final.
	PeeringFailed PeeringState = "failed"
	// PeeringDeleted: one side ended it. Final.
	PeeringDeleted PeeringState = "deleted"
)

// Known reports whether s is one of the states.
func (s PeeringState) Known() bool {
	switch s {
	case PeeringInitiating, PeeringPending, PeeringProvisioning, PeeringActive,
		PeeringRejected, PeeringExpired, PeeringFailed, PeeringDeleted:
		return true
	}
	return false
}

// Open reports whether the connection takes part in the rules: it counts towards
// [MaxPeerings] and its ranges are taken. States that are final do not.
func (s PeeringState) Open() bool {
	switch s {
	case PeeringInitiating, PeeringPending, PeeringProvisioning, PeeringActive:
		return true
	}
	return false
}

// Accepted reports whether the other side of a connection has accepted it: of kind
// [ByNetwork] the other network says so. For other kinds nobody else is asked here.
func (s State) Accepted(p Peering) bool {
	if p.By() != ByNetwork {
		return true
	}
	other, ok := s.Network(p.PeerNetwork)
	return ok && slices.Contains(other.AcceptedPeerings, Acceptance{Peering: p.ID, Network: p.Network})
}

// PeeringState is the state of a connection by what both sides say. Of kind [ByNetwork]
// the network that asks writes pending-acceptance or active, which mean the same: it is
// active as long as the other network accepts it, and pending else.
func (s State) PeeringState(p Peering) PeeringState {
	if p.By() != ByNetwork {
		return p.State
	}
	switch accepted := s.Accepted(p); {
	case accepted && p.State == PeeringPending:
		return PeeringActive
	case !accepted && (p.State == PeeringProvisioning || p.State == PeeringActive):
		return PeeringPending
	}
	return p.State
}

// PeeringStateAt is the same at a time: a request that nobody accepted within
// [PeeringExpiry] has expired.
func (s State) PeeringStateAt(p Peering, now time.Time) PeeringState {
	state := s.PeeringState(p)
	waiting := state == PeeringInitiating || state == PeeringPending
	if waiting && !p.Requested.IsZero() && now.Sub(p.Requested) >= PeeringExpiry {
		return PeeringExpired
	}
	return state
}
