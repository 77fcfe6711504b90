package hostnet

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ifaProto is IFA_PROTO of linux/if_addr.h: who added an address. Linux 5.18 has it.
const ifaProto = 11

// heldAddress is an address that the kernel has.
type heldAddress struct {
	Address
	tag Tag
}

// request begins a request of our own, for what the library has no fields for.
func (k *Kernel) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: k.own}
	return req
}

// held lists the addresses of all links.
func (k *Kernel) held(family int, names map[int]string) ([]heldAddress, error) {
	messages, err := redump(func() ([][]byte, error) {
		req := k.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfAddrmsg(family))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	})
	if err != nil {
		return nil, err
	}
	list := make([]heldAddress, 0, len(messages))
	for _, m := range messages {
		msg := nl.DeserializeIfAddrmsg(m)
		attrs, err := nl.ParseRouteAttr(m[msg.Len():])
		if err != nil {
			return nil, err
		}
		h := heldAddress{Address: Address{Link: names[int(msg.Index)]}}
		var local, address netip.Addr
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_LOCAL:
				local, _ = netip.AddrFromSlice(a.Value)
			case unix.IFA_ADDRESS:
				address, _ = netip.AddrFromSlice(a.Value)
			case ifaProto:
				if len(a.Value) > 0 {
					h.tag = Tag(a.Value[0])
				}
			}
		}
		if !local.IsValid() {
			local = address // IPv6 has no other, but on a link with a far end
		}
		h.Prefix = netip.PrefixFrom(local, int(msg.Prefixlen))
		list = append(list, h)
	}
	return list, nil
}

// Addresses implements Host.
func (k *Kernel) Addresses() ([]netip.Prefix, error) {
	list, err := k.held(netlink.FAMILY_ALL, nil)
	if err != nil {
		return nil, failed("list addresses", err)
	}
	prefixes := make([]netip.Prefix, 0, len(list))
	for _, a := range list {
		prefixes = append(prefixes, a.Prefix)
	}
	return prefixes, nil
}

// LinkOf implements Host.
func (k *Kernel) LinkOf(a netip.Addr) (string, error) {
	names, err := k.names()
	if err != nil {
		return "", failed("list links", err)
	}
	list, err := k.held(netlink.FAMILY_ALL, names)
	if err != nil {
		return "", failed("list addresses", err)
	}
	for _, h := range list {
		if h.Prefix.Addr() == a {
			return h.Link, nil
		}
	}
	return "", nil
}

func (k *Kernel) taggedAddresses(tag Tag, names map[int]string) ([]Address, error) {
	list, err := k.held(netlink.FAMILY_V4, names)
	var ours []Address
	for _, h := range list {
		if h.tag == tag {
			ours = append(ours, h.Address)
		}
	}
	return ours, err
}

// on is what the link has of an address; false if it has not.
func (k *Kernel) on(a Address, index int) (heldAddress, bool, error) {
	list, err := k.held(netlink.FAMILY_ALL, map[int]string{index: a.Link})
	i := slices.IndexFunc(list, func(h heldAddress) bool { return h.Address == a })
	if i < 0 {
		return heldAddress{}, false, err
	}
	return list[i], true, err
}

func (k *Kernel) applyAddress(a Address, tag Tag) error {
	link, err := k.handle.LinkByName(a.Link)
	if err != nil {
		return err
	}
	if tag == 0 {
		return k.handle.AddrReplace(link, a.netlink())
	}
	index := link.Attrs().Index
	if _, there, err := k.on(a, index); err != nil || there {
		return err // somebody else's stays so: it keeps its mark, or none
	}
	if err := k.addTagged(a, index, tag); err != nil {
		return err
	}
	if h, _, err := k.on(a, index); err != nil || h.tag == tag {
		return err
	}
	err = errors.New("the kernel does not note who added an address (Linux 5.18 and later do), so that it could not be told from others after a crash: add the address yourself")
	return errors.Join(err, k.handle.AddrDel(link, a.netlink()))
}

func (k *Kernel) addTagged(a Address, index int, tag Tag) error {
	req := k.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	family := unix.AF_INET
	if a.Prefix.Addr().Is6() {
		family = unix.AF_INET6
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Index, msg.Prefixlen = uint32(index), uint8(a.Prefix.Bits())
	if family == unix.AF_INET6 {
		msg.IfAddrmsg.Flags = unix.IFA_F_NODAD
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.Prefix.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.Prefix.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(ifaProto, []byte{byte(tag)}))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *Kernel) undoAddress(a Address, tag Tag) error {
	link, err := k.handle.LinkByName(a.Link)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if tag != 0 {
		if h, there, err := k.on(a, link.Attrs().Index); err != nil || !there || h.tag != tag {
			return err
		}
	}
	if err := k.handle.AddrDel(link, a.netlink()); !errors.Is(err, unix.EADDRNOTAVAIL) && !absent(err) {
		return err
	}
	return nil
}

func (a Address) netlink() *netlink.Addr {
	addr := &netlink.Addr{IPNet: toIPNet(a.Prefix)}
	if a.Prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // usable at once; the address is given, not guessed
	}
	return addr
}
