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
// where this host has the site, and queues them for the tunnel.
func (f *Forwarder) cross(b *egressBatch, way *peered, now packet.Instant) {
	if len(b.across) == 0 {
		return
	}
	f.check(b, way, now)
	if way.table != nil {
		f.track(b, way, now)
	}
	if len(b.across) > 0 {
		f.hand(b, way)
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

// check keeps back what cannot go, or must not.
func (f *Forwarder) check(b *egressBatch, way *peered, now packet.Instant) {
	keep := b.across[:0]
	for _, p := range b.across {
		o := packet.Pass
		switch {
		case way.device == nil || way.find(p.Dst) == nil:
			o = packet.SiteDown
		case len(p.B) > f.mtu && p.DF:
			o = packet.TooBig
		}
		if o != packet.Pass {
			f.refuseAcross(b, way, p, o, now)
			continue
		}
		keep = append(keep, p)
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
		if o != packet.Pass {
			f.refuseAcross(b, way, p, o, now)
			continue
		}
		t.nat.Mark(b.relay) // answers go back the same way
		keep = append(keep, p)
	}
	b.across = keep
}

// hand queues the packets for the tunnel, under its lock once. It is the last check as
// well: nothing that was translated goes by the tunnel, and nothing of ours.
func (f *Forwarder) hand(b *egressBatch, way *peered) {
	q := &way.device.queue
	packets, bytes := 0, 0
	q.mu.Lock()
	for _, p := range b.across {
		p.ClampMSS(f.mss)
		switch {
		case !f.network.Contains(p.Src) || p.Src == f.gateway:
			f.counters.drop(Egress, packet.WrongSource)
		case q.closed:
			f.counters.drop(Egress, packet.Closed)
		case !q.put(p.B, f.mtu):
			f.counters.drop(Egress, packet.QueueFull)
		default:
			packets++
			bytes += len(p.B)
			way.find(p.Dst).passed(Egress, len(p.B))
		}
	}
	q.mu.Unlock()
	f.counters.forwarded(Egress, packets, bytes)
}
