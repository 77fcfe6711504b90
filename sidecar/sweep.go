package sidecar

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

// When a route is lost, a sandbox's TCP connections there are reset at once, with
// the sequence numbers that it expects, so that its programs connect anew rather
// than wait for answers that never come. Connections that are still opening are
// moved, and a SYN that is fresh is sent again by the new route. All other flows move without
// a word. A sweep does that beside the reader, a part of the table at a time.

const (
	// resetSize is the length of a reset, in bytes: two headers.
	resetSize = 40
	// sweepStep is how many flows a sweep looks at before it lets others at the
	// table, and sweepBatch how many packets it writes at once.
	sweepStep  = 512
	sweepBatch = 64
)

// sweep is the order to take all flows off a route.
type sweep struct {
	from   failover.PathID
	report *switchover
}

// sweepAll orders a sweep. It does not wait for it; from now on no packet takes
// the route. The report is told when it is done.
func (s *sandbox) sweepAll(from failover.PathID, report *switchover) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		report.done(swept{})
		return
	}
	s.flows.losing = append(s.flows.losing, from)
	s.sweeps = append(s.sweeps, sweep{from: from, report: report})
	if !s.sweeping {
		s.sweeping = true
		s.tasks.Go(s.sweepOn)
	}
}

// sweepOn works until no order waits.
func (s *sandbox) sweepOn() {
	for {
		s.mu.Lock()
		if len(s.sweeps) == 0 {
			s.sweeping = false
			s.mu.Unlock()
			return
		}
		next := s.sweeps[0]
		s.sweeps = s.sweeps[1:]
		s.mu.Unlock()
		next.report.done(s.sweep(next.from))
	}
}

// swept is what became of the flows of a lost route.
type swept struct {
	reset  uint64 // connections that were reset
	moved  uint64 // connections that are opening, and flows of other protocols
	resent uint64 // SYNs that were sent again
}

// sweep takes all flows off a route.
func (s *sandbox) sweep(from failover.PathID) swept {
	var out swept
	box := newOutbox()
	s.mu.Lock()
	seen := 0
	for _, generation := range [...]map[flowKey]flow{s.flows.young, s.flows.old} {
		for key := range generation {
			seen++
			if seen%sweepStep == 0 || box.full() {
				s.mu.Unlock()
				s.empty(box, &out)
				s.mu.Lock()
			}
			s.take(key, from, box, &out)
		}
	}
	for i, r := range s.flows.losing {
		if r == from {
			s.flows.losing = append(s.flows.losing[:i], s.flows.losing[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	s.empty(box, &out)
	return out
}

// take takes one flow off the route, if it is there. The caller holds the lock,
// which it may have given away since it met the flow.
func (s *sandbox) take(key flowKey, from failover.PathID, box *outbox, out *swept) {
	chosen := s.choose()
	f, known := s.flows.peek(key)
	if !known || f.route != from || !s.flows.isLost(from, chosen) {
		return
	}
	was := f
	f = s.flows.lose(f, chosen)
	s.flows.put(key, f)
	switch {
	case f == was || f.state == flowClosed:
	case f.state == flowLost:
		box.reset(s.inner, key, f.ack)
		out.reset++
	default:
		out.moved++
		if f.state == flowOpening {
			if r, syn := s.find(f.route), s.flows.syns.find(key, f.ack, s.clock.now()); r != nil && syn != nil {
				box.repeat(s.pool, r, syn)
			}
		}
	}
}

// empty sends what a sweep has gathered.
func (s *sandbox) empty(box *outbox, out *swept) {
	s.write(box.resets[:box.nResets], deviceOffset)
	box.nResets = 0
	for i, m := range box.syns {
		n := m.buffer.n
		if m.route.path.queue.put(m.route.share, box.one(m.buffer)) {
			s.egress.add(1, n)
			out.resent++
		} else {
			m.buffer.free()
			s.drop(0, packet.Closed, 1)
		}
		box.syns[i] = moved{}
	}
	box.syns = box.syns[:0]
}

// moved is a packet that takes another route.
type moved struct {
	route  *route
	buffer *buffer
}

// outbox holds what a sweep sends when it has let go of the table.
type outbox struct {
	resets  [][]byte // for the sandbox, sweepBatch of them
	nResets int
	syns    []moved // for routes
	single  [1]*buffer
}

func newOutbox() *outbox {
	box := &outbox{resets: make([][]byte, sweepBatch)}
	room := make([]byte, sweepBatch*(deviceOffset+resetSize))
	for i := range box.resets {
		at := i * (deviceOffset + resetSize)
		box.resets[i] = room[at : at+deviceOffset+resetSize : at+deviceOffset+resetSize]
	}
	return box
}

func (box *outbox) full() bool { return box.nResets == len(box.resets) || len(box.syns) == sweepBatch }

func (box *outbox) one(b *buffer) []*buffer {
	box.single[0] = b
	return box.single[:]
}

// reset adds the reset of a connection of the sandbox with the address inner, whose
// next byte is expected to have the number seq.
func (box *outbox) reset(inner [4]byte, key flowKey, seq uint32) {
	b := box.resets[box.nResets]
	n := packet.BuildTCP(b[deviceOffset:], packet.TCPHeader{
		Src: netip.AddrPortFrom(netip.AddrFrom4(key.remote), key.port),
		Dst: netip.AddrPortFrom(netip.AddrFrom4(inner), key.local),
		Seq: seq, Flags: packet.RST, TTL: resetTTL,
	}, nil)
	if n > 0 {
		box.nResets++
	}
}

// resetTTL is that of the packets that answer others (RFC 1812 section 4.2.2.9).
const resetTTL = 64

// repeat adds a SYN that is sent again by another route.
func (box *outbox) repeat(pool *bufferPool, r *route, syn []byte) {
	b := pool.get()
	b.n = copy(b.b, syn)
	if r.there != nil {
		r.there.Egress(b.b[:b.n])
	}
	box.syns = append(box.syns, moved{route: r, buffer: b})
}

// connected says whether a TCP connection is open on a route, or opening.
func (s *sandbox) connected(id failover.PathID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flows.connections(id)
}
