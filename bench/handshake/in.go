package handshake

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Deliver takes a packet that came for one of the sandboxes. What it makes due, Next returns.
// b is the caller's again afterwards.
func (c *Client) Deliver(b []byte, now packet.Instant) {
	c.counts.Received++
	p := &c.in
	if packet.Parse(p, b) != packet.Pass {
		c.counts.Damaged++
		return
	}
	known := false
	switch p.Kind {
	case packet.KindTCP:
		if !p.ChecksumOK() {
			c.counts.Damaged++
			return
		}
		i := c.find(netip.AddrPortFrom(p.Dst, p.DstPort), netip.AddrPortFrom(p.Src, p.SrcPort))
		known = i != 0 && c.segment(i, p, now)
	case packet.KindICMPError: // its checksums are Parse's
		known = c.complaint(p)
	}
	if !known {
		c.counts.Stray++
	}
}

// complaint takes an ICMP error. As with a kernel, only one that says that a destination cannot be
// reached, and only about a SYN, ends a connection (RFC 1122, section 4.2.3.9).
func (c *Client) complaint(p *packet.Packet) bool {
	e := &p.Inner
	if p.ICMPType != packet.ICMPUnreachable || e.Proto != packet.TCP {
		return false
	}
	i := c.find(netip.AddrPortFrom(e.Src, e.SrcPort), netip.AddrPortFrom(e.Dst, e.DstPort))
	if i == 0 || c.slots[i].state != stateOpening || c.slots[i].isn != e.Seq {
		return false
	}
	c.finish(i, &c.counts.Unreachable)
	return true
}

// segment takes a segment of a slot and says whether it was of its connection.
func (c *Client) segment(i uint32, p *packet.Packet, now packet.Instant) bool {
	s := &c.slots[i]
	switch {
	case s.state == stateOpening:
		return c.opened(i, p, now)
	case s.state == stateResting:
		if p.Flags&packet.FIN == 0 || p.End() != s.receive {
			return false
		}
		c.acknowledge(i)
		return true
	case p.Flags&packet.RST != 0:
		if p.Seq != s.receive { // RFC 5961, section 3.2
			return false
		}
		c.finish(i, &c.counts.Reset)
		return true
	case p.Flags&packet.SYN != 0: // the SYN/ACK again: our ACK was lost
		c.acknowledge(i)
		return int32(s.receive-p.Seq) > 0
	case p.Flags&packet.ACK == 0 || p.Ack-s.isn-1 > uint32(len(c.config.Request))+1:
		return false
	}
	c.acknowledged(i, p.Ack, now)
	if p.Payload > 0 || p.Flags&packet.FIN != 0 {
		c.data(i, p, now)
	} else {
		c.closed(i)
	}
	return true
}

// opened takes what answers a SYN.
func (c *Client) opened(i uint32, p *packet.Packet, now packet.Instant) bool {
	s := &c.slots[i]
	switch {
	case p.Flags&packet.ACK == 0:
		return false // a SYN that crosses ours: nobody else connects here
	case p.Ack != s.isn+1:
		if p.Flags&packet.RST == 0 { // of another connection (RFC 9293, section 3.10.7.3)
			s.receive = p.Ack
			c.out.add(c.slots, i, sendStray)
		}
		return false
	case p.Flags&packet.RST != 0:
		c.finish(i, &c.counts.Refused)
		return true
	case p.Flags&packet.SYN == 0:
		return false
	}
	s.state, s.receive, s.knows = stateAsking, p.Seq+1, connected
	s.send = 0 // neither a SYN again nor a stray's RST
	record(c.pace.load.Connect, now-s.due)
	c.rewait(i, 1, now)
	c.out.add(c.slots, i, sendACK|sendRequest)
	return true
}

// acknowledged takes an acknowledgement that is in the window.
func (c *Client) acknowledged(i uint32, ack uint32, now packet.Instant) {
	s := &c.slots[i]
	n := ack - s.isn - 1 // of the request and the FIN
	request := uint32(len(c.config.Request))
	news := uint8(0)
	if n >= request {
		news = heard
		s.send &^= sendRequest
	}
	if n > request && s.state == stateClosing {
		news |= weDone
		s.send &^= sendFIN
	}
	if news &^= s.knows; news != 0 {
		s.knows |= news
		c.rewait(i, 1, now)
	}
}

// data takes a part of the answer, or the far side's FIN.
func (c *Client) data(i uint32, p *packet.Packet, now packet.Instant) {
	s := &c.slots[i]
	old := s.receive - p.Seq // bytes that came before
	if int32(old) < 0 || int(old) > p.Payload || s.knows&peerDone != 0 {
		c.acknowledge(i) // too early, or known: the far side learns what is missing
		c.closed(i)
		return
	}
	fresh := p.Data()[old:]
	if int(s.got)+len(fresh) > len(c.config.Answer) || !bytes.Equal(fresh, c.config.Answer[s.got:int(s.got)+len(fresh)]) {
		c.wrong(i)
		return
	}
	s.got += uint32(len(fresh))
	s.receive += uint32(len(fresh))
	if p.Flags&packet.FIN != 0 {
		s.receive++
		s.knows |= peerDone
	}
	whole := int(s.got) == len(c.config.Answer)
	switch {
	case whole && s.state == stateAsking:
		record(c.pace.load.Exchange, now-s.due)
		s.state = stateClosing
		s.send &^= sendACK | sendRequest // the FIN says it as well
		s.knows |= heard                 // who answers has heard
		c.rewait(i, 1, now)
		c.out.add(c.slots, i, sendFIN)
	case !whole && s.knows&peerDone != 0:
		c.wrong(i)
		return
	case len(fresh) > 0 || p.Flags&packet.FIN != 0:
		c.acknowledge(i)
		c.rewait(i, 1, now)
	default:
		c.acknowledge(i)
	}
	c.closed(i)
}

func (c *Client) wrong(i uint32) {
	c.out.add(c.slots, i, sendReset)
	c.finish(i, &c.counts.Wrong)
}

// closed ends a connection well if both sides are done.
func (c *Client) closed(i uint32) {
	if s := &c.slots[i]; s.state == stateClosing && s.knows&(weDone|peerDone) == weDone|peerDone {
		c.finish(i, &c.counts.OK)
		s.state = stateResting
	}
}

// acknowledge sends an ACK, unless something goes that says it as well.
func (c *Client) acknowledge(i uint32) {
	if c.slots[i].send&sendFIN == 0 {
		c.out.add(c.slots, i, sendACK)
	}
}

func record(r Recorder, d packet.Instant) {
	if r != nil {
		r.Record(time.Duration(d))
	}
}
