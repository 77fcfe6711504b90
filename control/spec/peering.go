package spec

import "time"

// PeeringExpiry is how long a request for a peering waits to be accepted.
const PeeringExpiry = 7 * 24 * time.Hour

// PeeringState is where in its life a peering connection is.
type PeeringState string

// The states. The customer's request makes a connection; the owner of the other
// network accepts or rejects it; either side deletes it.
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

// StateAt is the connection's state at a time: a request that nobody accepted
// within [PeeringExpiry] has expired.
func (p Peering) StateAt(now time.Time) PeeringState {
	waiting := p.State == PeeringInitiating || p.State == PeeringPending
	if waiting && !p.Requested.IsZero() && now.Sub(p.Requested) >= PeeringExpiry {
		return PeeringExpired
	}
	return p.State
}
