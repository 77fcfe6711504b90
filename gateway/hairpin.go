package gateway

import (
	"github.com/sallyport-net/sallyport/internal/packet"
)

// Sandboxes of one network may reach each other by their external addresses, as hosts
// behind two NATs do (RFC 4787 REQ-9, RFC 5382 REQ-8, RFC 5508 REQ-7):
//
//	sandbox A -> Write -> table of A's IP: source becomes ext(A)
//	          -> table of the IP that ext(B) is of: destination becomes B, where B has sent to ext(A)
//	          -> hairpin queue -> Read -> sandbox B
//
// Each table is used under its own lock, one after the other. Nothing of it reaches the
// uplink, and nothing turns twice: what a table has restored has an inner destination
// and goes into the tunnel. An IP of the pair that the sibling host holds is a
// destination like any other, reached by the uplink.

// hairpinSlots is how many packets between sandboxes wait for Read at most.
const hairpinSlots = 512

// hairpinQueue returns the queue, which is made when the first packet needs it.
func (f *Forwarder) hairpinQueue() *frameQueue {
	if q := f.hairpins.Load(); q != nil {
		return q
	}
	q := &frameQueue{}
	q.init(hairpinSlots)
	f.hairpins.CompareAndSwap(nil, q)
	return f.hairpins.Load()
}

// turn takes the packets of a batch that are for IPs held here to the tables of those,
// and queues what passes. They have left (egress) and come back (ingress), and count
// as both.
func (f *Forwarder) turn(b *egressBatch, now packet.Instant) {
	bytes := 0
	for _, p := range b.turned {
		bytes += len(p.B)
	}
	f.counters.forwarded(Egress, len(b.turned), bytes)
	for side := range f.tables {
		f.turnTable(b, side, now)
	}
}

// turnTable runs the packets that are for one IP through its table.
func (f *Forwarder) turnTable(b *egressBatch, side int, now packet.Instant) {
	t := &f.tables[side]
	var ports [batchSize]uint16 // external ports that the packets are for
	n := 0
	for _, p := range b.turned {
		if t.nat != nil && p.Dst == t.external {
			b.chosen[n], ports[n] = p, p.DstPort
			n++
		}
	}
	if n == 0 {
		return
	}
	t.mu.Lock()
	for i, p := range b.chosen[:n] {
		b.outcomes[i] = t.nat.Hairpin(p, now)
	}
	t.mu.Unlock()
	packets, bytes := 0, 0
	for i, p := range b.chosen[:n] {
		o := b.outcomes[i]
		if o == packet.Pass {
			size := len(p.B)
			if o = f.queueHairpin(p); o == packet.Pass {
				packets++
				bytes += size
				continue
			}
			f.tellRemote(&b.tells, p, t.endpoint(ports[i]), o, now)
		}
		f.counters.drop(Ingress, o)
	}
	if packets > 0 {
		f.counters.forwarded(Ingress, packets, bytes)
		f.uplink.Wake()
	}
}

// queueHairpin takes the last steps of a restored packet and queues a copy for Read.
func (f *Forwarder) queueHairpin(p *packet.Packet) packet.Outcome {
	if p.Dst == f.gateway {
		return packet.Filtered // the gateway's own services ask the internet, not sandboxes
	}
	q := f.hairpinQueue()
	n, o := f.emit(p, q)
	if o == packet.Pass && n > 0 && !q.push(p.B, f.mtu) {
		o = packet.QueueFull
	}
	return o
}
