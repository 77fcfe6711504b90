package gateway

import (
	"os"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/policy"
)

// egressBatch is the scratch of one Write. It belongs to one call at a time.
type egressBatch struct {
	rules   *rules // those that decided about the batch; nil for the gateway's own packets
	packets [batchSize]packet.Packet
	frames  [batchSize][]byte // the caller's buffer of each packet, offset included
	side    [batchSize]int8   // table of each packet
	n       int

	// What one table looks at, at a time: the packets, their places in the batch,
	// and what became of them.
	chosen   [batchSize]*packet.Packet
	places   [batchSize]uint8
	outcomes [batchSize]packet.Outcome
	refusals []refusal

	local   [][]byte         // frames for the local services
	out     [][]byte         // frames that go to the uplink
	across  []*packet.Packet // packets that go to peered networks
	answers []*packet.Packet // packets that go to networks whose sandboxes began
	turned  []*packet.Packet // packets that go to sandboxes of the network by external addresses
	back    []*packet.Packet // packets of peered networks, on their way to sandboxes
	// relayed are those of them that go by way of the network's other host.
	relayed []*packet.Packet
	runs    runs
	// relay says that the packets came by way of the network's other host.
	relay bool
	// lane is the connection by whose own device the packets came; nil: another way.
	lane  *lane
	whole [maxDatagram + wholeHeadroom]byte
	tells remoteError
}

// refusal is a packet that is dropped, and why.
type refusal struct {
	p *packet.Packet
	o packet.Outcome
}

const (
	maxDatagram = 65535
	// wholeHeadroom is room in front of a reassembled datagram for the largest
	// offset that wireguard-go uses.
	wholeHeadroom = 64
)

func (f *Forwarder) newBatch() *egressBatch {
	b := new(egressBatch)
	if f.trains != nil {
		b.runs.coalescer = packet.NewCoalescer(batchSize)
	}
	return b
}

func (b *egressBatch) reset() {
	b.n, b.relay, b.lane = 0, false, nil
	b.runs.reset()
	b.local, b.out, b.refusals, b.turned = b.local[:0], b.out[:0], b.refusals[:0], b.turned[:0]
	b.across, b.answers, b.back, b.relayed = b.across[:0], b.answers[:0], b.back[:0], b.relayed[:0]
}

// Write is egress: one peer's decrypted packets, each at bufs[i][offset:]. The
// buffers are the caller's again on return. It reports all packets as written,
// since a dropped one is counted, not an error; after Close it returns
// os.ErrClosed.
func (f *Forwarder) Write(bufs [][]byte, offset int) (int, error) {
	if f.closed.Load() {
		return 0, os.ErrClosed
	}
	b := f.batches.Get().(*egressBatch)
	defer f.batches.Put(b)
	now := f.clock.Now()
	for rest := bufs; len(rest) > 0; {
		part := rest[:min(len(rest), batchSize)]
		rest = rest[len(part):]
		b.reset()
		b.rules = f.rules.Load()
		for _, buf := range part {
			f.admit(b, buf, offset, now)
		}
		f.flush(b, offset, now)
	}
	b.runs.reset()
	return len(bufs), nil
}

// admit parses one packet and asks the policy; what may be forwarded joins the
// batch, at its place in the caller's buffer.
func (f *Forwarder) admit(b *egressBatch, frame []byte, offset int, now packet.Instant) {
	p := &b.packets[b.n]
	if o := packet.Parse(p, frame[offset:]); o != packet.Pass {
		f.counters.drop(Egress, o)
		return
	}
	if p.Kind == packet.KindFragment {
		f.admitFragment(b, p, offset, now)
		return
	}
	f.decide(b, frame, p, offset, now)
}

// admitFragment adds a fragment to the reassembler; the fragment that completes
// a datagram brings the whole of it through the path on its own. Whoever may not
// send at all leaves nothing in its memory.
func (f *Forwarder) admitFragment(b *egressBatch, p *packet.Packet, offset int, now packet.Instant) {
	if o := b.rules.policy.Decide(p).Outcome; o != packet.Fragment {
		f.counters.drop(Egress, o)
		return
	}
	f.fragMu.Lock()
	expired := f.fragments.Expire(now)
	whole, o := f.fragments.Add(p, now)
	if expired > 0 {
		f.counters.dropMany(Egress, packet.FragmentLimit, expired)
	}
	if whole == nil {
		f.fragMu.Unlock()
		if o != packet.Pass {
			f.counters.drop(Egress, o)
		}
		return
	}
	n := copy(b.whole[offset:], whole)
	f.fragMu.Unlock()
	// b.whole holds one datagram: what was collected so far goes first.
	f.flush(b, offset, now)
	b.reset()
	frame := b.whole[:offset+n]
	p = &b.packets[0]
	if o := packet.Parse(p, frame[offset:]); o != packet.Pass {
		f.counters.drop(Egress, o)
		return
	}
	f.decide(b, frame, p, offset, now)
	f.flush(b, offset, now)
	b.reset()
}

