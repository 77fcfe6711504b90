package config

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// The uplinks.
const (
	// UplinkSockets needs no privilege: kernel sockets bound to the dedicated addresses.
	UplinkSockets = "sockets"
	// UplinkTun is the fast one: an interface for each network, from which the host's
	// kernel routes. It needs CAP_NET_ADMIN and /dev/net/tun.
	UplinkTun = "tun"
)

// Sockets is what the sockets uplink asks of the host.
type Sockets struct {
	// AddAddressesTo is the interface that gets the dedicated addresses as long as the
	// gateway runs; empty: they are there already.
	AddAddressesTo string
}

// Tun is what the tun uplink asks of the host.
type Tun struct {
	// Interface is the one by which dedicated addresses are reached; empty: whichever
	// the host's routes name.
	Interface string
	// AnnounceARP answers for the addresses on Interface, and announces them.
	AnnounceARP bool
	// NextHop is the router that packets from dedicated addresses are sent to; not
	// valid: what the host's routes say.
	NextHop netip.Addr
	// Table is the routing table of packets from dedicated addresses; 0: the main one.
	// With NextHop it is the gateway's to fill, without it is the operator's.
	Table int
	// Hook is the program that is told of each address; empty: none.
	Hook string
	// HookTimeout is how long it may take.
	HookTimeout time.Duration
	// SetSysctls allows the gateway to set what forwarding needs.
	SetSysctls bool
	// NoOffload leaves segmentation and checksums to the gateway.
	NoOffload bool
}

type rawSockets struct {
	AddAddressesTo string `yaml:"add_addresses_to"`
}

type rawTun struct {
	Interface   string        `yaml:"interface"`
	Announce    string        `yaml:"announce"`
	NextHop     netip.Addr    `yaml:"next_hop"`
	Table       int           `yaml:"table"`
	Hook        string        `yaml:"hook"`
	HookTimeout time.Duration `yaml:"hook_timeout"`
	SetSysctls  bool          `yaml:"set_sysctls"`
	Offload     bool          `yaml:"offload"`
}

const (
	announceNone = "none"
	announceARP  = "arp"
	// defaultTable is the routing table for a next hop where none is named.
	defaultTable = 8300
	// maxInterface is the longest name that Linux gives an interface, in bytes.
	maxInterface = 15
)

// uplink checks the kind of the uplink and its own section; the other's has no use.
func (d *document) uplink(raw rawDaemon, out *Daemon) {
	switch out.Uplink = d.oneOf("uplink", raw.Uplink, UplinkSockets, UplinkTun); out.Uplink {
	case UplinkSockets:
		out.Sockets = Sockets{d.link("sockets.add_addresses_to", raw.Sockets.AddAddressesTo)}
		d.unused("tun", "the uplink is sockets", "remove it, or write uplink: tun")
	case UplinkTun:
		out.Tun = d.tun(raw.Tun)
		d.unused("sockets", "the uplink is tun", "remove it, or write uplink: sockets")
	}
}

func (d *document) tun(raw rawTun) Tun {
	out := Tun{
		Interface:   d.link("tun.interface", raw.Interface),
		AnnounceARP: d.oneOf("tun.announce", raw.Announce, announceNone, announceARP) == announceARP,
		NextHop:     raw.NextHop, Table: raw.Table, SetSysctls: raw.SetSysctls, NoOffload: !raw.Offload,
		HookTimeout: d.between("tun.hook_timeout", raw.HookTimeout, 100*time.Millisecond, time.Minute),
	}
	if raw.Hook != "" {
		out.Hook = d.path(raw.Hook)
	}
	if out.AnnounceARP && raw.Interface == "" {
		d.wrong("tun.announce", "arp needs an interface to answer on", "name it as tun.interface")
	}
	if a := raw.NextHop; a.IsValid() {
		if !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			d.wrong("tun.next_hop", fmt.Sprintf("%v is not the IPv4 address of a router", a), "write one such as 192.0.2.1")
		}
		if raw.Interface == "" {
			d.wrong("tun.next_hop", "is on no interface", "name it as tun.interface")
		}
		if out.Table == 0 {
			out.Table = defaultTable
		}
	}
	const local, least, most = 255, 253, 1<<31 - 1
	if t := raw.Table; t < 0 || t > most || t >= least && t <= local {
		d.wrong("tun.table", fmt.Sprintf("%d is the kernel's own table, or none", t), fmt.Sprintf("write another number of 1 to %d, such as %d", most, defaultTable))
	}
	return out
}

// link checks the name of an interface that may be missing.
func (d *document) link(key, name string) string {
	if len(name) > maxInterface || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r%") {
		d.wrong(key, fmt.Sprintf("%q is not the name of an interface", name), fmt.Sprintf("write one of at most %d bytes, such as eth0 (`ip link` lists them)", maxInterface))
	}
	return name
}
