package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkState is what an interface is at one moment.
type LinkState struct {
	MTU int // in bytes
	Up  bool
}

// Link looks an interface up. The error satisfies errors.Is(err, [os.ErrNotExist]) where
// there is none of that name.
func (k *Kernel) Link(name string) (LinkState, error) {
	link, err := k.handle.LinkByName(name)
	if err != nil {
		if absent(err) {
			err = fmt.Errorf("%w: %w", unix.ENOENT, err)
		}
		return LinkState{}, failed("look up link "+name, err)
	}
	a := link.Attrs()
	return LinkState{MTU: a.MTU, Up: a.RawFlags&unix.IFF_UP != 0 && a.OperState != netlink.OperDown}, nil
}

// Trace implements Host.
func (k *Kernel) Trace(from, to netip.Addr, in string) (out string, err error) {
	routes, err := k.handle.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{Iif: in, SrcAddr: from.AsSlice()})
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	tried := fmt.Sprintf("a packet from %v to %v that comes in by %s", from, to, in)
	switch {
	case errors.Is(err, unix.EXDEV):
		return "", fmt.Errorf("hostnet: %s: the kernel refuses the source, to which it knows no way by %s (sysctl net.ipv4.conf.%s.rp_filter): %w", tried, in, in, err)
	case errors.Is(err, unix.EHOSTUNREACH):
		return "", fmt.Errorf("hostnet: %s: the kernel does not forward it (sysctl net.ipv4.conf.%s.forwarding must be 1): %w", tried, in, err)
	case err != nil:
		return "", fmt.Errorf("hostnet: %s: %w", tried, err)
	}
	link, err := k.handle.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return "", failed(tried, err)
	}
	return link.Attrs().Name, nil
}

// OnLink reports whether an IPv4 address is one of somebody else on the link itself, so
// that it can be a next hop there: by an address of the link, or by a route that names no
// router. A link that does not exist is an error.
func (k *Kernel) OnLink(name string, a netip.Addr) (bool, error) {
	tried := fmt.Sprintf("look whether %v is on link %s", a, name)
	link, err := k.handle.LinkByName(name)
	if err != nil {
		return false, failed(tried, err)
	}
	list, err := redump(func() ([]netlink.Addr, error) { return k.handle.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return false, failed(tried, err)
	}
	near := false
	for _, have := range list {
		p, ok := fromIPNet(have.IPNet)
		if p.Addr() == a {
			return false, nil
		}
		near = near || ok && p.Contains(a)
	}
	if near {
		return true, nil
	}
	routes, err := k.handle.RouteGet(a.AsSlice())
	if err != nil { // there is no way at all
		return false, nil
	}
	return len(routes) > 0 && routes[0].LinkIndex == link.Attrs().Index && routes[0].Gw == nil, nil
}
