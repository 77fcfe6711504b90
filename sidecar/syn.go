package sidecar

import "github.com/sallyport-net/sallyport/internal/packet"

const (
	// synSize is the longest SYN that is kept, in bytes. Linux sends 60.
	synSize = 128
	// The number of SYNs that are kept: it grows with the connections that are
	// opening at the same time.
	minSYNs = 8
	maxSYNs = 256
	// noSYN is the place of one that is not kept.
	noSYN = ^uint32(0)
	// synFresh is for how long a SYN is worth sending again, in nanoseconds: a program
	// that still waits repeats an older one by itself (RFC 6298 doubles the time from
	// 1 s on), and most that old belong to connections that were given up.
	synFresh packet.Instant = 4 * 1e9
)

// synStore keeps the last SYN of each connection that is opening. When there are
// too many, the oldest is forgotten: that connection moves all the same, and its
// sandbox sends the next SYN by itself after a while.
type synStore struct {
	slots []keptSYN
	next  uint32 // where the next is tried
	used  int
}

// keptSYN is one of them; n is 0 where the place is free.
type keptSYN struct {
	key flowKey
	at  packet.Instant // when it was sent
	n   uint8
	b   [synSize]byte
}

// keep keeps a SYN of now in place of the connection's last one, which is at the
// place at, and returns the new one's place.
func (s *synStore) keep(key flowKey, b []byte, at uint32, now packet.Instant) uint32 {
	if len(b) > synSize {
		s.forget(key, at)
		return noSYN
	}
	if !s.holds(key, at) {
		at = s.place()
	}
	slot := &s.slots[at]
	if slot.n == 0 {
		s.used++
	}
	slot.key, slot.at, slot.n = key, now, uint8(copy(slot.b[:], b))
	return at
}

// place finds a free place, or the oldest one.
func (s *synStore) place() uint32 {
	if n := len(s.slots); s.used == n && n < maxSYNs {
		s.next = uint32(n)
		s.slots = append(s.slots, make([]keptSYN, max(n, minSYNs))...)
	}
	size := uint32(len(s.slots))
	at := s.next % size
	for range size {
		if s.slots[at].n == 0 {
			break
		}
		at = (at + 1) % size
	}
	s.next = at + 1
	return at
}

// forget frees a connection's place, unless another one has it by now.
func (s *synStore) forget(key flowKey, at uint32) {
	if s.holds(key, at) {
		s.slots[at].n = 0
		s.used--
	}
}

// find returns the SYN of a connection, or nil if it is not kept or too old. It is
// valid until the next call.
func (s *synStore) find(key flowKey, at uint32, now packet.Instant) []byte {
	if !s.holds(key, at) || now-s.slots[at].at > synFresh {
		return nil
	}
	return s.slots[at].b[:s.slots[at].n]
}

// holds says whether the connection's SYN is at the place.
func (s *synStore) holds(key flowKey, at uint32) bool {
	return at < uint32(len(s.slots)) && s.slots[at].n != 0 && s.slots[at].key == key
}
