package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Kernel is the Host that is a real network namespace. It is bound to the
// namespace for good, whatever thread calls it.
type Kernel struct {
	ns     *Namespace
	handle *netlink.Handle
	ioctls int // a socket of the namespace, for requests that netlink does not take
	// own is the namespace's netlink socket for requests that the library does not know.
	own *nl.SocketHandle
	// claims are the descriptors that hold what was claimed.
	claims map[Tag]int
}

var _ Host = (*Kernel)(nil)

// Here returns a Kernel for the calling thread's network namespace. A caller
// that has not locked itself to its thread gets the process's.
func Here() (*Kernel, error) {
	ns, err := CurrentNamespace()
	if err != nil {
		return nil, err
	}
	k, err := newKernel(ns)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return k, nil
}

// Host returns a Kernel for the namespace, which must be kept open as long as
// the Kernel is used with sysctls. Close the Kernel when done.
func (n *Namespace) Host() (*Kernel, error) {
	fd, err := unix.FcntlInt(n.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("hostnet: hold network namespace: %w", err)
	}
	ns := &Namespace{file: os.NewFile(uintptr(fd), n.file.Name())}
	k, err := newKernel(ns)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return k, nil
}

// newKernel takes ownership of ns if it succeeds.
func newKernel(ns *Namespace) (*Kernel, error) {
	k := &Kernel{ns: ns, claims: map[Tag]int{}}
	err := ns.Do(func() (err error) {
		if k.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("hostnet: open netlink socket: %w", err)
		}
		own, err := nl.Subscribe(unix.NETLINK_ROUTE)
		if err != nil {
			k.handle.Close()
			return fmt.Errorf("hostnet: open netlink socket: %w", err)
		}
		k.own = &nl.SocketHandle{Socket: own}
		k.ioctls, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			k.handle.Close()
			k.own.Close()
			return fmt.Errorf("hostnet: open socket for ioctls: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Close gives the Kernel's sockets back. What was applied stays.
func (k *Kernel) Close() error {
	k.handle.Close()
	k.own.Close()
	var errs []error
	for _, fd := range k.claims {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(append(errs, unix.Close(k.ioctls), k.ns.Close())...)
}

// Apply implements Host. It needs CAP_NET_ADMIN in the namespace, except for
// what is already there.
func (k *Kernel) Apply(p Plan) error {
	if err := p.validate(); err != nil {
		return err
	}
	for _, l := range p.Links {
		if err := k.applyLink(l); err != nil {
			return failed("apply link "+l.Name, err)
		}
	}
	for _, a := range p.Addresses {
		if err := k.applyAddress(a, p.Tag); err != nil {
			return failed(fmt.Sprintf("put address %v on %s", a.Prefix, a.Link), err)
		}
	}
	for _, r := range p.Routes {
		if err := k.applyRoute(r, p.Tag); err != nil {
			return failed("add route "+r.String(), err)
		}
	}
	for _, r := range p.Rules {
		if err := k.handle.RuleAdd(r.netlink(p.Tag)); err != nil && !errors.Is(err, unix.EEXIST) {
			return failed("add "+r.String(), ruleError(err))
		}
	}
	for _, n := range p.Neighbours {
		if err := k.applyNeighbour(n, p.Tag); err != nil {
			return failed("add "+n.String(), err)
		}
	}
	for _, d := range p.Drops {
		if err := k.applyDrop(d); err != nil {
			return failed("apply "+d.String(), err)
		}
	}
	for _, s := range p.Sysctls {
		if err := k.applySysctl(s); err != nil {
			return failed(fmt.Sprintf("set sysctl %s to %q", s.Name, s.Value), err)
		}
	}
	return nil
}

// Undo implements Host. It goes on after an error and returns all of them.
func (k *Kernel) Undo(p Plan) error {
	if err := p.validate(); err != nil {
		return err
	}
	var errs []error
	for _, d := range slices.Backward(p.Drops) {
		if err := k.handle.RuleDel(d.netlink()); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, failed("undo "+d.String(), err))
		}
	}
	for _, n := range slices.Backward(p.Neighbours) {
		if err := k.undoNeighbour(n, p.Tag); err != nil {
			errs = append(errs, failed("remove "+n.String(), err))
		}
	}
	for _, r := range slices.Backward(p.Rules) {
		if err := k.handle.RuleDel(r.netlink(p.Tag)); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, failed("remove "+r.String(), err))
		}
	}
	for _, r := range slices.Backward(p.Routes) {
		if err := k.undoRoute(r, p.Tag); err != nil {
			errs = append(errs, failed("remove route "+r.String(), err))
		}
	}
	for _, a := range slices.Backward(p.Addresses) {
		if err := k.undoAddress(a, p.Tag); err != nil {
			errs = append(errs, failed(fmt.Sprintf("take address %v off %s", a.Prefix, a.Link), err))
		}
	}
	for i := len(p.Links) - 1; i >= 0; i-- {
		if p.Links[i].Veth == nil {
			continue
		}
		if err := k.Delete(p.Links[i].Name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// SetUp brings a link up or down. Links of a Plan come up by themselves.
func (k *Kernel) SetUp(name string, up bool) error {
	link, err := k.handle.LinkByName(name)
	if err == nil {
		if up {
			err = k.handle.LinkSetUp(link)
		} else {
			err = k.handle.LinkSetDown(link)
		}
	}
	if err != nil {
		return failed(fmt.Sprintf("set link %s up=%t", name, up), err)
	}
	return nil
}

// AwaitCarrier waits until the link called name, which is up and whose far end
// is, takes packets. The kernel opens its queue a little later than it says that
// the link is up (linkwatch), and drops without a word until then.
func (k *Kernel) AwaitCarrier(ctx context.Context, name string) error {
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		l, err := k.handle.LinkByName(name)
		if err != nil {
			return fmt.Errorf("hostnet: look at link %s: %w", name, err)
		}
		// A device without a notion of carrier stays unknown, and is open at once.
		if s := l.Attrs().OperState; s == netlink.OperUp || s == netlink.OperUnknown {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("hostnet: wait for the carrier of link %s, which is %v: %w", name, l.Attrs().OperState, ctx.Err())
		}
	}
}

// Delete removes a link, and with a veth its other end. A link that is not there is not an error.
func (k *Kernel) Delete(name string) error {
	link, err := k.handle.LinkByName(name)
	if absent(err) {
		return nil
	}
	if err == nil {
		err = k.handle.LinkDel(link)
	}
	if err != nil && !absent(err) {
		return failed("delete link "+name, err)
	}
	return nil
}

// HardwareAddr returns the Ethernet address of a link.
func (k *Kernel) HardwareAddr(name string) (net.HardwareAddr, error) {
	link, err := k.handle.LinkByName(name)
	if err != nil {
		return nil, failed("look up link "+name, err)
	}
	return link.Attrs().HardwareAddr, nil
}

func (k *Kernel) applyLink(l Link) error {
	link, err := k.handle.LinkByName(l.Name)
	if absent(err) && l.Veth != nil {
		if err := k.addVeth(l); err != nil {
			return err
		}
		link, err = k.handle.LinkByName(l.Name)
	}
	if err != nil {
		return err
	}
	attrs := link.Attrs()
	if l.Veth != nil && link.Type() != "veth" {
		return fmt.Errorf("it exists and is of type %s, not veth: %w", link.Type(), os.ErrExist)
	}
	if link.Type() == "veth" && !l.TxOffload {
		if err := k.disableTxOffload(l.Name); err != nil {
			return err
		}
	}
	if l.MTU != 0 && l.MTU != attrs.MTU {
		if err := k.handle.LinkSetMTU(link, l.MTU); err != nil {
			return fmt.Errorf("MTU %d: %w", l.MTU, err)
		}
	}
	if l.NoARP && attrs.RawFlags&unix.IFF_NOARP == 0 {
		if err := k.handle.LinkSetARPOff(link); err != nil {
			return fmt.Errorf("switch ARP off: %w", err)
		}
	}
	if l.NoIPv6 {
		if err := k.makeNoIPv6Address(attrs.Index); err != nil && !noIPv6(err) {
			return fmt.Errorf("have the kernel make no IPv6 address: %w", err)
		}
	}
	if l.Forward {
		if err := k.forward(attrs.Index); err != nil {
			return fmt.Errorf("have the kernel forward from it: %w", err)
		}
	}
	if attrs.RawFlags&unix.IFF_UP == 0 {
		return k.handle.LinkSetUp(link)
	}
	return nil
}

// makeNoIPv6Address sets addrgenmode none (ip-link(8)). Unlike a sysctl it can be set
// where /proc/sys is read-only.
func (k *Kernel) makeNoIPv6Address(index int) error {
	const addrGenMode, none = 8, 1 // IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
	return k.setOfFamily(index, unix.AF_INET6, nl.NewRtAttr(addrGenMode, []byte{none}))
}

// forward sets what the sysctl net.ipv4.conf.LINK.forwarding shows.
func (k *Kernel) forward(index int) error {
	const inetConf, forwarding = 1, 1 // IFLA_INET_CONF of linux/if_link.h, IPV4_DEVCONF_FORWARDING of linux/ip.h
	conf := nl.NewRtAttr(inetConf|unix.NLA_F_NESTED, nil)
	conf.AddRtAttr(forwarding, nl.Uint32Attr(1))
	return k.setOfFamily(index, unix.AF_INET, conf)
}

// setOfFamily sets what a link has for one family of addresses.
func (k *Kernel) setOfFamily(index, family int, what *nl.RtAttr) error {
	req := k.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	spec.AddRtAttr(family|unix.NLA_F_NESTED, nil).AddChild(what)
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *Kernel) addVeth(l Link) error {
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: l.Name, MTU: l.MTU, HardwareAddr: l.MAC, TxQLen: -1},
		PeerName:         l.Veth.Name,
		PeerHardwareAddr: l.Veth.MAC,
	}
	if l.Veth.Namespace != nil {
		veth.PeerNamespace = netlink.NsFd(int(l.Veth.Namespace.file.Fd()))
	}
	if err := k.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth pair with peer %q: %w", l.Veth.Name, err)
	}
	return nil
}

