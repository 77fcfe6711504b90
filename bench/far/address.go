package far

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/mmsg"
)

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

// local is the address to send from, as a control message; it may be empty.
type local struct {
	b [40]byte // of an IPv6 address, the longer
	n int
}

// localOf makes it; the zero value for none.
func localOf(from netip.Addr) (l local) {
	l.n = len(mmsg.AppendSource(l.b[:0], from, 0))
	return l
}
