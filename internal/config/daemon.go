// Package config reads the settings of the programs and the desired state: from
// a reader to what the file says, and from there to checked values.
//
// It is pure; whoever calls opens the files. Unknown keys fail. Every error lists
// all that is wrong with a file, one line each:
//
//	FILE:LINE:COL: key: what is wrong; what would be right
//
// Relative paths in a file are taken from the folder of the file's name.
package config

import (
	"io"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// Daemon holds the checked settings of sallyportd. deploy/sallyportd.yaml
// documents each of them.
//
// What a part needs that does not run here ([Daemon.Roles]) may be missing, and is
// then the zero value.
type Daemon struct {
	// Roles are the parts of the daemon that run.
	Roles Roles
	// Host and Region name this host as the desired state does.
	Host, Region string
	// SecretFile holds the host's secret: 32 bytes, raw or as hex or base64.
	SecretFile string
	// RegionSecretFile holds the secret that all hosts of the region share, of the
	// same form; empty: there is none, and no network of the region has a site.
	RegionSecretFile string
	// StateFile is where the gateway keeps what it knows from one start to the next.
	StateFile string
	// DesiredState is the file with the desired state, for the control plane.
	DesiredState string
	// Control is the control plane that is followed, where it runs elsewhere.
	Control   ControlPlane
	API       API
	Admin     Admin
	WireGuard WireGuard
	// Uplink is the kind of the far side: [UplinkSockets] or [UplinkTun].
	Uplink string
	// Sockets and Tun belong to the uplink of that name, and say nothing otherwise.
	Sockets Sockets
	Tun     Tun
	DNS     DNS
	Limits  Limits
	Timers  Timers
	// Drain is how long probes are answered with "draining" before the gateway ends.
	Drain  time.Duration
	Health Health
	Log    Log
}

// Roles are the parts of the daemon; at least one is set.
type Roles struct {
	// Control keeps the region's desired state and attachments and serves the API.
	Control bool
	// Gateway carries the traffic of this host's networks.
	Gateway bool
}

// String lists the roles as they are written.
func (r Roles) String() string {
	switch {
	case r.Control && r.Gateway:
		return "control, gateway"
	case r.Control:
		return "control"
	case r.Gateway:
		return "gateway"
	}
	return "none"
}

// ControlPlane is how a region's control API is called.
type ControlPlane struct {
	// API is unix:///path or http://127.0.0.1:port.
	API string
	// TokenFile holds its bearer token.
	TokenFile string
}

// Health is how a gateway finds out whether what leaves comes back.
type Health struct {
	// Targets are connected to by TCP from each dedicated address; one that accepts
	// or refuses has answered. Empty: nothing is checked.
	Targets []netip.AddrPort
	// Interval is the time between two checks of one address.
	Interval time.Duration
}

// API is where the control API is served.
type API struct {
	// Network and Address are what net.Listen takes: "unix" and a path, or "tcp"
	// and an address on the loopback interface.
	Network, Address string
	// TokenFile holds the bearer token.
	TokenFile string
}

// Admin is where metrics and health are served.
type Admin struct {
	// Listen is not valid where a sidecar serves none. Port 0 is any free port.
	Listen netip.AddrPort
	// TokenFile holds the bearer token of the daemon's profiles; empty: none are served.
	TokenFile string
}

// WireGuard is the side of the tunnels.
type WireGuard struct {
	// Address is what workers are told to send to; not valid: the host's endpoint
	// in the desired state.
	Address netip.Addr
	// Ports are the UDP ports of the networks' devices, one each.
	Ports spec.PortRange
	// NoGSO and NoGRO keep the kernel from cutting and joining datagrams.
	NoGSO, NoGRO bool
}

// DNS is the forwarder on each network's first address.
type DNS struct {
	// Upstreams are asked in this order, from the network's own pair.
	Upstreams []netip.AddrPort
}

// Limits bound what one network, address or sandbox may use.
type Limits struct {
	// These bound the table of one dedicated address, all sandboxes together. Ports
	// count external ports and identifiers, and TCP connections that are mapped by
	// their destination; half-open are TCP connections whose handshake is not complete.
	SessionsPerIP, PortsPerIP, HalfOpenPerIP, NewFlowsPerSecondPerIP int
	// These bound one inner address of it.
	SessionsPerSandbox, PortsPerSandbox, HalfOpenPerSandbox, NewFlowsPerSecond int
	// FragmentBytes bound the memory of one network's datagrams that wait for more of
	// their fragments, FragmentBytesPerSandbox those of one source address.
	FragmentBytes, FragmentBytesPerSandbox int
	// PendingConnects bounds the TCP connections of one network that wait for the
	// far side, PendingConnectsPerDestination those to one address.
	PendingConnects, PendingConnectsPerDestination int
}

// Timers are the times after which silent state goes. None is below its RFC's floor.
type Timers struct {
	UDP            time.Duration // RFC 4787 REQ-5
	TCPEstablished time.Duration // RFC 5382 REQ-5
	TCPTransitory  time.Duration // RFC 5382 REQ-5: opening and closing connections
	ICMP           time.Duration // RFC 5508 REQ-2
}

// Log is how a program logs.
type Log struct {
	// Level is debug, info, warn or error.
	Level string
	// Format is text or json.
	Format string
}

// rawDaemon is the file as it is written.
type rawDaemon struct {
	Roles            []string      `yaml:"roles"`
	Host             string        `yaml:"host"`
	Region           string        `yaml:"region"`
	SecretFile       string        `yaml:"secret_file"`
	RegionSecretFile string        `yaml:"region_secret_file"`
	StateFile        string        `yaml:"state_file"`
	DesiredState     string        `yaml:"desired_state"`
	Control          rawControl    `yaml:"control"`
	API              rawAPI        `yaml:"api"`
	Admin            rawAdmin      `yaml:"admin"`
	WireGuard        rawWireGuard  `yaml:"wireguard"`
	Uplink           string        `yaml:"uplink"`
	Sockets          rawSockets    `yaml:"sockets"`
	Tun              rawTun        `yaml:"tun"`
	DNS              rawDNS        `yaml:"dns"`
	Limits           rawLimits     `yaml:"limits"`
	Timers           rawTimers     `yaml:"timers"`
	Drain            time.Duration `yaml:"drain"`
	Health           rawHealth     `yaml:"health"`
	Log              rawLog        `yaml:"log"`
}

type rawControl struct {
	API       string `yaml:"api"`
	TokenFile string `yaml:"token_file"`
}

type rawHealth struct {
	Targets  []netip.AddrPort `yaml:"targets"`
	Interval time.Duration    `yaml:"interval"`
}

type rawAPI struct {
	Listen    string `yaml:"listen"`
	TokenFile string `yaml:"token_file"`
}

type rawAdmin struct {
	Listen    netip.AddrPort `yaml:"listen"`
	TokenFile string         `yaml:"token_file"`
}

type rawWireGuard struct {
	Address netip.Addr     `yaml:"address"`
	Ports   spec.PortRange `yaml:"ports"`
	GSO     bool           `yaml:"gso"`
	GRO     bool           `yaml:"gro"`
}

type rawDNS struct {
	Upstreams []string `yaml:"upstreams"`
}

type rawLimits struct {
	SessionsPerIP                 int `yaml:"sessions_per_ip"`
	PortsPerIP                    int `yaml:"ports_per_ip"`
	HalfOpenPerIP                 int `yaml:"half_open_per_ip"`
	NewFlowsPerSecondPerIP        int `yaml:"new_flows_per_second_per_ip"`
	SessionsPerSandbox            int `yaml:"sessions_per_sandbox"`
	PortsPerSandbox               int `yaml:"ports_per_sandbox"`
	HalfOpenPerSandbox            int `yaml:"half_open_per_sandbox"`
	NewFlowsPerSecond             int `yaml:"new_flows_per_second"`
	FragmentBytes                 int `yaml:"fragment_bytes"`
	FragmentBytesPerSandbox       int `yaml:"fragment_bytes_per_sandbox"`
	PendingConnects               int `yaml:"pending_connects"`
	PendingConnectsPerDestination int `yaml:"pending_connects_per_destination"`
}

type rawTimers struct {
	UDP            time.Duration `yaml:"udp"`
	TCPEstablished time.Duration `yaml:"tcp_established"`
	TCPTransitory  time.Duration `yaml:"tcp_transitory"`
	ICMP           time.Duration `yaml:"icmp"`
}

type rawLog struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}

