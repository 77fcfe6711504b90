package handshake

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// AnswererConfig says what is answered. NewAnswerer copies none of it: leave it alone.
type AnswererConfig struct {
	// Request is what is asked for, in one segment, and Answer what is said then, in one as well.
	Request, Answer []byte
	// Sources are who may connect; all else is answered and counted as of a wrong source. None:
	// anybody may.
	Sources []netip.Addr
	// Seed makes the numbers of connections secret.
	Seed uint64
}

// Answered counts segments by what they were.
type Answered struct {
	Opened      uint64 `json:"synchronised"` // SYNs
	Asked       uint64 `json:"asked"`        // requests, those that came again included
	Closed      uint64 `json:"closed"`       // FINs, those that came again included
	Others      uint64 `json:"others"`       // acknowledgements, RSTs and what is not TCP, to which there is no answer
	Refused     uint64 `json:"refused"`      // other requests, or of connections that are none: answered by a RST
	Damaged     uint64 `json:"damaged"`      // no packets, or with wrong checksums
	WrongSource uint64 `json:"wrongSource"`  // from somebody else than those who may; counted above, too
}

// Answerer is the far side of short connections for all addresses and ports at a time: a segment
// out for a segment in, without a memory of connections. Its number of a connection is a function of the
// tuple, so it knows its own again. Whatever is lost the client asks for again. One caller at a time.
type Answerer struct {
	config AnswererConfig
	counts Answered
	in     packet.Packet
}

// NewAnswerer makes an answerer.
func NewAnswerer(c AnswererConfig) (*Answerer, error) {
	switch {
	case len(c.Request) == 0 || len(c.Answer) == 0:
		return nil, errors.New("handshake: an answerer needs a request and an answer")
	case len(c.Request) > maxRequest || len(c.Answer) > maxRequest:
		return nil, fmt.Errorf("handshake: a request of %d bytes and an answer of %d cannot be: %d fit a segment", len(c.Request), len(c.Answer), maxRequest)
	}
	return &Answerer{config: c}, nil
}

// Size is what a buffer for Answer must hold.
func (a *Answerer) Size() int { return headers + len(a.config.Answer) }

// Counts returns the counts.
func (a *Answerer) Counts() Answered { return a.counts }

// Answer writes the answer to the packet b into dst and says how long it is; 0: there is none.
// b is the caller's again afterwards.
func (a *Answerer) Answer(dst, b []byte) int {
	p := &a.in
	switch o := packet.Parse(p, b); {
	case o != packet.Pass, p.Kind == packet.KindTCP && !p.ChecksumOK():
		a.counts.Damaged++
		return 0
	case p.Kind != packet.KindTCP:
		a.counts.Others++
		return 0
	}
	if !a.mayConnect(p.Src) {
		a.counts.WrongSource++
	}
	h := packet.TCPHeader{
		Src: netip.AddrPortFrom(p.Dst, p.DstPort), Dst: netip.AddrPortFrom(p.Src, p.SrcPort),
		Seq: p.Ack, Ack: p.End(), Flags: packet.ACK, Window: window, TTL: ttl,
	}
	first := a.number(p)
	switch asked := p.Payload > 0; {
	case p.Flags&packet.RST != 0:
		a.counts.Others++
		return 0
	case p.Flags&packet.SYN != 0:
		a.counts.Opened++
		h.Seq, h.Flags, h.MSS = first, packet.SYN|packet.ACK, answerMSS
	case asked && p.Ack == first+1 && bytes.Equal(p.Data(), a.config.Request):
		a.counts.Asked++
		h.Flags |= packet.PSH | packet.FIN
		return packet.BuildTCP(dst, h, a.config.Answer)
	case !asked && p.Flags&packet.FIN == 0:
		a.counts.Others++
		return 0
	case !asked && p.Ack == first+2+uint32(len(a.config.Answer)):
		a.counts.Closed++
	default:
		a.counts.Refused++
		h.Flags |= packet.RST
	}
	return packet.BuildTCP(dst, h, nil)
}

// answerMSS is what fits a tunnel.
const answerMSS = 1380

func (a *Answerer) mayConnect(from netip.Addr) bool {
	for _, s := range a.config.Sources {
		if s == from {
			return true
		}
	}
	return len(a.config.Sources) == 0
}

// number is the answerer's initial sequence number of a segment's connection.
func (a *Answerer) number(p *packet.Packet) uint32 {
	src, dst := p.Src.As4(), p.Dst.As4()
	x := a.config.Seed
	for _, v := range [...]uint64{
		uint64(src[0])<<24 | uint64(src[1])<<16 | uint64(src[2])<<8 | uint64(src[3])<<32 | uint64(p.SrcPort),
		uint64(dst[0])<<24 | uint64(dst[1])<<16 | uint64(dst[2])<<8 | uint64(dst[3])<<32 | uint64(p.DstPort),
	} {
		x = (x ^ v) * 0xd6e8feb86659fd93
		x ^= x >> 32
	}
	return uint32(x)
}
