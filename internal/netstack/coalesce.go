package netstack

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// maxRuns is how many flows of one batch are gathered at a time. Sandboxes of
// one worker share a tunnel, so that their segments come mixed.
const maxRuns = 8

// maxRunSize is the largest packet that is made, which the IP header's length field bounds.
const maxRunSize = 1<<16 - 1

// coalescer gathers consecutive TCP segments of a flow within one batch into one
// packet, so that the stack works once on what came as many. Packets of one flow
// stay in order. All packets have been verified (verify.go).
type coalescer struct {
	link *link
	runs [maxRuns]run
	used int
}

// run is a packet in the making.
type run struct {
	first   []byte   // the first segment, headers included
	more    [][]byte // the payloads after it
	headLen int
	size    int    // of the packet as it would be made now
	next    uint32 // sequence number that continues it
}

// segment is what the coalescer reads of a TCP segment.
type segment struct {
	pkt     []byte // trimmed to its IP length
	headLen int
	seq     uint32
	push    bool
}

// add takes one packet. Its bytes must stay as they are until flush.
func (c *coalescer) add(b []byte) {
	s, ok := parseSegment(b)
	if !ok {
		if b[ipProtocol] == byte(header.TCPProtocolNumber) {
			c.flushFlow(b)
		}
		c.link.deliver(newPacket(b))
		return
	}
	r := c.find(s.pkt)
	if r != nil && !r.extend(s) {
		c.flushRun(r)
		r = nil
	}
	if r == nil {
		if c.used == maxRuns {
			c.flushRun(&c.runs[0])
		}
		r = &c.runs[c.used]
		c.used++
		r.start(s)
	}
	if s.push {
		c.flushRun(r)
	}
}

// flush delivers all that was gathered, in order of their beginnings.
func (c *coalescer) flush() {
	for c.used > 0 {
		c.flushRun(&c.runs[0])
	}
}

// find returns the run of the flow of pkt, or nil.
func (c *coalescer) find(pkt []byte) *run {
	for i := range c.runs[:c.used] {
		if sameFlow(c.runs[i].first, pkt) {
			return &c.runs[i]
		}
	}
	return nil
}

// flushFlow delivers what was gathered of the flow of b, a TCP packet.
func (c *coalescer) flushFlow(b []byte) {
	if b[0] != plainHeader {
		// With IP options the ports stand elsewhere: rare enough to deliver everything.
		c.flush()
		return
	}
	if r := c.find(b); r != nil {
		c.flushRun(r)
	}
}

// flushRun delivers a run and closes the gap it leaves.
func (c *coalescer) flushRun(r *run) {
	c.link.deliver(r.packet())
	i := 0
	for &c.runs[i] != r {
		i++
	}
	more := r.more
	clear(more)
	copy(c.runs[i:c.used], c.runs[i+1:c.used])
	c.used--
	c.runs[c.used] = run{more: more[:0]}
}

// start begins a run with s.
func (r *run) start(s segment) {
	r.first, r.headLen, r.size = s.pkt, s.headLen, len(s.pkt)
	r.next = s.seq + uint32(len(s.pkt)-s.headLen)
}

// extend adds s if it continues the run and nothing but its place in the stream
// and PSH differs: acknowledgement, window, options, type of service and TTL are the same.
func (r *run) extend(s segment) bool {
	payload := len(s.pkt) - s.headLen
	if s.seq != r.next || s.headLen != r.headLen || r.size+payload > maxRunSize {
		return false
	}
	a, b := r.first, s.pkt
	const l4 = header.IPv4MinimumSize
	if a[ipTOS] != b[ipTOS] || a[ipTTL] != b[ipTTL] ||
		!bytes.Equal(a[l4+tcpAcknowledgement:l4+tcpOffset], b[l4+tcpAcknowledgement:l4+tcpOffset]) ||
		!bytes.Equal(a[l4+tcpWindow:l4+tcpChecksum], b[l4+tcpWindow:l4+tcpChecksum]) ||
		!bytes.Equal(a[l4+header.TCPMinimumSize:r.headLen], b[l4+header.TCPMinimumSize:s.headLen]) {
		return false
	}
	r.more = append(r.more, s.pkt[s.headLen:])
	r.size += payload
	r.next += uint32(payload)
	return true
}

// packet makes the packet of a run. The checksums in its headers are the first
// piece's; the stack does not look at them, because the link says that it verified them.
func (r *run) packet() *stack.PacketBuffer {
	v := buffer.NewView(r.size)
	write := func(b []byte) {
		if _, err := v.Write(b); err != nil {
			panic("netstack: view of the packet's size is full: " + err.Error())
		}
	}
	write(r.first)
	for _, b := range r.more {
		write(b)
	}
	binary.BigEndian.PutUint16(v.AsSlice()[ipTotalLength:], uint16(r.size))
	return stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
}

// newPacket copies b into a packet of the stack.
func newPacket(b []byte) *stack.PacketBuffer {
	return stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
}

// sameFlow compares addresses and ports of two packets without IP options.
func sameFlow(a, b []byte) bool {
	const ports = header.IPv4MinimumSize
	return binary.BigEndian.Uint64(a[ipSource:]) == binary.BigEndian.Uint64(b[ipSource:]) &&
		binary.BigEndian.Uint32(a[ports:]) == binary.BigEndian.Uint32(b[ports:])
}

// parseSegment reports whether the verified packet b is a segment that may be
// gathered: no IP options, and data with no flags but ACK and PSH.
func parseSegment(b []byte) (segment, bool) {
	const l4 = header.IPv4MinimumSize
	if b[0] != plainHeader || b[ipProtocol] != byte(header.TCPProtocolNumber) {
		return segment{}, false
	}
	flags := header.TCPFlags(b[l4+tcpFlags])
	headLen := l4 + int(b[l4+tcpOffset]>>4)*4
	if flags&^header.TCPFlagPsh != header.TCPFlagAck || headLen == len(b) {
		return segment{}, false
	}
	return segment{
		pkt:     b,
		headLen: headLen,
		seq:     binary.BigEndian.Uint32(b[l4+tcpSequence:]),
		push:    flags&header.TCPFlagPsh != 0,
	}, true
}
