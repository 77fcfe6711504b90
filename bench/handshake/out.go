package handshake

import (
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// SegmentSize is what a buffer for [Client.Next] must hold: the headers and the request.
func (c *Client) SegmentSize() int { return headers + len(c.config.Request) }

const (
	headers = 20 + 20 + 4 // IPv4, TCP, the option with the MSS
	ttl     = 64
)

// Next writes the next segment that is due into dst and says how long it is; 0: none is due
// before Wait has passed. dst has [Client.SegmentSize] bytes at least.
func (c *Client) Next(dst []byte, now packet.Instant) int {
	i := c.out.take(c.slots)
	if i == 0 {
		c.fire(now)
		c.begin(now)
		if i = c.out.take(c.slots); i == 0 {
			return 0
		}
	}
	s := &c.slots[i]
	what := s.send & -s.send
	s.send &^= what
	c.counts.Sent++
	return c.build(dst, i, what)
}

// build writes one segment of a slot.
func (c *Client) build(dst []byte, i uint32, what uint8) int {
	s := &c.slots[i]
	h := packet.TCPHeader{Src: c.local(i), Dst: c.config.Remotes[s.remote], TTL: ttl, Window: window, Flags: packet.ACK}
	var payload []byte
	h.Seq, h.Ack = s.isn+1, s.receive
	switch what {
	case sendSYN:
		h.Seq, h.Ack, h.Flags, h.MSS = s.isn, 0, packet.SYN, c.config.MSS
	case sendStray:
		h.Seq, h.Ack, h.Flags = s.receive, 0, packet.RST
	case sendReset:
		h.Seq = c.heard(s)
		h.Flags |= packet.RST
	case sendRequest:
		h.Flags |= packet.PSH
		payload = c.config.Request
	case sendFIN:
		h.Seq += uint32(len(c.config.Request))
		h.Flags |= packet.FIN
	case sendACK:
		h.Seq = c.reached(s)
	}
	return packet.BuildTCP(dst, h, payload)
}

// reached is the number behind all that a connection has sent for the first time.
func (c *Client) reached(s *slot) uint32 {
	switch {
	case s.state >= stateClosing:
		return s.isn + 2 + uint32(len(c.config.Request))
	case s.send&sendRequest != 0:
		return s.isn + 1 // the ACK of the SYN goes before it
	}
	return s.isn + 1 + uint32(len(c.config.Request))
}

// heard is the number that the far side expects next, as far as is known.
func (c *Client) heard(s *slot) uint32 {
	n := s.isn + 1
	if s.knows&heard != 0 {
		n += uint32(len(c.config.Request))
	}
	if s.knows&weDone != 0 {
		n++
	}
	return n
}

// fire lets all slots whose time is over send again, or time out.
func (c *Client) fire(now packet.Instant) {
	for n := range c.wait {
		for i := c.wait[n].first; i != 0 && c.slots[i].again <= now; i = c.wait[n].first {
			s := &c.slots[i]
			if int(s.tries) >= c.config.Tries {
				if s.knows&connected != 0 {
					c.out.add(c.slots, i, sendReset)
				}
				c.finish(i, &c.counts.TimedOut)
				continue
			}
			switch s.state {
			case stateOpening:
				c.out.add(c.slots, i, sendSYN)
				c.counts.Resent++
			case stateAsking:
				if s.knows&heard == 0 {
					c.out.add(c.slots, i, sendRequest)
					c.counts.Resent++
				}
			case stateClosing:
				if s.knows&weDone == 0 {
					c.out.add(c.slots, i, sendFIN)
					c.counts.Resent++
				}
			}
			c.rewait(i, s.tries+1, now)
		}
	}
}

// rewait lets a busy slot wait for what it has sent for the n-th time.
func (c *Client) rewait(i uint32, n uint8, now packet.Instant) {
	s := &c.slots[i]
	c.wait[s.tries-1].remove(c.slots, i)
	c.await(i, n, now)
}

func (c *Client) await(i uint32, n uint8, now packet.Instant) {
	s := &c.slots[i]
	s.tries, s.again = n, now+packet.Instant(c.config.Resend)<<(n-1)
	c.wait[n-1].push(c.slots, i)
}

// begin starts a connection if one is due.
func (c *Client) begin(now packet.Instant) {
	due, ok := c.pace.take(now, c.room(), &c.counts.Skipped)
	if !ok {
		return
	}
	i := c.free.first
	c.free.remove(c.slots, i)
	s := &c.slots[i]
	s.remote = uint32(c.counts.Begun % uint64(len(c.config.Remotes)))
	s.isn, s.receive, s.got, s.knows = c.number(i, now), 0, 0, 0
	s.due, s.state = due, stateOpening
	c.open++
	c.counts.Begun++
	c.await(i, 1, now)
	c.out.add(c.slots, i, sendSYN)
}

// room says whether a connection may begin beside those that are open.
func (c *Client) room() bool { return c.open < c.pace.load.Open && c.free.first != 0 }

// finish ends a connection by an outcome. Nothing more will be said about it but a RST.
func (c *Client) finish(i uint32, outcome *uint64) {
	s := &c.slots[i]
	c.wait[s.tries-1].remove(c.slots, i)
	c.free.push(c.slots, i)
	s.send &= sendReset | sendACK
	s.state = stateIdle
	c.open--
	*outcome++
}

// Wait is how long nothing will be due, unless something is delivered; 0: something is.
// Negative: for ever.
func (c *Client) Wait(now packet.Instant) time.Duration {
	if c.out.waiting(c.slots) {
		return 0
	}
	at, ok := c.pace.next(c.room())
	for n := range c.wait {
		if i := c.wait[n].first; i != 0 && (!ok || c.slots[i].again < at) {
			at, ok = c.slots[i].again, true
		}
	}
	if !ok {
		return -1
	}
	return time.Duration(max(0, at-now))
}
