package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// Offsets in the IP header (RFC 791), the TCP header (RFC 9293) and the UDP header (RFC 768).
const (
	ipTOS         = 1
	ipTotalLength = 2
	ipID          = 4
	ipFragment    = 6
	ipTTL         = 8
	ipProtocol    = 9
	ipChecksum    = 10
	ipSource      = 12

	tcpSequence        = 4
	tcpAcknowledgement = 8
	tcpOffset          = 12
	tcpFlags           = 13
	tcpWindow          = 14
	tcpChecksum        = 16

	udpLength   = 4
	udpChecksum = 6
)

// plainHeader is the first byte of an IPv4 header without options.
const plainHeader = header.IPv4Version<<4 | header.IPv4MinimumSize/4

// fragmentBits are "more fragments" and the offset in the IP header's fragment field.
const fragmentBits = 0x3fff

// verdict says what is to become of a packet that was written.
type verdict uint8

const (
	malformed      verdict = iota // not a whole IPv4 packet with a whole transport header
	badChecksum                   // IP or transport checksum is wrong
	fragmented                    // a fragment: reassembling is the caller's work
	notIntercepted                // the stack would answer in another's name
	admitted
)

// admit verifies b, so that the stack need not, and trims it to its length. The link tells
// the stack that checksums are verified; so nothing may pass that was not.
func (d *Device) admit(b []byte) ([]byte, verdict) {
	if len(b) < header.IPv4MinimumSize || b[0]>>4 != header.IPv4Version {
		return nil, malformed
	}
	l4, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[ipTotalLength:]))
	if l4 < header.IPv4MinimumSize || total < l4 || total > len(b) {
		return nil, malformed
	}
	b = b[:total]
	if checksum.Checksum(b[:l4], 0) != 0xffff {
		return nil, badChecksum
	}
	if binary.BigEndian.Uint16(b[ipFragment:])&fragmentBits != 0 {
		return nil, fragmented
	}
	v := verifyTransport(b[:l4], b[l4:])
	if v == admitted && d.config.Intercept && !d.intercepts(b, l4) {
		return nil, notIntercepted
	}
	return b, v
}

// verifyTransport checks the transport header and its checksum.
func verifyTransport(ip, b []byte) verdict {
	sum := uint16(0)
	switch ip[ipProtocol] {
	case byte(header.TCPProtocolNumber):
		if len(b) < header.TCPMinimumSize {
			return malformed
		}
		if n := int(b[tcpOffset]>>4) * 4; n < header.TCPMinimumSize || n > len(b) {
			return malformed
		}
		sum = pseudoHeader(ip, len(b))
	case byte(header.UDPProtocolNumber):
		if len(b) < header.UDPMinimumSize {
			return malformed
		}
		n := int(binary.BigEndian.Uint16(b[udpLength:]))
		if n < header.UDPMinimumSize || n > len(b) {
			return malformed
		}
		if binary.BigEndian.Uint16(b[udpChecksum:]) == 0 {
			return admitted // the sender made none
		}
		b = b[:n]
		sum = pseudoHeader(ip, n)
	case byte(header.ICMPv4ProtocolNumber):
		if len(b) < header.ICMPv4MinimumSize {
			return malformed
		}
	default:
		return admitted // the stack has no such protocol and looks at nothing
	}
	if checksum.Checksum(b, sum) != 0xffff {
		return badChecksum
	}
	return admitted
}

// intercepts reports whether an intercepting stack takes b: TCP, and errors about it. It would answer
// everything else, an echo request say, in the name of the destination.
func (d *Device) intercepts(b []byte, l4 int) bool {
	switch b[ipProtocol] {
	case byte(header.TCPProtocolNumber):
		return true
	case byte(header.ICMPv4ProtocolNumber):
		return header.ICMPv4Type(b[l4]) == header.ICMPv4DstUnreachable
	}
	return false
}

// pseudoHeader is the sum over the pseudo-header of n bytes of transport header and data.
func pseudoHeader(ip []byte, n int) uint16 {
	sum := checksum.Checksum(ip[ipSource:header.IPv4MinimumSize], 0)
	sum = checksum.Combine(sum, uint16(ip[ipProtocol]))
	return checksum.Combine(sum, uint16(n))
}
