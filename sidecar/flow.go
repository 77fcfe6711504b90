package sidecar

import (
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

const (
	// maxFlows is how many flows one generation of a sandbox's table holds. The
	// table holds two, so that a sandbox costs at most about 800 KiB here, and only
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

// flowState is what is known of a flow.
type flowState uint8

const (
	// flowLoose is no TCP connection: it moves to another route without a word.
	flowLoose flowState = iota
	// flowOpening is a TCP connection whose SYN is not answered. It moves with its SYN.
	flowOpening
	// flowOpen is a connection from the answer to its SYN on, or one that was seen
	// first in its midst. When its route is lost, it is reset.
	flowOpen
	// flowFinOut is an open one of which the sandbox has sent its FIN.
	flowFinOut
	// flowFinIn is an open one of which the sandbox was sent the other side's FIN.
	flowFinIn
	// flowClosed is over; what is still repeated keeps its route.
	flowClosed
	// flowLost was reset: each further segment is answered by a reset. Only a SYN
	// begins it anew.
	flowLost
)

// connected says whether both ends may still take the connection for alive.
func (s flowState) connected() bool { return s == flowOpen || s == flowFinOut || s == flowFinIn }

// flow is what the table remembers.
type flow struct {
	// ack is the number that the sandbox acknowledged last, which is the next that
	// it expects; of an opening one, the place of its SYN.
	ack   uint32
	route failover.PathID
	state flowState
}

// flowTable remembers which route each flow took, so that it stays there when
// new flows are sent elsewhere, and so much of each TCP connection that it can
// be reset or opened anew when its route is lost. It is pure; the sandbox's lock
// guards it.
//
// It has two generations. A flow that is seen is in the young one; when that is
// full, or flowIdle after the last time, the young one becomes the old one, and
// what was in the old one and not seen since is forgotten. So both memory and
// the cost of a packet are bounded, and flows in use are never forgotten
// before maxFlows others were seen.
type flowTable struct {
	young, old map[flowKey]flow
	turned     packet.Instant
	syns       synStore
	// losing are routes that are lost and whose flows are being swept. One that is
	// seen before the sweep comes to it is treated there and then.
	losing []failover.PathID
}

// newFlowTable makes an empty table.
func newFlowTable(now packet.Instant) *flowTable {
	return &flowTable{young: make(map[flowKey]flow), old: make(map[flowKey]flow), turned: now}
}

// egress takes note of a packet that the sandbox sends and returns the flow's
// route: that which it has, or the chosen one if it is new, or has lost its own
// and can move. False means that the connection is lost; the segment is to be
// answered by a reset.
func (t *flowTable) egress(key flowKey, seg segment, b []byte, chosen failover.PathID, now packet.Instant) (failover.PathID, bool) {
	if now-t.turned >= flowIdle {
		t.turn(now)
	}
	f, young := t.young[key]
	known := young
	if !young {
		f, known = t.old[key]
	}
	was := f
	if known && t.isLost(f.route, chosen) {
		f = t.lose(f, chosen)
	}
	if f.route == 0 { // it is new, or there was no route
		f.route = chosen
	}
	switch {
	case !seg.ok:
	case seg.flags&(packet.SYN|packet.ACK) == packet.SYN:
		if !known || f.state != flowOpening {
			f = flow{route: chosen, state: flowOpening, ack: noSYN}
		}
		f.ack = t.syns.keep(key, b, f.ack, now)
	case f.state != flowLost:
		f = t.sent(key, f, seg)
	}
	if !young || f != was {
		if len(t.young) >= maxFlows {
			t.turn(now)
		}
		t.young[key] = f
	}
	return f.route, f.state != flowLost
}

// sent takes note of a segment without SYN, or one with SYN and ACK.
func (t *flowTable) sent(key flowKey, f flow, seg segment) flow {
	if f.state == flowOpening {
		t.syns.forget(key, f.ack)
		f.state = flowOpen
	}
	switch {
	case seg.flags&packet.RST != 0:
		f.state = flowClosed
		return f
	case f.state == flowLoose:
		f.state = flowOpen
	}
	if seg.flags&packet.ACK != 0 {
		f.ack = seg.ack
	}
	if seg.flags&packet.FIN != 0 {
		switch f.state {
		case flowOpen:
			f.state = flowFinOut
		case flowFinIn:
			f.state = flowClosed
		}
	}
	return f
}

// ingress takes note of a segment to the sandbox that has SYN, FIN or RST, and
// says whether it may have it: not an answer to a SYN that has moved to another
// route since.
func (t *flowTable) ingress(key flowKey, seg segment, route failover.PathID) bool {
	f, known := t.peek(key)
	if !known {
		return true
	}
	was := f
	switch {
	case f.route != route:
		return f.state != flowOpening
	case f.state == flowLost: // whatever its route brings when it comes back
	case f.state == flowOpening && seg.flags&(packet.SYN|packet.ACK) == packet.SYN|packet.ACK:
		t.syns.forget(key, f.ack)
		f.state, f.ack = flowOpen, seg.seq+1
	case seg.flags&packet.RST != 0:
		if f.state == flowOpening {
			t.syns.forget(key, f.ack)
		}
		f.state = flowClosed
	case seg.flags&packet.FIN != 0 && f.state == flowOpen:
		f.state = flowFinIn
	case seg.flags&packet.FIN != 0 && f.state == flowFinOut:
		f.state = flowClosed
	}
	if f != was {
		t.put(key, f)
	}
	return true
}

// isLost says whether flows of a route are lost. Those of the chosen one never are.
func (t *flowTable) isLost(route, chosen failover.PathID) bool {
	if route == chosen {
		return false
	}
	for _, r := range t.losing {
		if r == route {
			return true
		}
	}
	return false
}

// lose is what becomes of a flow whose route is lost.
func (t *flowTable) lose(f flow, chosen failover.PathID) flow {
	switch {
	case f.state.connected():
		f.state = flowLost
	case f.state != flowLost:
		f.route = chosen
	}
	return f
}

// peek returns a flow as it was seen last.
func (t *flowTable) peek(key flowKey) (flow, bool) {
	if f, ok := t.young[key]; ok {
		return f, true
	}
	f, ok := t.old[key]
	return f, ok
}

// put changes a flow that is known, without making it any younger.
func (t *flowTable) put(key flowKey, f flow) {
	if _, young := t.young[key]; young {
		t.young[key] = f
	} else {
		t.old[key] = f
	}
}

// turn makes the young generation the old one.
func (t *flowTable) turn(now packet.Instant) {
	t.young, t.old = t.old, t.young
	clear(t.young)
	t.turned = now
}

// len counts the flows that are remembered; one that is in both generations counts twice.
func (t *flowTable) len() int { return len(t.young) + len(t.old) }

// connections says whether a TCP connection on the route is not over.
func (t *flowTable) connections(route failover.PathID) bool {
	for _, generation := range [...]map[flowKey]flow{t.young, t.old} {
		for key, f := range generation {
			if f.route != route || f.state != flowOpening && !f.state.connected() {
				continue
			}
			if now, _ := t.peek(key); now == f {
				return true
			}
		}
	}
	return false
}
