package far

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
// dealt with. The descriptor does not block, so that the scheduler is not told.
func receiveMessages(fd uintptr, msgs []message) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
	return int(n), err
}

func sendMessages(fd uintptr, msgs []message) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), 0, 0, 0)
	return int(n), err
}

// sockaddr is a socket address of either version as the kernel writes it.
type sockaddr [unix.SizeofSockaddrInet6]byte

// addr reads the address alone; the zero value for what is no address.
func (s *sockaddr) addr() netip.Addr {
	switch binary.NativeEndian.Uint16(s[:]) {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(s[4:]))
	case unix.AF_INET6:
		return netip.AddrFrom16([16]byte(s[8:])).Unmap()
	}
	return netip.Addr{}
}

// controlSize is room for the control messages of one datagram: the address of either
// version, and a segment size.
const controlSize = 64

// parseControl reads the address that a datagram was sent to, if the kernel was asked
// for it, and the size of those that were joined (0: it is one). What is no whole
// message ends it.
func parseControl(b []byte) (to netip.Addr, segment int) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		if uint64(h.Len) < uint64(unix.CmsgLen(0)) || uint64(h.Len) > uint64(len(b)) {
			return to, segment
		}
		size := int(h.Len)
		data := b[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			to = netip.AddrFrom4((*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])).Addr)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			to = netip.AddrFrom16((*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])).Addr)
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(max(int32(binary.NativeEndian.Uint32(data)), 0))
		}
		b = b[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(b)):]
	}
	return to, segment
}

// local is the address to send from, as a control message; it may be empty.
type local struct {
	b [40]byte // of an IPv6 address, the longer
	n int
}

// localOf makes it; the zero value for none (ip(7), ipv6(7)).
func localOf(from netip.Addr) (l local) {
	switch {
	case from.Is4():
		info := unix.Inet4Pktinfo{Spec_dst: from.As4()}
		l.set(unix.IPPROTO_IP, unix.IP_PKTINFO, (*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))[:])
	case from.Is6():
		info := unix.Inet6Pktinfo{Addr: from.As16()}
		l.set(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, (*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))[:])
	}
	return l
}

func (l *local) set(level, typ int32, data []byte) {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&l.b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(len(data)))
	copy(l.b[unix.CmsgLen(0):], data)
	l.n = unix.CmsgSpace(len(data))
}
