package nat

import (
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// syn sends a SYN from inside, as a new connection, a retransmission or a new start.
func (o *oracle) syn(k pair, isn uint32) {
	o.Helper()
	c := o.conn(k.inner, k.remote)
	s := o.sessions[k]
	if s != nil && s.state == "opening" && s.in == 0 {
		isn = s.out - 1 // a retransmission
	}
	got := c.send(seg{flags: packet.SYN, seq: isn})
	switch {
	case s == nil:
		if s = o.created(k, got, isn); s == nil {
			return
		}
	case s.state == "closed" || s.state == "reset":
		if o.halfOpen(k.inner.Addr()) >= oracleLimits.HalfOpen {
			if got != packet.SessionLimit {
				o.Fatalf("%+v started again beyond the limit: %v", k, got)
			}
			return
		}
		*s = oracleSession{port: s.port}
	case got != packet.Pass:
		o.Fatalf("a SYN of %+v: %v", k, got)
	case s.state == "established" || s.in != 0:
		return // changes nothing
	}
	s.state, s.out, s.deadline = "opening", isn+1, o.in(240*time.Second)
}

// segment sends a segment of an existing connection, in order, from inside or outside.
func (o *oracle) segment(k pair, d int, flags packet.TCPFlags, payload int) {
	o.Helper()
	c, s := o.conn(k.inner, k.remote), o.sessions[k]
	if s == nil || s.in == 0 {
		if s == nil && d == outward {
			c.mustSend(packet.NoSession, seg{flags: flags, seq: 1, ack: 1})
		}
		return
	}
	c.external = o.seen(k)
	fin := uint32(0)
	switch {
	case flags&packet.FIN != 0:
		fin = 1
	case flags&packet.RST != 0:
		payload = 0
	}
	if d == outward {
		c.mustSend(packet.Pass, seg{flags: flags, seq: s.out, ack: s.in, payload: payload})
	} else {
		c.mustRecv(packet.Pass, seg{flags: flags, seq: s.in, ack: s.out, payload: payload})
	}
	if flags&packet.RST != 0 {
		if s.state != "closed" && s.state != "reset" {
			s.state = "reset"
			if t := o.in(240 * time.Second); due(t, s.deadline) {
				s.deadline = t
			}
		}
		return
	}
	if s.state == "closed" {
		return
	}
	if n := uint32(payload) + fin; n > 0 {
		s.fins[d] = fin == 1
		*[2]*uint32{&s.out, &s.in}[d] += n
	}
	s.acked[d] = [2]uint32{s.in, s.out}[d]
	s.state, s.deadline = "established", o.in(7440*time.Second)
	switch out, in := s.out-s.acked[inward], s.in-s.acked[outward]; {
	case !s.fins[0] || !s.fins[1]:
	case out+in == 0:
		s.state, s.deadline = "closed", o.in(240*time.Second)
	case out <= 1 && in <= 1:
		s.state, s.deadline = "closing", o.in(240*time.Second)
	}
}

// handshake answers the SYN of a connection and acknowledges the answer.
func (o *oracle) handshake(k pair) {
	o.Helper()
	s := o.sessions[k]
	if s == nil || s.state != "opening" {
		return
	}
	c := o.conn(k.inner, k.remote)
	c.external = o.seen(k)
	c.mustRecv(packet.Pass, seg{flags: synAck, seq: 500, ack: s.out})
	s.in, s.acked[inward] = 501, s.out
	o.segment(k, outward, packet.ACK, 0)
}

// finish closes a connection, as far as the choice of segments lets it.
func (o *oracle) finish(k pair) {
	o.Helper()
	o.segment(k, outward, finAck, 0)
	o.segment(k, inward, finAck, 0)
	o.segment(k, outward, packet.ACK, 0)
}
