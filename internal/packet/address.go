package packet

import "net/netip"

// Class is the special-purpose block (RFC 6890) that an IPv4 address lies in.
type Class uint8

// The classes. The zero value is an address that is not IPv4. Documentation
// and benchmarking ranges count as global: they are unreachable, not dangerous.
const (
	ClassInvalid     Class = iota
	ClassGlobal            // none of the blocks below
	ClassThisNetwork       // 0.0.0.0/8
	ClassLoopback          // 127.0.0.0/8
	ClassLinkLocal         // 169.254.0.0/16, metadata services among them
	ClassMulticast         // 224.0.0.0/4
	ClassReserved          // 240.0.0.0/4 without the next
	ClassBroadcast         // 255.255.255.255
	ClassPrivate           // 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 (RFC 1918)
	ClassShared            // 100.64.0.0/10 (RFC 6598)
)

// ClassOf returns the class of a.
func ClassOf(a netip.Addr) Class {
	if !a.Is4() {
		return ClassInvalid
	}
	b := a.As4()
	switch {
	case b[0] == 0:
		return ClassThisNetwork
	case b[0] == 10, b[0] == 172 && b[1]&0xf0 == 16, b[0] == 192 && b[1] == 168:
		return ClassPrivate
	case b[0] == 100 && b[1]&0xc0 == 64:
		return ClassShared
	case b[0] == 127:
		return ClassLoopback
	case b[0] == 169 && b[1] == 254:
		return ClassLinkLocal
	case b[0] < 224:
		return ClassGlobal
	case b[0] < 240:
		return ClassMulticast
	case b == [4]byte{255, 255, 255, 255}:
		return ClassBroadcast
	}
	return ClassReserved
}

// Host says whether one host somewhere may own an address of this class, so
// that a packet may be sent to it or an error about its packets (RFC 1812
// section 4.3.2.7). Loopback is the caller's own business.
func (c Class) Host() bool {
	switch c {
	case ClassGlobal, ClassPrivate, ClassShared:
		return true
	}
	return false
}

// MartianSource says whether nobody may send from an address of this class, so
// that a packet which claims to is never forwarded (RFC 1812 section 5.3.7).
// Link-local addresses are none: routers of clouds report from there. Loopback is the
// caller's own business where all that it knows lies in 127.0.0.0/8.
func (c Class) MartianSource() bool { return !c.Host() && c != ClassLinkLocal }

// String returns the class's name.
func (c Class) String() string {
	switch c {
	case ClassGlobal:
		return "global"
	case ClassThisNetwork:
		return "this network"
	case ClassLoopback:
		return "loopback"
	case ClassLinkLocal:
		return "link-local"
	case ClassMulticast:
		return "multicast"
	case ClassReserved:
		return "reserved"
	case ClassBroadcast:
		return "broadcast"
	case ClassPrivate:
		return "private"
	case ClassShared:
		return "shared"
	}
	return "not IPv4"
}
