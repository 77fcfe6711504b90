package nat

import "github.com/sallyport-net/sallyport/internal/packet"

// state is where a session stands. The TCP states are those of RFC 6146
// section 3.5.2 as RFC 7857 section 2 takes them over, less those that only an
// inbound connection enters.
type state uint8

const (
	// stateFree: the record is nobody's.
	stateFree state = iota
	// stateLive: a remote of a UDP or echo mapping. Entered by a packet from
	// inside; packets of both directions pass; it ends by its timer.
	stateLive
	// stateOpening: entered by a SYN from inside. Timer TCPOpening, refreshed by
	// that SYN's retransmissions and by progress of the handshake. Counts as half-open.
	stateOpening
	// stateEstablished: both SYNs have been acknowledged. Timer TCPEstablished,
	// refreshed by acceptable segments. One FIN does not leave it: the other
	// direction may go on for as long as it likes (T-2).
	stateEstablished
	// stateClosed: both FINs were seen. Timer TCPClosing, refreshed by nothing.
	// A SYN from inside starts the connection again (S-5).
	stateClosed
	// stateReset: an exact RST was seen (TRANS in RFC 6146). Timer TCPClosing,
	// refreshed by nothing; an acceptable segment brings the connection back
	// a SYN from inside starts it again.
	stateReset
)

var stateNames = [...]string{"free", "live", "opening", "established", "closed", "reset"}

// The directions as indexes of what a session knows of each.
const (
	outward = 0
	inward  = 1
)

// after says whether sequence number a comes after b.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// noScale is the window scale of a side that offered none; RFC 7323 allows up to 14.
const noScale = 15

// start makes s a connection whose first SYN is p.
func (t *Table) start(s *session, p *packet.Packet) {
	s.flags &= mapped
	s.end = [2]uint32{outward: p.End()}
	s.ack = [2]uint32{inward: p.Seq}
	s.win = [2]uint32{outward: uint32(p.Window)}
	s.scale = windowScale(p)
	t.enter(s, stateOpening)
	s.deadline = t.tick + 1 + t.ticks.opening
}

// enter changes the state and the counts that depend on it.
func (t *Table) enter(s *session, to state) {
	from := s.state
	if from == to {
		return
	}
	s.state = to
	if (from == stateOpening) != (to == stateOpening) {
		n := uint32(1)
		if from == stateOpening {
			n = ^uint32(0)
		}
		t.hosts.at(t.hostOfSession(s)).halfOpen += n
		t.halfOpen += n
	}
	if (from == stateClosed) != (to == stateClosed) && s.flags&mapped == 0 && len(t.crowds) > 0 {
		if c := t.crowds[s.to()]; c != nil {
			c.setClosed(s.port, to == stateClosed)
		}
	}
}

func (t *Table) egressTCP(p *packet.Packet, l *lookup) packet.Outcome {
	f := flow{packet.TCP, l.from, l.to, p.Seq}
	i := t.outgoing(l)
	if i != 0 && due(t.sessions.at(i).deadline, t.tick) {
		t.removeSession(i, ReasonExpired)
		i = 0
	}
	syn := p.Flags&(packet.SYN|packet.ACK) == packet.SYN
	if i == 0 {
		if !syn {
			return packet.NoSession // S-6
		}
		var o packet.Outcome
		if i, o = t.connect(f, p); o != packet.Pass {
			return o
		}
	} else if s := t.sessions.at(i); syn && (s.state == stateClosed || s.state == stateReset) {
		h := t.hosts.at(t.hostOfSession(s))
		if o := t.admitOpening(h, f, true); o != packet.Pass {
			return o
		}
		t.charge(h)
		t.start(s, p)
	} else {
		t.track(s, p, outward)
	}
	t.last, l.hint = i, i
	if !t.config.Identity {
		p.SetSource(t.externalPort(t.sessions.at(i).port))
	}
	return packet.Pass
}

func (t *Table) ingressTCP(p *packet.Packet, l *lookup) packet.Outcome {
	i := t.incoming(l)
	if i != 0 && due(t.sessions.at(i).deadline, t.tick) {
		t.removeSession(i, ReasonExpired)
		i = 0
	}
	if i == 0 {
		return t.missed(packet.TCP, p.DstPort)
	}
	s := t.sessions.at(i)
	if o := t.track(s, p, inward); o != packet.Pass {
		return o
	}
	t.last = i
	if !t.config.Identity {
		p.SetDestination(s.from().addrPort())
	}
	return packet.Pass
}

