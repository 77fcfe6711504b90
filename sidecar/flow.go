package sidecar

import (
	"encoding/binary"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const (
	// maxFlows is how many flows one generation of a sandbox's table holds. The
	// table holds two, so that a sandbox costs at most about 500 KiB here, and only
	// its own flows are forgotten when it opens too many.
	maxFlows = 8192
	// flowIdle is how long a flow is remembered at least, unless the table is
	// full: as long as a gateway keeps an established TCP session without a packet
	// (RFC 5382 REQ-5), in nanoseconds.
	flowIdle packet.Instant = (2*60 + 4) * 60 * 1e9
)

// flowKey names a flow of one sandbox, whose own address is left out because
// each sandbox has a table of its own. It has no pointers, so that the garbage
// collector need not look into the table.
type flowKey struct {
	remote      [4]byte
	local, port uint16 // the sandbox's port and the remote one; 0 where unknown
	proto       packet.Proto
}

// flowTable remembers which path each flow took, so that it stays there when
// new flows are sent elsewhere. It is pure and belongs to one goroutine.
//
// It has two generations. A flow that is seen is in the young one; when that is
// full, or flowIdle after the last time, the young one becomes the old one, and
// what was in the old one and not seen since is forgotten. So both memory and
// the cost of a packet are bounded, and flows in use are never forgotten
// before maxFlows others were seen.
type flowTable struct {
	young, old map[flowKey]uint8
	turned     packet.Instant
}

// newFlowTable makes an empty table.
func newFlowTable(now packet.Instant) *flowTable {
	return &flowTable{young: make(map[flowKey]uint8), old: make(map[flowKey]uint8), turned: now}
}

// path is the path of the flow; a flow that is not known is given the chosen one.
func (t *flowTable) path(key flowKey, chosen uint8, now packet.Instant) uint8 {
	if now-t.turned >= flowIdle {
		t.turn(now)
	}
	if p, ok := t.young[key]; ok {
		return p
	}
	p, ok := t.old[key]
	if !ok {
		p = chosen
	}
	if len(t.young) >= maxFlows {
		t.turn(now)
	}
	t.young[key] = p
	return p
}

// turn makes the young generation the old one.
func (t *flowTable) turn(now packet.Instant) {
	t.young, t.old = t.old, t.young
	clear(t.young)
	t.turned = now
}

// len counts the flows that are remembered; one that is in both generations counts twice.
func (t *flowTable) len() int { return len(t.young) + len(t.old) }

// Offsets in an IPv4 header (RFC 791 section 3.1).
const (
	ipv4MinHeader   = 20
	ipv4OffTotal    = 2
	ipv4OffFragment = 6
	ipv4OffProto    = 9
	ipv4OffSrc      = 12
	ipv4OffDst      = 16
	fragmentMask    = 0x3fff // more fragments, and the offset
)

// inspect checks a packet that a sandbox sent and names its flow. It reads no
// more than it needs: the gateway parses every packet anyway. Only unicast IPv4
// from exactly the sandbox's own address passes.
//
// All fragments of a flow share the key without ports, as only the first of
// each datagram has any.
func inspect(b []byte, inner [4]byte) (flowKey, packet.Outcome) {
	if len(b) < ipv4MinHeader {
		return flowKey{}, packet.Malformed
	}
	if b[0]>>4 != 4 {
		return flowKey{}, packet.NotIPv4
	}
	head := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[ipv4OffTotal:]))
	if head < ipv4MinHeader || total < head || total > len(b) {
		return flowKey{}, packet.Malformed
	}
	if [4]byte(b[ipv4OffSrc:]) != inner {
		return flowKey{}, packet.SpoofedSource
	}
	key := flowKey{remote: [4]byte(b[ipv4OffDst:]), proto: packet.Proto(b[ipv4OffProto])}
	// 0/8 is no destination (RFC 1122 section 3.2.1.3), and from 224/4 on there
	// are multicast, reserved and broadcast addresses.
	if key.remote[0] == 0 || key.remote[0] >= 224 {
		return flowKey{}, packet.Martian
	}
	if binary.BigEndian.Uint16(b[ipv4OffFragment:])&fragmentMask != 0 || total < head+4 {
		return key, packet.Pass
	}
	if key.proto == packet.TCP || key.proto == packet.UDP {
		key.local = binary.BigEndian.Uint16(b[head:])
		key.port = binary.BigEndian.Uint16(b[head+2:])
	}
	return key, packet.Pass
}
