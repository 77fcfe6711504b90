package gateway

import (
	"runtime"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Where the uplink carries trains, what comes in is translated as it comes, one
// head for all segments, and then cut straight into the buffers that wireguard-go reads
// into: to the size of its segments, or of the tunnel where that is less. What does not fit
// into one Read stays where it is, in the uplink's buffers, for the next.

// arrivals are the trains of one batch of the uplink and how far they have been cut.
type arrivals struct {
	trains  [batchSize]packet.Train
	sizes   [batchSize]int // 0 for what was dropped
	next, n int            // those that are left
	cutter  packet.Cutter
	cutting bool   // the cutter is in the train at next
	cut     int    // packets that it has cut from it
	revoked uint32 // how many had been when the batch was read, or looked at last
	many    bool   // there were trains in the batch before
	whole   []byte // a datagram that is cut into fragments
	one     [1][]byte
}

// readTrains is the part of Read that asks the uplink, where that carries trains. With
// hurry it does not wait. Packets may be left for the next call.
func (f *Forwarder) readTrains(bufs [][]byte, sizes []int, offset int, hurry bool) (int, error) {
	a := &f.rx.arrivals
	if a.next == a.n {
		if hurry {
			f.uplink.Wake()
		}
		if a.many {
			// Whoever encrypts and sends those of before runs first, and more arrive
			// meanwhile: larger batches cost less for each. Single packets, as acknowledgements
			// are, do not wait.
			runtime.Gosched()
		}
		a.next, a.n, a.many, a.revoked = 0, 0, false, f.revoked.count.Load()
		n, err := f.trains.ReadTrains(a.trains[:])
		if err != nil {
			return 0, err
		}
		for i := range n {
			a.many = a.many || a.trains[i].Size > 0
		}
		f.restoreTrains(n)
		a.n = n
	} else if a.revoked != f.revoked.count.Load() {
		f.forgetTrains()
	}
	return f.cutTrains(bufs, sizes, offset), nil
}

// restoreTrains translates the first n trains back.
func (f *Forwarder) restoreTrains(n int) {
	now := f.clock.Now()
	rx := &f.rx
	for i := range n {
		p, t := &rx.packets[i], &rx.trains[i]
		rx.sizes[i] = len(t.Head)
		o := packet.Parse(p, t.Head)
		if o == packet.Pass {
			o = f.receiveTrain(rx, i)
		}
		if o != packet.Pass {
			f.counters.dropMany(Ingress, o, p.Segments)
			p.Kind, rx.sizes[i] = packet.KindUnknown, 0
		}
	}
	for side := range f.tables {
		f.restoreTable(rx, n, rx.sizes[:], int8(side), now)
	}
}

// receiveTrain is receive for the head of a train.
func (f *Forwarder) receiveTrain(rx *ingressBatch, i int) packet.Outcome {
	p, t := &rx.packets[i], &rx.trains[i]
	if t.Size > 0 {
		switch p.Kind {
		case packet.KindTCP, packet.KindUDP:
			p.Segments, _ = t.Segments()
		case packet.KindFragment:
		default:
			return packet.MalformedL4
		}
	}
	t.Head = p.B // what a link padded is not part of it
	return f.receive(rx, i)
}

// cutTrains cuts what was restored into bufs, in order, and returns how many packets
// there are, some of which may have size 0.
func (f *Forwarder) cutTrains(bufs [][]byte, sizes []int, offset int) (k int) {
	rx := &f.rx
	packets, bytes := 0, 0
	for rx.next < rx.n && k < len(bufs) {
		p := &rx.packets[rx.next]
		if !rx.cutting && !f.openTrain(p, bufs[k], offset) {
			rx.next++
			continue
		}
		for rx.cutter.More() && k < len(bufs) {
			sizes[k] = rx.cutter.Next(bufs[k][offset:])
			packets++
			bytes += sizes[k]
			rx.cut++
			k++
		}
		if rx.cutting = rx.cutter.More(); !rx.cutting {
			rx.next++
		}
	}
	f.counters.forwarded(Ingress, packets, bytes)
	return k
}

// openTrain takes the last steps of a restored train and begins to cut it. It reports
// whether something is to be cut: not where it is dropped, and not where it waits in a
// queue, or has gone to the local services, by way of scratch.
func (f *Forwarder) openTrain(p *packet.Packet, scratch []byte, offset int) bool {
	rx := &f.rx
	t := &rx.trains[rx.next]
	if p.Kind == packet.KindUnknown {
		return false
	}
	if p.Dst == f.gateway { // ends here, whole
		f.deliverTrain(t, scratch, offset)
		return false
	}
	o := f.openTunnel(p, t)
	if o == packet.Pass {
		return rx.cutting
	}
	f.counters.dropMany(Ingress, o, p.Segments)
	f.tellRemote(&rx.tells, p, f.tables[rx.side[rx.next]].endpoint(rx.ports[rx.next]), o, f.clock.Now())
	return false
}

// openTunnel is emit for a train, which is unchanged where it is dropped. Segments of TCP
// that are too long for the tunnel are cut smaller: whoever joined them may have joined
// what was sent as shorter ones. A datagram is never cut but into fragments.
func (f *Forwarder) openTunnel(p *packet.Packet, t *packet.Train) packet.Outcome {
	rx := &f.rx
	_, largest := t.Segments()
	tooBig := largest > f.mtu && (t.Size == 0 || p.Kind != packet.KindTCP)
	if tooBig && p.DF && p.TTL > 1 {
		return packet.TooBig
	}
	if o := p.DecrementTTL(); o != packet.Pass {
		return o
	}
	if tooBig {
		return f.fragmentTrain(t)
	}
	p.ClampMSS(f.mss)
	o := rx.cutter.Start(t, f.mtu)
	rx.cutting, rx.cut = o == packet.Pass, 0
	return o
}

// fragmentTrain queues datagrams that are longer than the tunnel takes, cut in order
// (RFC 4787 REQ-13).
func (f *Forwarder) fragmentTrain(t *packet.Train) packet.Outcome {
	rx := &f.rx
	if rx.whole == nil {
		rx.whole = make([]byte, maxDatagram)
	}
	if o := rx.cutter.Start(t, maxDatagram); o != packet.Pass {
		return o
	}
	for rx.cutter.More() {
		n := rx.cutter.Next(rx.whole)
		if f.replies.push(rx.whole[:n], f.mtu) {
			f.counters.forwarded(Ingress, 1, n)
		} else {
			f.counters.drop(Ingress, packet.QueueFull)
		}
	}
	return packet.Pass
}

// deliverTrain hands the answers of resolvers to the local services.
func (f *Forwarder) deliverTrain(t *packet.Train, scratch []byte, offset int) {
	rx := &f.rx
	if o := rx.cutter.Start(t, maxDatagram); o != packet.Pass {
		f.counters.drop(Ingress, o)
		return
	}
	for rx.cutter.More() {
		n := rx.cutter.Next(scratch[offset:])
		if n == 0 {
			f.counters.drop(Ingress, packet.TooBig)
			return
		}
		rx.one[0] = scratch[:offset+n]
		f.deliverLocal(rx.one[:], offset)
	}
}

// forgetTrains drops what is left of a batch for sandboxes that were revoked after it was
// translated.
func (f *Forwarder) forgetTrains() {
	rx := &f.rx
	gone := f.revoked.since(rx.revoked)
	rx.revoked = gone.until
	for i := rx.next; i < rx.n; i++ {
		p := &rx.packets[i]
		if p.Kind == packet.KindUnknown || !gone.has(p.Dst) {
			continue
		}
		left := p.Segments
		if i == rx.next && rx.cutting {
			left, rx.cutting = max(left-rx.cut, 1), false
		}
		p.Kind = packet.KindUnknown
		f.counters.dropMany(Ingress, packet.Unattached, left)
	}
}
