package nat

import "github.com/sallyport-net/sallyport/internal/packet"

// state is where a session stands. The TCP states are those of RFC 6146
// section 3.5.2 as RFC 7857 section 2 takes them over, less those that only an
// inbound connection enters. What each segment does in each of them stands as a table in
// tcp_states_test.go.
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
	// direction may go on for as long as it likes (T-2). Neither do two, as long as
	// data before them is not acknowledged: it may take hours to drain.
	stateEstablished
	// stateClosing: both FINs were seen, and all that goes before them is
	// acknowledged. Timer TCPClosing, which is one of idleness (RFC 5382 REQ-5):
	// refreshed by acceptable segments, as FINs are sent again for minutes. Data
	// behind a FIN shows that FIN to be forged, and leads back.
	stateClosing
	// stateClosed: both FINs are acknowledged. Timer TCPClosing, refreshed by
	// nothing. A SYN from inside starts the connection again (S-5).
	stateClosed
	// stateReset: an exact RST was seen (TRANS in RFC 6146). Timer TCPClosing,
	// refreshed by nothing; an acceptable segment brings back a connection whose
	// handshake is complete, a SYN from inside starts it again.
	stateReset
)

var stateNames = [...]string{"free", "live", "opening", "established", "closing", "closed", "reset"}

// ended says whether nothing is left of a connection but its last packets.
func (s state) ended() bool { return s == stateClosing || s == stateClosed || s == stateReset }

// The directions as indexes of what a session knows of each.
const (
	outward = 0
	inward  = 1
)

// after says whether sequence number a comes after b.
func after(a, b uint32) bool { return int32(a-b) > 0 }

// noScale is the window scale of a side that offered none; RFC 7323 allows up to 14.
const noScale = 15

// attempt is what a SYN from inside says.
type attempt struct {
	isn, end uint32 // its sequence number, and the one behind it
	win      uint16
	scale    uint8
}

func attemptOf(p *packet.Packet) attempt {
	return attempt{p.Seq, p.End(), p.Window, windowScale(p)}
}

// start makes s a connection whose first SYN is a.
func (t *Table) start(s *session, a attempt) {
	s.flags &= mapped | marked
	s.end = [2]uint32{outward: a.end}
	s.ack = [2]uint32{inward: a.isn}
	s.win = [2]uint16{outward: a.win}
	s.scale = a.scale | noScale<<4
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
		t.start(s, attemptOf(p))
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
	if hi == 0 {
		return 0, t.full(f)
	}
	h := t.hosts.at(hi)
	independent := t.config.TCPMapping == EndpointIndependent
	m := uint32(0)
	if independent {
		m = t.findMapping(t.innerHash(f.proto, f.from), f.proto, f.from)
	}
	if o := t.admit(h, f, m == 0, true); o != packet.Pass {
		return 0, o
	}
	port, o := f.from.port(), packet.Pass
	switch {
	case t.config.Identity:
	case !independent:
		port, o = t.claim(f, hi)
	case m == 0:
		m, o = t.bind(f, hi)
	}
	if o != packet.Pass {
		return 0, o
	}
	if m != 0 {
		port = t.mappings.at(m).port
	}
	i, s := t.addSession(f, port, hi, m)
	if i == 0 {
		return 0, t.full(f)
	}
	t.charge(h)
	t.start(s, attemptOf(p))
	t.tellSession(Created, s, ReasonNone)
	return i, packet.Pass
}