// connect makes the session of a connection whose SYN is p.
func (t *Table) connect(f flow, p *packet.Packet) (uint32, packet.Outcome) {
	hi := t.hostOf(f.from.addr())
	h := t.hosts.at(hi)
	independent := t.config.TCPMapping == EndpointIndependent
	m := uint32(0)
	if independent {
		m = t.findMapping(t.innerHash(f.proto, f.from), f.proto, f.from)
	}
	if o := t.admit(h, f, m == 0, true); o != packet.Pass {
		return 0, o
	}
	var port uint16
	ok := true
	switch {
	case t.config.Identity:
		port = f.from.port()
	case !independent:
		port, ok = t.pickTuple(f.to, f.isn)
	case m == 0:
		m, ok = t.bind(f, hi)
	}
	if !ok {
		return 0, t.exhausted(f)
	}
	if m != 0 {
		port = t.mappings.at(m).port
	}
	t.charge(h)
	i, s := t.addSession(f, port, hi, m)
	t.start(s, p)
	t.tellSession(Created, s, ReasonNone)
	return i, packet.Pass
}

// track takes note of a segment of direction d (RFC 9293, as seen from the
// middle) and says whether it passes. Only acceptable segments change or refresh anything, so
// that whoever guesses the ports alone moves nothing (S-1, S-2, S-3, RFC 5961).
func (t *Table) track(s *session, p *packet.Packet, d int) packet.Outcome {
	switch {
	case p.Flags&packet.SYN != 0:
		t.trackSYN(s, p, d)
		return packet.Pass
	case p.Flags&packet.RST != 0:
		return t.trackRST(s, p, d)
	}
	if s.flags&synIn == 0 {
		return packet.Pass // nothing to compare with: a challenge ACK, or data ahead of the answer
	}
	if !s.acceptable(p, d) {
		return packet.Pass // the hosts answer it as RFC 9293 and 5961 say
	}
	if s.flags&opened != opened && after(p.Ack, s.ack[d]) {
		s.flags |= acknowledged(d)
	}
	s.advance(p, d)
	if p.Flags&packet.FIN != 0 {
		s.flags |= finOf(d)
	}
	t.progress(s)
	return packet.Pass
}

// progress enters the state that the milestones say, and sets the timer.
func (t *Table) progress(s *session) {
	switch {
	case s.state == stateClosed:
	case s.flags&(finOut|finIn) == finOut|finIn:
		t.enter(s, stateClosed)
		s.deadline = t.tick + 1 + t.ticks.closing
	case s.flags&opened == opened:
		t.enter(s, stateEstablished)
		s.deadline = t.tick + 1 + t.ticks.established
	case s.state == stateReset:
		t.enter(s, stateOpening)
		s.deadline = t.tick + 1 + t.ticks.opening
	}
}

func acknowledged(d int) sessionFlags {
	if d == outward {
		return ackedIn
	}
	return ackedOut
}

func finOf(d int) sessionFlags {
	if d == outward {
		return finOut
	}
	return finIn
}

// trackSYN follows the handshake, including a simultaneous open (T-2). A SYN on
// a connection that is open changes nothing: it passes, and so does the
// challenge ACK that answers it (S-2).
func (t *Table) trackSYN(s *session, p *packet.Packet, d int) {
	if s.state != stateOpening {
		return
	}
	if d == outward {
		t.trackSYNOut(s, p)
		return
	}
	answer := p.Flags&packet.ACK != 0
	if answer && (!after(p.Ack, s.ack[inward]) || after(p.Ack, s.end[outward])) {
		return // answers another SYN, or is a forgery
	}
	if s.flags&ackedOut != 0 || s.flags&synIn != 0 && !answer {
		return // a retransmission
	}
	s.flags = s.flags&^ackedIn | synIn
	s.end[inward], s.ack[outward], s.win[inward] = p.End(), p.Seq, uint32(p.Window)
	theirs := windowScale(p)
	if ours := s.scale & 15; ours == noScale || theirs == noScale {
		s.scale = 0 // RFC 7323 section 2.2: both or none
	} else {
		s.scale = ours | theirs<<4
	}
	if answer {
		s.flags |= ackedOut
		s.ack[inward] = p.Ack
	}
	s.deadline = t.tick + 1 + t.ticks.opening
}

