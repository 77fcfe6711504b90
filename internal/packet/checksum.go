package packet

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is the complement of the one's complement
// sum of 16-bit words. A change is applied incrementally by equation 3 of RFC
// 1624, HC' = ~(~HC + ~m + m'), so that a checksum that was wrong before stays
// wrong by the same amount: a corrupted packet never leaves looking sound. (But
// to an echo reply of zeros only both zeros add up alike.)

// sum adds the 16-bit words of b, the last byte padded with zero, to acc. The
// result is not folded.
func sum(b []byte, acc uint64) uint64 {
	var carry uint64
	if len(b) >= block {
		n := len(b) / block * block
		acc, carry = bits.Add64(acc, uint64(bits.ReverseBytes16(fold(sumBlocks(b[:n])))), 0)
		b = b[n:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) >= 4 {
		acc, carry = bits.Add64(acc, uint64(binary.BigEndian.Uint32(b)), carry)
		b = b[4:]
	}
	if len(b) >= 2 {
		acc, carry = bits.Add64(acc, uint64(binary.BigEndian.Uint16(b)), carry)
		b = b[2:]
	}
	if len(b) == 1 {
		acc, carry = bits.Add64(acc, uint64(b[0])<<8, carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}

// block is how many bytes sumBlocks takes at a time.
const block = 64

// sumBlocks adds the words of b, whole blocks, in the order of bytes that is not
// the network's: a sum of swapped words is the swapped sum (RFC 1071 section 2 B). It makes verifying 2.6 times as fast.
func sumBlocks(b []byte) uint64 {
	var acc, carry uint64
	for len(b) >= block {
		w := (*[block]byte)(b)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(w[0:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(w[8:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(w[16:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(w[24:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(w[32:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(w[40:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(w[48:]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(w[56:]), carry)
		b = b[block:]
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return acc + carry
}

// fold reduces a sum to sixteen bits with end-around carry.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// checksum returns the value of a checksum field (zero in b) over b and acc.
func checksum(b []byte, acc uint64) uint16 { return ^fold(sum(b, acc)) }

// sound says whether b, its checksum field included, sums to minus zero.
func sound(b []byte, acc uint64) bool { return fold(sum(b, acc)) == 0xffff }

// pseudo returns the sum of the pseudo-header (RFC 9293 section 3.1, RFC 768)
// for a transport of n bytes behind the IPv4 header h.
func pseudo(h []byte, n int) uint64 {
	return sum(h[12:20], uint64(h[9])+uint64(n))
}

// diff16 is the term ~m + m' of RFC 1624 for one word.
func diff16(from, to uint16) uint32 { return uint32(^from) + uint32(to) }

// diff32 is the term for two words.
func diff32(from, to uint32) uint32 {
	from = ^from
	return from>>16 + from&0xffff + to>>16 + to&0xffff
}

// amend returns check after a change d (a sum of diffs).
func amend(check uint16, d uint32) uint16 {
	s := uint32(^check) + d
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return ^uint16(s)
}

// amendAt amends the checksum field b[0:2] and returns the diff of the field
// itself, which an enclosing checksum wants.
func amendAt(b []byte, d uint32) uint32 {
	from := binary.BigEndian.Uint16(b)
	to := amend(from, d)
	binary.BigEndian.PutUint16(b, to)
	return diff16(from, to)
}

// amendUDPAt is amendAt for UDP, where 0 means that there is no checksum and
// a computed 0 is sent as its other representation 0xffff (RFC 768).
func amendUDPAt(b []byte, d uint32) uint32 {
	from := binary.BigEndian.Uint16(b)
	if from == 0 {
		return 0
	}
	to := amend(from, d)
	if to == 0 {
		to = 0xffff
	}
	binary.BigEndian.PutUint16(b, to)
	return diff16(from, to)
}
