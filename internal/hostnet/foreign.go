package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What a namespace needs that somebody else made and that gets one interface more:
// a look at what is there already, and links that come from another namespace.

// Links returns the names of all links, the loopback's among them.
func (k *Kernel) Links() ([]string, error) {
	list, err := redump(k.handle.LinkList)
	if err != nil {
		return nil, failed("list links", err)
	}
	names := make([]string, 0, len(list))
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return names, nil
}

// Defaults returns the unicast routes of the main table to everything, of both families.
func (k *Kernel) Defaults() ([]Route, error) {
	list, err := redump(func() ([]netlink.Route, error) { return k.handle.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, failed("list routes", err)
	}
	var out []Route
	for _, r := range list {
		p, ok := fromIPNet(r.Dst)
		if r.Dst == nil {
			p, ok = DefaultIPv4, true
			if r.Family == netlink.FAMILY_V6 {
				p = DefaultIPv6
			}
		}
		if !ok || p.Bits() != 0 || r.Type != unix.RTN_UNICAST {
			continue
		}
		d := Route{Prefix: p, Metric: r.Priority}
		d.Via, _ = netip.AddrFromSlice(r.Gw)
		if l, err := k.handle.LinkByIndex(r.LinkIndex); err == nil {
			d.Link = l.Attrs().Name
		}
		out = append(out, d)
	}
	return out, nil
}

// Send moves a link into another namespace, where it is down, without addresses,
// and called newName. Where that fails half-way the link may be there under its old name.
func (k *Kernel) Send(name string, to *Kernel, newName string) error {
	tried := fmt.Sprintf("move link %s to another network namespace as %s", name, newName)
	if err := errors.Join(CheckName(name), CheckName(newName)); err != nil {
		return fmt.Errorf("hostnet: %s: %w", tried, err)
	}
	link, err := k.handle.LinkByName(name)
	if err == nil {
		err = k.handle.LinkSetNsFd(link, int(to.ns.file.Fd()))
	}
	if err != nil {
		return failed(tried, err)
	}
	if link, err = to.handle.LinkByName(name); err == nil && name != newName {
		err = to.handle.LinkSetName(link, newName)
	}
	if err != nil {
		return failed(tried, err)
	}
	return nil
}
