package tunnel

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// message is one element of recvmmsg(2) and sendmmsg(2).
type message struct {
	header unix.Msghdr
	size   uint32 // bytes received or sent
}

// receiveMessages and sendMessages hand messages to the kernel and return how many it
// dealt with. The descriptor does not block, so that the scheduler is not told: that
// would cost as much as many a call takes.
func receiveMessages(fd uintptr, msgs []message) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
	return int(n), err
}

func sendMessages(fd uintptr, msgs []message) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
	return int(n), err
}

// controlSize is room for the control messages of one datagram: the addresses of
// either version, and a segment size.
const controlSize = 64

// appendControl writes the address to send from and the size to cut to, where
// there are such (cmsg(3), ip(7), ipv6(7), udp(7)).
func appendControl(b []byte, from source, segment int) []byte {
	switch {
	case from.addr.Is4():
		var info unix.Inet4Pktinfo
		info.Spec_dst = from.addr.As4()
		b = appendMessage(b, unix.IPPROTO_IP, unix.IP_PKTINFO, (*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))[:])
	case from.addr.Is6():
		info := unix.Inet6Pktinfo{Addr: from.addr.As16(), Ifindex: from.link}
		b = appendMessage(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, (*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))[:])
	}
	if segment > 0 {
		var size [2]byte
		binary.NativeEndian.PutUint16(size[:], uint16(segment))
		b = appendMessage(b, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size[:])
	}
	return b
}

// appendMessage appends one control message to b, which has room for it and begins
// where a header may stand.
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

// parseControl reads the address that a datagram was sent to, and the size of the
// datagrams that were joined (0: it is one). What is no whole message ends it.
func parseControl(b []byte) (to source, segment int) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if uint64(h.Len) < uint64(unix.CmsgLen(0)) || uint64(h.Len) > uint64(len(b)) {
			return to, segment
		}
		size := int(h.Len)
		data := b[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			to.addr = netip.AddrFrom4(info.Spec_dst)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			to.addr = netip.AddrFrom16(info.Addr)
			if to.addr.IsLinkLocalUnicast() {
				to.link = info.Ifindex
			}
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(max(int32(binary.NativeEndian.Uint32(data)), 0))
		}
		b = b[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(b)):]
	}
	return to, segment
}
