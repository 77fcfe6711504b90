package sidecar

// The states of a sandbox's attachment to its passive network.
const (
	// passiveNone: the environment has no passive network.
	passiveNone = "none"
	// passivePending: the passive region's control plane has not answered yet.
	passivePending = "pending"
	// passiveReady: the passive network takes over when the active one is unavailable.
	passiveReady = "ready"
	// passiveFailed: the last try failed. It is tried again as long as the sandbox lives.
	passiveFailed = "failed"
)

// passiveStatus is what a sandbox may expect while its own region is unavailable.
type passiveStatus struct {
	// Region and Network are the passive ones; empty where there are none.
	Region  string `json:"region,omitempty"`
	Network string `json:"network,omitempty"`
	// State is none, pending, ready or failed.
	State string `json:"state"`
	// Reason says why it is failed.
	Reason string `json:"reason,omitempty"`
}
