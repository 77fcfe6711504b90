package tunnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/sallyport-net/sallyport/internal/mmsg"
)

// sockaddr is an address and a port as the kernel reads and writes them (ip(7),
// ipv6(7)). What an IPv4 one leaves of it is zero.
type sockaddr [unix.SizeofSockaddrInet6]byte

// Where a sockaddr has what. The port is big-endian, the rest the machine's.
const (
	portAt  = 2
	addr4At = 4
	addr6At = 8
	scopeAt = 24
)

// sockaddrOf writes an address; its zone is a number.
func sockaddrOf(to netip.AddrPort) (s sockaddr) {
	binary.BigEndian.PutUint16(s[portAt:], to.Port())
	if to.Addr().Is4() {
		binary.NativeEndian.PutUint16(s[:], unix.AF_INET)
		addr := to.Addr().As4()
		copy(s[addr4At:], addr[:])
		return s
	}
	binary.NativeEndian.PutUint16(s[:], unix.AF_INET6)
	addr := to.Addr().As16()
	copy(s[addr6At:], addr[:])
	link, _ := strconv.ParseUint(to.Addr().Zone(), 10, 32) // none is 0
	binary.NativeEndian.PutUint32(s[scopeAt:], uint32(link))
	return s
}

// addrPort reads it back; what is neither IPv4 nor IPv6 is the zero one.
func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s[portAt:])
	switch binary.NativeEndian.Uint16(s[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s[addr4At:])), port)
	case unix.AF_INET6:
		addr := netip.AddrFrom16([16]byte(s[addr6At:]))
		if link := binary.NativeEndian.Uint32(s[scopeAt:]); link != 0 {
			addr = addr.WithZone(strconv.FormatUint(uint64(link), 10))
		}
		return netip.AddrPortFrom(addr.Unmap(), port)
	}
	return netip.AddrPort{}
}

// source is the local address of a flow of datagrams. Its zero value leaves the
// choice to the kernel.
type source struct {
	addr netip.Addr
	// link is the index of the interface, where the address is link-local and
	// means nothing without.
	link uint32
}

// sourceOf is the local address that a datagram was sent to.
func sourceOf(c *mmsg.Control) source {
	s := source{addr: c.Local}
	if s.addr.IsLinkLocalUnicast() {
		s.link = c.Link
	}
	return s
}

// endpoint is where a peer is and which of our addresses it calls. It does not
// change but by ClearSrc and by what is learnt of the way there.
type endpoint struct {
	to      netip.AddrPort
	name    sockaddr // the same, as it is sent to
	from    source
	cleared atomic.Bool  // from is not to be used any more
	uncut   atomic.Int32 // calls of send in which the kernel is not to cut: the way there refused it
}

var _ conn.Endpoint = (*endpoint)(nil)

// newEndpoint makes an endpoint; the zone of its address is a number.
func newEndpoint(to netip.AddrPort, from source) *endpoint {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	return &endpoint{to: to, name: sockaddrOf(to), from: from}
}

// parseEndpoint reads an address and a port. Its zone may be the name of a link.
func parseEndpoint(text string) (*endpoint, error) {
	to, err := netip.ParseAddrPort(text)
	if err != nil {
		return nil, fmt.Errorf("parse the endpoint %q: %w", text, err)
	}
	if zone := to.Addr().Zone(); zone != "" {
		if _, err := strconv.ParseUint(zone, 10, 32); err != nil {
			link, err := net.InterfaceByName(zone)
			if err != nil {
				return nil, fmt.Errorf("parse the endpoint %q: look up the link %q: %w", text, zone, err)
			}
			to = netip.AddrPortFrom(to.Addr().WithZone(strconv.Itoa(link.Index)), to.Port())
		}
	}
	return newEndpoint(to, source{}), nil
}

// source is the address to send from.
func (e *endpoint) source() source {
	if e.cleared.Load() {
		return source{}
	}
	return e.from
}

// nameSize is how much of the name the kernel reads, in bytes.
func (e *endpoint) nameSize() uint32 {
	if e.to.Addr().Is4() {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}

// ClearSrc leaves the choice of the local address to the kernel.
func (e *endpoint) ClearSrc() { e.cleared.Store(true) }

// SrcIP is the local address; the zero one: the kernel chooses.
func (e *endpoint) SrcIP() netip.Addr { return e.source().addr }

// SrcToString is the local address as text.
func (e *endpoint) SrcToString() string { return e.SrcIP().String() }

// DstIP is the peer's address.
func (e *endpoint) DstIP() netip.Addr { return e.to.Addr() }

// DstToString is the peer's address and port as text.
func (e *endpoint) DstToString() string { return e.to.String() }

// DstToBytes is the same as bytes, for WireGuard's cookies.
func (e *endpoint) DstToBytes() []byte {
	b, _ := e.to.MarshalBinary() // never fails
	return b
}

const (
	// minKnown and maxKnown bound how many endpoints a socket remembers. Whoever
	// sends from many addresses, which may be forged, fills some hundred KiB.
	minKnown = 16
	maxKnown = 2048
)

// endpoints are those that datagrams came from lately: a peer that stays where it is
// keeps one endpoint. Each has one place, by its hash; a newcomer takes it. One
// goroutine uses them.
type endpoints struct {
	last    *endpoint // of the datagram before
	table   []*endpoint
	ousted  int // newcomers that took a place, since the table grew
	unknown int // endpoints made, ever
}

// of returns the endpoint of a datagram; nil where the address is none.
func (k *endpoints) of(name *sockaddr, from source) *endpoint {
	if k.last != nil && k.last.is(name, from) {
		return k.last
	}
	if k.table == nil {
		k.table = make([]*endpoint, minKnown)
	}
	place := &k.table[name.hash()%uint64(len(k.table))]
	if *place == nil || !(*place).is(name, from) {
		to := name.addrPort()
		if !to.IsValid() {
			return nil
		}
		k.unknown++
		if *place != nil && (*place).name != *name {
			k.ousted++
		}
		*place = newEndpoint(to, from)
	}
	k.last = *place
	if k.ousted > len(k.table) && len(k.table) < maxKnown {
		k.grow()
	}
	return k.last
}

// grow doubles the table.
func (k *endpoints) grow() {
	old := k.table
	k.table, k.ousted = make([]*endpoint, 2*len(old)), 0
	for _, e := range old {
		if e != nil {
			k.table[e.name.hash()%uint64(len(k.table))] = e
		}
	}
}

// is says whether a datagram is of this endpoint. One whose local address was given
// up is of no more use.
func (e *endpoint) is(name *sockaddr, from source) bool {
	return e.name == *name && e.from == from && !e.cleared.Load()
}

// hash mixes all of an address (the multiplier is that of Steele and Vigna's
// tables for 64-bit congruential generators).
func (s *sockaddr) hash() uint64 {
	const multiplier = 0xd1342543de82ef95
	h := uint64(0)
	for _, word := range [...]uint64{
		binary.NativeEndian.Uint64(s[0:]), binary.NativeEndian.Uint64(s[8:]),
		binary.NativeEndian.Uint64(s[16:]), uint64(binary.NativeEndian.Uint32(s[24:])),
	} {
		h = (h ^ word) * multiplier
		h ^= h >> 32
	}
	return h
}
