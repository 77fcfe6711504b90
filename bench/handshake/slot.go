package handshake

import (
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// state is where a connection stands.
type state uint8

const (
	// stateIdle: there was no connection yet, or none that anything may be said about.
	stateIdle state = iota
	// stateOpening: a SYN was sent. The only state that a RST or ICMP error answers as a refusal.
	stateOpening
	// stateAsking: the SYN is acknowledged, the request sent, its answer not complete.
	stateAsking
	// stateClosing: the answer is complete and a FIN sent; one of the two FINs is not acknowledged.
	stateClosing
	// stateResting: both are. FINs that come again are acknowledged again.
	stateResting
)

// What a slot has to send, in this order.
const (
	sendSYN uint8 = 1 << iota
	sendStray
	sendReset
	sendACK
	sendRequest
	sendFIN
)

// What a slot knows.
const (
	heard     uint8 = 1 << iota // its request is acknowledged
	peerDone                    // the far side's FIN has come
	weDone                      // our FIN is acknowledged
	connected                   // the far side's number is known, so that a RST may be sent
)

// slot is a connection of a sandbox's port; its number says which. Slot 0 is nobody's, so that
// 0 is no slot.
type slot struct {
	next, prev uint32 // in the list that it stands in: free, or one of those that wait
	outNext    uint32 // in the outbox
	remote     uint32
	isn        uint32 // of ours: request, FIN and what is behind them are counted from here
	receive    uint32 // the next number expected; while opening, that of a stray acknowledgement
	got        uint32 // bytes of the answer
	due        packet.Instant
	again      packet.Instant // when to send again
	state      state
	tries      uint8 // what was sent so often
	send       uint8 // what is to be sent; not 0: it stands in the outbox
	queued     bool  // it stands in the outbox
	knows      uint8
}

func (s *slot) busy() bool { return s.state >= stateOpening && s.state <= stateClosing }

// list is a row of slots.
type list struct{ first, last uint32 }

func (l *list) push(slots []slot, i uint32) {
	slots[i].next, slots[i].prev = 0, l.last
	if l.last != 0 {
		slots[l.last].next = i
	} else {
		l.first = i
	}
	l.last = i
}

func (l *list) remove(slots []slot, i uint32) {
	next, prev := slots[i].next, slots[i].prev
	if next != 0 {
		slots[next].prev = prev
	} else {
		l.last = prev
	}
	if prev != 0 {
		slots[prev].next = next
	} else {
		l.first = next
	}
}

// outbox is a row of slots that may have something to send. They stand in lists as well.
type outbox struct{ first, last uint32 }

// add puts a slot behind all others unless it is there, and says what it has to send.
func (o *outbox) add(slots []slot, i uint32, what uint8) {
	s := &slots[i]
	s.send |= what
	if s.queued {
		return
	}
	s.queued, s.outNext = true, 0
	if o.last != 0 {
		slots[o.last].outNext = i
	} else {
		o.first = i
	}
	o.last = i
}

// waiting says whether somebody has something to send, and lets go who has nothing any more.
func (o *outbox) waiting(slots []slot) bool {
	for o.first != 0 {
		s := &slots[o.first]
		if s.send != 0 {
			return true
		}
		s.queued = false
		if o.first = s.outNext; o.first == 0 {
			o.last = 0
		}
	}
	return false
}

// take is the slot whose turn it is; 0: none. It stays until it has sent all.
func (o *outbox) take(slots []slot) uint32 {
	if !o.waiting(slots) {
		return 0
	}
	return o.first
}

// local is the endpoint of a slot. Neighbours are of different sandboxes, so that these take turns.
func (c *Client) local(i uint32) netip.AddrPort {
	n := uint32(len(c.config.Sandboxes))
	return netip.AddrPortFrom(c.config.Sandboxes[(i-1)%n], c.config.FirstPort+uint16((i-1)/n))
}

// find is the slot of an endpoint and its remote; 0: there is none.
func (c *Client) find(local, remote netip.AddrPort) uint32 {
	place, ok := c.places[local.Addr().As4()]
	if !ok || local.Port() < c.config.FirstPort || local.Port() > c.config.LastPort {
		return 0
	}
	i := 1 + uint32(local.Port()-c.config.FirstPort)*uint32(len(c.config.Sandboxes)) + place
	if s := &c.slots[i]; s.state == stateIdle || c.config.Remotes[s.remote] != remote {
		return 0
	}
	return i
}

// number is the initial sequence number of a slot's next connection. It grows with time, as
// RFC 9293 (3.4.1) has it, so that a tuple may be used again while the far side remembers it.
func (c *Client) number(i uint32, now packet.Instant) uint32 {
	x := c.config.Seed ^ uint64(i)*0x9e3779b97f4a7c15
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	return uint32(x>>32) + uint32(now/4096) // steps of 4 us
}
