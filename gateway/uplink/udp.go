package uplink

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// maxGSO is the most data that one message may hold, in bytes: a link carries or cuts no
// more than 64 KiB with all headers, its own included, and the kernel would cut it before.
const maxGSO = 64<<10 - 128

// sendRun sends the UDP packets ps, which joins reports as fit to be one message.
func (s *Sockets) sendRun(msg *message, ps []packet.Packet) {
	p := &ps[0]
	key := mappingKey{endpoint{p.Src.As4(), p.SrcPort}, packet.UDP}
	m, o := s.mappingFor(key, p)
	if m == nil {
		// The sandbox was told once, for all of the run.
		for range ps[1:] {
			s.drop(o)
		}
		return
	}
	msg.address(endpoint{p.Dst.As4(), p.DstPort})
	if len(ps) > 1 {
		for i := range ps {
			msg.vector(i, ps[i].Data())
		}
		msg.buffers(len(ps))
		err := m.sendMessage(msg, p, p.Payload)
		if err == nil {
			return
		}
		if err == unix.EIO {
			// The interface has no checksum offload, which the kernel wants for this.
			s.segmentation.Store(false)
		}
	}
	for i := range ps {
		s.sendOne(m, msg, &ps[i])
	}
}

// sendOne sends one UDP packet; the address of msg is set.
func (s *Sockets) sendOne(m *mapping, msg *message, p *packet.Packet) {
	msg.buffers(0)
	if data := p.Data(); len(data) > 0 {
		msg.vector(0, data)
		msg.buffers(1)
	}
	if err := m.sendMessage(msg, p, 0); err != nil {
		s.unsent(m, p, err)
	}
}

// joins reports whether the UDP packet q may follow ps in one message: same ends
// and header fields, not longer than the first, and nothing after a shorter one.
func joins(ps []packet.Packet, q *packet.Packet) bool {
	p, last := &ps[0], &ps[len(ps)-1]
	return q.Kind == packet.KindUDP && len(ps) < maxSegments &&
		p.Src == q.Src && p.SrcPort == q.SrcPort && p.Dst == q.Dst && p.DstPort == q.DstPort &&
		p.TTL == q.TTL && p.DF == q.DF && p.B[1] == q.B[1] &&
		last.Payload == p.Payload && q.Payload > 0 && q.Payload <= p.Payload &&
		(len(ps)+1)*p.Payload <= maxGSO
}

// received queues the n bytes of payload at r.data[headroom:], one datagram or
// several that the kernel joined.
func (s *Sockets) received(m *mapping, n int, a ancillary) {
	r := &s.rx
	from, to := r.msg.peer().addrPort(), m.key.external.addrPort()
	size := n
	if a.segment > 0 {
		size = a.segment
	}
	// Each datagram's headers are built over the end of the one before, which
	// is gone by then.
	for at := 0; ; at += size {
		k := min(size, n-at)
		b := r.data[at : at+headroom+k]
		if packet.BuildUDP(b, from, to, b[headroom:], a.ttl, r.nextID()) == 0 {
			s.drop(packet.MalformedL4)
			return
		}
		markService(b, a.tos)
		s.deliver(b)
		if at+k >= n {
			return
		}
	}
}

// quoteDatagram builds in r.quoted the UDP packet that an ICMP error speaks of, of
// whose payload n bytes at r.data[headroom:] are known. It returns its length.
func (r *receiver) quoteDatagram(m *mapping, n int) int {
	n = min(n, errorMax)
	to := r.msg.peer().addrPort()
	size := packet.BuildUDP(r.quoted[:], m.key.external.addrPort(), to, r.data[headroom:headroom+n], 1, r.nextID())
	if size > 0 {
		// What was not quoted is not known: no checksum is better than a wrong one.
		binary.BigEndian.PutUint16(r.quoted[ipv4Len+6:], 0)
	}
	return size
}
