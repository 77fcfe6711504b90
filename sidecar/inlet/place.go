package inlet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/tundev"
)

// Target names a network namespace: by a path, or by a process that is in it.
type Target struct {
	Path string // absolute
	PID  int
}

func (t Target) String() string {
	if t.PID != 0 {
		return fmt.Sprintf("the network namespace of process %d", t.PID)
	}
	return "the network namespace " + t.Path
}

// validate says what no namespace can be named by.
func (t Target) validate() error {
	switch {
	case t.Path != "" && t.PID != 0:
		return errors.New("name the network namespace by a path or by a process, not by both")
	case t.PID < 0 || t.Path == "" && t.PID == 0:
		return errors.New("name the network namespace: by a path such as /run/netns/NAME, or by the ID of a process in it")
	case t.PID == 0 && !strings.HasPrefix(t.Path, "/"):
		return fmt.Errorf("the path %q does not begin with /: the sidecar is in a folder of its own", t.Path)
	case strings.HasPrefix(t.Path, "/proc/self/"), strings.HasPrefix(t.Path, "/proc/thread-self/"):
		return fmt.Errorf("%s means the sidecar's own process here; name yours by its ID", t.Path)
	}
	return nil
}

// Place is a namespace, held open. The Place of a process also knows when that ends.
type Place struct {
	target    Target
	namespace *hostnet.Namespace
	host      *hostnet.Kernel
	id        hostnet.NamespaceID
	process   *Process
	tapped    bool // the TAP was made here
}

// Find opens a namespace, which must be neither this process's own nor the machine's.
// Close it when the interface is made: an open one keeps the namespace from ending.
func Find(t Target) (*Place, error) {
	if err := t.validate(); err != nil {
		return nil, err
	}
	if missing := missingCapabilities(); len(missing) > 0 {
		return nil, fmt.Errorf("enter %v: the sidecar has no %s; give it that (see the unit's drop-in attach.conf), %s",
			t, strings.Join(missing, " and no "), exec)
	}
	p := &Place{target: t}
	if err := p.open(); err != nil {
		p.Close()
		p.Forget()
		return nil, fmt.Errorf("enter %v: %w", t, err)
	}
	return p, nil
}

func (p *Place) open() (err error) {
	path := p.target.Path
	if p.target.PID != 0 {
		path = fmt.Sprintf("/proc/%d/ns/net", p.target.PID)
		if p.process, err = openProcess(p.target.PID); err != nil {
			return err
		}
	}
	p.namespace, err = hostnet.OpenNamespace(path)
	switch {
	case errors.Is(err, fs.ErrPermission) && p.target.PID != 0:
		return fmt.Errorf("the sidecar may not look into the process: give it CAP_SYS_PTRACE, or name the namespace by a path: %w", err)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; where it is one in your view, the sidecar does not see mounts that were made after it began", err)
	case err != nil:
		return err
	}
	if p.id, err = p.namespace.ID(); err != nil {
		return err
	}
	if p.process != nil && p.process.ended() { // then its ID may be another's by now
		return fmt.Errorf("process %d has ended", p.target.PID)
	}
	if err := p.notOurs(); err != nil {
		return err
	}
	p.host, err = p.namespace.Host()
	return err
}

// notOurs refuses the namespaces that must stay as they are.
func (p *Place) notOurs() error {
	for path, whose := range map[string]string{"/proc/self/ns/net": "the sidecar's own", "/proc/1/ns/net": "the machine's own"} {
		ns, err := hostnet.OpenNamespace(path)
		if err != nil {
			continue // who may not see it cannot name it either
		}
		id, err := ns.ID()
		_ = ns.Close()
		if err == nil && id == p.id {
			return fmt.Errorf("it is %s, which stays as it is: a sandbox needs one of its own (ip netns add NAME)", whose)
		}
	}
	return nil
}

// missingCapabilities lists what this process needs, and does not have, to enter a
// namespace and to make an interface of any kind there.
func missingCapabilities() []string {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if unix.Capget(&header, &data[0]) != nil {
		return nil // what is missing will tell
	}
	var missing []string
	for _, c := range []struct {
		bit  uint
		name string
	}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, {unix.CAP_NET_RAW, "CAP_NET_RAW"}} {
		if data[0].Effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	return missing
}

// String names the namespace in messages.
func (p *Place) String() string { return p.target.String() }

// ID tells the namespace from others.
func (p *Place) ID() hostnet.NamespaceID { return p.id }

// Process returns the process that the namespace was named by, or nil. It belongs to
// the caller then.
func (p *Place) Process() *Process {
	out := p.process
	p.process = nil
	return out
}

// Forget closes the process, unless somebody took it.
func (p *Place) Forget() {
	if p.process != nil {
		p.process.Close()
	}
}

// Close gives the namespace back.
func (p *Place) Close() {
	if p.host != nil {
		_ = p.host.Close()
	}
	if p.namespace != nil {
		_ = p.namespace.Close()
	}
}

