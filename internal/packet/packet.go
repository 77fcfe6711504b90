// Package packet says what the bytes of an IPv4 packet mean and changes them
// without breaking a checksum. It is pure: it takes bytes and, where time
// matters, an [Instant], and it keeps no clock, lock, goroutine or log.
//
// Packets are parsed and rewritten in place, and built and fragmented into buffers
// of the caller's, all without an allocation. Only a [Reassembler] has memory of its
// own: it allocates a copy of each fragment, up to its limits.
package packet

import "net/netip"

// Instant is a reading of a monotonic clock in nanoseconds. Its zero is
// arbitrary; only differences mean anything. The shell reads the clock once
// per batch and hands the reading down.
type Instant int64

// Proto is an IP protocol number (the Protocol field of RFC 791).
type Proto uint8

// The protocols that Sallyport translates. All others are dropped and counted
// (RFC 6888 REQ-1).
const (
	ICMP Proto = 1
	TCP  Proto = 6
	UDP  Proto = 17
)

// Kind is what a parsed packet is to a translator.
type Kind uint8

// The kinds. The zero value is a packet that was not parsed.
const (
	KindUnknown   Kind = iota
	KindTCP            // a TCP segment whose whole header is present
	KindUDP            // a UDP datagram whose whole header is present
	KindICMPQuery      // an ICMP query or its reply: echo (8, 0)
	KindICMPError      // an ICMP error (3, 11, 12) whose embedded packet was parsed into Inner
	KindFragment       // any fragment (offset > 0 or more fragments): no ports are known
)

// Packet is a view of one IPv4 packet in a caller's buffer. Parse fills it in
// place; it owns nothing, and it is valid as long as the buffer is unchanged by others.
//
// Src, Dst, Proto and the IP fields are valid for every Kind but KindUnknown.
type Packet struct {
	// B is the packet, trimmed to the total length of its IP header.
	B []byte
	// Kind says which of the fields below are valid.
	Kind Kind
	// Proto is the IP protocol number.
	Proto Proto
	// TTL is the time to live as it stands in B.
	TTL uint8
	// DF is the don't-fragment bit.
	DF bool
	// L4 is the offset in B of the transport header (the IP header's length).
	L4 int
	// Src and Dst are the IP addresses.
	Src, Dst netip.Addr
	// SrcPort and DstPort are valid for TCP, UDP and ICMP queries. For an ICMP
	// query the identifier stands in SrcPort of a request and in DstPort of a
	// reply; the other one is 0.
	SrcPort, DstPort uint16
	// Flags, Seq, Ack and Window are valid for KindTCP.
	Flags    TCPFlags
	Seq, Ack uint32
	Window   uint16
	// Payload counts the bytes after the transport header: the data of a TCP
	// segment, of a UDP datagram (by its own length field), of an echo. It is
	// valid for KindTCP, KindUDP and KindICMPQuery; they are the last of Data.
	Payload int
	// Segments is how many packets of a wire this one stands for in counts: 1, unless it is
	// the head of a [Train] and whoever made it that has said so.
	Segments int
	// ICMPType and ICMPCode are valid for KindICMPQuery and KindICMPError.
	ICMPType, ICMPCode uint8
	// Inner is valid for KindICMPError: the packet that the error speaks of.
	Inner Embedded
}

// Embedded is the packet quoted inside an ICMP error. Only its IP header and
// the first eight bytes of its transport header are certain to be present.
type Embedded struct {
	Off              int // offset in Packet.B of the embedded IP header
	L4               int // offset in Packet.B of the embedded transport header
	End              int // offset in Packet.B behind the last quoted byte (RFC 4884 extensions lie beyond)
	Proto            Proto
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // as in Packet (identifier of an echo request in SrcPort)
	Seq              uint32 // TCP only
}

// TCPFlags are the control bits of a TCP header (RFC 9293 section 3.1).
type TCPFlags uint8

// The TCP control bits.
const (
	FIN TCPFlags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)
