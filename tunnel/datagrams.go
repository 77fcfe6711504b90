package tunnel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// controlSize is room for the control messages of one datagram: the addresses of
// either version, and a segment size.
var controlSize = unix.CmsgSpace(unix.SizeofInet6Pktinfo) + unix.CmsgSpace(4)

// incoming is the memory of one receiver.
type incoming struct {
	msgs []ipv4.Message
	// last is the endpoint of the datagram before: a run of one peer shares it.
	last *endpoint
}

// receiver returns the function that WireGuard receives by. One goroutine calls it.
func (s *udpSocket) receiver() conn.ReceiveFunc {
	in := &incoming{msgs: make([]ipv4.Message, conn.IdealBatchSize), last: newEndpoint(netip.AddrPort{}, source{})}
	for i := range in.msgs {
		in.msgs[i].Buffers = make([][]byte, 1)
		in.msgs[i].OOB = make([]byte, controlSize)
	}
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		return s.receive(in, bufs, sizes, eps)
	}
}

// receive reads datagrams into bufs. What the kernel joined is read into the last
// buffers and cut into those from the first on: each of the last may hold
// maxSegments datagrams, so that there is room for all.
func (s *udpSocket) receive(in *incoming, bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	first := 0
	if s.gro {
		first = len(bufs) - max(len(bufs)/maxSegments, 1)
	}
	msgs := in.msgs[:len(bufs)-first]
	for i := range msgs {
		msgs[i].Buffers[0] = bufs[first+i]
		msgs[i].OOB = msgs[i].OOB[:controlSize]
	}
	read, err := s.io.ReadBatch(msgs, 0)
	if err != nil {
		return 0, err
	}
	n := 0
	for i := range msgs[:read] {
		m := &msgs[i]
		to, ok := m.Addr.(*net.UDPAddr)
		if !ok {
			continue
		}
		from, segment := parseControl(m.OOB[:m.NN])
		if segment <= 0 {
			segment = m.N
		}
		ep := in.endpoint(to.AddrPort(), from)
		for at := 0; at < m.N && n <= first+i; at += segment {
			sizes[n] = copy(bufs[n], bufs[first+i][at:min(at+segment, m.N)])
			eps[n] = ep
			n++
		}
	}
	return n, nil
}

// endpoint is the endpoint of a datagram.
func (in *incoming) endpoint(to netip.AddrPort, from source) *endpoint {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if e := in.last; e.to != to || e.from != from || e.cleared.Load() {
		in.last = newEndpoint(to, from)
	}
	return in.last
}

// outgoing is the memory of one call of send.
type outgoing struct {
	msgs    []ipv4.Message
	control []byte
}

func newOutgoing() *outgoing {
	return &outgoing{msgs: make([]ipv4.Message, conn.IdealBatchSize), control: make([]byte, conn.IdealBatchSize*controlSize)}
}

// send sends datagrams, consecutive ones of one size at once where the kernel cuts
// them. What was sent before an error may be sent again; WireGuard's receivers
// drop repetitions.
func (s *udpSocket) send(bufs [][]byte, e *endpoint) error {
	o := s.out.Get().(*outgoing)
	defer s.out.Put(o)
	from, cut := e.source(), s.gso.Load()
	err := s.write(o.fill(bufs, e, from, cut))
	if err != nil && cut && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL)) {
		// A link without checksum offload cannot cut (udp(7)).
		if err = s.write(o.fill(bufs, e, from, false)); err == nil {
			s.gso.Store(false)
			return nil
		}
	}
	if err != nil && from != (source{}) && lostSource(err) {
		e.ClearSrc()
		err = s.write(o.fill(bufs, e, source{}, s.gso.Load()))
	}
	return err
}

// lostSource says whether an error may come of a local address that the host has
// no more, or that has no way to the peer.
func lostSource(err error) bool {
	for _, e := range []syscall.Errno{unix.EINVAL, unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EHOSTUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *udpSocket) write(msgs []ipv4.Message) error {
	defer func() {
		for i := range msgs {
			msgs[i].Buffers = nil // they are the caller's
		}
	}()
	for sent := 0; sent < len(msgs); {
		n, err := s.io.WriteBatch(msgs[sent:], 0)
		if err != nil {
			return err
		}
		sent += n
	}
	return nil
}

// fill makes messages of datagrams: several of one size, and a last one that may
// be shorter, are one message where they are to be cut.
func (o *outgoing) fill(bufs [][]byte, e *endpoint, from source, cut bool) []ipv4.Message {
	n := 0
	for at := 0; at < len(bufs); n++ {
		end, size, total := at+1, len(bufs[at]), len(bufs[at])
		for cut && end < len(bufs) && end-at < maxSegments && len(bufs[end-1]) == size &&
			len(bufs[end]) <= size && total+len(bufs[end]) <= maxCoalesced {
			total += len(bufs[end])
			end++
		}
		segment := 0
		if end-at > 1 {
			segment = size
		}
		m := &o.msgs[n]
		m.Buffers, m.Addr = bufs[at:end], e.addr
		m.OOB = appendControl(o.control[n*controlSize:n*controlSize:(n+1)*controlSize], from, segment)
		at = end
	}
	return o.msgs[:n]
}

// appendControl writes the address to send from and the size to cut to, where
// there are such (cmsg(3), ip(7), ipv6(7), udp(7)).
func appendControl(b []byte, from source, segment int) []byte {
	switch {
	case from.addr.Is4():
		var info unix.Inet4Pktinfo
		info.Spec_dst = from.addr.As4()
		b = appendMessage(b, unix.IPPROTO_IP, unix.IP_PKTINFO, (*[unix.SizeofInet4Pktinfo]byte)(unsafe.Pointer(&info))[:])
	case from.addr.Is6():
		info := unix.Inet6Pktinfo{Addr: from.addr.As16(), Ifindex: from.link}
		b = appendMessage(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, (*[unix.SizeofInet6Pktinfo]byte)(unsafe.Pointer(&info))[:])
	}
	if segment > 0 {
		var size [2]byte
		binary.NativeEndian.PutUint16(size[:], uint16(segment))
		b = appendMessage(b, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size[:])
	}
	return b
}

// appendMessage appends one control message to b, which has room for it and begins
// where a header may stand.
func appendMessage(b []byte, level, typ int32, data []byte) []byte {
	at := len(b)
	b = b[:at+unix.CmsgSpace(len(data))]
	clear(b[at:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[at+unix.CmsgLen(0):], data)
	return b
}

// parseControl reads the address that a datagram was sent to, and the size of the
// datagrams that were joined (0: it is one).
func parseControl(b []byte) (to source, segment int) {
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len)
		if size < unix.CmsgLen(0) || size > len(b) {
			return to, segment
		}
		data := b[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0]))
			to.addr = netip.AddrFrom4(info.Spec_dst)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0]))
			to.addr = netip.AddrFrom16(info.Addr)
			if to.addr.IsLinkLocalUnicast() {
				to.link = info.Ifindex
			}
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(binary.NativeEndian.Uint32(data))
		}
		b = b[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(b)):]
	}
	return to, segment
}
