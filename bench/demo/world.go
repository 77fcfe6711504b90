package demo

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The names of links, after what is at their other end. Those to the gateways
// are named after the hosts.
const (
	linkInternet = "internet"
	linkWorker   = "worker"
	linkOffice   = "office"
)

var anywhere = netip.MustParsePrefix("0.0.0.0/0")

// world is the machines, the links between them, and who watches these. Without
// namespaces all machines are one, and nobody watches.
type world struct {
	plan                              *plan
	worker, internet, office, control machine
	gateways                          [3]machine
	// lab is nil without namespaces; then the captures are, too.
	lab          *netlab.Lab
	here         *local
	fromGateways [3]*netlab.Capture // at the internet's ends
	fromWorker   *netlab.Capture
	noPing       error // why the gateways' hosts have no ping sockets
}

// confined says whether sandboxes have a network of their own.
func (w *world) confined() bool { return w.lab != nil }

// newLoopback makes a world of this machine's loopback. Close it.
func newLoopback(p *plan) *world {
	l := newLocal()
	return &world{plan: p, here: l, worker: l, internet: l, office: l, control: l, gateways: [3]machine{l, l, l}}
}

// newNamespaces builds machines of namespaces. Close it.
func newNamespaces(p *plan) (*world, error) {
	w := &world{plan: p, lab: netlab.New()}
	internet := w.lab.Namespace("internet")
	internet.Forward(true)
	for _, a := range []netip.AddrPort{p.web, p.refused, p.nameServer} {
		internet.Address("lo", netip.PrefixFrom(a.Addr(), 32))
	}
	w.internet, w.control = internet, w.lab.Namespace("control")
	w.worker = w.attach(internet, linkWorker, p.worker, p.workerHub)
	w.office = w.attach(internet, linkOffice, p.office, p.officeHub)
	for i, g := range p.gateways {
		n := w.attach(internet, g.Name, g.Endpoint, g.hub)
		for _, a := range g.Dedicated {
			n.Address("lo", netip.PrefixFrom(a, 32))
			internet.Route(netip.PrefixFrom(a, 32), g.Endpoint)
		}
		w.gateways[i] = n
	}
	if err := w.lab.Err(); err != nil {
		return nil, errors.Join(err, w.lab.Close())
	}
	for _, g := range w.gateways {
		w.noPing = errors.Join(w.noPing, g.Do(func() error {
			// The group that runs everything here is 0, and often the only one.
			return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0\n"), 0)
		}))
	}
	return w, w.watch(internet)
}

// attach adds a machine with a link to the internet.
func (w *world) attach(internet *netlab.Namespace, name string, near, far netip.Addr) *netlab.Namespace {
	n := w.lab.Namespace(name)
	w.lab.Connect(
		netlab.End{Namespace: n, Link: linkInternet, Address: netip.PrefixFrom(near, hostLength)},
		netlab.End{Namespace: internet, Link: name, Address: netip.PrefixFrom(far, hostLength)})
	n.Route(anywhere, far)
	return n
}

// watch starts the captures.
func (w *world) watch(internet *netlab.Namespace) (err error) {
	for i, g := range w.plan.gateways {
		if w.fromGateways[i], err = internet.Capture(g.Name); err != nil {
			break
		}
	}
	if err == nil {
		w.fromWorker, err = internet.Capture(linkWorker)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("watch the links: %w", err), w.close())
	}
	return nil
}

// close ends the captures, the processes and the machines.
func (w *world) close() error {
	if w.here != nil {
		w.here.close()
		return nil
	}
	return w.lab.Close()
}
