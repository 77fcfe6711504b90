// Package netlab builds small networks of real network namespaces: for tests,
// the demo and benchmarks.
//
//	lab := netlab.Test(t)
//	worker, gateway := lab.Namespace("worker"), lab.Namespace("gateway")
//	lab.Connect(
//		netlab.End{Namespace: worker, Link: "eth0", Address: netip.MustParsePrefix("10.0.0.2/24")},
//		netlab.End{Namespace: gateway, Link: "eth0", Address: netip.MustParsePrefix("10.0.0.1/24")})
//	worker.Route(hostnet.DefaultIPv4, netip.MustParseAddr("10.0.0.1"))
//	capture, err := gateway.Capture("eth0")
//
// The methods that build (Namespace, Connect, ConnectLine, Bridge, Address, Route,
// Forward, Sysctl) return no error. In a lab of [Test] a failure ends the test;
// otherwise the first one is kept, later calls do nothing, and [Lab.Err] tells it.
//
// Links can be cut ([Link.SetUp], [Link.Lose], [Blackhole]), limited to a rate
// ([Link.Limit]), and replaced by a [Line] that delays and loses what passes.
// [Namespace.Bridge] joins links, [Namespace.WireGuard] starts a stock tunnel end.
//
// Namespaces are anonymous and held by descriptors, and processes started in
// them die with their parent, so that a crash leaves nothing behind. What would
// stay, sockets of WireGuard devices in the file system, is swept away before
// the next such device starts.
//
// [Programs] builds what a package's tests run in them.
//
// It works for root, and for other users inside a user namespace that [Enter]
// (in TestMain) or [Reexec] (in a command) puts the process in.
package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// Lab is a set of namespaces and the links between them.
type Lab struct {
	t TB // nil outside of tests

	mu     sync.Mutex
	err    error
	closed bool
	spaces []*Namespace
	lines  []*Line
}

// New returns an empty lab. Close it.
func New() *Lab { return &Lab{} }

// Err returns the first failure of the methods that build.
func (l *Lab) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// build runs one step, unless an earlier one failed.
func (l *Lab) build(what string, step func() error) {
	if l.t != nil {
		l.t.Helper()
	}
	if l.Err() != nil {
		return
	}
	err := step()
	if err == nil {
		return
	}
	err = fmt.Errorf("netlab: %s: %w", what, err)
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
	if l.t != nil {
		l.t.Fatalf("%v", err)
	}
}

// Namespace adds an empty namespace whose loopback is up and whose IPv6 is off
// (so that captures are not full of neighbour discovery; a Sysctl on
// net.ipv6.conf.all.disable_ipv6 switches it on). The name is for messages.
func (l *Lab) Namespace(name string) *Namespace {
	n := &Namespace{lab: l, name: name}
	l.build("make namespace "+name, func() (err error) {
		if n.net, err = hostnet.NewNamespace(); err != nil {
			return err
		}
		if n.host, err = n.net.Host(); err != nil {
			return errors.Join(err, n.net.Close())
		}
		n.startThread()
		l.mu.Lock()
		l.spaces = append(l.spaces, n)
		l.mu.Unlock()
		n.plan = hostnet.Plan{
			Links:   []hostnet.Link{{Name: "lo"}},
			Sysctls: []hostnet.Sysctl{{Name: "net.ipv6.conf.all.disable_ipv6", Value: "1"}},
		}
		if err = n.host.Apply(n.plan); errors.Is(err, errNoSysctl) {
			n.plan.Sysctls = nil // a kernel without IPv6
			err = n.host.Apply(n.plan)
		}
		return err
	})
	return n
}

// End is one end of a link: an interface to be made in a namespace.
type End struct {
	Namespace *Namespace
	Link      string
	Address   netip.Prefix // the zero value for none
	MTU       int          // 0 for the default of 1500
	// NoOffload makes packets leave this end with complete checksums and no
	// longer than the MTU, as readers at the other end by AF_PACKET need.
	NoOffload bool
}

func (e End) plan() hostnet.Plan {
	p := hostnet.Plan{Links: []hostnet.Link{{Name: e.Link, MTU: e.MTU, TxOffload: !e.NoOffload}}}
	if e.Address.IsValid() {
		p.Addresses = []hostnet.Address{{Link: e.Link, Prefix: e.Address}}
	}
	return p
}

// Close ends the lab: its captures, processes, threads and namespaces. It waits
// for neither processes (their owners do) nor the kernel.
func (l *Lab) Close() error {
	l.mu.Lock()
	spaces, lines, closed := l.spaces, l.lines, l.closed
	l.closed = true
	l.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	for _, line := range lines {
		errs = append(errs, line.close())
	}
	for _, n := range spaces {
		errs = append(errs, n.close())
	}
	return errors.Join(errs...)
}
