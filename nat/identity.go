package nat

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// An identity table knows each flow as one session of its host: UDP and echoes,
// too, which have no mapping, because there is nothing that they could be mapped to.

// egressTracked lets a datagram or an echo request pass and takes note of where it
// goes, so that an answer from there passes, too.
func (t *Table) egressTracked(p *packet.Packet, l *lookup) packet.Outcome {
	f := flow{p.Proto, l.from, l.to, 0}
	i := t.outgoing(l)
	if i != 0 && due(t.sessions.at(i).deadline, t.tick) {
		t.removeSession(i, ReasonExpired)
		i = 0
	}
	deadline := t.datagramDeadline(f.proto)
	if i != 0 {
		t.last = i
		// The cache line is written once per tick.
		if s := t.sessions.at(i); s.deadline != deadline {
			s.deadline = deadline
		}
		return packet.Pass
	}
	hi := t.hostOf(f.from.addr())
	if hi == 0 {
		return t.full(f)
	}
	h := t.hosts.at(hi)
	if o := t.admit(h, f, true, false); o != packet.Pass {
		return o
	}
	i, s := t.addSession(f, f.from.port(), hi, 0)
	if i == 0 {
		return t.full(f)
	}
	t.charge(h)
	t.last, l.hint = i, i
	s.state, s.deadline = stateLive, deadline
	t.tellSession(Created, s, ReasonNone)
	return packet.Pass
}

// Mark puts a mark on the session of the packet that Egress of an identity table let
// pass last, or takes it away. What it means is the caller's. There must have been one.
func (t *Table) Mark(on bool) {
	s := t.sessions.at(t.last)
	if on != (s.flags&marked != 0) { // the cache line is written when it changes
		s.flags ^= marked
	}
}

// Marked reports whether the session of the packet that Ingress of an identity table let
// pass last is marked. There must have been one.
func (t *Table) Marked() bool { return t.sessions.at(t.last).flags&marked != 0 }

// closeTracked is Close.
func (t *Table) closeTracked(f Flow) {
	inner, ok := endpointOf(f.External)
	remote, ok2 := endpointOf(f.Remote)
	if !ok || !ok2 {
		return
	}
	if i := t.findOutbound(t.flowHash(f.Proto, inner, remote), f.Proto, inner, remote); i != 0 {
		t.removeSession(i, ReasonUplinkClosed)
	}
}

// seenFrom is the endpoint by which a session's remote knows it.
func (t *Table) seenFrom(s *session) netip.AddrPort {
	if t.config.Identity {
		return s.from().addrPort()
	}
	return t.externalPort(s.port)
}
