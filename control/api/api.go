// Package api is the control API: the requests and answers of its HTTP calls,
// their errors, and a client.
//
//	POST   /v1/attachments      AttachRequest -> 201 AttachResponse
//	DELETE /v1/attachments/{id} -> 204
//	GET    /v1/attachments      ?after=ID&limit=N -> AttachmentList
//	GET    /v1/status           -> Status
//	GET    /v1/peerings         -> PeeringList
//	GET    /v1/peerings/{id}    -> PeeringStatus
//
// Gateway hosts follow the control plane by three more:
//
//	GET    /v1/gateway/updates          ?store=S&after=N&wait=MS -> spec.Update,
//	                                    or 204 when nothing came within wait,
//	                                    which is cut to MaxWait
//	POST   /v1/gateway/acknowledgements Acknowledgement -> 204
//	POST   /v1/gateway/reports          spec.HostReport -> 204
//
// Every call carries a bearer token: without one the answer is 401, with another
// one 403. An error is {"error": {"code": "...", "message": "..."}}.
package api

import (
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// The limits of the calls.
const (
	// MaxRequest is the largest request body, in bytes, but for reports.
	MaxRequest = 64 << 10
	// MaxReport is the largest body of a report, in bytes. A network takes about
	// 1 KiB of one, and each of its peering connections a fifth of that.
	MaxReport = 64 << 20
	// MaxWait is the longest that the server holds a call for updates.
	MaxWait = 30 * time.Second
	// MaxPage is the most attachments in one [AttachmentList], and the default.
	MaxPage = 1000
)

// AttachRequest asks for a sandbox to be attached.
type AttachRequest struct {
	// Project is a project ID, Environment a name.
	Project     string    `json:"project"`
	Environment string    `json:"environment"`
	Kind        spec.Kind `json:"kind"`
	Runtime     string    `json:"runtime"`
	// Region is where the sandbox runs; with Passive, the region of the passive network.
	Region string `json:"region"`
	// Passive asks for an address in the environment's passive network, for a sandbox
	// that runs, and is attached, in another region. Where the sandbox would bypass,
	// that is a [CodeBadRequest]: it bypasses where it runs.
	Passive bool `json:"passive,omitempty"`
	// PublicKey is the worker's WireGuard key, in base64. It may be absent where
	// the answer can only be a bypass.
	PublicKey string `json:"publicKey,omitempty"`
	// Resume asks for what the sandbox had before. Optional.
	Resume *Resume `json:"resume,omitempty"`
}

// Resume lets a worker attach a running sandbox again with the same ID and
// addresses, after the control plane lost its memory. While the attachment is
// still known with the same fields, the answer is the attachment itself. Else the
// ID must not have been detached, ID and InnerAddress must be free and the address
// in the network, or the answer is [CodeConflict]: the sandbox has to start anew. The worker may come to another
// address than WorkerAddress; the one in the answer counts.
type Resume struct {
	ID string `json:"id"`
	// Network is the network's ID; empty: whichever it is now. The addresses are
	// empty for a sandbox that bypasses.
	Network       string     `json:"network,omitempty"`
	InnerAddress  netip.Addr `json:"innerAddress,omitzero"`
	WorkerAddress netip.Addr `json:"workerAddress,omitzero"`
}

// AttachResponse is the answer: the tunnel is ready at the gateway, or the sandbox bypasses.
type AttachResponse struct {
	// Attachment has Bypass set where there is no tunnel; then the rest is empty.
	Attachment spec.Attachment `json:"attachment"`
	Network    AttachedNetwork `json:"network,omitzero"`
	// Gateways are the tunnel's far ends in order of preference. The first is the
	// host of the attachment's egress address, unless that host is away; with
	// Passive all have the role passive.
	Gateways []spec.Gateway `json:"gateways,omitempty"`
	// Passive is where the worker attaches the sandbox too, itself and as well as
	// it can; nil where the environment has no passive network.
	Passive *PassiveRegion `json:"passive,omitempty"`
}

// PassiveRegion is the region that is used while the active one is unavailable.
type PassiveRegion struct {
	Region string `json:"region"`
	// Network is the ID of the passive network.
	Network string `json:"network"`
	// API is that region's control API as the desired state has it; empty where
	// it names none.
	API string `json:"api,omitempty"`
}

// AttachedNetwork is what a worker needs to know of a network.
type AttachedNetwork struct {
	ID     string        `json:"id"`
	Name   string        `json:"name,omitempty"`
	Region string        `json:"region"`
	CIDR   netip.Prefix  `json:"cidr"`
	Pair   [2]netip.Addr `json:"pair"`
	// Gateway is the network's first address, where probes are answered.
	Gateway netip.Addr `json:"gateway"`
	// DNS are the name servers of the network's sandboxes.
	DNS []netip.Addr `json:"dns"`
	// MTU is that of the sandboxes' interfaces, in bytes.
	MTU int `json:"mtu"`
}

// Acknowledgement is what a gateway host says when it has applied everything up
// to a cursor.
type Acknowledgement struct {
	Host string `json:"host"`
	spec.Cursor
}

// PeeringList are the peering connections of the region's networks, by ID.
type PeeringList struct {
	Peerings []PeeringStatus `json:"peerings"`
}

// PeeringStatus is one peering connection with all that its other side must know.
type PeeringStatus struct {
	// Peering is the connection; its State is that of now, by what both sides say (a request
	// may have expired).
	spec.Peering
	// Awaits is the ID of the network that has to accept the connection; empty: none has.
	Awaits string `json:"awaits,omitempty"`
	// NetworkCIDR is where its traffic comes from: the other side routes it into the tunnel,
	// or to the host.
	NetworkCIDR netip.Prefix `json:"networkCIDR"`
	// Ranges are the other side's: the connection's CIDRs, or the other network's.
	Ranges []netip.Prefix `json:"ranges"`
	// Host names the host of the network's site; empty: it has none.
	Host string `json:"host,omitempty"`
	// SitePublicKey and SiteEndpoint are the tunnel's on our side; empty until the
	// host has reported them.
	SitePublicKey string         `json:"sitePublicKey,omitempty"`
	SiteEndpoint  netip.AddrPort `json:"siteEndpoint,omitzero"`
	// Report is what the host said last; nil: nothing yet.
	Report *spec.PeeringReport `json:"report,omitempty"`
}

// AttachmentList is one page of attachments, by ID.
type AttachmentList struct {
	Attachments []spec.Attachment `json:"attachments"`
	// Next is the ID to ask for more after; empty on the last page.
	Next string `json:"next,omitempty"`
}

// Status is what the control plane of one region knows.
type Status struct {
	// Region is the one that is served here.
	Region string `json:"region"`
	// Revision is that of the newest change.
	Revision uint64         `json:"revision"`
	Regions  []RegionStatus `json:"regions"`
	// Networks are those of the region served here.
	Networks []NetworkStatus `json:"networks"`
	// Attachments counts sandboxes with a tunnel.
	Attachments int `json:"attachments"`
	// Bypasses counts sandboxes that bypass now, by reason; BypassesTotal all since the start.
	Bypasses      map[string]int    `json:"bypasses,omitempty"`
	BypassesTotal map[string]uint64 `json:"bypassesTotal,omitempty"`
}

// RegionStatus is one region of the desired state.
type RegionStatus struct {
	Name  string         `json:"name"`
	Pool  []netip.Prefix `json:"pool"`
	Hosts []HostStatus   `json:"hosts"`
}

// HostStatus is one gateway host. Only hosts of the region that is served here report.
type HostStatus struct {
	Name     string     `json:"name"`
	Endpoint netip.Addr `json:"endpoint"`
	// Revision is the newest one that the host acknowledged; 0: none.
	Revision uint64 `json:"revision"`
	// Reported is when the host last reported; zero: never.
	Reported time.Time `json:"reported,omitzero"`
	// Draining says that the host wants no new flows.
	Draining bool `json:"draining,omitempty"`
	// SilentSeconds is how long the host of the region that is served here has not
	// been heard of; 0: it was lately, or never.
	SilentSeconds int `json:"silentSeconds,omitempty"`
}

// NetworkStatus is one network, with what its hosts reported last.
type NetworkStatus struct {
	ID          string             `json:"id"`
	Name        string             `json:"name,omitempty"`
	Team        string             `json:"team"`
	Region      string             `json:"region"`
	CIDR        netip.Prefix       `json:"cidr"`
	Pair        [2]netip.Addr      `json:"pair"`
	Attachments int                `json:"attachments"`
	Hosts       []NetworkHostState `json:"hosts,omitempty"`
	// Peerings counts the network's peering connections, by their state of now.
	Peerings map[spec.PeeringState]int `json:"peerings,omitempty"`
}

// NetworkHostState is a network on one host.
type NetworkHostState struct {
	Host string `json:"host"`
	spec.NetworkReport
}
