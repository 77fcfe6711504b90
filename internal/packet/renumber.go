package packet

import "encoding/binary"

// Renumbering is how a sandbox has other addresses in another network, one for
// one and with the same ports. Each pair of addresses takes the other's place, so
// that applying it twice changes nothing. A pair of the same address twice
// changes nothing at all. [Renumbering.Egress] is for packets that the sandbox sends,
// [Renumbering.Ingress] for those to it; both work in place.
type Renumbering struct {
	// Local is the sandbox's own address here and there, Remote that of a host which
	// both networks have, such as the gateway. Every other remote address stays.
	Local, Remote [2][4]byte
}

// Egress renumbers a packet that a sandbox sends, in place: the source by Local, the
// destination by Remote. In the packet that an ICMP error quotes, which came to
// the sandbox, it is the other way round. Fragments are renumbered like whole
// packets. Checksums are amended (RFC 1624), so that one that was wrong stays
// wrong; a UDP checksum of 0 stays 0.
//
// The only reason for anything but Pass is Malformed; then nothing was changed.
// Only what has to be read is checked, and bytes behind the total length stay.
func (r *Renumbering) Egress(b []byte) Outcome { return renumber(b, &r.Local, &r.Remote) }

// Ingress renumbers a packet to the sandbox as [Renumbering.Egress] does one from it.
func (r *Renumbering) Ingress(b []byte) Outcome { return renumber(b, &r.Remote, &r.Local) }

// renumber exchanges the source of b by the pair src and its destination by dst.
func renumber(b []byte, src, dst *[2][4]byte) Outcome {
	if len(b) < ipv4Len || b[0]>>4 != 4 {
		return Malformed
	}
	head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < ipv4Len || total < head || total > len(b) {
		return Malformed
	}
	if d := exchangeAddresses(b, src, dst); d != 0 {
		amendAt(b[offChecksum:], d)
		amendTransport(b[:head], b[head:total], d)
	}
	first := binary.BigEndian.Uint16(b[6:])&offsetMask == 0
	if Proto(b[9]) == ICMP && first {
		renumberQuoted(b[head:total], dst, src)
	}
	return Pass
}

// renumberQuoted renumbers the packet that m quotes, if m is an ICMP error: what
// is there of its checksums, and that of m.
func renumberQuoted(m []byte, src, dst *[2][4]byte) {
	if len(m) < icmpLen {
		return
	}
	switch m[0] {
	case ICMPUnreachable, ICMPTimeExceeded, ICMPParameter:
	default:
		return
	}
	q := quoted(m)
	if len(q) < ipv4Len || q[0]>>4 != 4 {
		return
	}
	d := exchangeAddresses(q, src, dst)
	if d == 0 {
		return
	}
	outer := d + amendAt(q[offChecksum:], d)
	head, total := int(q[0]&15)*4, int(binary.BigEndian.Uint16(q[2:]))
	if end := min(total, len(q)); head >= ipv4Len && end > head {
		outer += amendTransport(q[:head], q[head:end], d)
	}
	amendAt(m[2:], outer)
}

// exchangeAddresses exchanges the addresses of the IP header h and returns the
// diff, which is 0 where nothing was changed.
func exchangeAddresses(h []byte, src, dst *[2][4]byte) uint32 {
	return exchange(h[offSrc:], src) + exchange(h[offDst:], dst)
}

// exchange puts the other address of the pair in the place of b[0:4], if that is
// one of them, and returns the diff.
func exchange(b []byte, pair *[2][4]byte) uint32 {
	from := [4]byte(b)
	var to [4]byte
	switch {
	case pair[0] == pair[1]:
		return 0
	case from == pair[0]:
		to = pair[1]
	case from == pair[1]:
		to = pair[0]
	default:
		return 0
	}
	copy(b, to[:])
	return diff32(binary.BigEndian.Uint32(from[:]), binary.BigEndian.Uint32(to[:]))
}

// amendTransport amends the checksum that covers the addresses of the IP header
// h by way of the pseudo-header, if it is in this part of its payload, and
// returns the diff of the checksum itself. The first fragment may be too short
// to hold it (RFC 1858 section 3); then it is in the next.
func amendTransport(h, payload []byte, d uint32) uint32 {
	at := -int(binary.BigEndian.Uint16(h[6:])&offsetMask) * 8
	amendField := amendAt
	switch Proto(h[9]) {
	case TCP:
		at += 16
	case UDP:
		at += 6
		amendField = amendUDPAt
	default:
		return 0
	}
	if at < 0 || at+2 > len(payload) {
		return 0
	}
	return amendField(payload[at:], d)
}
