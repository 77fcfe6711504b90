package gateway

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// ingressBatch is the scratch of Read, which one goroutine calls.
type ingressBatch struct {
	packets [batchSize]packet.Packet
	side    [batchSize]int8   // table of each packet
	ports   [batchSize]uint16 // external port of each packet, as it came

	// What one table looks at, at a time: the packets, their places in the batch,
	// and what became of them.
	chosen   [batchSize]*packet.Packet
	places   [batchSize]uint8
	outcomes [batchSize]packet.Outcome

	local [][]byte
	tells remoteError
	arrivals
}

// Read is ingress: it returns what the gateway says itself, what comes back from
// peered networks and from other sandboxes of the network, and the next batch of the
// uplink with inner destinations restored; none keeps the others waiting. A packet
// that is dropped, or that is meant for the gateway's own services, stays in the batch
// with size 0, which wireguard-go skips. After Close it returns os.ErrClosed.
func (f *Forwarder) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	bufs = bufs[:min(len(bufs), batchSize)]
	for {
		n := f.replies.take(bufs[:(len(bufs)+1)/2], sizes, offset)
		if q := f.returned.Load(); q != nil {
			n += q.take(bufs[n:(3*len(bufs)+3)/4], sizes[n:], offset)
		}
		if q := f.hairpins.Load(); q != nil {
			n += q.take(bufs[n:(7*len(bufs)+7)/8], sizes[n:], offset)
		}
		if n == len(bufs) {
			return n, nil
		}
		if f.trains != nil {
			k, err := f.readTrains(bufs[n:], sizes[n:], offset, n > 0)
			if err != nil {
				return 0, err
			}
			if n+k > 0 {
				return n + k, nil
			}
			continue
		}
		if n > 0 {
			// Woken in advance, the uplink's Read does not wait.
			f.uplink.Wake()
		}
		k, err := f.uplink.Read(bufs[n:], sizes[n:], offset)
		if err != nil {
			return 0, err
		}
		// Fragments of this batch wait in the queue; the loop takes them.
		if k > 0 && f.restore(bufs[n:n+k], sizes[n:], offset) || n > 0 {
			return n + k, nil
		}
	}
}

// restore translates a batch back and reports whether anything of it is left
// for the tunnel.
func (f *Forwarder) restore(bufs [][]byte, sizes []int, offset int) bool {
	now := f.clock.Now()
	rx := &f.rx
	for i := range bufs {
		p := &rx.packets[i]
		if sizes[i] == 0 { // skipped by the uplink
			p.Kind = packet.KindUnknown
			continue
		}
		o := packet.Parse(p, bufs[i][offset:offset+sizes[i]])
		if o == packet.Pass {
			o = f.receive(rx, i)
		}
		if o != packet.Pass {
			f.counters.drop(Ingress, o)
			p.Kind, sizes[i] = packet.KindUnknown, 0
		}
	}
	for side := range f.tables {
		f.restoreTable(rx, len(bufs), sizes, int8(side), now)
	}
	return f.deliver(bufs, sizes, offset, now)
}

// receive finds the table of one packet of the uplink. What is from a dedicated address
// that is held here, or about a packet between two of them, never left by the uplink:
// somebody forged it.
func (f *Forwarder) receive(rx *ingressBatch, i int) packet.Outcome {
	p := &rx.packets[i]
	side := f.sideOf(p.Dst)
	switch {
	case p.Kind == packet.KindFragment:
		return packet.Fragment // an uplink reassembles: a fragment cannot be matched
	case side < 0:
		return packet.NoMapping
	case f.sideOf(p.Src) >= 0:
		return packet.SpoofedSource
	case p.Kind == packet.KindICMPError && f.sideOf(p.Inner.Dst) >= 0:
		return packet.Filtered
	}
	rx.side[i], rx.ports[i] = int8(side), p.DstPort
	return packet.Pass
}