// claim draws the port of a connection that is mapped by its destination. There is
// memory for the connection, wherever it may take the place of a closed one.
func (t *Table) claim(f flow, hi uint32) (uint16, packet.Outcome) {
	if !t.sessions.room() || !t.outbound.room(t.flowHash(f.proto, f.from, f.to)) {
		return 0, t.full(f)
	}
	port, ok := t.pickTuple(hi, f.to, f.isn)
	if !ok {
		return 0, t.exhausted(f)
	}
	return port, packet.Pass
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
	if s.flags&synIn == 0 || s.state == stateClosed {
		return packet.Pass // nothing to compare with (a challenge ACK, or data ahead of the answer), or nothing left to learn
	}
	if !s.acceptable(p, d) {
		return packet.Pass // the hosts answer it as RFC 9293 and 5961 say
	}
	if s.flags&opened != opened && after(p.Ack, s.ack[d]) {
		s.learn(acknowledged(d))
	}
	s.advance(p, d)
	t.progress(s)
	return packet.Pass
}

// progress enters the state that the milestones say, and sets the timer. A
// connection whose handshake is not complete stays where it is.
func (t *Table) progress(s *session) {
	if s.flags&opened != opened {
		return
	}
	to, timer := stateEstablished, t.ticks.established
	if s.flags&(finOut|finIn) == finOut|finIn {
		switch out, in := s.end[outward]-s.ack[inward], s.end[inward]-s.ack[outward]; {
		case out == 0 && in == 0:
			to, timer = stateClosed, t.ticks.closing
		case out <= 1 && in <= 1: // nothing but a FIN is not acknowledged
			to, timer = stateClosing, t.ticks.closing
		}
	}
	t.enter(s, to)
	s.deadline = t.tick + 1 + timer
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
	switch {
	case d == inward:
		t.trackSYNIn(s, p)
	case p.Flags&packet.ACK == 0:
		t.trackSYNOut(s, p)
	case s.state == stateOpening && s.flags&synIn != 0 && after(p.Ack, s.ack[outward]) && !after(p.Ack, s.end[inward]):
		s.ack[outward] = p.Ack // our half of a simultaneous open
		s.learn(ackedIn)
		s.deadline = t.tick + 1 + t.ticks.opening
		t.progress(s)
	}
}

// trackSYNIn takes note of the remote's SYN. Only one that acknowledges ours is
// certainly the remote's, so it takes the place of one that does not, which anybody
// may have sent, and which refreshes nothing.
func (t *Table) trackSYNIn(s *session, p *packet.Packet) {
	answer := p.Flags&packet.ACK != 0
	if answer && s.flags&renewing != 0 && p.Ack == s.again {
		t.start(s, attempt{s.again - 1, s.again, 65535, s.againScale}) // the remote has forgotten the old one, too
	}
	switch {
	case s.state != stateOpening || s.flags&ackedOut != 0:
		return // a retransmission, or a forgery
	case answer && (!after(p.Ack, s.ack[inward]) || after(p.Ack, s.end[outward])):
		return // answers another SYN, or is a forgery
	case s.flags&synIn != 0 && !answer:
		return
	}
	if s.flags&synIn == 0 || p.End() != s.end[inward] {
		s.flags = s.flags&^ackedIn | synIn
		s.end[inward], s.ack[outward], s.win[inward] = p.End(), p.Seq, p.Window
		s.scale = s.scale&15 | windowScale(p)<<4
	}
	if answer {
		s.ack[inward] = p.Ack
		s.learn(ackedOut)
		s.deadline = t.tick + 1 + t.ticks.opening
		t.progress(s)
	}
}

// trackSYNOut takes note of a SYN from inside that does not start a connection
// at once.
func (t *Table) trackSYNOut(s *session, p *packet.Packet) {
	switch {
	case s.state != stateOpening || s.flags&ackedOut != 0:
		// The host has forgotten the connection (RFC 9293 section 3.5.1), unless this is the
		// old SYN once more. If the remote has not forgotten it, it answers with a challenge;
		// if it has, with the handshake of a new one.
		if !s.recent(p.Seq, outward) {
			s.flags |= renewing
			s.again, s.againScale = p.Seq+1, windowScale(p)
		} else if s.state == stateOpening { // the answer was lost
			s.deadline = t.tick + 1 + t.ticks.opening
		}
	case p.Seq == s.ack[inward]: // a retransmission
		if after(p.End(), s.end[outward]) {
			s.end[outward] = p.End()
		}
		s.deadline = t.tick + 1 + t.ticks.opening
	default: // another attempt from the same port
		t.start(s, attemptOf(p))
	}
}

