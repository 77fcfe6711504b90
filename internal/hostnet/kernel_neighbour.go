package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// heldNeighbour is a neighbour that the kernel has, and who put it there.
type heldNeighbour struct {
	Neighbour
	tag Tag
}

// neighbours lists the permanent neighbours of all links, or the proxies.
func (k *Kernel) neighbours(proxy bool, names map[int]string) ([]heldNeighbour, error) {
	messages, err := redump(func() ([][]byte, error) {
		req := k.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		msg := &netlink.Ndmsg{Family: unix.AF_INET}
		if proxy {
			msg.Flags = netlink.NTF_PROXY
		}
		req.AddData(msg)
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	})
	if err != nil {
		return nil, err
	}
	var list []heldNeighbour
	for _, m := range messages {
		if len(m) < unix.SizeofNdMsg {
			continue
		}
		// struct ndmsg: family, three bytes of padding, index, state, flags, type.
		index, state := int(binary.NativeEndian.Uint32(m[4:])), binary.NativeEndian.Uint16(m[8:])
		if m[0] != unix.AF_INET || !proxy && state&netlink.NUD_PERMANENT == 0 {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[unix.SizeofNdMsg:])
		if err != nil {
			return nil, err
		}
		h := heldNeighbour{Neighbour: Neighbour{Link: names[index], Proxy: proxy}}
		for _, a := range attrs {
			switch a.Attr.Type {
			case netlink.NDA_DST:
				h.Addr, _ = netip.AddrFromSlice(a.Value)
			case netlink.NDA_LLADDR:
				h.MAC = net.HardwareAddr(a.Value)
			case netlink.NDA_PROTOCOL:
				if len(a.Value) > 0 {
					h.tag = Tag(a.Value[0])
				}
			}
		}
		list = append(list, h)
	}
	return list, nil
}

func (k *Kernel) taggedNeighbours(tag Tag, names map[int]string) ([]Neighbour, error) {
	var ours []Neighbour
	for _, proxy := range []bool{false, true} {
		list, err := k.neighbours(proxy, names)
		if err != nil {
			return nil, err
		}
		for _, h := range list {
			if h.tag == tag {
				ours = append(ours, h.Neighbour)
			}
		}
	}
	return ours, nil
}

// applyNeighbour leaves one alone that is there as it should be, whoever put it there.
func (k *Kernel) applyNeighbour(n Neighbour, tag Tag) error {
	link, err := k.handle.LinkByName(n.Link)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	list, err := k.neighbours(n.Proxy, map[int]string{index: n.Link})
	if err != nil || slices.ContainsFunc(list, func(h heldNeighbour) bool { return h.Neighbour.equal(n) }) {
		return err
	}
	req := k.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	k.addNeighbour(req, n, index)
	if tag != 0 {
		req.AddData(nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{byte(tag)}))
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (k *Kernel) undoNeighbour(n Neighbour, tag Tag) error {
	link, err := k.handle.LinkByName(n.Link)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	list, err := k.neighbours(n.Proxy, map[int]string{index: n.Link})
	i := slices.IndexFunc(list, func(h heldNeighbour) bool { return h.Neighbour.equal(n) })
	if err != nil || i < 0 || tag != 0 && list[i].tag != tag {
		return err
	}
	req := k.request(unix.RTM_DELNEIGH, unix.NLM_F_ACK)
	k.addNeighbour(req, n, index)
	if _, err = req.Execute(unix.NETLINK_ROUTE, 0); errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (k *Kernel) addNeighbour(req *nl.NetlinkRequest, n Neighbour, index int) {
	msg := &netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(index), State: netlink.NUD_PERMANENT}
	if n.Proxy {
		msg.Flags = netlink.NTF_PROXY
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, n.Addr.AsSlice()))
	if n.MAC != nil {
		req.AddData(nl.NewRtAttr(netlink.NDA_LLADDR, n.MAC))
	}
}

// Announce implements Host.
func (k *Kernel) Announce(name string, a netip.Addr) error {
	link, err := k.handle.LinkByName(name)
	if err != nil {
		return failed(fmt.Sprintf("announce %v on %s", a, name), err)
	}
	mac := link.Attrs().HardwareAddr
	if !a.Is4() || len(mac) != 6 {
		return fmt.Errorf("hostnet: announce %v on %s: it takes an IPv4 address and an Ethernet link", a, name)
	}
	err = k.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a packet socket, which needs CAP_NET_RAW: %w", err)
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{
			Protocol: htons(unix.ETH_P_ARP), Ifindex: link.Attrs().Index, Halen: 6,
			Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		}
		return unix.Sendto(fd, announcement(mac, a), 0, to)
	})
	if err != nil {
		return failed(fmt.Sprintf("announce %v on %s", a, name), err)
	}
	return nil
}

// announcement is an ARP announcement (RFC 5227 section 2.3): a request whose sender
// and target are both the address.
func announcement(mac net.HardwareAddr, a netip.Addr) []byte {
	const ethernet, request = 1, 1
	b := binary.BigEndian.AppendUint16(nil, ethernet)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, request)
	b = append(append(b, mac...), a.AsSlice()...)
	return append(append(b, make([]byte, 6)...), a.AsSlice()...)
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }
