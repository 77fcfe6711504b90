package gateway

import (
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/policy"
)

const (
	// peeredSide marks packets of a batch that no table of the pair sees.
	peeredSide = -1
	// settledSide marks those that a table of the pair has seen.
	settledSide = -2
)

// cross carries the packets of a batch that go to peered networks: it tracks them,
// where this host has the site, and queues them for the other side.
func (f *Forwarder) cross(b *egressBatch, way *peered, now packet.Instant) {
	if len(b.across) > 0 {
		f.check(b, way, now)
		if way.table != nil {
			f.track(b, way, now)
		}
		f.hand(b, way)
	}
	if len(b.answers) > 0 {
		f.answer(b, way, now)
	}
}

// refuseAcross is refuse for a packet that may have come by way of the other host,
// to which its answer must go back.
func (f *Forwarder) refuseAcross(b *egressBatch, way *peered, p *packet.Packet, o packet.Outcome, now packet.Instant) {
	if b.relay {
		f.tell(&way.device.queue, p, o, now)
		return
	}
	f.refuse(p, o, now)
}

// refuseSize is refuseAcross for a packet that is larger than the way to the other side
// takes, mtu bytes, and must not be cut (RFC 1191).
func (f *Forwarder) refuseSize(b *egressBatch, way *peered, p *packet.Packet, mtu int, now packet.Instant) {
	f.counters.drop(Egress, packet.TooBig)
	q := f.replies
	if b.relay {
		q = &way.device.queue
	}
	if !q.pushError(icmpError{typ: 3, code: 4, info: uint32(mtu)}, f.gateway, p, now) {
		return
	}
	f.counters.replies.Add(1)
	if !b.relay {
		f.uplink.Wake()
	}
}

// check keeps back what cannot go, or must not.
func (f *Forwarder) check(b *egressBatch, way *peered, now packet.Instant) {
	keep := b.across[:0]
	for _, p := range b.across {
		l := way.find(p.Dst)
		switch o := l.state(p.Dst); {
		case o != packet.Pass:
			f.refuseAcross(b, way, p, o, now)
		case len(p.B) > l.mtu && p.DF:
			f.refuseSize(b, way, p, l.mtu, now)
		default:
			keep = append(keep, p)
		}
	}
	b.across = keep
}

// track runs the packets through the table, under its lock once. As in translate,
// newer rules than those that decided are asked there.
func (f *Forwarder) track(b *egressBatch, way *peered, now packet.Instant) {
	t := way.table
	t.mu.Lock()
	defer t.mu.Unlock()
	current := f.rules.Load()
	keep := b.across[:0]
	for _, p := range b.across {
		o := packet.Pass
		if b.rules != current {
			o = current.still(p, policy.Peering)
		}
		if o == packet.Pass {
			o = t.nat.Egress(p, now)
		}
		if (o == packet.NoSession || o == packet.NoMapping) && way.accepted(p.Dst) != nil {
			b.answers = append(b.answers, p) // the other network's sandboxes may begin, too
			continue
		}
		if o != packet.Pass {
			f.refuseAcross(b, way, p, o, now)
			continue
		}
		t.nat.Mark(b.relay) // answers go back the same way
		keep = append(keep, p)
	}
	b.across = keep
}

// hand queues the packets for the other sides.
func (f *Forwarder) hand(b *egressBatch, way *peered) {
	for rest := b.across; len(rest) > 0; {
		l, n := way.find(rest[0].Dst), 1
		for n < len(rest) && way.find(rest[n].Dst) == l {
			n++
		}
		f.handTo(l, rest[:n])
		rest = rest[n:]
	}
}

// handTo queues packets of one connection, under the queue's lock once. It is the last
// check as well: nothing that was translated goes to the other side, and nothing of ours.
func (f *Forwarder) handTo(l *lane, list []*packet.Packet) {
	q, mss := &l.device.queue, uint16(l.mtu-40)
	packets, bytes := 0, 0
	q.mu.Lock()
	for _, p := range list {
		p.ClampMSS(mss)
		switch {
		case !f.network.Contains(p.Src) || p.Src == f.gateway:
			f.counters.drop(Egress, packet.WrongSource)
		case q.closed:
			f.counters.drop(Egress, packet.Closed)
		case !q.put(p.B, l.mtu):
			f.counters.drop(Egress, packet.QueueFull)
		default:
			packets++
			bytes += len(p.B)
			l.passed(Egress, len(p.B))
		}
	}
	q.mu.Unlock()
	f.counters.forwarded(Egress, packets, bytes)
}
