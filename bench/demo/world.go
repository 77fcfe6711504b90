package demo

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The names of links, after what is at their other end.
const (
	linkInternet = "internet"
	linkWorker   = "worker"
	linkGateway  = "iad1"
)

// The addresses of the demo: documentation ranges (RFC 5737) outside, RFC 1918
// inside. Both networks have the same CIDR on purpose.
var (
	workerLink  = netip.MustParsePrefix("198.51.100.2/28")
	workerHub   = netip.MustParsePrefix("198.51.100.1/28")
	gatewayLink = netip.MustParsePrefix("198.51.100.18/28")
	gatewayHub  = netip.MustParsePrefix("198.51.100.17/28")
	pool        = netip.MustParsePrefix("203.0.113.8/29")
	acmePair    = pair{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.11")}
	globexPair  = pair{netip.MustParseAddr("203.0.113.12"), netip.MustParseAddr("203.0.113.13")}
	innerCIDR   = netip.MustParsePrefix("10.20.0.0/16")
	anyPrivate  = netip.MustParsePrefix("10.0.0.0/8")
	anywhere    = netip.MustParsePrefix("0.0.0.0/0")

	origin     = netip.MustParseAddr("192.0.2.80")
	refused    = netip.MustParseAddr("192.0.2.66") // answers, but the policy of both networks refuses it
	nameServer = netip.MustParseAddr("192.0.2.53")
)

// pair is the dedicated pair of a network.
type pair [2]netip.Addr

func (p pair) has(a netip.Addr) bool { return a == p[0] || a == p[1] }

// world is the machines, the links between them, and who watches these.
type world struct {
	lab                       *netlab.Lab
	worker, gateway, internet *netlab.Namespace
	fromGateway, fromWorker   *netlab.Capture // at the internet's ends
	noPing                    error           // why the gateway's host has no ping sockets
}

// newWorld builds the machines. Close it.
func newWorld() (*world, error) {
	lab := netlab.New()
	w := &world{lab: lab, worker: lab.Namespace("worker"), gateway: lab.Namespace("iad1"), internet: lab.Namespace("internet")}
	lab.Connect(
		netlab.End{Namespace: w.worker, Link: linkInternet, Address: workerLink},
		netlab.End{Namespace: w.internet, Link: linkWorker, Address: workerHub})
	lab.Connect(
		netlab.End{Namespace: w.gateway, Link: linkInternet, Address: gatewayLink},
		netlab.End{Namespace: w.internet, Link: linkGateway, Address: gatewayHub})
	w.worker.Route(anywhere, workerHub.Addr())
	w.gateway.Route(anywhere, gatewayHub.Addr())
	w.internet.Route(pool, gatewayLink.Addr())
	w.internet.Forward(true)
	for _, a := range []netip.Addr{origin, refused, nameServer} {
		w.internet.Address("lo", netip.PrefixFrom(a, 32))
	}
	for _, p := range []pair{acmePair, globexPair} {
		for _, a := range p {
			w.gateway.Address("lo", netip.PrefixFrom(a, 32))
		}
	}
	if err := lab.Err(); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	w.noPing = w.gateway.Do(func() error {
		// The group that runs everything here is 0, and often the only one.
		return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0\n"), 0)
	})
	return w, w.watch()
}

// watch starts the captures.
func (w *world) watch() (err error) {
	if w.fromGateway, err = w.internet.Capture(linkGateway); err == nil {
		w.fromWorker, err = w.internet.Capture(linkWorker)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("watch the links: %w", err), w.close())
	}
	return nil
}

// close ends the captures, the processes and the machines.
func (w *world) close() error { return w.lab.Close() }