// Check says why the namespace cannot have the interface: it has others, or another
// way out.
func (p *Place) Check(c Config) error {
	c = c.Named()
	links, err := p.host.Links()
	if err != nil {
		return fmt.Errorf("look into %v: %w", p, err)
	}
	links = slices.DeleteFunc(links, func(name string) bool {
		return name == "lo" || isTunnelStub(name) || c.Kind == TAP && (name == c.Link || name == bridgeName)
	})
	if slices.Contains(links, c.Link) {
		return fmt.Errorf("%v has a link %s already; detach what uses it, or choose another name (--link)", p, c.Link)
	}
	if len(links) > 0 && !c.OtherLinks {
		return fmt.Errorf("%v has other links (%s), by which packets could go around the tunnel; take them away, or allow them (--allow-links)", p, strings.Join(links, ", "))
	}
	defaults, err := p.host.Defaults()
	if err != nil {
		return fmt.Errorf("look into %v: %w", p, err)
	}
	if len(defaults) > 0 {
		return fmt.Errorf("%v has a default route (%v), which packets would take around the tunnel; take it away", p, defaults[0])
	}
	return nil
}

// isTunnelStub says whether a link is one of those that some kernels put into every
// namespace, down and without an address.
func isTunnelStub(name string) bool {
	return slices.Contains([]string{"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}, name)
}

// closed is what lets nothing out of a namespace, whatever links it gets.
func closed() hostnet.Plan {
	return hostnet.Plan{
		Links: []hostnet.Link{{Name: "lo"}},
		Routes: []hostnet.Route{
			{Prefix: hostnet.DefaultIPv4, Kind: hostnet.Unreachable, Metric: lastMetric},
			{Prefix: hostnet.DefaultIPv6, Kind: hostnet.Unreachable, Metric: lastMetric},
		},
	}
}

// refuseAll closes the namespace.
func (p *Place) refuseAll() error {
	// Before the interface is made, so that not even a router is asked for by IPv6.
	// Where that cannot be had, its packets are dropped at the far end.
	_ = p.host.Apply(hostnet.Plan{Sysctls: []hostnet.Sysctl{futureNoIPv6()}})
	return p.host.Apply(closed())
}

// Undo takes away what Open made and the end of the Inlet does not take along.
func (p *Place) Undo(c Config) {
	_ = p.host.Undo(hostnet.Plan{Routes: closed().Routes})
	if c.Kind != TAP {
		return
	}
	_ = p.host.Delete(bridgeName)
	if p.tapped {
		_ = p.host.Delete(c.Named().Link)
	}
}

// settle gives the near end of a pair its address, its neighbour and its route.
func (p *Place) settle(c Config, l Link) error {
	return p.host.Apply(hostnet.Plan{
		Links:      []hostnet.Link{{Name: c.Link, MTU: c.Device.MTU}},
		Addresses:  []hostnet.Address{{Link: c.Link, Prefix: netip.PrefixFrom(c.Inner, 32)}},
		Routes:     []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: c.Link, Via: c.Gateway}},
		Neighbours: []hostnet.Neighbour{{Link: c.Link, Addr: c.Gateway, MAC: l.GatewayMAC}},
	})
}

// addTAP makes the TAP, unless it is there from a sidecar that has ended.
func (p *Place) addTAP(c Config) error {
	links, err := p.host.Links()
	if err == nil && slices.Contains(links, bridgeName) {
		err = p.host.Delete(bridgeName)
	}
	if err != nil || slices.Contains(links, c.Link) {
		return err
	}
	err = p.namespace.Do(func() error { return tundev.AddTAP(c.Link, c.Owner) })
	p.tapped = err == nil
	return err
}

// bridge puts the TAP and the near end of the pair together, and brings all up. None
// of them has an address, so that this namespace itself has no network.
func (p *Place) bridge(tap string, mtu int) error {
	up := func(names ...string) error {
		var plan hostnet.Plan
		for _, name := range names {
			plan.Links = append(plan.Links, hostnet.Link{Name: name, MTU: mtu})
		}
		return p.host.Apply(plan)
	}
	if err := up(tap, portName); err != nil {
		return err
	}
	if err := p.host.Bridge(bridgeName, tap, portName); err != nil {
		return err
	}
	return up(bridgeName)
}

// Process is a process whose end is waited for.
type Process struct {
	file *os.File
	done chan struct{}
}

// openProcess begins to wait for the end of a process.
func openProcess(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("there is no process %d (in the sidecar's view): %w", pid, err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("this kernel cannot wait for a process (pidfd_open, Linux 5.10); name the namespace by a path: %w", err)
	case err != nil:
		return nil, fmt.Errorf("wait for process %d: %w", pid, err)
	}
	p := &Process{file: os.NewFile(uintptr(fd), fmt.Sprintf("process %d", pid)), done: make(chan struct{})}
	raw, err := p.file.SyscallConn()
	if err != nil {
		_ = p.file.Close()
		return nil, fmt.Errorf("wait for process %d: %w", pid, err)
	}
	go func() {
		defer close(p.done)
		_ = raw.Read(exited) // fails when the file is closed
	}()
	return p, nil
}

// exited says whether the process of a descriptor has.
func exited(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// ended says whether the process has.
func (p *Process) ended() bool {
	over := false
	raw, err := p.file.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { over = exited(fd) })
	}
	return over || err != nil
}

// Ended is closed at the end of the process, or by Close.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Close ends the wait.
func (p *Process) Close() {
	_ = p.file.Close()
	<-p.done
}