func (f *Forwarder) decide(b *egressBatch, frame []byte, p *packet.Packet, offset int, now packet.Instant) {
	d, known := b.decide(p)
	switch d.Verdict {
	case policy.Local:
		b.local = append(b.local, frame[:offset+len(p.B)])
	case policy.Forward:
		if o := p.DecrementTTL(); o != packet.Pass {
			f.refuse(p, o, now)
			return
		}
		if !known {
			b.runs.last = asked{p.Kind, p.DstPort, p.Src, p.Dst, int8(f.table(b.rules.side(p.Src)))}
			b.runs.apart = b.runs.apart || f.sideOf(p.Dst) >= 0
		}
		b.frames[b.n] = frame[:offset+len(p.B)]
		b.side[b.n] = b.runs.last.side
		b.n++
	case policy.Peering:
		if o := p.DecrementTTL(); o != packet.Pass {
			f.refuse(p, o, now)
			return
		}
		b.across, b.runs.apart = append(b.across, p), true
		b.side[b.n] = peeredSide
		b.n++
	case policy.Reject:
		if f.mayAnswer(p, d) {
			f.beginAnswer(b, p, now)
			return
		}
		f.refuse(p, d.Outcome, now)
	default:
		f.counters.drop(Egress, d.Outcome)
	}
}

// verdict asks the snapshot, and keeps sidecars' own addresses to the local
// services.
func (r *rules) verdict(p *packet.Packet) policy.Decision {
	d := r.policy.Decide(p)
	if d.Verdict == policy.Local || d.Verdict == policy.Drop {
		return d
	}
	if _, ok := r.workers[p.Src]; ok {
		return policy.Decision{Verdict: policy.Drop, Outcome: packet.PolicyDropped}
	}
	return d
}

// flush translates the batch, each table under its own lock once, and hands
// the survivors to the uplink, to the site tunnel and to the local services, or turns
// them to the network's own sandboxes.
func (f *Forwarder) flush(b *egressBatch, offset int, now packet.Instant) {
	b.join()
	f.settle(b, f.share(b, now), now)
	f.cross(b, f.peered.Load(), now)
	f.send(b, offset)
	if len(b.turned) > 0 {
		f.turn(b, now)
	}
	if len(b.local) > 0 {
		if _, err := f.local.Write(b.local, offset); err != nil {
			f.counters.dropMany(Egress, packet.Closed, len(b.local))
		} else {
			f.counters.local.Add(uint64(len(b.local)))
		}
	}
}

// choose gathers the packets of one table in the order in which they came, and returns
// how many they are. None is chosen twice, unless a table yields it.
func (b *egressBatch) choose(side int8) (n int) {
	for i := range b.n {
		if b.side[i] == side {
			b.chosen[n], b.places[n] = &b.packets[i], uint8(i)
			b.side[i] = settledSide
			n++
		}
	}
	return n
}

// settle runs the packets of the batch through the tables of the pair, one after the
// other. The first is asked again where the second yields, as it does when it drains
// since share looked; then nobody yields any more.
func (f *Forwarder) settle(b *egressBatch, first int8, now packet.Instant) {
	f.translate(b, first, true, now)
	if f.translate(b, 1-first, true, now) {
		f.translate(b, first, false, now)
	}
}

// translate runs the packets of one table through it. It reports whether the table, which
// may yield or not, gave packets to the other one.
func (f *Forwarder) translate(b *egressBatch, side int8, mayYield bool, now packet.Instant) (yielded bool) {
	n := b.choose(side)
	if n == 0 {
		return false
	}
	t := &f.tables[side]
	t.mu.Lock()
	if current := f.rules.Load(); b.rules != nil && b.rules != current {
		n = b.ask(current, n)
	}
	t.nat.EgressBatch(b.chosen[:n], b.outcomes[:n], now)
	t.mu.Unlock()
	for i, p := range b.chosen[:n] {
		o := b.outcomes[i]
		if o == packet.Pass && p.Src != t.external {
			o = packet.WrongSource
		}
		switch {
		case o == packet.Draining && mayYield && f.yields(side):
			b.side[b.places[i]] = 1 - side
			yielded = true
		case o != packet.Pass:
			f.refuse(p, o, now)
		case f.sideOf(p.Dst) >= 0:
			b.turned = append(b.turned, p)
		default:
			p.ClampMSS(f.mss)
			b.leave(p, b.places[i])
		}
	}
	for _, r := range b.refusals {
		f.refuse(r.p, r.o, now)
	}
	b.refusals = b.refusals[:0]
	return yielded
}

