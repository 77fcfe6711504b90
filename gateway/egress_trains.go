package gateway

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/policy"
)

// Where the uplink carries trains, the segments of a flow that came in one batch are
// joined before the tables see them: the head is translated for all of them, and the
// payloads go to the uplink from the buffers that they came in. What is refused is told to the
// sandbox once for a train, and counts as its segments.

// runs is the part of an egressBatch that joins.
type runs struct {
	coalescer *packet.Coalescer // nil where the uplink carries no trains
	// apart says that the batch has packets that do not go to the uplink, or turn: those
	// stay single, and so does the whole of it.
	apart  bool
	joined bool
	trains []packet.Train
	train  [batchSize]int16 // of each packet that is a head
	out    []packet.Train   // those that go to the uplink
	packets,
	bytes int // of out
	last asked
}

// asked is the packet that the policy let pass to the uplink last: what follows
// of its flow need not ask.
type asked struct {
	kind     packet.Kind
	port     uint16
	src, dst netip.Addr
	side     int8
}

// again reports whether p goes where the packet went that was asked about last. Of an
// ICMP message that is not known.
func (a *asked) again(p *packet.Packet) bool {
	return a.kind == p.Kind && a.port == p.DstPort && a.src == p.Src && a.dst == p.Dst &&
		(p.Kind == packet.KindTCP || p.Kind == packet.KindUDP)
}

// join makes trains of the packets of the batch. Only their heads stay for the tables.
func (b *egressBatch) join() {
	r := &b.runs
	if r.coalescer == nil || r.apart || b.rules == nil || b.n < 2 {
		return
	}
	r.joined = true
	r.trains = r.coalescer.Coalesce(b.packets[:b.n])
	for i := range b.n {
		r.train[i] = -1
	}
	for k := range r.trains {
		head := r.coalescer.Head(k)
		r.train[head] = int16(k)
		if r.trains[k].Size > 0 {
			// With DF the table has every packet's identification be 0.
			r.trains[k].SameID = true
			b.packets[head].Segments, _ = r.trains[k].Segments()
		}
	}
	for i := range b.n {
		if r.train[i] < 0 {
			b.side[i] = settledSide
		}
	}
}

// leave takes the translated packet p, the one with number i, to those for the uplink.
func (b *egressBatch) leave(p *packet.Packet, i uint8) {
	if !b.runs.joined {
		b.out = append(b.out, b.frames[i])
		b.runs.packets++
		b.runs.bytes += len(p.B)
		return
	}
	t := &b.runs.trains[b.runs.train[i]]
	b.runs.out = append(b.runs.out, *t)
	b.runs.packets += p.Segments
	b.runs.bytes += t.Bytes()
}

// send hands what goes out to the uplink.
func (f *Forwarder) send(b *egressBatch, offset int) {
	r := &b.runs
	if r.packets == 0 {
		return
	}
	var err error
	if r.joined {
		_, err = f.trains.WriteTrains(r.out)
	} else {
		_, err = f.uplink.Write(b.out, offset)
	}
	if err != nil {
		f.counters.dropMany(Egress, packet.Closed, r.packets)
		return
	}
	f.counters.forwarded(Egress, r.packets, r.bytes)
}

// reset makes r ready for the next batch, and forgets buffers that are wireguard-go's again.
func (r *runs) reset() {
	if r.joined {
		r.coalescer.Release()
		clear(r.out)
	}
	r.apart, r.joined, r.packets, r.bytes, r.last = false, false, 0, 0, asked{}
	r.out = r.out[:0]
}

// decide asks the policy, unless p is of the flow that it let pass last: then known is true.
func (b *egressBatch) decide(p *packet.Packet) (d policy.Decision, known bool) {
	if b.runs.last.again(p) {
		return policy.Decision{Verdict: policy.Forward, Outcome: packet.Pass}, true
	}
	return b.rules.verdict(p), false
}