// applySysctl reads before it writes, so that a value that is right already
// needs no privilege. The files of /proc/sys/net show the namespace of the
// thread that opens them.
func (k *Kernel) applySysctl(s Sysctl) error {
	path := filepath.Join("/proc/sys", s.path())
	return k.ns.Do(func() error {
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Join(strings.Fields(string(have)), " ") == strings.Join(strings.Fields(s.Value), " ") {
			return nil
		}
		// Neither O_CREATE nor O_TRUNC: the files exist, and are no files.
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(s.Value)
		return errors.Join(err, f.Close())
	})
}

// redump repeats a listing that a concurrent change disturbed.
func redump[T any](dump func() ([]T, error)) ([]T, error) {
	const attempts = 8
	var list []T
	var err error
	for range attempts {
		if list, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// failed wraps what the kernel said with what was tried and, where known, what to do.
func failed(tried string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		tried += " (not allowed: give CAP_NET_ADMIN in the network namespace, or run as root)"
	case errors.Is(err, unix.EROFS):
		tried += " (/proc/sys is mounted read-only, as in most containers: set it on the host)"
	case absent(err):
		tried += " (no such link in this network namespace)"
	}
	return fmt.Errorf("hostnet: %s: %w", tried, err)
}

// absent says whether err means that a link does not exist.
func absent(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// noIPv6 says whether err means that the kernel has no IPv6.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}
