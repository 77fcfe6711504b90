package gateway

import (
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/policy"
)

// The accepting side of a peering of two networks. The other network's Forwarder tracks
// the flows, because its sandboxes begin them: what comes from there is delivered to
// whoever is attached, and what sandboxes send there is handed over, where the table
// lets answers pass and nothing else. The policy of this network is about what its
// sandboxes may reach, so that it has no say in answers; the connection was accepted.

// mayAnswer reports whether a packet that the policy refuses, because its destination is
// private and not peered, goes to a network that may begin. What begins by itself is
// refused here, where its sender can be told.
func (f *Forwarder) mayAnswer(p *packet.Packet, d policy.Decision) bool {
	switch {
	case p.Kind == packet.KindTCP && p.Flags&(packet.SYN|packet.ACK) == packet.SYN,
		p.Kind == packet.KindICMPQuery && p.ICMPType == packet.ICMPEchoRequest:
		return false
	}
	return (d.Outcome == packet.PrivateDestination || d.Outcome == packet.Martian) && f.peered.Load().accepted(p.Dst) != nil
}

// beginAnswer takes the first step of a packet that mayAnswer let pass.
func (f *Forwarder) beginAnswer(b *egressBatch, p *packet.Packet, now packet.Instant) {
	if o := p.DecrementTTL(); o != packet.Pass {
		f.refuse(p, o, now)
		return
	}
	b.answers, b.runs.apart = append(b.answers, p), true
	b.side[b.n] = peeredSide
	b.n++
}

// answer queues the packets of a batch that go to networks which may begin.
func (f *Forwarder) answer(b *egressBatch, way *peered, now packet.Instant) {
	for i, p := range b.answers {
		l := way.accepted(p.Dst)
		switch o := l.state(p.Dst); {
		case o != packet.Pass:
			f.refuseAcross(b, way, p, o, now)
		case len(p.B) > l.mtu && p.DF:
			f.refuseSize(b, way, p, l.mtu, now)
		default:
			f.handTo(l, b.answers[i:i+1])
		}
	}
}

// accept takes what another network's sandboxes send: who is attached gets it, by the
// host that has the way to it.
func (f *Forwarder) accept(b *egressBatch, way *peered, now packet.Instant) {
	keep := b.back[:0]
	for _, p := range b.back {
		_, worker := b.rules.workers[p.Dst]
		o := packet.Pass
		switch {
		case worker || !b.rules.policy.Attached(p.Dst):
			o = packet.NoMapping
		case len(p.B) > f.mtu && p.DF:
			o = packet.TooBig
		default:
			o = p.DecrementTTL()
		}
		switch {
		case o != packet.Pass:
			f.refuseBack(b, way, p, o, now)
		case way.device != nil && f.isElsewhere(p):
			b.relayed = append(b.relayed, p)
		default:
			keep = append(keep, p)
		}
	}
	b.back = keep
}

// locatePeers notes which sandboxes have their tunnel to the network's other host alone,
// as a stock client has. It matters to networks that accept connections only, and have
// another host: where there is none, whoever has been silent is called from here.
func (n *network) locatePeers() {
	w := n.fwd.peered.Load()
	if w.accepts == nil || !w.relayed {
		n.fwd.elsewhere.Store(nil)
		return
	}
	peers, err := n.tun.Peers()
	if err != nil {
		return // it is closing
	}
	m := map[netip.Addr]struct{}{}
	for _, p := range peers {
		if time.Since(p.LastHandshake) < sessionLife {
			continue
		}
		for _, a := range p.AllowedIPs {
			m[a.Addr()] = struct{}{}
		}
	}
	n.fwd.elsewhere.Store(&m)
}

// sessionLife is for how long a WireGuard session is used (REJECT_AFTER_TIME).
const sessionLife = 180 * time.Second

// isElsewhere reports whether the sandbox that a packet is for has its tunnel to the
// network's other host, and none to this one.
func (f *Forwarder) isElsewhere(p *packet.Packet) bool {
	m := f.elsewhere.Load()
	if m == nil {
		return false
	}
	_, ok := (*m)[p.Dst]
	return ok
}
