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
