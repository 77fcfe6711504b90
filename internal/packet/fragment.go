package packet

import "encoding/binary"

// optionCopied marks an option that every fragment carries (RFC 791 section 3.1).
const optionCopied = 0x80

// NextFragment writes into dst the fragment of the packet b that begins at the
// payload offset at, as large as mtu allows, and returns its length and the
// offset of the next one, which is 0 behind the last. Called from offset 0
// until it returns 0 it yields the fragments in order (RFC 4787 REQ-13):
//
//	for at, n := 0, 0; ; {
//		if n, at = packet.NextFragment(buf, b, mtu, at); n == 0 { break }
//		send(buf[:n])
//		if at == 0 { break }
//	}
//
// b is a sound IPv4 packet, itself perhaps a fragment; it may be as small as
// to need only one. Its DF bit is the caller's business. A length of 0 says
// that dst is too short, that mtu leaves no room for eight bytes, or that the
// fragment b itself begins too far behind for offsets to tell (a ping of death).
func NextFragment(dst, b []byte, mtu, at int) (n, next int) {
	head := int(b[0]&15) * 4
	payload := b[head:]
	rest := len(payload) - at
	size := head
	if at > 0 {
		size = ipv4Len + copiedOptions(nil, b[ipv4Len:head])
	}
	room := mtu - size
	if rest > room {
		rest = room &^ 7
	}
	frag := binary.BigEndian.Uint16(b[6:])
	off := int(frag&offsetMask) + at/8
	if rest < 0 || rest == 0 && len(payload) > 0 || size+rest > len(dst) || off > offsetMask {
		return 0, 0
	}
	if at == 0 {
		copy(dst, b[:head])
	} else {
		copy(dst, b[:ipv4Len])
		clear(dst[ipv4Len:size])
		copiedOptions(dst[ipv4Len:size], b[ipv4Len:head])
	}
	copy(dst[size:], payload[at:at+rest])
	frag = frag&^offsetMask | uint16(off)
	next = at + rest
	if next == len(payload) {
		next = 0
	} else {
		frag |= flagMF
	}
	dst[0] = 0x40 | uint8(size/4)
	binary.BigEndian.PutUint16(dst[2:], uint16(size+rest))
	binary.BigEndian.PutUint16(dst[6:], frag)
	dst[10], dst[11] = 0, 0
	binary.BigEndian.PutUint16(dst[10:], checksum(dst[:size], 0))
	return size + rest, next
}

// copiedOptions copies those of the options o that belong in every fragment
// to dst, unless it is nil, and returns their length padded to whole words.
func copiedOptions(dst, o []byte) int {
	n := 0
	for len(o) > 0 && o[0] != optionEnd {
		size := 1
		if o[0] != optionNOP {
			if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
				break
			}
			size = int(o[1])
		}
		if o[0]&optionCopied != 0 {
			if dst != nil {
				copy(dst[n:], o[:size])
			}
			n += size
		}
		o = o[size:]
	}
	return (n + 3) &^ 3
}
