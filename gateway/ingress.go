package gateway

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// ingressBatch is the scratch of Read, which one goroutine calls.
type ingressBatch struct {
	packets [batchSize]packet.Packet
	local   [][]byte
}

// Read is ingress: it returns what the gateway says itself, or else the next
// batch of the uplink with inner destinations restored. A packet that is
// dropped, or that is meant for the gateway's own services, stays in the batch
// with size 0, which wireguard-go skips. After Close it returns os.ErrClosed.
func (f *Forwarder) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		if n := f.replies.take(bufs, sizes, offset); n > 0 {
			return n, nil
		}
		limit := min(len(bufs), batchSize)
		n, err := f.uplink.Read(bufs[:limit], sizes, offset)
		if err != nil {
			return 0, err
		}
		// Fragments of this batch wait in the queue; the loop takes them.
		if n > 0 && f.restore(bufs[:n], sizes, offset) {
			return n, nil
		}
	}
}

// restore translates a batch back and reports whether anything of it is left
// for the tunnel.
func (f *Forwarder) restore(bufs [][]byte, sizes []int, offset int) bool {
	now := f.clock.Now()
	rx := &f.rx
	var mine [2]bool
	for i := range bufs {
		p := &rx.packets[i]
		o := packet.Parse(p, bufs[i][offset:offset+sizes[i]])
		if o == packet.Pass && p.Kind == packet.KindFragment {
			// An uplink reassembles: a fragment cannot be matched.
			o = packet.Fragment
		}
		if o == packet.Pass {
			if side := f.sideOf(p.Dst); side < 0 {
				o = packet.NoMapping
			} else {
				mine[side] = true
			}
		}
		if o != packet.Pass {
			f.counters.drop(Ingress, o)
			p.Kind, sizes[i] = packet.KindUnknown, 0
		}
	}
	for side := range f.tables {
		if mine[side] {
			f.restoreTable(bufs, sizes, side, now)
		}
	}
	return f.deliver(bufs, sizes, offset)
}

func (f *Forwarder) restoreTable(bufs [][]byte, sizes []int, side int, now packet.Instant) {
	t := &f.tables[side]
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range bufs {
		p := &f.rx.packets[i]
		if p.Kind == packet.KindUnknown || p.Dst != t.external {
			continue
		}
		o := t.nat.Ingress(p, now)
		if o == packet.Pass {
			o = p.DecrementTTL()
		}
		if o == packet.Pass && len(p.B) > f.mtu {
			// Uplinks hand over whole datagrams: cut it for the tunnel, in order.
			if o = f.cut(p); o == packet.Pass {
				p.Kind, sizes[i] = packet.KindUnknown, 0
				continue
			}
		}
		if o != packet.Pass {
			f.counters.drop(Ingress, o)
			p.Kind, sizes[i] = packet.KindUnknown, 0
			continue
		}
		p.ClampMSS(f.mss)
		sizes[i] = len(p.B)
	}
}

// cut queues the fragments of a restored datagram that is larger than the
// tunnel's MTU (RFC 4787 REQ-13).
func (f *Forwarder) cut(p *packet.Packet) packet.Outcome {
	if p.DF {
		return packet.TooBig
	}
	if !f.replies.pushFragments(p.B, f.mtu) {
		return packet.QueueFull
	}
	f.counters.forwarded(Ingress, 1, len(p.B))
	return packet.Pass
}

// deliver sorts out what belongs to the local services and counts the rest.
func (f *Forwarder) deliver(bufs [][]byte, sizes []int, offset int) bool {
	rx := &f.rx
	rx.local = rx.local[:0]
	packets, bytes := 0, 0
	for i := range bufs {
		p := &rx.packets[i]
		switch {
		case p.Kind == packet.KindUnknown:
		case p.Dst == f.gateway:
			rx.local = append(rx.local, bufs[i][:offset+len(p.B)])
			sizes[i] = 0
		default:
			packets++
			bytes += len(p.B)
		}
	}
	if len(rx.local) > 0 {
		if _, err := f.local.Write(rx.local, offset); err != nil {
			for range rx.local {
				f.counters.drop(Ingress, packet.Closed)
			}
		}
	}
	f.counters.forwarded(Ingress, packets, bytes)
	return packets > 0
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
