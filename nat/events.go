package nat

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// EventKind says what an Event tells.
type EventKind uint8

// The kinds of events.
const (
	Created        EventKind = iota + 1 // a mapping (UDP, ICMP) or a connection (TCP) was made; in an identity table any session
	Closed                              // it has gone
	Refused                             // a quota refused a new one; at most one event per second and inner address, and one for the quotas of all together
	Exhausted                           // no external port was free; at most one event per second
	BlockAllocated                      // an inner address got a port block; whoever logs these needs no Created and Closed
	BlockReleased                       // a port block is nobody's any more
)

var eventNames = [...]string{
	Created: "created", Closed: "closed", Refused: "refused", Exhausted: "exhausted",
	BlockAllocated: "block_allocated", BlockReleased: "block_released",
}

// String returns the kind's name in lower case.
func (k EventKind) String() string {
	if k == 0 || int(k) >= len(eventNames) {
		return "unknown"
	}
	return eventNames[k]
}

// Reason says why something went or was refused.
type Reason uint8

// The reasons. The first group ends sessions, the second refuses them.
const (
	ReasonNone         Reason = iota // of Created events
	ReasonExpired                    // it was silent for the time of its timer
	ReasonFinished                   // a TCP connection that was closed or reset, after its timer
	ReasonRevoked                    // the inner address, or the remote one, was revoked
	ReasonPortRefused                // the kernel refused the external port
	ReasonUplinkClosed               // the uplink says that it is over
	ReasonReused                     // a closed connection's tuple was given to a new one

	ReasonTableFull // the table holds as many sessions as it may
	ReasonSessions  // the inner address holds as many sessions as it may
	ReasonPorts     // the inner address holds as many ports as it may
	ReasonHalfOpen  // the inner address opens as many connections as it may
	ReasonRate      // the inner address makes new sessions faster than it may
	ReasonDraining  // the dedicated address is being drained
	ReasonNoPorts   // every external port is in use or on hold

	ReasonNetworkPorts    // all inner addresses together hold as many ports as they may
	ReasonNetworkHalfOpen // all together open as many connections as they may
	ReasonNetworkRate     // all together make new sessions faster than they may
	numReasons
)

var reasonNames = [numReasons]string{
	"none", "expired", "finished", "revoked", "port_refused", "uplink_closed", "reused",
	"table_full", "sessions", "ports", "half_open", "rate", "draining", "no_ports",
	"network_ports", "network_half_open", "network_rate",
}

// String returns the reason's name as it stands in logs and metrics.
func (r Reason) String() string {
	if r >= numReasons {
		return "unknown"
	}
	return reasonNames[r]
}

// Event tells of a change that others act on: the log of mappings, and the
// uplink, which releases what belongs to a Closed one.
type Event struct {
	Kind  EventKind
	Proto packet.Proto
	// Inner is the sandbox's endpoint; of an echo the port is its identifier, of a port
	// block it is 0.
	Inner netip.AddrPort
	// External is the dedicated address and port; port 0 in Refused and Exhausted. Of
	// an identity table it is Inner, of a port block its first port.
	External netip.AddrPort
	// Ports is how many ports a port block has; 0 in other events.
	Ports int
	// Remote is the far endpoint of a TCP connection, of what was refused, and of any
	// session of an identity table; not valid in Created and Closed of UDP and ICMP
	// elsewhere, whose mappings serve many.
	Remote netip.AddrPort
	Reason Reason
	// At is the reading of the clock at which it happened.
	At packet.Instant
}

// record is an Event without pointers.
type record struct {
	at            packet.Instant
	inner, remote endpoint
	port          uint16
	kind          EventKind
	reason        Reason
	proto         packet.Proto
	hasRemote     bool
}

// ring keeps the oldest events: when it is full, new ones are lost and counted,
// so that those that come out are in order and without gaps up to the loss.
// Only Closed events make it grow instead, because whoever misses one never
// gives back what belongs to it: one address that is revoked may end more
// sessions than wait anywhere else.
//
// They stand in chunks, so that growing moves nothing and what is drained is
// given back.
type ring struct {
	memory Memory
	chunks []*eventChunk // the oldest first
	spare  *eventChunk   // one that was drained
	first  int           // of chunks[0]: the slots before have been drained
	used   int
	lost   uint64
	// usual is how many events of all kinds may wait, most how many Closed ones
	// may wait besides.
	usual, most int
}

