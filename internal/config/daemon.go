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
type Daemon struct {
	// Host and Region name this host as the desired state does.
	Host, Region string
	// SecretFile holds the host's secret: 32 bytes, raw or as hex or base64.
	SecretFile string
	// DesiredState is the file with the desired state.
	DesiredState string
	API          API
	Admin        Admin
	WireGuard    WireGuard
	// Uplink is the kind of the far side: [UplinkSockets].
	Uplink string
	DNS    DNS
	Limits Limits
	Timers Timers
	Log    Log
}

// UplinkSockets is the uplink that needs no privilege: kernel sockets bound to
// the dedicated addresses.
const UplinkSockets = "sockets"

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
}

// WireGuard is the side of the tunnels.
type WireGuard struct {
	// Address is what workers are told to send to; not valid: the host's endpoint
	// in the desired state.
	Address netip.Addr
	// Ports are the UDP ports of the networks' devices, one each.
	Ports spec.PortRange
}

// DNS is the forwarder on each network's first address.
type DNS struct {
	// Upstreams are asked in this order, from the network's own pair.
	Upstreams []netip.AddrPort
}

// Limits bound what one network, address or sandbox may use.
type Limits struct {
	// SessionsPerIP bounds the table of one dedicated address.
	SessionsPerIP int
	// SessionsPerSandbox and NewFlowsPerSecond bound one inner address.
	SessionsPerSandbox, NewFlowsPerSecond int
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
	Host         string       `yaml:"host"`
	Region       string       `yaml:"region"`
	SecretFile   string       `yaml:"secret_file"`
	DesiredState string       `yaml:"desired_state"`
	API          rawAPI       `yaml:"api"`
	Admin        rawAdmin     `yaml:"admin"`
	WireGuard    rawWireGuard `yaml:"wireguard"`
	Uplink       string       `yaml:"uplink"`
	DNS          rawDNS       `yaml:"dns"`
	Limits       rawLimits    `yaml:"limits"`
	Timers       rawTimers    `yaml:"timers"`
	Log          rawLog       `yaml:"log"`
}

type rawAPI struct {
	Listen    string `yaml:"listen"`
	TokenFile string `yaml:"token_file"`
}

type rawAdmin struct {
	Listen netip.AddrPort `yaml:"listen"`
}

type rawWireGuard struct {
	Address netip.Addr     `yaml:"address"`
	Ports   spec.PortRange `yaml:"ports"`
}

type rawDNS struct {
	Upstreams []string `yaml:"upstreams"`
}

type rawLimits struct {
	SessionsPerIP                 int `yaml:"sessions_per_ip"`
	SessionsPerSandbox            int `yaml:"sessions_per_sandbox"`
	NewFlowsPerSecond             int `yaml:"new_flows_per_second"`
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
		API:       rawAPI{Listen: "unix:///run/sallyport/api.sock"},
		Admin:     rawAdmin{Listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9469)},
		WireGuard: rawWireGuard{Ports: spec.PortRange{First: 51820, Last: 52843}},
		Uplink:    UplinkSockets,
		Limits: rawLimits{
			SessionsPerIP:                 1 << 20,
			SessionsPerSandbox:            65536,
			NewFlowsPerSecond:             20000,
			PendingConnects:               4096,
			PendingConnectsPerDestination: 1024,
		},
		Timers: rawTimers{
			UDP:            300 * time.Second,
			TCPEstablished: 7440 * time.Second,
			TCPTransitory:  240 * time.Second,
			ICMP:           60 * time.Second,
		},
		Log: defaultLog(),
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

func (d *document) daemon(raw rawDaemon) Daemon {
	return Daemon{
		Host:         d.label("host", raw.Host, "write the name that this host has in the desired state, such as gw-a"),
		Region:       d.label("region", raw.Region, "write the name of this host's region, such as iad1"),
		SecretFile:   d.file("secret_file", raw.SecretFile, "name the file with this host's 32-byte secret"),
		DesiredState: d.file("desired_state", raw.DesiredState, "name the file with the desired state"),
		API:          d.api(raw.API),
		Admin:        Admin{Listen: d.admin("admin.listen", raw.Admin.Listen)},
		WireGuard:    d.wireGuard(raw.WireGuard),
		Uplink:       d.oneOf("uplink", raw.Uplink, UplinkSockets),
		DNS:          DNS{Upstreams: d.upstreams(raw.DNS.Upstreams)},
		Limits:       d.limits(raw.Limits),
		Timers:       d.timers(raw.Timers),
		Log:          d.log(raw.Log),
	}
}
