package demo

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// The hosts and regions. iad1's control plane is a process of its own, cle1's is
// the one on gw-c.
const (
	regionActive, regionPassive = "iad1", "cle1"
	hostA, hostB, hostC         = "gw-a", "gw-b", "gw-c"
)

// The networks, and the peering connection of the first.
const (
	networkAcme    = "net-acme"
	networkGlobex  = "net-globex"
	networkStandby = "net-acme-cle1"
	peeringOffice  = "peer-office"
)

// How long a gateway that came back must have been good before new connections
// go to it: here, and in a configuration that says nothing.
const (
	holdHere    = time.Second
	holdUsually = time.Minute
)

// pair is the dedicated pair of a network.
type pair [2]netip.Addr

func (p pair) has(a netip.Addr) bool { return a == p[0] || a == p[1] }

func (p pair) either() string { return fmt.Sprintf("%v or %v", p[0], p[1]) }

func (p pair) both() string { return fmt.Sprintf("%v and %v", p[0], p[1]) }

// ports is a range of UDP ports, both ends included.
type ports struct{ First, Last uint16 }

func (r ports) has(port uint16) bool { return port >= r.First && port <= r.Last }

// gatewayPlan is one gateway host.
type gatewayPlan struct {
	Name, Region string
	// Endpoint is the host's own address, and hub the one across its link.
	Endpoint netip.Addr
	hub      netip.Addr
	// Dedicated are the addresses of pairs that it holds.
	Dedicated []netip.Addr
	// Tunnels are the ports of its networks.
	Tunnels ports
	Admin   netip.AddrPort
}

// plan is who has which address. Both kinds of worlds have the same parts.
type plan struct {
	worker, workerHub     netip.Addr // what bypasses is seen as the worker
	pool, standbyPool     netip.Prefix
	acme, globex, standby pair
	// Two networks have the same CIDR on purpose.
	inner, standbyInner netip.Prefix
	gateways            [3]gatewayPlan // by index of hosts
	control             netip.AddrPort // the admin address of iad1's control plane
	site                uint16         // UDP port of acme's site tunnel, which is on gw-a and one of its Tunnels

	web, echo, hold netip.AddrPort // of the internet's origin
	refused         netip.AddrPort // answers, but acme's policy refuses it
	nameServer      netip.AddrPort

	// The private network that acme is peered with: where its own WireGuard is, its
	// range, and the database.
	office, officeHub netip.Addr
	private           netip.Prefix
	database          netip.AddrPort
}

// loopback says whether all of it is on this machine's loopback.
func (p *plan) loopback() bool { return p.pool.Addr().IsLoopback() }

// The places of hosts in plan.gateways.
const (
	atA = iota
	atB
	atC
)

// gatewayOf finds the gateway that holds a dedicated address.
func (p *plan) gatewayOf(a netip.Addr) int {
	return slices.IndexFunc(p.gateways[:], func(g gatewayPlan) bool { return slices.Contains(g.Dedicated, a) })
}

// hostLength is the length of the prefix of a link.
const hostLength = 28

// What is inside is the same everywhere.
func insidePlan() plan {
	return plan{
		inner:        netip.MustParsePrefix("10.20.0.0/16"),
		standbyInner: netip.MustParsePrefix("10.21.0.0/16"),
		private:      netip.MustParsePrefix("10.30.0.0/24"),
		database:     netip.MustParseAddrPort("10.30.0.5:5432"),
	}
}

// anyPrivate holds all of these addresses.
var anyPrivate = netip.MustParsePrefix("10.0.0.0/8")

