package failover

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The addresses of the world: documentation ranges (RFC 5737) outside, RFC 1918
// inside.
var (
	workerLink = netip.MustParsePrefix("198.51.100.2/28")
	workerHub  = netip.MustParsePrefix("198.51.100.1/28")
	originLink = netip.MustParsePrefix("192.0.2.80/28")
	originHub  = netip.MustParsePrefix("192.0.2.81/28")
	anywhere   = netip.MustParsePrefix("0.0.0.0/0")

	activePool  = netip.MustParsePrefix("203.0.113.8/29")
	passivePool = netip.MustParsePrefix("203.0.113.16/29")
	activePair  = [2]netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.11")}
	passivePair = [2]netip.Addr{netip.MustParseAddr("203.0.113.18"), netip.MustParseAddr("203.0.113.19")}
	activeCIDR  = netip.MustParsePrefix("10.20.0.0/16")
	passiveCIDR = netip.MustParsePrefix("10.21.0.0/16")
)

// The regions.
const (
	activeRegion  = "iad1"
	passiveRegion = "cle1"
)

// The first and last port of the gateways' tunnels.
const (
	firstPort = 51820
	lastPort  = 51899
)

// hostPlan is what a gateway host is to be.
type hostPlan struct {
	name, region string
	link, hub    netip.Prefix // the two ends of its link
	holds        []netip.Addr // dedicated addresses
}

// hostPlans are the gateway hosts: two that share the active pair, and one with
// the whole passive pair.
func hostPlans() []hostPlan {
	return []hostPlan{
		{"gw-a", activeRegion, netip.MustParsePrefix("198.51.100.18/28"), netip.MustParsePrefix("198.51.100.17/28"), activePair[:1]},
		{"gw-b", activeRegion, netip.MustParsePrefix("198.51.100.34/28"), netip.MustParsePrefix("198.51.100.33/28"), activePair[1:]},
		{"gw-c", passiveRegion, netip.MustParsePrefix("198.51.100.50/28"), netip.MustParsePrefix("198.51.100.49/28"), passivePair[:]},
	}
}

// linkHub is the name of every machine's link to the hub. The hub's are called
// after the machines.
const (
	linkHub    = "hub"
	linkWorker = "worker"
	linkOrigin = "origin"
)

// gatewayHost is a machine with a gateway.
type gatewayHost struct {
	hostPlan
	machine *netlab.Namespace
	// watch sees at the hub what leaves the machine, and what goes to it.
	watch *netlab.Capture
	hole  netlab.Blackhole // of its link, both directions
}

// world is the machines and the links between them.
type world struct {
	lab                 *netlab.Lab
	hub, worker, origin *netlab.Namespace
	// control are machines without links: their API is called through the file system.
	control     map[string]*netlab.Namespace
	hosts       []*gatewayHost
	watchWorker *netlab.Capture
}

// newWorld builds the machines. Close it.
func newWorld() (*world, error) {
	lab := netlab.New()
	w := &world{lab: lab, hub: lab.Namespace("hub"), worker: lab.Namespace("worker"), origin: lab.Namespace("origin"),
		control: make(map[string]*netlab.Namespace)}
	w.connect(w.worker, linkWorker, workerLink, workerHub)
	w.connect(w.origin, linkOrigin, originLink, originHub)
	for _, region := range []string{activeRegion, passiveRegion} {
		w.control[region] = lab.Namespace("control of " + region)
	}
	for _, plan := range hostPlans() {
		h := &gatewayHost{hostPlan: plan, machine: lab.Namespace(plan.name)}
		w.connect(h.machine, h.name, h.link, h.hub)
		h.hole = netlab.Blackhole{Router: w.hub, From: h.name, To: []netip.Prefix{netip.PrefixFrom(h.link.Addr(), 32)}}
		for _, a := range h.holds {
			one := netip.PrefixFrom(a, 32)
			h.machine.Address("lo", one)
			w.hub.Route(one, h.link.Addr())
			h.hole.To = append(h.hole.To, one)
		}
		w.hosts = append(w.hosts, h)
	}
	w.hub.Forward(true)
	if err := lab.Err(); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	if err := w.startWatching(); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	return w, nil
}

// connect links a machine with the hub and routes everything through it.
func (w *world) connect(machine *netlab.Namespace, name string, near, far netip.Prefix) {
	w.lab.Connect(
		netlab.End{Namespace: machine, Link: linkHub, Address: near},
		netlab.End{Namespace: w.hub, Link: name, Address: far})
	machine.Route(anywhere, far.Addr())
}

// startWatching starts the captures.
func (w *world) startWatching() (err error) {
	if w.watchWorker, err = w.hub.Capture(linkWorker); err != nil {
		return fmt.Errorf("watch the worker's link: %w", err)
	}
	for _, h := range w.hosts {
		if h.watch, err = w.hub.Capture(h.name); err != nil {
			return fmt.Errorf("watch the link of %s: %w", h.name, err)
		}
	}
	return nil
}

// holder is the host that holds a dedicated address, or nil.
func (w *world) holder(a netip.Addr) *gatewayHost {
	for _, h := range w.hosts {
		if slices.Contains(h.holds, a) {
			return h
		}
	}
	return nil
}

// inRegion are the hosts of a region.
func (w *world) inRegion(region string) (out []*gatewayHost) {
	for _, h := range w.hosts {
		if h.region == region {
			out = append(out, h)
		}
	}
	return out
}

// close ends the captures, the processes and the machines.
func (w *world) close() error { return w.lab.Close() }
