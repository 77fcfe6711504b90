package spec

import (
	"fmt"
	"net/netip"
)

// RFC 1918 section 3, in the order in which it lists them.
var private = [...]netip.Prefix{
	netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, 0}), 8),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, 0, 0}), 12),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 0, 0}), 16),
}

// Ranges that no public address is in, beside those of RFC 1918: RFC 1122
// 3.2.1.3 (0/8, 127/8), RFC 6598, RFC 3927, RFC 5771 and RFC 1112 section 4.
var neverPublic = [...]netip.Prefix{
	netip.PrefixFrom(netip.AddrFrom4([4]byte{0, 0, 0, 0}), 8),
	sharedSpace,
	loopback,
	netip.PrefixFrom(netip.AddrFrom4([4]byte{169, 254, 0, 0}), 16),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{224, 0, 0, 0}), 4),
	netip.PrefixFrom(netip.AddrFrom4([4]byte{240, 0, 0, 0}), 4),
}

var sharedSpace = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)

func invalidCIDR(s string) Problem {
	return Problem{
		Message: fmt.Sprintf("%q is not a valid IPv4 CIDR", s),
		Remedy:  "write an address and a prefix length, such as 10.20.0.0/16",
	}
}

// checkCIDR holds the CIDR of a network against the rules. It tells what is no CIDR, what
// is not private, and a prefix length outside /16 to /24 apart.
func checkCIDR(p netip.Prefix) (Problem, bool) {
	if !p.IsValid() || !p.Addr().Is4() {
		return invalidCIDR(text(p)), true
	}
	if p != p.Masked() {
		return Problem{
			Message: fmt.Sprintf("%v is not a valid IPv4 CIDR: it has bits set below its prefix length", p),
			Remedy:  fmt.Sprintf("write %v", p.Masked()),
		}, true
	}
	if !isPrivate(p) {
		return Problem{
			Message: fmt.Sprintf("%v is not private (RFC 1918)", p),
			Remedy:  "choose a range inside 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
		}, true
	}
	if p.Bits() < MinPrefix || p.Bits() > MaxPrefix {
		return Problem{
			Message: fmt.Sprintf("%v has a prefix length outside /%d to /%d", p, MinPrefix, MaxPrefix),
			Remedy:  fmt.Sprintf("choose one such as %v", netip.PrefixFrom(p.Addr(), max(MinPrefix, min(p.Bits(), MaxPrefix))).Masked()),
		}, true
	}
	return Problem{}, false
}

func isPrivate(p netip.Prefix) bool {
	for _, outer := range private {
		if contains(outer, p) {
			return true
		}
	}
	return false
}

// text prints a prefix, and one that was never set as nothing.
func text(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
