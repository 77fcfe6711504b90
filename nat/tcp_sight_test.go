package nat

import (
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// cross lets an honest segment pass the middle, and sees that the table does with
// it what it should and knows what follows from it.
func (m *model) cross(f flight) {
	m.Helper()
	k, v := f.k, &f.k.seen
	if v.known && m.now >= v.until {
		*v = sight{}
	}
	was, before, at := stateOf(k.conn), k.left(), k.external
	exact := v.exact(f)
	if f.s.flags&(packet.SYN|packet.ACK) == packet.SYN && f.d == outward {
		v.attempt(f.s, was)
	}
	o := packet.Pass
	if f.d == outward {
		o = k.send(f.s)
	} else {
		o = k.recv(f.s)
	}
	m.passed++
	rst := f.s.flags&packet.RST != 0
	switch {
	case o == packet.Pass:
	case !v.known: // forgotten in time: the host gives up
		k.hosts[f.d].state, k.hosts[f.d].timer, k.hosts[f.d].failed = hostClosed, 0, true
		return
	case rst && (!exact || v.vague):
		return
	default:
		m.Fatalf("an honest segment %+v from side %d of %+v: %v", f.s, f.d, *v, o)
	}
	if was != "" && k.external != at {
		m.Fatalf("the connection moved from %v to %v", at, k.external)
	}
	if v.known {
		m.compare(f, exact, was, before)
	}
	f.mid = false
	m.fly(f)
	if h := k.hosts[inward]; k.hosts[outward].meets && h.state == hostClosed && f.s.flags == packet.SYN && f.d == outward {
		iss := k.hosts[outward].expected
		*h = tcpHost{passive: true, iss: iss, scale: h.scale, buffer: h.buffer, now: m.now, meets: true, expected: f.s.seq}
		h.open()
		m.flush(k)
	}
}

// attempt takes note of a SYN from inside.
func (v *sight) attempt(s seg, was string) {
	switch {
	case was == "" || was == "closed" || was == "reset" || was == "opening" && !v.theirs && v.isn != s.seq:
		*v = sight{known: true, isn: s.seq, end: [2]uint32{outward: s.seq + 1}, ack: [2]uint32{inward: s.seq}}
	case v.isn != s.seq:
		v.pending, v.isn2 = true, s.seq
	}
}

// exact says whether a segment is a reset that ends the connection.
func (v *sight) exact(f flight) bool {
	s := f.s
	switch {
	case s.flags&packet.RST == 0:
		return false
	case f.d == inward && v.pending && s.flags&packet.ACK != 0 && s.ack == v.isn2+1:
		return true
	case f.d == inward && !v.theirs:
		return s.flags&packet.ACK != 0 && s.ack == v.isn+1
	}
	return s.seq == v.ack[1-f.d] || s.seq == v.end[f.d]
}

// learn takes note of an honest segment that is no reset. It returns whether it
// says something that is not long known, so that it must count.
func (v *sight) learn(s seg, d int) bool {
	end := s.seq + uint32(s.payload)
	if s.flags&packet.SYN != 0 {
		return v.learnSYN(s, d)
	}
	if s.flags&packet.FIN != 0 {
		end++
	}
	if !v.answered {
		return false
	}
	fresh := !after(v.ack[1-d], end+1) && !after(v.ack[d], s.ack)
	if after(s.ack, v.ack[d]) {
		v.ack[d] = s.ack
		if d == outward {
			v.ours = true
		} else {
			v.theirs = true
		}
	}
	if after(end, v.end[d]) {
		v.vague = v.vague || !fresh
		v.end[d] = end
		if s.flags&packet.FIN != 0 {
			v.fin[d], v.finEnd[d] = true, end
		}
	}
	return fresh && v.ours && v.theirs
}

func (v *sight) learnSYN(s seg, d int) bool {
	answer := s.flags&packet.ACK != 0
	switch {
	case d == outward && answer && v.answered && s.ack == v.end[inward]:
		if fresh := !v.ours; fresh {
			v.ours, v.ack[outward] = true, s.ack
			return true
		}
	case d == outward && !answer && s.seq == v.isn:
		return !v.ours || !v.theirs
	case d == outward:
	case answer && v.pending && s.ack == v.isn2+1:
		*v = sight{known: true, isn: v.isn2, end: [2]uint32{outward: v.isn2 + 1}, ack: [2]uint32{inward: v.isn2}}
		return v.learnSYN(s, d)
	case answer && s.ack == v.isn+1 && !v.theirs:
		v.theirs, v.ack[inward] = true, s.ack
		if !v.answered {
			v.answered, v.end[inward], v.ack[outward] = true, s.seq+1, s.seq
		}
		return true
	case !answer && !v.answered:
		v.answered, v.end[inward], v.ack[outward] = true, s.seq+1, s.seq
	}
	return false
}

// state returns what the table should say, and the timer.
func (v *sight) state() (string, time.Duration) {
	out, in := v.finEnd[outward]-v.ack[inward], v.finEnd[inward]-v.ack[outward]
	switch both := v.fin[outward] && v.fin[inward]; {
	case v.reset:
		return "reset", 240 * time.Second
	case !v.ours || !v.theirs:
		return "opening", 240 * time.Second
	case both && out == 0 && in == 0:
		return "closed", 240 * time.Second
	case both && out <= 1 && in <= 1:
		return "closing", 240 * time.Second
	}
	return "established", 7440 * time.Second
}

// compare sees that the table knows what follows from an honest segment, which
// found it in state was with the time before left.
func (m *model) compare(f flight, exact bool, was string, before time.Duration) {
	m.Helper()
	v, is, left := &f.k.seen, stateOf(f.k.conn), f.k.left()
	defer func() {
		now, _ := f.k.session()
		v.until = now.Expires
	}()
	if v.vague {
		v.learn(f.s, f.d)
		return
	}
	if f.s.flags&packet.RST != 0 {
		v.reset = v.reset || exact && was != "closed"
		want, timer := v.state()
		if is != want || left != before && (was == is || left > timer) {
			m.Fatalf("after a reset (exact: %v) %+v: %s with %v, was %s with %v, want %s", exact, f.s, is, left, was, before, want)
		}
		return
	}
	if was == "closed" && f.s.flags&packet.SYN == 0 {
		if is != was || left != before {
			m.Fatalf("a closed connection became %s with %v left", is, left)
		}
		return
	}
	if f.d == inward && f.irs != v.isn && f.s.flags&packet.SYN == 0 {
		return // of a newer connection, ahead of what begins it
	}
	pending := v.pending
	fresh := v.learn(f.s, f.d)
	if pending && !v.pending {
		m.renewed++
	}
	if v.reset && is != "reset" && v.ours && v.theirs {
		v.reset = false // a segment that is not fresh may count as well
		m.revived++
	}
	want, timer := v.state()
	switch {
	case v.vague:
		m.vague++
	case v.reset && fresh && v.ours && v.theirs && f.s.flags&packet.SYN == 0:
		m.Fatalf("%+v from side %d does not revive %+v", f.s, f.d, *v)
	case is != want:
		m.Fatalf("after %+v from side %d: %s, want %s; was %s; %+v", f.s, f.d, is, want, was, *v)
	case v.reset && left != before, fresh && !v.reset && left != timer, !fresh && left != before && left != timer:
		m.Fatalf("after %+v from side %d (fresh: %v): %s with %v left, was %v; %+v", f.s, f.d, fresh, is, left, before, *v)
	}
}

// attack throws in a segment of somebody who guesses, and sees that it ends,
// shortens and begins nothing.
func (m *model) attack(k *link) {
	m.Helper()
	i := m.findOutbound(m.flowHash(packet.TCP, makeEndpoint(number(k.inner.Addr()), k.inner.Port()), makeEndpoint(number(k.remote.Addr()), k.remote.Port())),
		packet.TCP, makeEndpoint(number(k.inner.Addr()), k.inner.Port()), makeEndpoint(number(k.remote.Addr()), k.remote.Port()))
	d := m.dice.IntN(2)
	s := m.forge(k, d)
	if i != 0 {
		r := m.sessions.at(i)
		if due(r.deadline, tickOf(m.now)) || s.flags&packet.RST != 0 && (s.seq == r.ack[1-d] || s.seq == r.end[d]) {
			return // over, or no guess but knowledge
		}
		if p := (packet.Packet{Seq: s.seq, Ack: s.ack, Payload: s.payload, Flags: s.flags}); s.flags&(packet.RST|packet.SYN) == 0 && r.acceptable(&p, d) {
			return // one in many thousand hits both windows
		}
	} else if !k.external.IsValid() {
		return
	}
	was, before, half := stateOf(k.conn), k.left(), m.halfOpen
	if d == outward && s.flags == packet.SYN && (was != "established" && was != "closing" || k.seen.pending || k.hosts[inward].done()) {
		return // inside nobody else speaks for the host, and a remote that listens would answer
	}
	n, to := *k.conn, k.hosts[1-d]
	if m.chance(0.3) && !m.config.Identity { // with a wrong port
		n = *n.aim(uint16(1024 + m.dice.IntN(60_000)))
		to = nil
	}
	m.forged++
	o := packet.Pass
	if d == outward {
		o = k.send(s)
	} else if o = n.ingress(n.build(n.remote, n.external, s)); o == packet.Pass && to != nil && n.dst() != k.inner {
		m.Fatalf("a forged segment arrived at %v", n.dst())
	}
	if is, left := stateOf(k.conn), k.left(); is != was || left < before || m.halfOpen != half || m.sessions.live > len(m.links) {
		m.Fatalf("a forged segment %+v from side %d made %s with %v left of %s with %v; %+v", s, d, is, left, was, before, k.seen)
	}
	if o == packet.Pass && (to != nil || d == outward) {
		k.hosts[1-d].receive(s)
		m.flush(k)
	}
}

// forge makes a segment of direction d up, near to where the connection stands or not.
func (m *model) forge(k *link, d int) seg {
	kinds := []packet.TCPFlags{packet.RST, packet.RST, rstAck, packet.ACK, packet.ACK | packet.PSH, finAck, synAck, packet.SYN}
	if h := k.hosts[outward]; h.state == hostSynSent && h.meets {
		kinds = kinds[:len(kinds)-1] // any SYN opens together with such a host (RFC 9293 section 3.5)
	}
	s := seg{flags: kinds[m.dice.IntN(len(kinds))], seq: m.dice.Uint32(), ack: m.dice.Uint32(), window: uint16(m.dice.Uint32()), payload: m.dice.IntN(3) * 500}
	if m.chance(0.7) {
		s.seq = k.hosts[1-d].rcv + uint32(m.dice.IntN(140_000)) - 70_000
	}
	if s.flags&packet.RST != 0 {
		s.payload = 0
		if m.chance(0.3) {
			s.ack = k.hosts[1-d].high + uint32(m.dice.IntN(2000)) + 1
		}
	}
	if s.flags&packet.SYN != 0 {
		s.payload = 0
	}
	return s
}
