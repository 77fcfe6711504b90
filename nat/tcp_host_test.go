package nat

import (
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// tcpHost is one end of a TCP connection as RFC 9293 has it, with window scaling
// (RFC 7323) and the checks of RFC 5961; without congestion control, which the
// middle cannot see. Data is counted and has no content.
type tcpHost struct {
	state    hostState
	passive  bool   // listens where it has no connection
	expected uint32 // the SYN that it opens together with, where that is meant to happen
	meets    bool   // expected is valid

	iss, una, nxt, high uint32 // high is the highest of nxt
	irs, rcv            uint32
	wnd, mostWnd        uint32 // what the other side offers, in bytes
	wl1, wl2            uint32 // where that was said
	scale, theirs       int    // window scales offered, -1: none

	written uint32 // bytes that the program has written
	fin     bool   // and whether it has closed
	unread  uint32 // bytes that came and that the program has not read
	got     uint32 // bytes that came in order
	buffer  uint32

	parts  []span // what came ahead of its turn
	finAt  uint32
	finIn  bool // finAt is valid
	timer  packet.Instant
	tries  int
	now    packet.Instant
	failed bool           // reset, or given up
	warned packet.Instant // when it challenged last
	out    []seg          // what it has sent and nobody fetched
}

type span struct{ from, to uint32 }

type hostState uint8

const (
	hostClosed hostState = iota
	hostSynSent
	hostSynReceived
	hostEstablished
	hostFinWait // our FIN is sent; FIN-WAIT-1 and CLOSING, LAST-ACK are told apart by una and finished
	hostTimeWait
)

const hostMSS = 1000

func (h *tcpHost) open() {
	h.state, h.una, h.nxt, h.high = hostSynSent, h.iss, h.iss+1, h.iss+1
	h.emit(seg{flags: packet.SYN, seq: h.iss})
	h.arm()
}

func (h *tcpHost) arm() { h.timer = h.now + packet.Instant(time.Second)<<h.tries }

// emit sends s with our window.
func (h *tcpHost) emit(s seg) {
	w := h.buffer - h.unread
	if s.flags&packet.SYN != 0 {
		s.scale = h.scale + 1
	} else if h.scale >= 0 && h.theirs >= 0 {
		w >>= h.scale
	}
	s.window = uint16(min(w, 65535))
	s.shut = s.window == 0
	h.out = append(h.out, s)
}

func (h *tcpHost) ack() { h.emit(seg{flags: packet.ACK, seq: h.high, ack: h.rcv}) }

// challenge is the answer of RFC 5961 to what is not acceptable, twice a second at most.
func (h *tcpHost) challenge() {
	if h.now-h.warned > packet.Instant(500*time.Millisecond) {
		h.warned = h.now
		h.ack()
	}
}

// ends returns the sequence number behind the data that there is to send.
func (h *tcpHost) ends() uint32 { return h.iss + 1 + h.written }

// push sends what the window lets it.
func (h *tcpHost) push() {
	if h.state != hostEstablished && h.state != hostFinWait {
		return
	}
	for {
		room := h.una + h.wnd - h.nxt
		if int32(room) <= 0 {
			break
		}
		if n := min(h.ends()-h.nxt, hostMSS, room); after(h.ends(), h.nxt) {
			h.emit(seg{flags: packet.ACK, seq: h.nxt, ack: h.rcv, payload: int(n)})
			h.nxt += n
		} else if h.fin && h.nxt == h.ends() {
			h.emit(seg{flags: finAck, seq: h.nxt, ack: h.rcv})
			h.nxt++
			h.state = hostFinWait
		} else {
			break
		}
	}
	if after(h.nxt, h.high) {
		h.high = h.nxt
	}
	if h.timer == 0 && (h.una != h.high || after(h.ends(), h.nxt) || h.fin && h.state == hostEstablished) {
		h.arm()
	}
}

// abort ends the connection with a reset.
func (h *tcpHost) abort() {
	if h.state != hostClosed && h.state != hostSynSent && h.state != hostTimeWait {
		h.emit(seg{flags: rstAck, seq: h.high, ack: h.rcv})
	}
	h.state, h.timer, h.failed = hostClosed, 0, true
}

// tick is called when the timer goes off.
func (h *tcpHost) tick() {
	h.timer = 0
	if h.tries++; h.tries > 6 {
		h.abort()
		return
	}
	switch h.state {
	case hostClosed:
	case hostTimeWait:
		h.state = hostClosed
	case hostSynSent:
		h.emit(seg{flags: packet.SYN, seq: h.iss})
		h.arm()
	case hostSynReceived:
		h.emit(seg{flags: synAck, seq: h.iss, ack: h.rcv})
		h.arm()
	default:
		if h.wnd == 0 && after(h.ends(), h.una) { // a probe (RFC 9293 section 3.8.6.1)
			h.emit(seg{flags: packet.ACK, seq: h.una, ack: h.rcv, payload: 1})
			if h.nxt == h.una {
				h.nxt++
			}
			if after(h.nxt, h.high) {
				h.high = h.nxt
			}
			h.tries = min(h.tries, 5)
			h.arm()
			return
		}
		h.nxt = h.una // all of it again
		if h.wnd == 0 && h.fin {
			h.wnd = 1 // a FIN probes as well
		}
		h.push()
	}
}

// reply answers a segment for which there is no connection (RFC 9293 section 3.10.7.1).
func (h *tcpHost) reply(s seg) {
	if s.flags&packet.ACK != 0 {
		h.out = append(h.out, seg{flags: packet.RST, seq: s.ack})
	} else {
		h.out = append(h.out, seg{flags: rstAck, ack: s.seq + uint32(s.payload) + 1})
	}
}

// receive takes a segment (RFC 9293 section 3.10.7).
func (h *tcpHost) receive(s seg) {
	rst, syn, ack := s.flags&packet.RST != 0, s.flags&packet.SYN != 0, s.flags&packet.ACK != 0
	switch {
	case h.passive && syn && !ack && (h.state == hostClosed || h.state == hostTimeWait && after(s.seq, h.rcv)):
		h.accept(s)
		return
	case h.state == hostClosed:
		if !rst {
			h.reply(s)
		}
		return
	case h.state == hostSynSent:
		h.receiveAnswer(s)
		return
	case h.state == hostSynReceived && syn && ack && s.seq == h.irs && s.ack == h.nxt:
		h.state, h.una, h.timer, h.tries = hostEstablished, s.ack, 0, 0
		h.ack()
		h.push()
		return
	}
	n := uint32(s.payload)
	if s.flags&packet.FIN != 0 {
		n++
	}
	window := max(h.buffer-h.unread, 1)
	switch {
	case s.seq-h.rcv >= window && (n == 0 || s.seq+n-1-h.rcv >= window): // outside
		if !rst {
			h.challenge()
		}
	case rst && s.seq == h.rcv:
		h.state, h.timer, h.failed = hostClosed, 0, true
	case rst || syn || !ack, after(s.ack, h.high), after(h.una-h.mostWnd, s.ack):
		h.challenge()
	default:
		h.take(s, n)
	}
}

// accept answers a SYN.
func (h *tcpHost) accept(s seg) {
	*h = tcpHost{passive: true, iss: h.high + 100_000, scale: h.scale, buffer: h.buffer, now: h.now}
	h.state, h.una, h.nxt, h.high = hostSynReceived, h.iss, h.iss+1, h.iss+1
	h.irs, h.rcv, h.theirs = s.seq, s.seq+1, s.scale-1
	h.offer(s, 0)
	h.emit(seg{flags: synAck, seq: h.iss, ack: h.rcv})
	h.arm()
}

// receiveAnswer takes a segment in SYN-SENT.
func (h *tcpHost) receiveAnswer(s seg) {
	rst, syn, ack := s.flags&packet.RST != 0, s.flags&packet.SYN != 0, s.flags&packet.ACK != 0
	switch {
	case ack && s.ack != h.nxt:
		if !rst {
			h.reply(s)
		}
	case rst:
		if ack {
			h.state, h.timer, h.failed = hostClosed, 0, true
		}
	case syn && (ack || h.meets && s.seq == h.expected):
		h.irs, h.rcv, h.theirs = s.seq, s.seq+1, s.scale-1
		h.offer(s, 0)
		if !ack {
			h.state = hostSynReceived
			h.emit(seg{flags: synAck, seq: h.iss, ack: h.rcv})
			return
		}
		h.state, h.una, h.timer, h.tries = hostEstablished, s.ack, 0, 0
		h.ack()
		h.push()
	}
}

// offer takes note of the other side's window.
func (h *tcpHost) offer(s seg, shift int) {
	w := uint32(s.window) << shift
	h.wnd, h.mostWnd = w, max(h.mostWnd, w)
	h.wl1, h.wl2 = s.seq, s.ack
}

// take takes an acceptable segment of a connection, with n sequence numbers.
func (h *tcpHost) take(s seg, n uint32) {
	if h.state == hostSynReceived {
		if s.ack != h.nxt {
			h.reply(s)
			return
		}
		h.state, h.timer, h.tries = hostEstablished, 0, 0
		h.una = s.ack
	}
	if after(s.ack, h.una) {
		h.una, h.timer, h.tries = s.ack, 0, 0
		if after(h.una, h.nxt) {
			h.nxt = h.una
		}
	}
	if !after(h.wl1, s.seq) && !after(h.wl2, s.ack) {
		shift := 0
		if h.scale >= 0 && h.theirs >= 0 {
			shift = h.theirs
		}
		h.offer(s, shift)
		if h.wnd > 0 {
			h.tries = 0
		}
	}
	if s.flags&packet.FIN != 0 {
		h.finAt, h.finIn = s.seq+n-1, true
	}
	if n > 0 {
		h.store(span{s.seq, s.seq + uint32(s.payload)})
		h.ack()
	}
	h.push()
	h.settleClose()
}

// store puts data where it belongs, as far as the window goes, and moves on.
func (h *tcpHost) store(p span) {
	if edge := h.rcv + h.buffer - h.unread; after(p.to, edge) {
		p.to = edge
	}
	if after(p.to, p.from) {
		h.parts = append(h.parts, p)
	}
	for again := true; again; {
		again = false
		for _, q := range h.parts {
			if !after(q.from, h.rcv) && after(q.to, h.rcv) {
				h.got += q.to - h.rcv
				h.unread += q.to - h.rcv
				h.rcv, again = q.to, true
			}
		}
	}
	kept := h.parts[:0]
	for _, q := range h.parts {
		if after(q.to, h.rcv) {
			kept = append(kept, q)
		}
	}
	h.parts = kept
	if h.finIn && h.rcv == h.finAt {
		h.rcv++
	}
}

// settleClose ends the connection where both sides have said all.
func (h *tcpHost) settleClose() {
	heard := h.finIn && h.rcv == h.finAt+1
	if h.state != hostFinWait || !heard || h.una != h.ends()+1 {
		return
	}
	h.state, h.timer, h.tries = hostTimeWait, h.now+packet.Instant(240*time.Second), 0
}

// read lets the program read all that came.
func (h *tcpHost) read() {
	if h.unread > 0 {
		h.unread = 0
		if h.state == hostEstablished || h.state == hostFinWait {
			h.ack() // a window update
		}
	}
}

// done says whether nothing will come of the host by itself.
func (h *tcpHost) done() bool { return h.state == hostClosed || h.state == hostTimeWait }