// namespacePlan has documentation addresses (RFC 5737) outside.
func namespacePlan() *plan {
	ip := netip.MustParseAddr
	p := insidePlan()
	p.worker, p.workerHub = ip("198.51.100.2"), ip("198.51.100.1")
	p.office, p.officeHub = ip("198.51.100.66"), ip("198.51.100.65")
	p.pool, p.standbyPool = netip.MustParsePrefix("203.0.113.8/29"), netip.MustParsePrefix("203.0.113.16/29")
	p.acme = pair{ip("203.0.113.10"), ip("203.0.113.11")}
	p.globex = pair{ip("203.0.113.12"), ip("203.0.113.13")}
	p.standby = pair{ip("203.0.113.20"), ip("203.0.113.21")}
	admin := netip.MustParseAddrPort("127.0.0.1:9469") // each on its own machine
	tunnels := ports{51820, 51899}
	p.gateways = [3]gatewayPlan{
		{Name: hostA, Region: regionActive, Endpoint: ip("198.51.100.18"), hub: ip("198.51.100.17"), Tunnels: tunnels, Admin: admin},
		{Name: hostB, Region: regionActive, Endpoint: ip("198.51.100.34"), hub: ip("198.51.100.33"), Tunnels: tunnels, Admin: admin},
		{Name: hostC, Region: regionPassive, Endpoint: ip("198.51.100.50"), hub: ip("198.51.100.49"), Tunnels: tunnels, Admin: admin},
	}
	p.control, p.site = admin, tunnels.Last
	p.web, p.echo = netip.MustParseAddrPort("192.0.2.80:80"), netip.MustParseAddrPort("192.0.2.80:7")
	p.hold, p.refused = netip.MustParseAddrPort("192.0.2.80:9000"), netip.MustParseAddrPort("192.0.2.66:80")
	p.nameServer = netip.MustParseAddrPort("192.0.2.53:53")
	p.shareOut()
	return &p
}

// shareOut gives each gateway the dedicated addresses that it holds.
func (p *plan) shareOut() {
	p.gateways[atA].Dedicated = []netip.Addr{p.acme[0], p.globex[0]}
	p.gateways[atB].Dedicated = []netip.Addr{p.acme[1], p.globex[1]}
	p.gateways[atC].Dedicated = p.standby[:]
}

// tries is how often addresses and ports of loopback are drawn before giving up.
const tries = 50

// loopbackPlan has addresses in 127.0.0.0/8 that nothing else on this machine is
// seen to use, and free ports of them.
func loopbackPlan() (*plan, error) {
	var errs []error
	for range tries {
		p := drawLoopback()
		err := p.free()
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("find free ports on loopback in %d tries: %w", tries, errors.Join(errs[:1]...))
}

// drawLoopback draws a /16 of loopback and ports below those that Linux gives to
// whoever asks for none.
func drawLoopback() *plan {
	p := insidePlan()
	block := byte(64 + rand.IntN(128))
	ip := func(c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{127, block, c, d}) }
	first := uint16(10000 + rand.IntN(20000))
	port := func(a netip.Addr, n uint16) netip.AddrPort { return netip.AddrPortFrom(a, first+n) }
	// The kernel's choice of a source for destinations in 127.0.0.0/8.
	p.worker = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	p.pool, p.standbyPool = netip.PrefixFrom(ip(113, 8), 29), netip.PrefixFrom(ip(113, 16), 29)
	p.acme, p.globex, p.standby = pair{ip(113, 10), ip(113, 11)}, pair{ip(113, 12), ip(113, 13)}, pair{ip(113, 20), ip(113, 21)}
	// WireGuard listens on all addresses: each has a port of its own.
	p.gateways = [3]gatewayPlan{
		{Name: hostA, Region: regionActive, Endpoint: ip(100, 18), Tunnels: ports{first, first + 3}, Admin: port(ip(100, 18), 10)},
		{Name: hostB, Region: regionActive, Endpoint: ip(100, 34), Tunnels: ports{first + 4, first + 6}, Admin: port(ip(100, 34), 10)},
		{Name: hostC, Region: regionPassive, Endpoint: ip(100, 50), Tunnels: ports{first + 7, first + 8}, Admin: port(ip(100, 50), 10)},
	}
	p.site, p.office = first+3, ip(100, 66)
	p.control = port(ip(100, 1), 10)
	p.web, p.echo, p.hold = port(ip(2, 80), 11), port(ip(2, 80), 11), port(ip(2, 80), 12)
	p.refused, p.nameServer = port(ip(2, 66), 11), port(ip(2, 53), 13)
	p.shareOut()
	return &p
}

// free says whether every port that the plan names can be had.
func (p *plan) free() error {
	for port := p.gateways[atA].Tunnels.First; port <= p.gateways[atC].Tunnels.Last; port++ {
		if err := freeUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), port)); err != nil {
			return err
		}
	}
	tcp := []netip.AddrPort{p.web, p.hold, p.refused, p.control}
	for _, g := range p.gateways {
		tcp = append(tcp, g.Admin)
	}
	for _, a := range tcp {
		l, err := net.Listen("tcp4", a.String())
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return errors.Join(freeUDP(p.echo), freeUDP(p.nameServer))
}

func freeUDP(a netip.AddrPort) error {
	c, err := net.ListenPacket("udp4", a.String())
	if err != nil {
		return err
	}
	return c.Close()
}
