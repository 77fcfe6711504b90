package uplink

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// ICMP errors are made here and not by packet.BuildICMPError because their senders are
// routers anywhere, they may speak of packets that are rebuilt from an error queue,
// and a region made of loopback addresses has dedicated IPs in 127.0.0.0/8,
// about whose packets nobody on a wire may complain.

const (
	ipv4Len = 20
	icmpLen = 8
	udpLen  = 8
	// errorMax is the most that an ICMP error may be long (RFC 1812 section 4.3.2.3).
	errorMax = 576
	// internetControl is the type of service of ICMP errors (RFC 1812 section 4.3.2.5).
	internetControl = 0xc0
)

// The codes of ICMP type 3 that the uplink itself has reason to send (RFC 792, RFC 1812 section 5.2.7.1).
const (
	codeNet        uint8 = 0
	codeHost       uint8 = 1
	codeProtocol   uint8 = 2
	codeFragment   uint8 = 4
	codeProhibited uint8 = 13
)

// icmpError is what an ICMP error says. info is the second word of the message.
type icmpError struct {
	typ, code uint8
	info      uint32
	from      [4]byte
}

// build writes the error about the IPv4 packet about, which may be cut short, into
// dst and returns its length. It goes to the source of about.
func (e icmpError) build(dst, about []byte) int {
	quote := min(len(about), errorMax-ipv4Len-icmpLen)
	n := ipv4Len + icmpLen + quote
	clear(dst[:ipv4Len+icmpLen])
	dst[0], dst[1] = 0x45, internetControl
	binary.BigEndian.PutUint16(dst[2:], uint16(n))
	dst[6] = 0x40 // DF: the identification is nobody's (RFC 6864 section 4.1)
	dst[8], dst[9] = 64, byte(packet.ICMP)
	copy(dst[12:], e.from[:])
	copy(dst[16:20], about[12:16])
	binary.BigEndian.PutUint16(dst[10:], checksum(dst[:ipv4Len]))
	m := dst[ipv4Len:n]
	m[0], m[1] = e.typ, e.code
	binary.BigEndian.PutUint32(m[4:], e.info)
	copy(m[icmpLen:], about[:quote])
	binary.BigEndian.PutUint16(m[2:], checksum(m))
	return n
}

// checksum is the Internet checksum (RFC 1071) of b, whose checksum field is zero.
func checksum(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return ^uint16(s)
}

// markService sets the type of service of the built packet b, whose header has no options.
func markService(b []byte, tos uint8) {
	if tos == 0 {
		return
	}
	b[1], b[10], b[11] = tos, 0, 0
	binary.BigEndian.PutUint16(b[10:], checksum(b[:ipv4Len]))
}

const (
	// errorInterval and errorBurst bound the ICMP errors that the uplink itself
	// has reason to send, 1000 a second (RFC 1812 section 4.3.2.8). The limit is
	// the network's own, so that nobody else can read anything from it.
	errorInterval = time.Millisecond
	errorBurst    = 500
)

// limiter is a bucket of errorBurst tokens, told as the moment when it is full again.
type limiter struct {
	start time.Time
	full  atomic.Int64 // nanoseconds since start
}

func (l *limiter) allow() bool {
	now := int64(time.Since(l.start))
	for {
		old := l.full.Load()
		next := max(old, now) + int64(errorInterval)
		if next-now > int64(errorBurst*errorInterval) {
			return false
		}
		if l.full.CompareAndSwap(old, next) {
			return true
		}
	}
}

// drop counts a packet that goes no further, and returns the reason.
func (s *Sockets) drop(o packet.Outcome) packet.Outcome {
	s.drops[o].Add(1)
	return o
}

// refuse drops the packet about, whose source is a dedicated IP, for reason o
// and tells the sandbox by ICMP type 3 of code and info. It returns o.
func (s *Sockets) refuse(o packet.Outcome, code uint8, info uint32, about []byte) packet.Outcome {
	if s.errors.allow() {
		var buf [errorMax]byte
		e := icmpError{typ: packet.ICMPUnreachable, code: code, info: info, from: s.gateway}
		s.push(buf[:e.build(buf[:], about)])
	}
	return s.drop(o)
}

// deliver queues a packet for Read, or counts that it was lost.
func (s *Sockets) deliver(pkt []byte) {
	if !s.push(pkt) {
		s.drop(packet.QueueFull)
	}
}

// push queues a packet for Read and reports whether there was room.
func (s *Sockets) push(pkt []byte) bool {
	first, ok := s.outlet.push(pkt)
	if first {
		s.device.Wake()
	}
	return ok
}
