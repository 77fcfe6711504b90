package netlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"syscall"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// errNoSysctl is what a sysctl answers that the kernel does not have.
var errNoSysctl = fs.ErrNotExist

// Namespace is a network namespace of a Lab: a machine with links and processes.
type Namespace struct {
	lab  *Lab
	name string
	net  *hostnet.Namespace
	host *hostnet.Kernel
	jobs chan func()   // for the namespace's thread
	quit chan struct{} // tells the thread to end
	done chan struct{} // closed when the thread has ended

	mu        sync.Mutex
	plan      hostnet.Plan // all that was applied, to be applied again
	processes []*exec.Cmd
	captures  []*Capture
	devices   []*WireGuard
}

func (n *Namespace) String() string { return n.name }

// Net returns the namespace as hostnet knows it, for instance to hand its
// descriptor to another process. The lab closes it.
func (n *Namespace) Net() *hostnet.Namespace { return n.net }

// Host returns the namespace's network stack, for plans that the methods of
// Namespace do not cover. The lab closes it.
func (n *Namespace) Host() *hostnet.Kernel { return n.host }

// Address adds an address to a link.
func (n *Namespace) Address(link string, p netip.Prefix) {
	n.change(hostnet.Plan{Addresses: []hostnet.Address{{Link: link, Prefix: p}}})
}

// Route adds a route through a next hop that a link of the namespace reaches.
func (n *Namespace) Route(p netip.Prefix, via netip.Addr) {
	n.change(hostnet.Plan{Routes: []hostnet.Route{{Prefix: p, Via: via}}})
}

// Forward makes the namespace a router for IPv4, or not.
func (n *Namespace) Forward(on bool) {
	value := "0"
	if on {
		value = "1"
	}
	n.Sysctl("net.ipv4.ip_forward", value)
}

// Sysctl sets a parameter under /proc/sys/net.
func (n *Namespace) Sysctl(name, value string) {
	n.change(hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: name, Value: value}}})
}

func (n *Namespace) change(p hostnet.Plan) {
	n.lab.build("change "+n.name, func() error { return n.apply(p) })
}

// apply adds p to what was applied before and applies all of it.
func (n *Namespace) apply(p hostnet.Plan) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.plan.Links = append(n.plan.Links, p.Links...)
	n.plan.Addresses = append(n.plan.Addresses, p.Addresses...)
	n.plan.Routes = append(n.plan.Routes, p.Routes...)
	n.plan.Sysctls = append(n.plan.Sysctls, p.Sysctls...)
	return n.host.Apply(n.plan)
}

// Do runs f on a thread inside the namespace and waits for it: sockets and TUNs
// that f makes belong to the namespace, goroutines that it starts do not. Calls
// do not wait for each other. f must not end the test (FailNow).
func (n *Namespace) Do(f func() error) error {
	if err := n.lab.Err(); err != nil {
		return err
	}
	return n.net.Do(f)
}

// startThread starts the thread on which the namespace's processes are started.
// It lives as long as the lab, because Linux sends a child its parent-death
// signal when the thread ends that made it, not the process. It returns when the thread
// is there, so that nobody takes it later for a goroutine of what is tested.
func (n *Namespace) startThread() {
	n.jobs, n.quit, n.done = make(chan func()), make(chan struct{}), make(chan struct{})
	ready := make(chan struct{})
	defer func() {
		select {
		case <-ready:
		case <-n.done:
		}
	}()
	go func() {
		defer close(n.done)
		_ = n.net.Do(func() error {
			close(ready)
			for {
				select {
				case job := <-n.jobs:
					job()
				case <-n.quit:
					return nil
				}
			}
		})
	}()
}

// Start starts a command inside the namespace. It is killed when the lab is
// closed or this process dies; the caller calls cmd.Wait as usual. The command
// sees this process's file system, and so its /sys.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if err := n.lab.Err(); err != nil {
		return err
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error, 1)
	select {
	case n.jobs <- func() { result <- cmd.Start() }:
	case <-n.done:
		return fmt.Errorf("netlab: start %s in %s: the lab is closed", cmd.Path, n.name)
	}
	if err := <-result; err != nil {
		return fmt.Errorf("netlab: start %s in %s: %w", cmd.Path, n.name, err)
	}
	n.mu.Lock()
	n.processes = append(n.processes, cmd)
	n.mu.Unlock()
	return nil
}

// Run starts a command inside the namespace and waits for it. The error holds
// what it wrote, if the command's Stdout and Stderr were not set.
func (n *Namespace) Run(cmd *exec.Cmd) error {
	var output tail
	if cmd.Stdout == nil && cmd.Stderr == nil {
		cmd.Stdout, cmd.Stderr = &output, &output
	}
	if err := n.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("netlab: %v in %s: %w: %s", cmd.Args, n.name, err, output.b)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	const limit = 4096
	t.b = append(t.b, p...)
	if over := len(t.b) - limit; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// Listen is net.Listen inside the namespace.
func (n *Namespace) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// ListenPacket is net.ListenPacket inside the namespace.
func (n *Namespace) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = n.Do(func() error {
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

// Dial is net.Dialer.DialContext inside the namespace, and may be the
// DialContext of an http.Transport. The address must be a number and a port:
// names would be resolved outside.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return n.DialFrom(ctx, nil, network, address)
}

// DialFrom is Dial from a local address, nil for any.
func (n *Namespace) DialFrom(ctx context.Context, local net.Addr, network, address string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("netlab: dial %s from %s: give an address and a port, names are not resolved: %w", address, n.name, err)
	}
	err = n.Do(func() error {
		c, err = (&net.Dialer{LocalAddr: local}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

func (n *Namespace) close() error {
	close(n.quit)
	<-n.done
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, w := range n.devices {
		errs = append(errs, w.Stop())
	}
	for _, cmd := range n.processes {
		_ = cmd.Process.Kill() // most have ended long ago
	}
	for _, c := range n.captures {
		errs = append(errs, c.Close())
	}
	return errors.Join(append(errs, n.host.Close(), n.net.Close())...)
}
