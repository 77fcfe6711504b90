package gateway

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/policy"
)

// fromSite takes packets of the site tunnel, the relay tunnel or a link, each at
// bufs[i][offset:]. Of those by a tunnel, which are one peer's, WireGuard has checked
// that the sources are the peer's, and their addresses tell what they are.
func (f *Forwarder) fromSite(d *siteDevice, bufs [][]byte, offset int) {
	way := f.peered.Load()
	l := way.links[d]
	if way.device != d && l == nil { // it is being replaced
		f.counters.dropMany(Ingress, packet.Closed, len(bufs))
		return
	}
	b := f.batches.Get().(*egressBatch)
	defer f.batches.Put(b)
	now := f.clock.Now()
	for rest := bufs; len(rest) > 0; {
		part := rest[:min(len(rest), batchSize)]
		rest = rest[len(part):]
		f.beginSite(b, l)
		for _, buf := range part {
			f.admitSite(b, way, buf[offset:], now)
		}
		f.flushSite(b, way, now)
	}
	b.reset()
	for i := range b.packets { // views of buffers that wireguard-go has again
		b.packets[i].B = nil
	}
}

// beginSite makes a batch ready for packets of the site tunnel, or of a connection's
// own link.
func (f *Forwarder) beginSite(b *egressBatch, l *lane) {
	b.reset()
	b.rules, b.relay, b.lane = f.rules.Load(), true, l
}

// admitSite parses one packet and finds out whether it is on its way out or back.
func (f *Forwarder) admitSite(b *egressBatch, way *peered, frame []byte, now packet.Instant) {
	p := &b.packets[b.n]
	if o := packet.Parse(p, frame); o != packet.Pass {
		f.counters.drop(Ingress, o)
		return
	}
	if way.table == nil {
		f.admitRelayed(b, way, p)
		return
	}
	if b.lane != nil && !b.lane.owns(way, p.Src) && !f.isRouter(b.lane, way, p) { // nobody else has looked at it
		b.lane.foreign.Add(1)
		f.counters.drop(Ingress, packet.SpoofedSource)
		return
	}
	if p.Kind == packet.KindFragment {
		f.admitSiteFragment(b, way, p, now)
		return
	}
	f.sortSite(b, way, p, now)
}

// admitSiteFragment is admitFragment for what comes by the site tunnel.
func (f *Forwarder) admitSiteFragment(b *egressBatch, way *peered, p *packet.Packet, now packet.Instant) {
	t := way.table
	t.fragMu.Lock()
	expired := t.fragments.Expire(now)
	whole, o := t.fragments.Add(p, now)
	if expired > 0 {
		f.counters.dropMany(Ingress, packet.FragmentLimit, expired)
	}
	if whole == nil {
		t.fragMu.Unlock()
		if o != packet.Pass {
			f.counters.drop(Ingress, o)
		}
		return
	}
	n := copy(b.whole[:], whole)
	t.fragMu.Unlock()
	// b.whole holds one datagram: what was collected so far goes first.
	l := b.lane
	f.flushSite(b, way, now)
	f.beginSite(b, l)
	p = &b.packets[0]
	if o := packet.Parse(p, b.whole[:n]); o != packet.Pass {
		f.counters.drop(Ingress, o)
		return
	}
	f.sortSite(b, way, p, now)
	f.flushSite(b, way, now)
	f.beginSite(b, l)
}

// owns reports whether an address is one of the connection's other side.
func (l *lane) owns(way *peered, a netip.Addr) bool {
	if l.accepts {
		return way.accepted(a) == l
	}
	return way.find(a) == l
}

// isRouter reports whether a packet of an interface is an error by a router on the way to
// the other side, whose address may be in none of the ranges: without such errors path
// MTU discovery would fail (RFC 1191). The table knows what they may be about.
func (f *Forwarder) isRouter(l *lane, way *peered, p *packet.Packet) bool {
	return p.Kind == packet.KindICMPError && l.junction == nil && !f.network.Contains(p.Src) && l.owns(way, p.Inner.Dst)
}

// sortSite asks the policy about a packet that the other host relays, as though that
// host had not; everything else comes from the other side of a peering. An error from
// there is about flows of its own peering, or is dropped: one customer's network has
// no say in what goes to another's.
func (f *Forwarder) sortSite(b *egressBatch, way *peered, p *packet.Packet, now packet.Instant) {
	switch {
	case b.lane != nil:
		if p.Kind == packet.KindICMPError && !b.lane.owns(way, p.Inner.Dst) {
			f.counters.drop(Ingress, packet.Filtered)
			return
		}
		b.back = append(b.back, p)
		b.n++
	case f.network.Contains(p.Src):
		switch d := b.rules.verdict(p); d.Verdict {
		case policy.Peering:
			b.across = append(b.across, p)
			b.n++
		case policy.Reject:
			if f.mayAnswer(p, d) {
				b.answers = append(b.answers, p)
				b.n++
				return
			}
			f.tell(&way.device.queue, p, d.Outcome, now)
		case policy.Drop:
			f.counters.drop(Egress, d.Outcome)
		default: // not what a relay is for
			f.counters.drop(Egress, packet.PolicyDropped)
		}
	case way.find(p.Src) == nil:
		f.counters.drop(Ingress, packet.NoMapping)
	case p.Kind == packet.KindICMPError && way.find(p.Inner.Dst) != way.find(p.Src):
		f.counters.drop(Ingress, packet.Filtered)
	default:
		b.back = append(b.back, p)
		b.n++
	}
}

