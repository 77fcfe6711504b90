package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// onlyLast are the flags that only the last piece of a large segment carries,
// and onlyFirst those that only the first does (RFC 3168 section 6.1.2).
const (
	onlyLast  = byte(header.TCPFlagFin | header.TCPFlagPsh)
	onlyFirst = byte(header.TCPFlagCwr)
)

// segmenter turns one outbound thing into packets, copying each into a buffer
// of the reader. A large TCP segment is cut to the MSS of its connection and
// its checksums are completed, which the stack leaves to the link.
type segmenter struct {
	o       outbound
	view    *buffer.View // where the payload that is not copied yet begins
	skip    int          // bytes of view that are copied already
	head    [header.IPv4MaximumHeaderSize + header.TCPHeaderMaximumSize]byte
	headLen int
	ipLen   int
	left    int // payload bytes not copied yet
	mss     int
	partial bool // checksums have to be completed
	// completes says that the stack leaves the checksums of all TCP to the link.
	completes bool
	started   bool // a packet of it was copied
	busy      bool // a packet of it was not
}

// begin takes o, whose reference it keeps until the last packet of it is copied.
func (s *segmenter) begin(o outbound) {
	s.o = o
	s.started, s.busy = false, true
	if s.partial = o.pkt != nil && s.leftToUs(o.pkt); !s.partial {
		return
	}
	views, offset := o.pkt.AsViewList()
	s.view, s.skip = views.Front(), offset
	ip, tcp := o.pkt.NetworkHeader().Slice(), o.pkt.TransportHeader().Slice()
	s.ipLen, s.headLen = len(ip), len(ip)+len(tcp)
	s.left = o.pkt.Size() - s.headLen
	s.mss = int(o.pkt.GSOOptions.MSS)
	s.take(s.head[:s.headLen])
}

func (s *segmenter) leftToUs(pkt *stack.PacketBuffer) bool {
	return pkt.GSOOptions.Type == stack.GSOTCPv4 || s.completes && pkt.TransportProtocolNumber == header.TCPProtocolNumber
}

// next copies the next packet to dst and returns its length, and whether it was the
// last one. dst must have room for a packet of the device's MTU.
func (s *segmenter) next(dst []byte) (size int, last bool) {
	switch {
	case s.o.raw != nil:
		s.busy = false
		return copy(dst, *s.o.raw), true
	case !s.partial:
		views, offset := s.o.pkt.AsViewList()
		s.view, s.skip = views.Front(), offset
		dst = dst[:min(len(dst), s.o.pkt.Size())]
		s.take(dst)
		s.busy = false
		return len(dst), true
	}
	payload := s.left
	if payload > s.mss && s.mss > 0 {
		payload = s.mss
	}
	dst = dst[:s.headLen+payload]
	copy(dst, s.head[:s.headLen])
	s.take(dst[s.headLen:])
	s.left -= payload
	s.finish(dst, s.left == 0)
	s.advance(payload)
	s.busy = s.left > 0
	return len(dst), !s.busy
}

// take copies the next len(dst) bytes of the packet.
func (s *segmenter) take(dst []byte) {
	for len(dst) > 0 && s.view != nil {
		b := s.view.AsSlice()
		if s.skip >= len(b) {
			s.skip -= len(b)
			s.view = s.view.Next()
			continue
		}
		n := copy(dst, b[s.skip:])
		dst = dst[n:]
		s.skip += n
	}
}

// finish sets lengths, flags and checksums of one packet.
func (s *segmenter) finish(pkt []byte, last bool) {
	ip, tcp := pkt[:s.ipLen], pkt[s.ipLen:]
	binary.BigEndian.PutUint16(ip[ipTotalLength:], uint16(len(pkt)))
	binary.BigEndian.PutUint16(ip[ipChecksum:], 0)
	binary.BigEndian.PutUint16(ip[ipChecksum:], ^checksum.Checksum(ip, 0))
	if !last {
		tcp[tcpFlags] &^= onlyLast
	}
	if s.started {
		tcp[tcpFlags] &^= onlyFirst
	}
	binary.BigEndian.PutUint16(tcp[tcpChecksum:], 0)
	binary.BigEndian.PutUint16(tcp[tcpChecksum:], ^checksum.Checksum(tcp, pseudoHeader(ip, len(tcp))))
}

// advance prepares the header of the packet after one with n bytes of payload.
func (s *segmenter) advance(n int) {
	s.started = true
	ip, tcp := s.head[:s.ipLen], s.head[s.ipLen:]
	binary.BigEndian.PutUint16(ip[ipID:], binary.BigEndian.Uint16(ip[ipID:])+1)
	binary.BigEndian.PutUint32(tcp[tcpSequence:], binary.BigEndian.Uint32(tcp[tcpSequence:])+uint32(n))
}

// weight returns how many packets pkt yields.
func weight(pkt *stack.PacketBuffer) int {
	g := pkt.GSOOptions
	if g.Type != stack.GSOTCPv4 || g.MSS == 0 {
		return 1
	}
	mss := int(g.MSS)
	return max(1, (pkt.Data().Size()+mss-1)/mss)
}
