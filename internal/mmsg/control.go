package mmsg

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ControlSize is room, in bytes, for the control messages of one datagram: a local address
// of either version, and a size.
const ControlSize = 64

// Control is what the kernel says beside a datagram that came in, as far as the socket asked
// for it (IP_PKTINFO, IPV6_RECVPKTINFO, UDP_GRO). The zero value of each says nothing.
type Control struct {
	// To is the destination in the IP header. Local is the address of this host that the
	// kernel takes it for, and from which an answer goes (ip(7): ipi_spec_dst); over IPv6
	// both are one.
	To, Local netip.Addr
	// Link is the index of the interface by which an IPv6 datagram came.
	Link uint32
	// Segment is the size in bytes of each of the datagrams that were joined; the last may
	// be shorter. It may be larger than all there is. 0: it is one datagram.
	Segment int
}

// Parse reads control messages. What is no whole message ends it; of two of a kind the last
// counts. b begins where the kernel may have put a header, which is at a multiple of 8 bytes.
func Parse(b []byte) (c Control) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if uint64(h.Len) < uint64(unix.CmsgLen(0)) || uint64(h.Len) > uint64(len(b)) {
			return c
		}
		size := int(h.Len)
		data := b[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			c.To, c.Local, c.Link = netip.AddrFrom4(info.Addr), netip.AddrFrom4(info.Spec_dst), 0
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			c.To = netip.AddrFrom16(info.Addr)
			c.Local, c.Link = c.To, info.Ifindex
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			c.Segment = int(max(int32(binary.NativeEndian.Uint32(data)), 0))
		}
		b = b[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(b)):]
	}
	return c
}

// AppendSource appends the local address to send from, and over IPv6 the index of the
// interface to send by (0: any), to b, which has room for it and begins where a header may
// stand (ip(7), ipv6(7)). The zero address leaves the choice to the kernel: nothing is added.
func AppendSource(b []byte, from netip.Addr, link uint32) []byte {
	switch {
	case from.Is4():
		info := unix.Inet4Pktinfo{Spec_dst: from.As4()}
		return appendMessage(b, unix.IPPROTO_IP, unix.IP_PKTINFO, (*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))[:])
	case from.Is6():
		info := unix.Inet6Pktinfo{Addr: from.As16(), Ifindex: link}
		return appendMessage(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, (*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))[:])
	}
	return b
}

// AppendSegment appends the size, in bytes, of the datagrams that the kernel is to cut the
// payload to (udp(7): UDP_SEGMENT), to b, as [AppendSource] does. 0 adds nothing.
func AppendSegment(b []byte, size int) []byte {
	if size <= 0 {
		return b
	}
	var data [2]byte
	binary.NativeEndian.PutUint16(data[:], uint16(size))
	return appendMessage(b, unix.IPPROTO_UDP, unix.UDP_SEGMENT, data[:])
}

// appendMessage appends one control message.
func appendMessage(b []byte, level, typ int32, data []byte) []byte {
	at := len(b)
	b = b[:at+unix.CmsgSpace(len(data))]
	clear(b[at:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[at+unix.CmsgLen(0):], data)
	return b
}