// restoreTable runs the packets of one table through it.
func (f *Forwarder) restoreTable(rx *ingressBatch, packets int, sizes []int, side int8, now packet.Instant) {
	n := 0
	for i := range packets {
		if p := &rx.packets[i]; p.Kind != packet.KindUnknown && rx.side[i] == side {
			rx.chosen[n], rx.places[n] = p, uint8(i)
			n++
		}
	}
	if n == 0 {
		return
	}
	t := &f.tables[side]
	t.mu.Lock()
	t.nat.IngressBatch(rx.chosen[:n], rx.outcomes[:n], now)
	t.mu.Unlock()
	for i, o := range rx.outcomes[:n] {
		if o != packet.Pass {
			f.counters.dropMany(Ingress, o, rx.chosen[i].Segments)
			rx.chosen[i].Kind, sizes[rx.places[i]] = packet.KindUnknown, 0
		}
	}
}

// deliver takes the last steps of what was restored, sorts out what belongs to
// the local services, and counts.
func (f *Forwarder) deliver(bufs [][]byte, sizes []int, offset int, now packet.Instant) bool {
	rx := &f.rx
	rx.local = rx.local[:0]
	packets, bytes, left := 0, 0, false
	for i := range bufs {
		p := &rx.packets[i]
		if p.Kind == packet.KindUnknown {
			continue
		}
		if p.Dst == f.gateway { // ends here, whole
			rx.local = append(rx.local, bufs[i][:offset+len(p.B)])
			sizes[i] = 0
			continue
		}
		var o packet.Outcome
		if sizes[i], o = f.emit(p, &f.replies.frameQueue); o != packet.Pass {
			f.counters.drop(Ingress, o)
			f.tellRemote(&rx.tells, p, f.tables[rx.side[i]].endpoint(rx.ports[i]), o, now)
			continue
		}
		left = left || sizes[i] > 0
		packets++
		bytes += len(p.B)
	}
	f.counters.forwarded(Ingress, packets, bytes)
	f.deliverLocal(rx.local, offset)
	// What is kept here would pin buffers that wireguard-go has handed on.
	clear(rx.local)
	for i := range bufs {
		rx.packets[i].B = nil
	}
	return left
}

// deliverLocal hands answers of resolvers to the local services.
func (f *Forwarder) deliverLocal(frames [][]byte, offset int) {
	if len(frames) == 0 {
		return
	}
	if _, err := f.local.Write(frames, offset); err != nil {
		f.counters.dropMany(Ingress, packet.Closed, len(frames))
		return
	}
	bytes := 0
	for _, frame := range frames {
		bytes += len(frame) - offset
	}
	f.counters.forwarded(Ingress, len(frames), bytes)
}

// emit makes a restored packet ready for the tunnel and returns its size in the
// batch: 0 where it was cut and waits in q, or is dropped. What is dropped is
// unchanged.
func (f *Forwarder) emit(p *packet.Packet, q *frameQueue) (int, packet.Outcome) {
	if len(p.B) > f.mtu && p.DF && p.TTL > 1 {
		return 0, packet.TooBig
	}
	if o := p.DecrementTTL(); o != packet.Pass {
		return 0, o
	}
	if len(p.B) > f.mtu {
		// Uplinks hand over whole datagrams: cut it for the tunnel, in order
		// (RFC 4787 REQ-13).
		if !q.push(p.B, f.mtu) {
			return 0, packet.QueueFull
		}
		return 0, packet.Pass
	}
	p.ClampMSS(f.mss)
	return len(p.B), packet.Pass
}

// sideOf returns which table owns a dedicated IP, -1 for a foreign address.
func (f *Forwarder) sideOf(dst netip.Addr) int {
	for i := range f.tables {
		if f.tables[i].nat != nil && f.tables[i].external == dst {
			return i
		}
	}
	return -1
}

// isResolver reports whether a packet of the gateway's own services goes to a
// configured resolver.
func (f *Forwarder) isResolver(p *packet.Packet) bool {
	if p.Kind != packet.KindTCP && p.Kind != packet.KindUDP {
		return false
	}
	_, ok := f.resolvers[netip.AddrPortFrom(p.Dst, p.DstPort)]
	return ok
}
