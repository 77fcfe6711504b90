package sidecar

import (
	"encoding/binary"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Offsets in an IPv4 header (RFC 791 section 3.1) and a TCP header (RFC 9293
// section 3.1).
const (
	ipv4MinHeader   = 20
	ipv4OffTotal    = 2
	ipv4OffFragment = 6
	ipv4OffProto    = 9
	ipv4OffSrc      = 12
	ipv4OffDst      = 16
	fragmentMask    = 0x3fff // more fragments, and the offset
	tcpMinHeader    = 20
	tcpOffSeq       = 4
	tcpOffAck       = 8
	tcpOffFlags     = 13
)

// segment is what the table wants to know of a TCP segment; ok says that the
// packet is one.
type segment struct {
	seq, ack uint32
	flags    packet.TCPFlags
	ok       bool
}

// readSegment reads a TCP header.
func readSegment(t []byte) segment {
	return segment{
		seq: binary.BigEndian.Uint32(t[tcpOffSeq:]), ack: binary.BigEndian.Uint32(t[tcpOffAck:]),
		flags: packet.TCPFlags(t[tcpOffFlags] & 0x3f), ok: true,
	}
}

// inspect checks a packet that a sandbox sent and names its flow. It reads no
// more than it needs: the gateway parses every packet anyway. Only unicast IPv4
// from exactly the sandbox's own address passes.
//
// All fragments of a flow share the key without ports, as only the first of
// each datagram has any.
func inspect(b []byte, inner [4]byte) (flowKey, segment, packet.Outcome) {
	if len(b) < ipv4MinHeader {
		return flowKey{}, segment{}, packet.Malformed
	}
	if b[0]>>4 != 4 {
		return flowKey{}, segment{}, packet.NotIPv4
	}
	head := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[ipv4OffTotal:]))
	if head < ipv4MinHeader || total < head || total > len(b) {
		return flowKey{}, segment{}, packet.Malformed
	}
	if [4]byte(b[ipv4OffSrc:]) != inner {
		return flowKey{}, segment{}, packet.SpoofedSource
	}
	key := flowKey{remote: [4]byte(b[ipv4OffDst:]), proto: packet.Proto(b[ipv4OffProto])}
	// 0/8 is no destination (RFC 1122 section 3.2.1.3), and from 224/4 on there
	// are multicast, reserved and broadcast addresses.
	if key.remote[0] == 0 || key.remote[0] >= 224 {
		return flowKey{}, segment{}, packet.Martian
	}
	if binary.BigEndian.Uint16(b[ipv4OffFragment:])&fragmentMask != 0 || total < head+4 {
		return key, segment{}, packet.Pass
	}
	var seg segment
	if key.proto == packet.TCP || key.proto == packet.UDP {
		key.local = binary.BigEndian.Uint16(b[head:])
		key.port = binary.BigEndian.Uint16(b[head+2:])
		if key.proto == packet.TCP && total >= head+tcpMinHeader {
			seg = readSegment(b[head:total])
		}
	}
	return key, seg, packet.Pass
}

// turning reads a packet to a sandbox, and says whether it is a TCP segment at
// which a connection may begin or end.
func turning(b []byte) (flowKey, segment, bool) {
	if len(b) < ipv4MinHeader+tcpMinHeader || packet.Proto(b[ipv4OffProto]) != packet.TCP ||
		binary.BigEndian.Uint16(b[ipv4OffFragment:])&fragmentMask != 0 {
		return flowKey{}, segment{}, false
	}
	head := int(b[0]&15) * 4
	if head < ipv4MinHeader || len(b) < head+tcpMinHeader ||
		packet.TCPFlags(b[head+tcpOffFlags])&(packet.SYN|packet.FIN|packet.RST) == 0 {
		return flowKey{}, segment{}, false
	}
	key := flowKey{
		remote: [4]byte(b[ipv4OffSrc:]), proto: packet.TCP,
		local: binary.BigEndian.Uint16(b[head+2:]), port: binary.BigEndian.Uint16(b[head:]),
	}
	return key, readSegment(b[head:]), true
}
