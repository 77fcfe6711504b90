// Package spec holds the desired state of a Sallyport installation: teams,
// regions, networks with their dedicated pairs, projects and peerings, what
// attaches to them, and the rules that all of it must obey.
//
// It is pure: values in, values out. The same types are the JSON of the control
// API, the YAML of the desired-state file and the updates that a gateway
// follows; names on the wire are camelCase, addresses and prefixes are text.
//
// An empty list and an absent one mean the same. A [State] is treated as
// immutable once it was handed to another part: whoever changes one, copies it first.
package spec

import (
	"net/netip"
	"time"
)

// TunnelMTU is the MTU inside the tunnels in bytes: 1500 less the 80 of IPv6,
// UDP and WireGuard, the larger of the two outer headers.
const TunnelMTU = 1420

// The limits of one network and of the names in it.
const (
	// MaxProjects is how many projects may use one network.
	MaxProjects = 100
	// MaxPeerings is how many open peering connections one network may have.
	MaxPeerings = 50
	// maxName is the longest name, in bytes.
	maxName = 255
	// MinPrefix and MaxPrefix bound the prefix length of a network's CIDR.
	MinPrefix = 16
	MaxPrefix = 24
)

// State is everything that operators wish for. It is valid when [State.Validate] finds nothing.
type State struct {
	Teams    []Team    `json:"teams,omitempty"`
	Regions  []Region  `json:"regions,omitempty"`
	Networks []Network `json:"networks,omitempty"`
	Projects []Project `json:"projects,omitempty"`
	Peerings []Peering `json:"peerings,omitempty"`
}

// Team owns networks and projects. Nothing is shared across teams.
type Team struct {
	// ID is unique among teams; see [ValidID].
	ID string `json:"id"`
	// Name is what people call it; optional, unique among teams.
	Name string `json:"name,omitempty"`
}

// Region is a place with gateway hosts.
type Region struct {
	// Name is unique, in lower case, such as "iad1"; see [ValidLabel].
	Name string `json:"name"`
	// Pool holds the public addresses from which the region's pairs are taken.
	// It belongs to this region alone. Documentation ranges are allowed; a pool that
	// lies wholly in 127.0.0.0/8 makes a loopback region ([Region.Loopback]).
	Pool []netip.Prefix `json:"pool"`
	// Hosts are the region's gateway hosts.
	Hosts []Host `json:"hosts"`
	// API is the region's control API as workers of other regions call it:
	// unix:///path or http://address:port. Optional.
	API string `json:"api,omitempty"`
}

// Host is one gateway host of a region.
type Host struct {
	// Name is unique in the region; see [ValidLabel].
	Name string `json:"name"`
	// Endpoint is the address at which workers reach the host's WireGuard ports.
	// It is never a dedicated address: those carry no service.
	Endpoint netip.Addr `json:"endpoint"`
	// Bypass is the public address from which traffic leaves that a rule sends
	// past the pair. Optional; in no pair and on no other host. The YAML tag is
	// without omitzero, which goccy/go-yaml takes every netip.Addr for.
	Bypass netip.Addr `json:"bypass,omitzero" yaml:"bypass"`
}

// Network is one team's private network in one region with its dedicated pair.
type Network struct {
	// ID is unique among networks; see [ValidID].
	ID string `json:"id"`
	// Name is what people call it; optional, unique in the team.
	Name string `json:"name,omitempty"`
	// Team is the ID of the owner.
	Team string `json:"team"`
	// Region is the name of its region.
	Region string `json:"region"`
	// CIDR is the inner address range: RFC 1918, /16 to /24. Networks may choose
	// the same one; a network and what it is peered with may not.
	CIDR netip.Prefix `json:"cidr"`
	// Pair holds the two dedicated egress addresses, in the order of [EgressIndex].
	Pair [2]netip.Addr `json:"pair"`
	// Hosts names the hosts that hold Pair[0] and Pair[1]. Empty: see [State.HostsOf].
	Hosts []string `json:"hosts,omitempty"`
	// Draining names the address of Pair that is drained, if one is: flows that it has
	// go on, new ones leave from the other address. Not both.
	Draining []netip.Addr `json:"draining,omitempty"`
	// TCPMapping is how TCP sessions are mapped; empty means [MapAddressAndPort].
	TCPMapping TCPMapping `json:"tcpMapping,omitempty"`
	// PortBlock makes each sandbox have its external ports from blocks of its own of so
	// many ports, a power of two from 64 to 4096, which takes one log record each; 0:
	// any port is anybody's.
	PortBlock int `json:"portBlock,omitempty"`
	// Timers and Limits take the place of the hosts' settings.
	Timers Timers `json:"timers,omitzero"`
	Limits Limits `json:"limits,omitzero"`
	// Site is where the network's site tunnel is; nil: it has none, and no peering
	// of it can be in state provisioning or active.
	Site *Site `json:"site,omitempty"`
	// AcceptedPeerings are the connections of kind [ByNetwork] with this network on the other
	// side that its owner accepts. Without it they wait, whatever their state says; taken
	// out, a connection ends at once.
	AcceptedPeerings []Acceptance `json:"acceptedPeerings,omitempty"`
	// Policy says what the network's sandboxes may reach; its zero value allows all
	// that is not always denied.
	Policy Policy `json:"policy,omitzero"`
}

