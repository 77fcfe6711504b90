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
	// Passive says that Network is the environment's passive one: the sandbox runs
	// in another region and is here for the time when that one is unavailable.
	Passive bool `json:"passive,omitempty"`
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
