// Package nat is the translation state of one dedicated IPv4 address, or the state of
// flows that are tracked and not translated. It is pure: packets and readings of the
// clock come in, verdicts come out. It takes no lock, so whoever has the Table calls it
// from one goroutine at a time.
package nat

import (
	"math/rand/v2"
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// How it works, in the order in which a packet meets it.
//
// A session is what has been said between an inner endpoint and a remote one
// under an external port. It is found from inside and from outside:
//
//	egress    TCP        outbound index: (inner, remote)                 -> session
//	          UDP, echo  inner index: inner -> mapping -> external port,
//	                     then as ingress                                 -> session
//	ingress   all        inbound index: (protocol, external port, remote) -> session
//
// In an identity table nothing is rewritten: the inner endpoint is what the remote
// sees, and every session is found by both endpoints, from inside and from outside:
//
//	both      all        outbound index: (protocol, inner, remote)       -> session
//
// As the inner address is part of that, two inner addresses may use the same ports to
// one remote. Such a table has neither mappings nor ports, and holds nothing back.
//
// A batch goes the same ways, but all of its packets at once: see batch.go.
//
// UDP and echo are mapped endpoint-independently: an inner endpoint has one mapping,
// which owns an external port, and a session for each remote that it has sent to. As a
// packet from outside must find a session, filtering depends on address and port. TCP is
// mapped per destination unless configured otherwise: a session owns the tuple
// (external port, remote), so one port serves many destinations.
//
// Free ports are those of a portSet: one per protocol with mappings, and one per remote
// that so many TCP connections go to that drawing blindly would take long (a crowd).
// What is freed is held for two minutes, in queues that are in order by themselves.
// Identifications of the packets that leave come from counters of their remotes.
//
// Records live in slabs, 64 bytes a session, linked by number to their mapping or host;
// indexes map keyed hashes to numbers. A TCP session takes 111 bytes at most: its
// record and a slot in two indexes, which are 32 to 76 % full, 23 bytes each at worst. A
// session of UDP takes 87 and its part of a mapping, which takes 59: as ports are no
// more than 64,512, a million sessions have 16 remotes to a mapping. A tuple on hold takes
// 39. All of it comes from a [Memory] and is invisible to the garbage collector.
//
// Time is counted in ticks. A record whose deadline has come is as good as gone: lookups
// do not see it. Expire goes round the slab and takes such records away, a bounded
// number of steps at a time; nothing else depends on when it comes, but for quotas and
// ports, which count what has not been taken away yet.
//
// No call takes long, whatever the table holds: indexes grow a shard at a time, crowds
// are surveyed in parts, no packet looks at more than some thousand ports, and of a
// mapping with many sessions that ends, Expire removes what the call left. What must go
// at once goes in steps of the caller's (Revoke).

// Table translates between inner endpoints and one external address. Where
// [Config.Identity] is set it translates to nothing else: it tracks the same flows by
// the same rules, and packets pass unchanged. Flows begin inside in both kinds.
type Table struct {
	config Config
	key    hashKey
	dice   dice
	ticks  tickTimers

	now  packet.Instant // latest reading of the clock
	tick uint32         // the same in ticks

	sessions slab[session, *session]
	mappings slab[mapping, *mapping]
	hosts    slab[host, *host]

	inbound   index // sessions by protocol, external port and remote
	outbound  index // TCP sessions, of an identity table all, by protocol, inner and remote
	inner     index // mappings by protocol and inner endpoint
	hostIndex index // hosts by address
	holdIndex index // held tuples

	ids       *identities // nil in an identity table
	blank     *portSet    // as a port space is before its first use; nil in an identity table
	spaces    [spaceCount]*space
	crowds    map[endpoint]*crowd
	doomed    []uint32 // mappings that end, or did
	tuples    queue    // TCP tuples on hold
	heldPorts queue    // ports of spaces on hold

	events   ring
	stats    Stats
	halfOpen uint32
	blocks   *blockSet // nil: ports are not given out in blocks
	network  host      // all inner addresses together: ports, the bucket, when a refusal was told
	draining bool
	warned   bool   // told is valid
	told     uint32 // tick of the last Exhausted event

	last uint32 // the session of the packet that an identity table let pass last

	scratch [batchMax]lookup // of a batch

	crowdRound       []endpoint // the remotes of crowds, in the order in which tendCrowds goes round
	crowdSweep       int
	sweep, hostSweep uint32 // the records that Expire looked at last
}

// tickTimers are the timers in ticks.
type tickTimers struct {
	udp, established, opening, closing, icmp, hold uint32
}

// New returns an empty table, or an error that names the setting that cannot be.
func New(c Config) (*Table, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	t := &Table{
		config: c,
		dice:   dice{rand.NewChaCha8(c.Seed)},
		crowds: make(map[endpoint]*crowd),
		events: newRing(c.Memory, c.EventBuffer, c.MaxSessions),
		ticks: tickTimers{
			udp: ticks(c.Timers.UDP), established: ticks(c.Timers.TCPEstablished),
			opening: ticks(c.Timers.TCPOpening), closing: ticks(c.Timers.TCPClosing),
			icmp: ticks(c.Timers.ICMP), hold: ticks(c.Timers.Hold),
		},
	}
	t.useMemory(c.Memory)
	if !c.Identity {
		t.blank = newPortSet(c.Ports, c.Reserved)
		if c.PortBlock > 0 {
			t.blocks = newBlockSet(c.PortBlock, t.blank)
		}
	}
	if c.Network.NewPerSecond != unlimited {
		t.network.tokens = uint32(c.Network.Burst) * ticksPerSecond
	}
	t.key = hashKey{t.dice.source.Uint64(), t.dice.source.Uint64()}
	if !c.Identity {
		t.ids = newIdentities(t.dice.source)
	}
	t.config.Reserved = nil // the caller's memory; blank knows them
	return t, nil
}

// useMemory says where what grows comes from.
func (t *Table) useMemory(m Memory) {
	t.sessions.memory, t.mappings.memory, t.hosts.memory = m, m, m
	t.tuples.records.memory, t.heldPorts.records.memory = m, m
	for _, x := range []*index{&t.inbound, &t.outbound, &t.inner, &t.hostIndex, &t.holdIndex} {
		x.memory = m
	}
}

// External returns the dedicated address of the table; that of an identity table
// is not valid.
func (t *Table) External() netip.Addr { return t.config.External }

// SetDraining says whether the address gives out no new ports, and an identity
// table takes no new sessions. Sessions that exist go on, and so do new ones of
// mappings that exist.
func (t *Table) SetDraining(on bool) { t.draining = on }

// clock takes a reading. One that is older than the latest counts as the latest.
func (t *Table) clock(now packet.Instant) {
	if now > t.now || t.now == 0 {
		t.now, t.tick = now, tickOf(now)
	}
}

// Egress translates a packet from inside that goes to the internet: its source
// becomes the external address, and for TCP, UDP and echo requests the external
// port. It also gets an identification. An identity table changes nothing. p
// must have passed packet.Parse. On any outcome but Pass the packet is unchanged
// and must be dropped. One that goes to a dedicated address of the network passes, too:
// the caller gives it to that address's table (see [Table.Hairpin]).
func (t *Table) Egress(p *packet.Packet, now packet.Instant) packet.Outcome {
	t.clock(now)
	o := t.screenOut(p)
	if o == packet.Pass {
		var l lookup
		t.aimOut(&l, p)
		l.hash = t.hashOf(&l)
		if o = t.actOut(p, &l); o == packet.Pass {
			t.identify(p)
		}
	}
	t.stats.Egress[o&(countersSize-1)] += uint64(p.Segments)
	return o
}

// screenOut says what needs no look at the state.
func (t *Table) screenOut(p *packet.Packet) packet.Outcome {
	if p.Kind == packet.KindUnknown || !p.Src.Is4() || !p.Dst.Is4() {
		return packet.Malformed
	}
	if p.Src == t.config.External {
		return packet.SpoofedSource
	}
	if t.config.Identity && p.Src == p.Dst {
		return packet.SpoofedSource // A-14, too: nobody goes through us to itself
	}
	if p.Kind == packet.KindICMPQuery && p.ICMPType != packet.ICMPEchoRequest {
		return packet.NoMapping // no request ever comes in, so there is nothing to reply to
	}
	return packet.Pass
}

// actOut does with a packet that was screened what its session says.
func (t *Table) actOut(p *packet.Packet, l *lookup) packet.Outcome {
	switch {
	case p.Kind == packet.KindTCP:
		return t.egressTCP(p, l)
	case p.Kind == packet.KindICMPError:
		return t.egressError(p)
	case l.via == viaOutbound:
		return t.egressTracked(p, l)
	case l.via == viaInner:
		return t.egressMapped(p, l)
	}
	return packet.Fragment
}

// Ingress translates a packet that came back to the external address: its
// destination becomes the inner address, and for TCP, UDP and echo replies the
// inner port. An identity table changes nothing. p must have passed packet.Parse. On
// any outcome but Pass the packet is unchanged and must be dropped, silently (T-4, A-9).
func (t *Table) Ingress(p *packet.Packet, now packet.Instant) packet.Outcome {
	t.clock(now)
	o := t.screenIn(p)
	if o == packet.Pass {
		var l lookup
		t.aimIn(&l, p)
		l.hash = t.hashOf(&l)
		o = t.actIn(p, &l)
	}
	t.stats.Ingress[o&(countersSize-1)] += uint64(p.Segments)
	return o
}

// screenIn is screenOut of a packet from outside.
func (t *Table) screenIn(p *packet.Packet) packet.Outcome {
	if p.Kind == packet.KindUnknown || !p.Src.Is4() || !p.Dst.Is4() {
		return packet.Malformed
	}
	if p.Dst != t.config.External && !t.config.Identity {
		return packet.NoMapping
	}
	if p.Src == p.Dst {
		return packet.Martian
	}
	if p.Kind == packet.KindICMPQuery && p.ICMPType != packet.ICMPEchoReply {
		return packet.NoMapping // the address never answers an echo
	}
	return packet.Pass
}

// actIn is actOut of a packet from outside.
func (t *Table) actIn(p *packet.Packet, l *lookup) packet.Outcome {
	switch p.Kind {
	case packet.KindTCP:
		return t.ingressTCP(p, l)
	case packet.KindUDP, packet.KindICMPQuery:
		return t.ingressMapped(p, l)
	case packet.KindICMPError:
		return t.ingressError(p)
	}
	return packet.Fragment
}

func (t *Table) externalPort(p uint16) netip.AddrPort {
	return netip.AddrPortFrom(t.config.External, p)
}

func (t *Table) inboundHash(p packet.Proto, port uint16, remote endpoint) uint64 {
	return t.key.sum(uint64(makeTuple(port, remote)), uint64(p))
}

// flowHash is the hash of the outbound index.
func (t *Table) flowHash(p packet.Proto, from, to endpoint) uint64 {
	return t.key.sum(uint64(p)<<48|uint64(from), uint64(to))
}

// arriving returns the session that a packet from a remote to a destination
// belongs to, or 0. It may be one whose deadline has come.
func (t *Table) arriving(p packet.Proto, from, to endpoint) uint32 {
	if t.config.Identity {
		return t.findOutbound(t.flowHash(p, to, from), p, to, from)
	}
	return t.findInbound(t.inboundHash(p, to.port(), from), p, to.port(), from)
}

// findInbound returns the session with that external port and remote, or 0.
// It may be one whose deadline has come.
func (t *Table) findInbound(h uint64, p packet.Proto, port uint16, remote endpoint) uint32 {
	c := t.inbound.find(h)
	for i := c.next(); i != 0; i = c.next() {
		if t.sessions.at(i).answers(p, port, remote) {
			return i
		}
	}
	return 0
}

// findOutbound returns the session between those endpoints, or 0.
func (t *Table) findOutbound(h uint64, p packet.Proto, from, to endpoint) uint32 {
	c := t.outbound.find(h)
	for i := c.next(); i != 0; i = c.next() {
		if t.sessions.at(i).between(p, from, to) {
			return i
		}
	}
	return 0
}

// innerHash is the hash of the inner index.
func (t *Table) innerHash(p packet.Proto, from endpoint) uint64 {
	return t.key.sum(uint64(from), uint64(p))
}

// findMapping returns the mapping of an inner endpoint, or 0.
func (t *Table) findMapping(h uint64, p packet.Proto, from endpoint) uint32 {
	c := t.inner.find(h)
	for i := c.next(); i != 0; i = c.next() {
		if t.mappings.at(i).of(p, from) {
			return i
		}
	}
	return 0
}

// addSession makes the session of a flow under a port that is already its own (its
// inner one in an identity table): of mapping m or, where that is 0, of host hi itself.
// The caller gives it a state and a deadline. Where there is no memory it returns 0 and
// has done nothing.
func (t *Table) addSession(f flow, port uint16, hi, m uint32) (uint32, *session) {
	in, out := t.inboundHash(f.proto, port, f.to), t.flowHash(f.proto, f.from, f.to)
	seenIn, seenOut := !t.config.Identity, t.config.Identity || f.proto == packet.TCP
	if seenIn && !t.inbound.room(in) || seenOut && !t.outbound.room(out) {
		return 0, nil
	}
	i, s := t.sessions.take()
	if i == 0 {
		return 0, nil
	}
	s.inner, s.innerPort = f.from.addr(), f.from.port()
	s.remote, s.remotePort = f.to.addr(), f.to.port()
	s.port, s.proto, s.created = port, f.proto, t.tick
	h := t.hosts.at(hi)
	h.sessions++
	head := &h.conns
	s.owner = hi
	if m != 0 {
		b := t.mappings.at(m)
		b.sessions++
		head = &b.first
		s.owner, s.flags = m, mapped
	} else if !t.config.Identity {
		h.ports++
		t.network.ports++
		t.useBlock(port)
		if c := t.crowds[f.to]; c != nil {
			c.set.take(port)
		}
	}
	if s.next = *head; s.next != 0 {
		t.sessions.at(s.next).prev = i
	}
	*head = i
	if seenIn {
		t.inbound.insert(in, i)
	}
	if seenOut {
		t.outbound.insert(out, i)
	}
	t.stats.Sessions[spaceOf(f.proto)]++
	t.stats.Created[spaceOf(f.proto)]++
	return i, s
}

// removeSession removes a session, and its mapping with the last one. What it
// frees goes on hold, unless a new connection takes its place.
func (t *Table) removeSession(i uint32, why Reason) {
	s := t.sessions.at(i)
	if why == ReasonExpired && s.state.ended() {
		why = ReasonFinished
	}
	t.stats.Ended[why]++
	t.stats.Sessions[spaceOf(s.proto)]--
	t.tellSession(Closed, s, why)
	t.enter(s, stateFree)
	if !t.config.Identity {
		t.inbound.remove(t.inboundHash(s.proto, s.port, s.to()), i)
	}
	if t.config.Identity || s.proto == packet.TCP {
		t.outbound.remove(t.flowHash(s.proto, s.from(), s.to()), i)
	}
	h := t.hosts.at(t.hostOfSession(s))
	h.sessions--
	head := &h.conns
	if s.flags&mapped != 0 {
		head = &t.mappings.at(s.owner).first
	}
	if s.next != 0 {
		t.sessions.at(s.next).prev = s.prev
	}
	if s.prev != 0 {
		t.sessions.at(s.prev).next = s.next
	} else {
		*head = s.next
	}
	owner, port, remote, shared := s.owner, s.port, s.to(), s.flags&mapped != 0
	t.sessions.give(i)
	if t.config.Identity {
		return // it had no port
	}
	if !shared {
		h.ports--
		t.network.ports--
		t.leaveBlock(port)
		if why != ReasonReused {
			t.holdTuple(makeTuple(port, remote))
		}
		return
	}
	m := t.mappings.at(owner)
	if m.sessions--; m.sessions == 0 {
		t.unbind(owner, why)
	}
}

// hostOfSession returns the number of the host that a session belongs to.
func (t *Table) hostOfSession(s *session) uint32 {
	if s.flags&mapped != 0 {
		return t.mappings.at(s.owner).owner
	}
	return s.owner
}
