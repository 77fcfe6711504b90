package gateway

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strings"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/config"
	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// What the gateway puts into the host's network stack carries these numbers, which
// docs/operations.md tells.
const (
	// hostTag marks it: `ip route show table all proto 83`.
	hostTag hostnet.Tag = 83
	// rulePriority is that of the rules for packets from dedicated addresses.
	rulePriority = 8300
	// lastMetric is that of routes that count when no other is left.
	lastMetric = 20000
	// kernelMTU is the MTU of a network's TUN, in bytes: the kernel refuses there
	// nothing that the Forwarder judges itself.
	kernelMTU = 65535
)

// linkPrefix begins the names of all TUNs of the gateway.
const linkPrefix = "spt-"

// linkName is the name of a network's TUN. It is the same at each start, and by 55
// bits of a hash no other network's; an interface has at most 15 bytes for it.
func linkName(network string) string {
	sum := sha256.Sum256([]byte(network))
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:])
	return linkPrefix + strings.ToLower(text[:11])
}

// standingPlan is what all networks have in common: the table of packets from dedicated
// addresses, where the gateway fills it. When the next hop's interface is down such
// packets are refused, and leave by no other way.
func standingPlan(d config.Daemon) hostnet.Plan {
	p := hostnet.Plan{Tag: hostTag}
	if d.Tun.NextHop.IsValid() {
		p.Routes = []hostnet.Route{
			{Prefix: hostnet.DefaultIPv4, Table: d.Tun.Table, Kind: hostnet.Unreachable, Metric: lastMetric},
			{Prefix: hostnet.DefaultIPv4, Table: d.Tun.Table, Link: d.Tun.Interface, Via: d.Tun.NextHop},
		}
	}
	return p
}

// networkPlan is what one network needs besides, for the dedicated IPs that are held
// here. With tun its interface must exist.
//
// The blackholes come first and stay behind a crash, when the interface and the routes to
// it have gone: what arrives for the addresses then ends here, and goes round no loop.
func networkPlan(d config.Daemon, id string, held []netip.Addr) hostnet.Plan {
	p := hostnet.Plan{Tag: hostTag}
	if d.Uplink == config.UplinkSockets {
		for _, a := range held {
			if link := d.Sockets.AddAddressesTo; link != "" {
				p.Addresses = append(p.Addresses, hostnet.Address{Link: link, Prefix: single(a)})
			}
		}
		return p
	}
	link := linkName(id)
	p.Links = []hostnet.Link{{Name: link, MTU: kernelMTU, NoIPv6: true, Forward: true}}
	for _, a := range held {
		p.Routes = append(p.Routes, hostnet.Route{Prefix: single(a), Kind: hostnet.Blackhole, Metric: lastMetric})
		if d.Tun.Table != 0 {
			p.Rules = append(p.Rules, hostnet.Rule{From: single(a), Table: d.Tun.Table, Priority: rulePriority})
		}
		if d.Tun.AnnounceARP {
			p.Neighbours = append(p.Neighbours, hostnet.Neighbour{Link: d.Tun.Interface, Addr: a, Proxy: true})
		}
	}
	for _, a := range held {
		p.Routes = append(p.Routes, hostnet.Route{Prefix: single(a), Link: link})
	}
	return p
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// heldOf are the addresses of a network's pair that are held here.
func heldOf(n spec.Network, held [2]bool) (addresses []netip.Addr) {
	for i, a := range n.Pair {
		if held[i] {
			addresses = append(addresses, a)
		}
	}
	return addresses
}