// trackRST lets a reset end the connection only where its sequence number is
// exactly what the receiver expects next: what it has acknowledged, or what
// stands behind all that was sent to it (S-1, RFC 5961 section 3). It passes
// within the window, so that the receiver can challenge it, and from outside not beyond.
// One that refuses a SYN must acknowledge it (RFC 9293 section 3.10.7.3).
func (t *Table) trackRST(s *session, p *packet.Packet, d int) packet.Outcome {
	next := s.ack[1-d]
	switch {
	case d == inward && s.flags&renewing != 0 && p.Flags&packet.ACK != 0 && p.Ack == s.again:
	case d == inward && s.flags&ackedOut == 0:
		if p.Flags&packet.ACK == 0 || !after(p.Ack, s.ack[inward]) || after(p.Ack, s.end[outward]) {
			return packet.Filtered
		}
	case p.Seq == next || p.Seq == s.end[d]:
	case d == inward && p.Seq-next > s.room(outward):
		return packet.Filtered
	default:
		return packet.Pass
	}
	t.reset(s)
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
// window before (RFC 9293 section 3.10.7.4, RFC 5961 section 5.2). A keepalive is one
// byte behind, and a probe may have put the end one byte beyond the window.
func (s *session) acceptable(p *packet.Packet, d int) bool {
	o := 1 - d
	room := s.room(o)
	if after(p.Seq, s.ack[o]+room) || after(s.end[d]-room, p.End()+2) {
		return false
	}
	return !after(p.Ack, s.end[o]) && !after(s.ack[d]-s.room(d), p.Ack)
}

// advance notes what an acceptable segment of direction d tells. What lies
// beyond the window, but for the byte of a probe or a FIN, the receiver cuts off.
func (s *session) advance(p *packet.Packet, d int) {
	end := p.End()
	if most := s.ack[1-d] + s.room(1-d) + 1; after(end, most) {
		end = most
	}
	if after(end, s.end[d]) {
		s.end[d] = end
		s.flags &^= finOf(d) // nothing comes behind a FIN: the one before was forged
		if p.Flags&packet.FIN != 0 && end == p.End() {
			s.flags |= finOf(d)
		}
	}
	if after(p.Ack, s.ack[d]) {
		s.ack[d] = p.Ack
	}
	w := p.Window
	if s.flags&opened != opened {
		w = uint16(min(uint32(w)<<s.shift(d), 65535))
	}
	s.win[d] = max(s.win[d], w)
}

// recent says whether side d may have sent a segment at seq not long ago: no
// more than a window before what the other side has acknowledged.
func (s *session) recent(seq uint32, d int) bool {
	return !after(seq, s.end[d]) && !after(s.ack[1-d]-s.room(1-d)-1, seq)
}

// learn adds a milestone of the handshake. With the last one the windows
// are counted in units of their scale, rounded up.
func (s *session) learn(f sessionFlags) {
	if s.flags&opened == opened {
		return
	}
	if s.flags |= f; s.flags&opened == opened {
		for d := range s.win {
			k := s.shift(d)
			s.win[d] = uint16((uint32(s.win[d]) + 1<<k - 1) >> k)
		}
	}
}

// room is the largest window that side d has offered, in bytes, and one byte at
// least, which is what a sender probes with.
func (s *session) room(d int) uint32 {
	w := uint32(s.win[d])
	if s.flags&opened == opened {
		w <<= s.shift(d)
	}
	return max(w, 1)
}

// shift is the window scale of side d; there is one where both have offered one
// (RFC 7323 section 2.2).
func (s *session) shift(d int) uint8 {
	if s.scale&15 == noScale || s.scale>>4 == noScale {
		return 0
	}
	return s.scale >> (4 * d) & 15
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