// Site is a network's end of its site tunnels: one WireGuard device, whose key
// derives from a secret of the region, with a peer for each peering connection.
type Site struct {
	// Host names the host that has the tunnel: one of those that hold the pair.
	Host string `json:"host"`
	// Port is the device's UDP port on the host's endpoint, the same on whichever
	// host has the tunnel. No other network of the region has it.
	Port uint16 `json:"port"`
}

// Acceptance is a network's word for a connection that another network asks for. It names
// both, so that it says nothing of a connection of the same ID from elsewhere.
type Acceptance struct {
	// Peering is the connection's ID.
	Peering string `json:"peering"`
	// Network is the ID of the network that asks, whose sandboxes begin connections.
	Network string `json:"network"`
}

// TCPMapping is the mapping behaviour of RFC 4787 section 4.1, for TCP.
type TCPMapping string

// The mapping behaviours.
const (
	// MapAddressAndPort lets one external port serve many destinations.
	MapAddressAndPort TCPMapping = "address-and-port-dependent"
	// MapEndpointIndependent keeps one external port per inner port (RFC 5382 REQ-1).
	MapEndpointIndependent TCPMapping = "endpoint-independent"
)

// Project is what is attached: its environments choose the networks.
type Project struct {
	// ID is unique among projects; see [ValidID].
	ID string `json:"id"`
	// Name is what people call it; optional, unique in the team.
	Name string `json:"name,omitempty"`
	// Team is the ID of the owner, the same as that of every network it uses.
	Team string `json:"team"`
	// Environments are named uniquely in the project.
	Environments []Environment `json:"environments,omitempty"`
}

// Environment is one of a project's environments: production, preview or a custom one.
type Environment struct {
	// Name is unique in the project; see [ValidID].
	Name string `json:"name"`
	// Active holds network IDs, at most one per region.
	Active []string `json:"active,omitempty"`
	// Passive is the ID of the network that is used when an active region is
	// unavailable, in a region without an active one. Optional.
	Passive string `json:"passive,omitempty"`
	// Builds says whether build containers are attached too.
	Builds bool `json:"builds,omitempty"`
}

// Peering is a connection of one network with a private network elsewhere, or with
// another network of this installation, reached without translation.
type Peering struct {
	// ID is unique among peerings; see [ValidID].
	ID string `json:"id"`
	// Network is the ID of the network of ours whose sandboxes begin connections.
	Network string `json:"network"`
	// Kind is how the other side is reached; empty means [ByWireGuard]. Fields below
	// that are for one kind are empty in connections of the others.
	Kind PeeringKind `json:"kind,omitempty"`
	// CIDRs are the other side's private ranges; empty for [ByNetwork], whose range is
	// the other network's. They overlap neither the network's CIDR nor those of its
	// other open peerings.
	CIDRs []netip.Prefix `json:"cidrs,omitempty"`
	// PublicKey is the other side's WireGuard key, in base64, for [ByWireGuard]. Needed in
	// states provisioning and active; no other open peering of the network has it.
	PublicKey string `json:"publicKey,omitempty"`
	// Endpoint is where the other side's WireGuard listens; not set: it calls, and is learnt
	// from its first packet. The YAML tag is like that of Host.Bypass.
	Endpoint netip.AddrPort `json:"endpoint,omitzero" yaml:"endpoint"`
	// Interface names the interface of the site's host that leads to the other side, for
	// [ByInterface]. No other open peering has it whose network has an overlapping CIDR
	// and its site on that host.
	Interface string `json:"interface,omitempty"`
	// NextHop is the router on Interface that leads to the ranges; not set: they are on
	// the link itself.
	NextHop netip.Addr `json:"nextHop,omitzero" yaml:"nextHop"`
	// PeerNetwork is the ID of the other network, for [ByNetwork]: of any team, in the
	// same region, with its site on the same host. Its sandboxes answer and do not begin.
	PeerNetwork string `json:"peerNetwork,omitempty"`
	// State is where in its life the connection is, as far as the network that asks can
	// say; see [State.PeeringStateAt].
	State PeeringState `json:"state"`
	// Requested is when the connection was asked for. Optional; without it the
	// connection never expires.
	Requested time.Time `json:"requested,omitzero"`
}