// ask asks newer rules about the first n chosen packets, and keeps those that pass.
func (b *egressBatch) ask(newer *rules, n int) (kept int) {
	for i, p := range b.chosen[:n] {
		if o := newer.still(p, policy.Forward); o != packet.Pass {
			b.refusals = append(b.refusals, refusal{p, o})
			continue
		}
		b.chosen[kept], b.places[kept] = p, b.places[i]
		kept++
	}
	return kept
}

// still asks newer rules about a packet that older ones let pass. Without it a
// batch under way could make state for an inner address that was just revoked,
// and the next sandbox with that address would have it.
//
// Where the destination has become peered, or is no more, the packet is lost: its
// next one goes the new way.
func (r *rules) still(p *packet.Packet, as policy.Verdict) packet.Outcome {
	d := r.verdict(p)
	switch {
	case d.Verdict == as:
		return packet.Pass
	case d.Outcome == packet.Pass:
		return packet.SiteDown
	}
	return d.Outcome
}

// icmpError is type, code and the rest-of-header field of an ICMP error.
type icmpError struct {
	typ, code uint8
	info      uint32
}

// refuse counts a drop on the way out and tells the sandbox, at the other end of the
// network's own tunnel, where that is due.
// The packet still has its inner source: a table changes a packet only when it
// passes. The gateway's own services are not told: nothing of theirs goes through
// the tunnel, and their timeouts do the rest.
func (f *Forwarder) refuse(p *packet.Packet, o packet.Outcome, now packet.Instant) {
	if f.tell(f.replies, p, o, now) {
		f.uplink.Wake()
	}
}

// tell counts a drop and puts what the sandbox is told into the queue that leads to
// it. It reports whether there is something.
func (f *Forwarder) tell(q *replyQueue, p *packet.Packet, o packet.Outcome, now packet.Instant) (told bool) {
	f.counters.dropMany(Egress, o, p.Segments)
	if p.Src == f.gateway {
		return false
	}
	switch o {
	case packet.TTLExpired:
		told = q.pushError(icmpError{typ: 11}, f.gateway, p, now)
	case packet.NoSession:
		told = q.pushRST(p, now)
	case packet.PortsExhausted, packet.Draining, packet.SiteDown:
		told = q.pushError(icmpError{typ: 3, code: 1}, f.gateway, p, now) // RFC 6888 REQ-11 B
	case packet.TooBig:
		told = q.pushError(icmpError{typ: 3, code: 4, info: uint32(f.mtu)}, f.gateway, p, now) // RFC 1191
	case packet.PolicyRejected, packet.PrivateDestination:
		if p.Kind == packet.KindTCP && p.Flags&packet.SYN == 0 {
			// Rules or peerings changed under the connection: an ICMP error would not
			// end it, but only stop what is opening (RFC 5461 section 2).
			told = q.pushRST(p, now)
		} else {
			told = q.pushError(icmpError{typ: 3, code: 13}, f.gateway, p, now) // RFC 5508 REQ-8
		}
	case packet.SessionLimit, packet.RateLimit, packet.OwnAddress, packet.Martian:
		told = q.pushError(icmpError{typ: 3, code: 13}, f.gateway, p, now) // RFC 5508 REQ-8
	case packet.NoLocalService:
		if p.Kind == packet.KindTCP {
			told = q.pushRST(p, now)
		} else {
			told = q.pushError(icmpError{typ: 3, code: 3}, f.gateway, p, now)
		}
	}
	if told {
		f.counters.replies.Add(1)
	}
	return told
}

// WriteLocal takes what the local services send, each packet at
// bufs[i][offset:]: answers to sandboxes wait for Read; queries to a configured
// resolver go out through the pair like a sandbox's; all else is dropped, and so
// is every source but the network's first address.
func (f *Forwarder) WriteLocal(bufs [][]byte, offset int) {
	b := f.batches.Get().(*egressBatch)
	defer f.batches.Put(b)
	b.reset()
	b.rules = nil
	now, replied := f.clock.Now(), false
	for _, frame := range bufs {
		if b.n == batchSize {
			f.flush(b, offset, now)
			b.reset()
		}
		p := &b.packets[b.n]
		if o := packet.Parse(p, frame[offset:]); o != packet.Pass {
			f.counters.drop(Egress, o)
			continue
		}
		if p.Src != f.gateway {
			f.counters.drop(Egress, packet.SpoofedSource)
			continue
		}
		if f.network.Contains(p.Dst) && p.Dst != f.gateway {
			if f.replies.push(p.B, f.mtu) {
				replied = true
				f.counters.replies.Add(1)
			} else {
				f.counters.drop(Ingress, packet.QueueFull)
			}
			continue
		}
		if !f.isResolver(p) {
			f.counters.drop(Egress, packet.PolicyDropped)
			continue
		}
		b.frames[b.n] = frame[:offset+len(p.B)]
		b.side[b.n] = int8(f.table(spec.EgressIndex(p.Src)))
		b.n++
	}
	f.flush(b, offset, now)
	if replied {
		f.uplink.Wake()
	}
}