func (t *Table) trackSYNOut(s *session, p *packet.Packet) {
	switch {
	case p.Flags&packet.ACK != 0: // our half of a simultaneous open
		if s.flags&synIn != 0 && after(p.Ack, s.ack[outward]) && !after(p.Ack, s.end[inward]) {
			s.ack[outward] = p.Ack
			s.flags |= ackedIn
			s.deadline = t.tick + 1 + t.ticks.opening
		}
	case s.flags&ackedOut != 0:
	case p.Seq == s.ack[inward]: // a retransmission
		if after(p.End(), s.end[outward]) {
			s.end[outward] = p.End()
		}
		s.deadline = t.tick + 1 + t.ticks.opening
	default: // another attempt from the same port
		t.start(s, p)
	}
}

// trackRST lets a reset end the connection only where its sequence number is
// exactly what the receiver expects next: what it has acknowledged, or what
// stands behind all that was sent to it (S-1, RFC 5961 section 3). It passes
// within the window, so that the receiver can challenge it, and from outside not beyond.
func (t *Table) trackRST(s *session, p *packet.Packet, d int) packet.Outcome {
	if d == inward && s.flags&synIn == 0 { // refuses our SYN: must acknowledge it (RFC 9293 section 3.10.7.3)
		if p.Flags&packet.ACK == 0 || !after(p.Ack, s.ack[inward]) || after(p.Ack, s.end[outward]) {
			return packet.Filtered
		}
		t.reset(s)
		return packet.Pass
	}
	next := s.ack[1-d]
	if p.Seq == next || p.Seq == s.end[d] {
		t.reset(s)
		return packet.Pass
	}
	if d == inward && p.Seq-next > max(s.win[outward], 1) {
		return packet.Filtered
	}
	return packet.Pass
}

// reset shortens the timer and never lengthens it.
func (t *Table) reset(s *session) {
	if s.state == stateClosed || s.state == stateReset {
		return
	}
	t.enter(s, stateReset)
	if d := t.tick + 1 + t.ticks.closing; due(d, s.deadline) {
		s.deadline = d
	}
}

// acceptable says whether a segment of direction d lies in the window that the
// other side offered, and acknowledges something between what it sent last and a
// window before (RFC 9293 section 3.10.7.4, RFC 5961 section 5.2).
func (s *session) acceptable(p *packet.Packet, d int) bool {
	o := 1 - d
	room := max(s.win[o], 1)
	if after(p.Seq, s.ack[o]+room) || after(s.end[d]-room, p.End()+1) {
		return false
	}
	if p.Flags&packet.ACK == 0 {
		return true
	}
	return !after(p.Ack, s.end[o]) && !after(s.ack[d]-max(s.win[d], 1), p.Ack)
}

// advance notes what an acceptable segment of direction d tells.
func (s *session) advance(p *packet.Packet, d int) {
	if end := p.End(); after(end, s.end[d]) {
		s.end[d] = end
	}
	if p.Flags&packet.ACK != 0 && after(p.Ack, s.ack[d]) {
		s.ack[d] = p.Ack
	}
	if w := uint32(p.Window) << (s.scale >> (4 * d) & 15); w > s.win[d] {
		s.win[d] = w
	}
}

// windowScale returns the window scale that a SYN offers (RFC 7323 section 2),
// or noScale.
func windowScale(p *packet.Packet) uint8 {
	const end, nop, scale, fixed, most = 0, 1, 3, 20, 14
	o := p.B[min(p.L4+fixed, len(p.B)-p.Payload) : len(p.B)-p.Payload]
	for len(o) > 0 && o[0] != end {
		switch {
		case o[0] == nop:
			o = o[1:]
			continue
		case len(o) < 2 || o[1] < 2 || int(o[1]) > len(o):
			return noScale
		case o[0] == scale && o[1] == 3:
			return min(o[2], most)
		}
		o = o[o[1]:]
	}
	return noScale
}
