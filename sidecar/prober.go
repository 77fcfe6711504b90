package sidecar

import "github.com/sallyport-net/sallyport/internal/packet"

// The rhythm of probes, in nanoseconds.
const (
	// probeFast is the interval while somebody waits for proof that a path works.
	probeFast packet.Instant = 50e6
	// probeSlow is the interval otherwise.
	probeSlow packet.Instant = 1e9
	// probeDead is how long a path may be silent before it counts as down: three
	// slow probes were not answered.
	probeDead packet.Instant = 3e9
)

// probeWindow is how many probes may be under way; older ones count as lost.
const probeWindow = 64

// prober measures one path by probes that the gateway answers. It is pure: it
// says which probe to send and is told which came back.
type prober struct {
	nonce    uint64 // tells this prober's answers from all others
	next     uint64 // sequence of the next probe, from 1
	sent     [probeWindow]packet.Instant
	waits    [probeWindow]uint64 // sequence of the probe in the slot; 0: answered
	rtt      packet.Instant      // smoothed; 0 before the first answer
	answered packet.Instant      // when the last answer came; before that, when probing began
	health   packet.Health       // what it said
	answers  uint64
}

// ask returns the probe to send now.
func (p *prober) ask(now packet.Instant) packet.Probe {
	p.next++
	slot := p.next % probeWindow
	p.sent[slot], p.waits[slot] = now, p.next
	return packet.Probe{Type: packet.ProbeRequest, Nonce: p.nonce, Sequence: p.next}
}

// answer takes a probe that came back and says whether it answers one of this
// prober's that was still under way. Each is answered once.
func (p *prober) answer(m packet.Probe, now packet.Instant) bool {
	slot := m.Sequence % probeWindow
	if m.Type != packet.ProbeReply || m.Nonce != p.nonce || m.Sequence == 0 || p.waits[slot] != m.Sequence {
		return false
	}
	p.waits[slot] = 0
	sample := max(now-p.sent[slot], 1)
	if p.rtt == 0 {
		p.rtt = sample
	} else {
		p.rtt += (sample - p.rtt) / 8 // RFC 6298 section 2
	}
	p.answered, p.health = now, m.Health
	p.answers++
	return true
}

// alive says whether the path answered lately.
func (p *prober) alive(now packet.Instant) bool {
	return p.answers > 0 && now-p.answered < probeDead
}
