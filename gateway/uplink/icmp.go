package uplink

import (
	"encoding/binary"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// sendEcho sends an ICMP echo request on the ping socket of its identifier.
func (s *Sockets) sendEcho(msg *message, p *packet.Packet) {
	if !s.ping {
		s.drop(packet.ICMPUnavailable)
		return
	}
	if p.ICMPType != packet.ICMPEchoRequest {
		// A ping socket sends nothing else, and nobody inside is asked.
		s.drop(packet.ICMPType)
		return
	}
	m, _ := s.mappingFor(mappingKey{endpoint{p.Src.As4(), p.SrcPort}, packet.ICMP}, p)
	if m == nil {
		return
	}
	msg.address(endpoint{addr: p.Dst.As4()})
	// The kernel writes identifier and checksum itself.
	msg.vector(0, p.B[p.L4:])
	msg.buffers(1)
	if err := m.sendMessage(msg, p, 0); err != nil {
		s.unsent(m, p, err)
	}
}

// receivedEcho queues the echo reply of n bytes, ICMP header included, at r.data[ipv4Len:].
func (s *Sockets) receivedEcho(m *mapping, n int, a ancillary) {
	r := &s.rx
	msg := r.data[ipv4Len : ipv4Len+n]
	if n < icmpLen || msg[0] != packet.ICMPEchoReply {
		s.drop(packet.ICMPType)
		return
	}
	b := r.data[:ipv4Len+n]
	e := r.echo(m, msg)
	e.Src, e.Dst = e.Dst, e.Src
	e.Reply, e.TTL = true, a.ttl
	if packet.BuildICMPEcho(b, e, b[ipv4Len+icmpLen:]) == 0 {
		s.drop(packet.MalformedL4)
		return
	}
	markService(b, a.tos)
	s.deliver(b)
}

// quoteEcho builds in r.quoted the echo request that an ICMP error speaks of, of
// which n bytes at r.data[headroom:] are known. It returns its length.
func (r *receiver) quoteEcho(m *mapping, n int) int {
	msg := r.data[headroom : headroom+min(n, errorMax)]
	if len(msg) < icmpLen {
		return 0
	}
	e := r.echo(m, msg)
	e.TTL = 1
	return packet.BuildICMPEcho(r.quoted[:], e, msg[icmpLen:])
}

// echo describes the request from m to the message's peer with msg's sequence number.
func (r *receiver) echo(m *mapping, msg []byte) packet.Echo {
	return packet.Echo{
		Src:   m.key.external.addrPort().Addr(),
		Dst:   r.msg.peer().addrPort().Addr(),
		Ident: m.key.external.port,
		Seq:   binary.BigEndian.Uint16(msg[6:]),
		ID:    r.nextID(),
	}
}
