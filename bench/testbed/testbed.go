// Package testbed builds what gateways are measured in: a sandbox, a gateway and a server in a row,
// each a network namespace, and sallyportd on the gateway.
//
//	sandbox 198.51.100.2 ── 198.51.100.1 gateway 192.0.2.1 ── 192.0.2.80 server
//
// The gateway may have a core of the machine to itself: the kernel's work for what arrives
// at it is steered there as well, so that it is counted, whoever sent it.
package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The addresses of each testbed, documentation ranges (RFC 5737) outside.
var (
	SandboxLink = netip.MustParsePrefix("198.51.100.2/24")
	GatewayIn   = netip.MustParsePrefix("198.51.100.1/24")
	GatewayOut  = netip.MustParsePrefix("192.0.2.1/24")
	ServerLink  = netip.MustParsePrefix("192.0.2.80/24")
	// Pool is routed to the gateway, and Pair is of it.
	Pool = netip.MustParsePrefix("203.0.113.0/28")
	Pair = [2]netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("203.0.113.3")}
	// InnerCIDR is the network of sandboxes.
	InnerCIDR = netip.MustParsePrefix("10.20.0.0/16")
)

// Names of links, as their namespaces have them.
const (
	LinkIn   = "in"   // the gateway's, to the sandbox
	LinkOut  = "out"  // the gateway's, to the server
	LinkSide = "eth0" // the sandbox's and the server's
)

// AnyCore is for a gateway without a core to itself.
const AnyCore = -1

// Config describes a testbed.
type Config struct {
	// Core is the gateway's, by its number, or [AnyCore]. To steer packets to it takes root,
	// and that this process keeps off it: see [LeaveCore].
	Core int
	// Remotes are more addresses of the server, to which the gateway has a route; the zero
	// prefix: none.
	Remotes netip.Prefix
}

// Testbed is a sandbox, a gateway and a server in a row.
type Testbed struct {
	Lab                      *netlab.Lab
	Sandbox, Gateway, Server *netlab.Namespace
	core                     int
}

// New builds a testbed. It is returned with an error, too; close it then as well.
func New(cfg Config) (*Testbed, error) {
	lab := netlab.New()
	t := &Testbed{lab, lab.Namespace("sandbox"), lab.Namespace("gateway"), lab.Namespace("server"), cfg.Core}
	lab.Connect(
		netlab.End{Namespace: t.Sandbox, Link: LinkSide, Address: SandboxLink},
		netlab.End{Namespace: t.Gateway, Link: LinkIn, Address: GatewayIn})
	lab.Connect(
		netlab.End{Namespace: t.Gateway, Link: LinkOut, Address: GatewayOut},
		netlab.End{Namespace: t.Server, Link: LinkSide, Address: ServerLink})
	t.Server.Route(Pool, GatewayOut.Addr())
	t.Gateway.Forward(true)
	if cfg.Remotes.IsValid() {
		t.Gateway.Route(cfg.Remotes, ServerLink.Addr())
	}
	if err := lab.Err(); err != nil {
		return t, err
	}
	if cfg.Remotes.IsValid() {
		if err := t.Server.Run(exec.Command("ip", "route", "add", "local", cfg.Remotes.String(), "dev", "lo")); err != nil {
			return t, fmt.Errorf("give the server more addresses: %w", err)
		}
	}
	if cfg.Core == AnyCore {
		return t, nil
	}
	return t, t.steer()
}

// Close ends the testbed and the processes in it.
func (t *Testbed) Close() error { return t.Lab.Close() }

// steer lets the kernel work for what arrives at the gateway on the gateway's core,
// and for what arrives elsewhere on the others: by itself a veth does it on the
// core of whoever sent.
func (t *Testbed) steer() error {
	var cores unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cores); err != nil { // without the gateway's by now
		return fmt.Errorf("ask for the cores: %w", err)
	}
	var others uint64
	for i := range 64 {
		if cores.IsSet(i) {
			others |= 1 << i
		}
	}
	for _, l := range []struct {
		on   *netlab.Namespace
		link string
		mask uint64
	}{{t.Gateway, LinkIn, 1 << t.core}, {t.Gateway, LinkOut, 1 << t.core}, {t.Sandbox, LinkSide, others}, {t.Server, LinkSide, others}} {
		// /sys shows the namespace of whoever mounted it.
		script := `mount -t sysfs sysfs /sys && for q in /sys/class/net/$0/queues/rx-*/rps_cpus; do echo $1 > $q || exit 1; done`
		cmd := exec.Command("unshare", "--mount", "sh", "-c", script, l.link, strconv.FormatUint(l.mask, 16))
		if err := l.on.Run(cmd); err != nil {
			return fmt.Errorf("steer packets of %s to cores: %w", l.on, err)
		}
	}
	return nil
}

// OnCore is what a command line begins with to run on one core alone; nothing for [AnyCore].
func OnCore(core int) []string {
	if core == AnyCore {
		return nil
	}
	return []string{"taskset", "-c", strconv.Itoa(core)}
}

// LeaveCore keeps this process, all its threads and what it starts from now on,
// away from a core, until back is called.
func LeaveCore(core int) (back func(), err error) {
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, fmt.Errorf("ask for the cores: %w", err)
	}
	cores := before
	cores.Clear(core)
	procs := runtime.GOMAXPROCS(cores.Count())
	back = func() {
		_ = moveThreads(before) // to where they were allowed to be
		runtime.GOMAXPROCS(procs)
	}
	if err := moveThreads(cores); err != nil {
		back()
		return nil, fmt.Errorf("keep off core %d: %w", core, err)
	}
	return back, nil
}

// moveThreads lets all threads of this process run on these cores alone. A thread
// may make another while the list is read: the second look finds it.
func moveThreads(cores unix.CPUSet) error {
	for range 2 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(id, &cores); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}