// flushSite carries a batch both ways.
func (f *Forwarder) flushSite(b *egressBatch, way *peered, now packet.Instant) {
	f.cross(b, way, now)
	if len(b.back) == 0 {
		return
	}
	switch {
	case b.lane != nil && b.lane.accepts:
		f.accept(b, way, now)
	case way.table != nil:
		f.trackBack(b, way, now)
	}
	if len(b.back) > 0 {
		f.enqueue(f.returned.Load(), b.back, b.lane, way)
		f.uplink.Wake()
	}
	if len(b.relayed) > 0 {
		// The tunnel's peer by their destination is the other host.
		f.enqueue(&way.device.queue.frameQueue, b.relayed, b.lane, way)
	}
}

// trackBack runs what comes from the other side through the table: only answers
// pass. What the other host has to be given moves from b.back to b.relayed.
func (f *Forwarder) trackBack(b *egressBatch, way *peered, now packet.Instant) {
	t := way.table
	keep := b.back[:0]
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range b.back {
		o := t.nat.Ingress(p, now)
		if o == packet.Pass {
			o = p.DecrementTTL()
		}
		if o == packet.Pass && len(p.B) > f.mtu && p.DF {
			o = packet.TooBig
		}
		switch {
		case o != packet.Pass:
			f.refuseBack(b, way, p, o, now)
		case t.nat.Marked():
			b.relayed = append(b.relayed, p)
		default:
			keep = append(keep, p)
		}
	}
	b.back = keep
}

// refuseBack counts a drop on the way back and tells the other side where it has to
// know: of its own flows only, and, outside this installation, never of what nobody has
// asked for.
func (f *Forwarder) refuseBack(b *egressBatch, way *peered, p *packet.Packet, o packet.Outcome, now packet.Instant) {
	f.counters.drop(Ingress, o)
	d, told := way.device, false
	if b.lane != nil {
		d = b.lane.device
	}
	switch o {
	case packet.NoMapping:
		// Sandboxes of another network here get what a sandbox gets that goes on with
		// a connection that is over.
		told = b.lane != nil && b.lane.junction != nil && p.Kind == packet.KindTCP && d.queue.pushRST(p, now)
	case packet.TTLExpired:
		told = d.queue.pushError(icmpError{typ: 11}, f.gateway, p, now)
	case packet.TooBig:
		told = d.queue.pushError(icmpError{typ: 3, code: 4, info: uint32(f.mtu)}, f.gateway, p, now)
	}
	if told {
		f.counters.replies.Add(1)
	}
}

// enqueue queues packets of the other side, under the queue's lock once. They came by a
// connection's own link, or their sources tell whose they are.
func (f *Forwarder) enqueue(q *frameQueue, packets []*packet.Packet, of *lane, way *peered) {
	n, bytes := 0, 0
	q.mu.Lock()
	for _, p := range packets {
		p.ClampMSS(f.mss)
		if !q.put(p.B, f.mtu) {
			f.counters.drop(Ingress, packet.QueueFull)
			continue
		}
		n++
		bytes += len(p.B)
		l := of
		if l == nil {
			l = way.find(p.Src)
		}
		if l != nil {
			l.passed(Ingress, len(p.B))
		}
	}
	q.mu.Unlock()
	f.counters.forwarded(Ingress, n, bytes)
}

// admitRelayed takes what the host with the site sends, on the other host. It has been
// tracked there, or is an error that the host made itself or a router behind it.
func (f *Forwarder) admitRelayed(b *egressBatch, way *peered, p *packet.Packet) {
	mine := p.Kind == packet.KindICMPError && (p.Src == f.gateway || !f.network.Contains(p.Src) && way.find(p.Inner.Dst) != nil)
	switch {
	case !mine && way.find(p.Src) == nil && way.accepted(p.Src) == nil, !b.rules.policy.Attached(p.Dst):
		f.counters.drop(Ingress, packet.NoMapping)
	case len(p.B) > f.mtu:
		f.counters.drop(Ingress, packet.TooBig)
	default:
		b.back = append(b.back, p)
		b.n++
	}
}
