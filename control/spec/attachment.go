package spec

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"time"
)

// Kind is what a sandbox is.
type Kind string

// The kinds of sandboxes.
const (
	KindFunction Kind = "function" // a function instance
	KindBuild    Kind = "build"    // a build container
)

// The runtimes that have a name here. Every other lower-case token is a runtime
// too, and is treated like these; only [RuntimeEdge] is different.
const (
	RuntimeNodeJS = "nodejs"
	RuntimePython = "python"
	RuntimeGo     = "go"
	RuntimeRuby   = "ruby"
	// RuntimeEdge never goes through a pair: it bypasses, and is counted.
	RuntimeEdge = "edge"
)

// The reasons for a bypass at attach.
const (
	BypassEdge   = "edge runtime"
	BypassBuilds = "builds not included"
)

// Attachment is one sandbox in one network, or one that was told to bypass.
// Region, Project, Environment, Kind, Runtime, ID and Created are always set;
// with Bypass set, Network and the addresses are not.
type Attachment struct {
	// ID is chosen by the control plane; see [ValidID].
	ID          string `json:"id"`
	Project     string `json:"project"`
	Environment string `json:"environment"`
	Kind        Kind   `json:"kind"`
	Runtime     string `json:"runtime"`
	Region      string `json:"region"`
	// Network is the ID of the network.
	Network string `json:"network,omitempty"`
	// PublicKey is the WireGuard key of the worker that carries the sandbox; see
	// [CheckPublicKey]. All attachments of one key in one network are one peer.
	PublicKey string `json:"publicKey,omitempty"`
	// Inner is the sandbox's address in the network.
	Inner netip.Addr `json:"inner,omitzero"`
	// Worker is the worker's own address in the network, from which it probes; all
	// attachments with the same PublicKey and Network share it.
	Worker netip.Addr `json:"worker,omitzero"`
	// Egress is the address of the pair that Inner leaves from: Pair[EgressIndex(Inner)].
	Egress netip.Addr `json:"egress,omitzero"`
	// Bypass says why the sandbox has no tunnel; empty: it is attached.
	Bypass string `json:"bypass,omitempty"`
	// Created is when the attachment was made, in UTC.
	Created time.Time `json:"created"`
}

// CheckPublicKey says what is wrong with a WireGuard public key: it must be the
// standard base64 of 32 bytes that are not all zero.
func CheckPublicKey(key string) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(key)
	if err != nil || len(raw) != 32 || len(key) != 44 {
		return errors.New("not a WireGuard public key, which is the base64 of 32 bytes (44 characters, as `wg pubkey` prints it)")
	}
	for _, b := range raw {
		if b != 0 {
			return nil
		}
	}
	return errors.New("a WireGuard public key of zeros only, with which nobody can shake hands")
}

// GatewayRole is what a gateway is to a sandbox.
type GatewayRole string

// The roles.
const (
	// RoleActive is the gateway in use: the host that holds the sandbox's Egress address.
	RoleActive GatewayRole = "active"
	// RoleSibling is the host of the same region that holds the pair's other address.
	RoleSibling GatewayRole = "sibling"
	// RolePassive is a host of the passive network, in another region.
	RolePassive GatewayRole = "passive"
)

// Gateway is where a worker's tunnel for one network ends.
type Gateway struct {
	Role GatewayRole `json:"role"`
	Host string      `json:"host"`
	// Network is the ID of the network: the attachment's own, or the passive one.
	Network string `json:"network"`
	// PublicKey is the WireGuard key of the network on that host, in base64.
	PublicKey string `json:"publicKey"`
	// Endpoint is where the tunnel's datagrams go.
	Endpoint netip.AddrPort `json:"endpoint"`
	// EgressIP is the address of the pair that the sandbox leaves from through
	// this gateway.
	EgressIP netip.Addr `json:"egressIP"`
}

// Update is what a gateway is told when it follows the control plane.
//
// It brings a follower from the revision it asked for to Revision: drop
// everything first if Full, take State if there is one, then remove Detached,
// then add Attached. An ID may be in both lists: an attach that came to
// nothing was asked for again. An ID in Detached may be unknown to the follower.
// Attachments that bypass are not part of it.
type Update struct {
	// Revision is counted up by one with each change; it begins at 1.
	Revision uint64 `json:"revision"`
	// Full says that the update holds everything there is.
	Full bool `json:"full,omitempty"`
	// State is set when the desired state changed, and in a full update.
	State *State `json:"state,omitempty"`
	// Attached are the attachments that are new, in the order in which they were made.
	Attached []Attachment `json:"attached,omitempty"`
	// Detached are the IDs of those that are gone.
	Detached []string `json:"detached,omitempty"`
}

// HostReport is what a gateway host tells the control plane about itself.
//
// A host reports the key and the endpoint of a network before it acknowledges
// the revision with the network's first attachment: whoever waits for that
// revision hands them to the worker.
type HostReport struct {
	Host   string `json:"host"`
	Region string `json:"region"`
	// Networks are those for which the host runs a tunnel now, by ID.
	Networks []NetworkReport `json:"networks,omitempty"`
}

// NetworkReport is one network on one gateway host. Counters begin at 0 when the
// host opens the network and never fall while it is open.
type NetworkReport struct {
	// ID is the network's.
	ID string `json:"id"`
	// PublicKey is the host's WireGuard key of the network, in base64.
	PublicKey string `json:"publicKey"`
	// Endpoint is where workers send their datagrams.
	Endpoint netip.AddrPort `json:"endpoint"`
	// Peers is the number of WireGuard peers.
	Peers int `json:"peers,omitempty"`
	// Sessions are the live sessions per address of the pair, in its order.
	Sessions [2]int `json:"sessions"`
	// Egress and Ingress count what passed, out of and back to the sandboxes.
	Egress  Traffic `json:"egress,omitzero"`
	Ingress Traffic `json:"ingress,omitzero"`
	// Drops are dropped packets by reason: the names of the closed set of outcomes.
	Drops map[string]uint64 `json:"drops,omitempty"`
	// WrongSource counts packets that would have left with a source outside the
	// pair and were stopped at the last check. Anything but 0 is a fault of ours.
	WrongSource uint64 `json:"wrongSource"`
}

// Traffic is a pair of counters.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"` // of IP packets, headers included
}