// defaultDaemon is what a file that says nothing means. The limits are those
// of the translator's own choice where it has one.
func defaultDaemon() rawDaemon {
	return rawDaemon{
		Roles:     []string{roleControl, roleGateway},
		API:       rawAPI{Listen: "unix:///run/sallyport/api.sock"},
		Admin:     rawAdmin{Listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9469)},
		WireGuard: rawWireGuard{Ports: spec.PortRange{First: 51820, Last: 52843}, GSO: true, GRO: true},
		Uplink:    UplinkSockets,
		Tun:       rawTun{Announce: announceNone, Offload: true, HookTimeout: 10 * time.Second},
		Limits: rawLimits{
			SessionsPerIP:                 1 << 20,
			PortsPerIP:                    1 << 20,
			HalfOpenPerIP:                 65536,
			NewFlowsPerSecondPerIP:        200_000,
			SessionsPerSandbox:            65536,
			PortsPerSandbox:               16384,
			HalfOpenPerSandbox:            4096,
			NewFlowsPerSecond:             20000,
			FragmentBytes:                 4 << 20,
			FragmentBytesPerSandbox:       256 << 10,
			PendingConnects:               4096,
			PendingConnectsPerDestination: 1024,
		},
		Timers: rawTimers{
			UDP:            300 * time.Second,
			TCPEstablished: 7440 * time.Second,
			TCPTransitory:  240 * time.Second,
			ICMP:           60 * time.Second,
		},
		Drain:  500 * time.Millisecond,
		Health: rawHealth{Interval: time.Second},
		Log:    defaultLog(),
	}
}

func defaultLog() rawLog { return rawLog{Level: "info", Format: "text"} }

// ReadDaemon reads the settings of sallyportd. The name stands in errors, and
// relative paths begin in its folder. The error is a [Problems], or of the reader.
func ReadDaemon(name string, r io.Reader) (Daemon, error) {
	d, err := readDocument(name, r)
	if err != nil {
		return Daemon{}, err
	}
	raw := defaultDaemon()
	d.decode(&raw)
	out := d.daemon(raw)
	if err := d.problems.err(); err != nil {
		return Daemon{}, err
	}
	return out, nil
}