// eventChunk is 8 KiB.
type eventChunk [256]record

func newRing(m Memory, usual, most int) ring {
	return ring{memory: m, usual: usual, most: most}
}

func (r *ring) put(e record) {
	if r.used >= r.usual && (e.kind != Closed || r.used >= r.usual+r.most) {
		r.lost++
		return
	}
	at := r.first + r.used
	if at/len(eventChunk{}) == len(r.chunks) && !r.grow() {
		r.lost++
		return
	}
	r.chunks[at/len(eventChunk{})][at%len(eventChunk{})] = e
	r.used++
}

// grow adds a chunk.
func (r *ring) grow() bool {
	c := r.spare
	if r.spare = nil; c == nil {
		a := allocate[record](r.memory, len(eventChunk{}))
		if a == nil {
			return false
		}
		c = (*eventChunk)(a)
	}
	r.chunks = append(r.chunks, c)
	return true
}

// take removes the oldest event and returns it; there must be one.
func (r *ring) take() record {
	e := r.chunks[0][r.first]
	r.used--
	if r.first++; r.first < len(eventChunk{}) {
		return e
	}
	r.first = 0
	if c := r.chunks[0]; r.spare == nil {
		r.spare = c
	} else {
		free(r.memory, c[:])
	}
	n := copy(r.chunks, r.chunks[1:])
	r.chunks[n] = nil
	r.chunks = r.chunks[:n]
	return e
}

// Drain moves the oldest events to dst and returns how many. When the buffer
// is full, events are lost and counted in Stats.EventsLost, but Closed ones not
// before as many wait as the table may have sessions. A packet makes two events
// at most, Expire one per session that it removes, Revoke one per session of the
// address. Whoever must see each one drains as often as that, and after a loss
// reads all sessions ([Table.AppendSessions]).
func (t *Table) Drain(dst []Event) int {
	n := min(len(dst), t.events.used)
	for i := range n {
		e := t.events.take()
		dst[i] = Event{
			Kind: e.kind, Proto: e.proto, Reason: e.reason, At: e.at,
			Inner:    e.inner.addrPort(),
			External: netip.AddrPortFrom(t.config.External, e.port),
		}
		if t.config.Identity {
			dst[i].External = dst[i].Inner
		}
		if t.taken(e) {
			dst[i].Reason = ReasonReused
		}
		if e.kind == BlockAllocated || e.kind == BlockReleased {
			dst[i].Ports = int(e.remote)
		}
		if e.hasRemote {
			dst[i].Remote = e.remote.addrPort()
		}
	}
	return n
}

// taken says whether the tuple of a connection that ended has a new one by
// now: a mapping that outlives its connections gives it to whoever asks for the
// same remote, at once. What belongs to the tuple is the new one's then.
func (t *Table) taken(e record) bool {
	if e.kind != Closed || e.proto != packet.TCP || t.config.TCPMapping != EndpointIndependent {
		return false
	}
	return t.findInbound(t.inboundHash(e.proto, e.port, e.remote), e.proto, e.port, e.remote) != 0
}

// tellSession emits an event about a TCP connection or a tracked flow; other
// protocols' events are about their mappings.
func (t *Table) tellSession(k EventKind, s *session, why Reason) {
	if s.proto != packet.TCP && !t.config.Identity {
		return
	}
	t.events.put(record{
		at: t.now, kind: k, reason: why, proto: s.proto, port: s.port,
		inner: s.from(), remote: s.to(), hasRemote: true,
	})
}

// tellMapping emits an event about a mapping of UDP or ICMP; a mapping of TCP
// is told of by its connections.
func (t *Table) tellMapping(k EventKind, m *mapping, why Reason) {
	if m.proto == packet.TCP {
		return
	}
	t.events.put(record{at: t.now, kind: k, reason: why, proto: m.proto, port: m.port, inner: m.from()})
}
