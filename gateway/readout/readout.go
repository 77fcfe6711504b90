// Package readout is what a gateway host tells of its tables on the admin listener: the
// addresses, the parameters' bounds and the answers, for who serves them and who asks.
//
//	GET /v1/networks/{network}/ports     ?destination=IP:PORT&protocol=P&top=N -> Ports
//	GET /v1/networks/{network}/sessions  ?inner=IP&destination=IP:PORT&limit=N&after=NEXT -> Sessions
//
// Both are for callers on the same machine alone (403). An error is text: 400 says which
// parameter is wrong, 404 which networks are served, and 503 that another read-out is
// under way.
package readout

import "net/netip"

// MaxRows is the largest number of rows of each list of an answer, and so the largest
// top and limit.
const MaxRows = 1024

// PortsPath is where the ports of a network are asked for.
func PortsPath(network string) string { return "/v1/networks/" + network + "/ports" }

// SessionsPath is where the sessions of a network are asked for.
func SessionsPath(network string) string { return "/v1/networks/" + network + "/sessions" }

// Ports says who uses the external ports of a network, an element per dedicated IP
// held by the host.
type Ports struct {
	Network string    `json:"network"`
	IPs     []IPPorts `json:"ips"`
}

// IPPorts is the use of one dedicated IP. All lists have the most first.
type IPPorts struct {
	IP       netip.Addr `json:"ip"`
	Draining bool       `json:"draining,omitempty"`
	// Shared are ports that serve all destinations: those of UDP, echo identifiers, and
	// those of TCP where it is mapped endpoint-independently.
	Shared []PortUse `json:"shared"`
	// Busiest are the TCP destinations that take the most ports; one that is missing takes
	// no more than OthersAtMost.
	Busiest      []PortUse `json:"busiest"`
	OthersAtMost int       `json:"othersAtMost"`
	// Destination is the one that was asked for.
	Destination *DestinationUse `json:"destination,omitempty"`
	// Sandboxes are the inner addresses that hold the most ports.
	Sandboxes []SandboxUse `json:"sandboxes"`
}

// PortUse counts external ports. Held ones are free, but not given out yet.
type PortUse struct {
	Protocol    string         `json:"protocol"`
	Destination netip.AddrPort `json:"destination,omitzero"`
	Used        int            `json:"used"`
	Held        int            `json:"held"`
	Left        int            `json:"left"`
}

// DestinationUse is the use of one destination. Users is the number of inner addresses
// that have sessions with it, of which Sandboxes are the first.
type DestinationUse struct {
	PortUse
	Users     int        `json:"users"`
	Sandboxes []InnerUse `json:"sandboxes"`
}

// InnerUse is the number of sessions of an inner address with a destination.
type InnerUse struct {
	Inner    netip.Addr `json:"inner"`
	Sessions int        `json:"sessions"`
}

// SandboxUse is what an inner address holds; TCP, UDP and ICMP are its sessions of each.
type SandboxUse struct {
	Inner    netip.Addr `json:"inner"`
	Sessions int        `json:"sessions"`
	HalfOpen int        `json:"halfOpen"`
	Ports    int        `json:"ports"`
	TCP      uint64     `json:"tcp"`
	UDP      uint64     `json:"udp"`
	ICMP     uint64     `json:"icmp"`
}

// Sessions is a page of a network's sessions on the host.
type Sessions struct {
	Network  string    `json:"network"`
	Sessions []Session `json:"sessions"`
	// Next is what to ask for more after; empty on the last page.
	Next string `json:"next,omitempty"`
}

// Session is one session. The port of an echo's remote end is 0.
type Session struct {
	Protocol string         `json:"protocol"`
	Inner    netip.AddrPort `json:"inner"`
	External netip.AddrPort `json:"external"`
	Remote   netip.AddrPort `json:"remote"`
	State    string         `json:"state"`
	// Age is how long it has been there, and Expires when it goes if nothing more is
	// heard, in seconds.
	Age     int64 `json:"ageSeconds"`
	Expires int64 `json:"expiresInSeconds"`
}
