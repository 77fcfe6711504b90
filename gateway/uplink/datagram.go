package uplink

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const (
	// receiveTurn is how many messages of one socket are read before the others' turn.
	receiveTurn = 32
	// headroom is what is built in front of a received payload: IP and UDP, or IP
	// with the ICMP header already part of what was received.
	headroom = ipv4Len + udpLen
	// sendTries is how often a send is repeated that brought an error of the past.
	sendTries = 4
)

// receiver is the poller's scratch.
type receiver struct {
	msg    message
	data   [headroom + 1<<16]byte
	quoted [headroom + 1<<16]byte // a packet made anew from an error queue
	errors [errorMax]byte
	id     uint16 // identification of the next packet; 0 would set DF
}

func (r *receiver) nextID() uint16 {
	if r.id++; r.id == 0 {
		r.id = 1
	}
	return r.id
}

// sendMessage sends msg, whose data and address are set, from m's socket with the
// TTL, type of service and DF of p; where segment is not 0 the kernel cuts the data to
// datagrams of that size.
func (m *mapping) sendMessage(msg *message, p *packet.Packet, segment int) error {
	m.sending.Lock()
	defer m.sending.Unlock()
	if m.fd < 0 {
		return errClosing
	}
	if err := m.setFragmentation(p.DF); err != nil {
		return err
	}
	msg.noControl()
	msg.addControl(unix.IPPROTO_IP, unix.IP_TTL, uint32(p.TTL), 4)
	msg.addControl(unix.IPPROTO_IP, unix.IP_TOS, uint32(p.B[1]), 4)
	if segment > 0 {
		msg.addControl(unix.IPPROTO_UDP, unix.UDP_SEGMENT, uint32(segment), 2)
	}
	// The kernel tells an ICMP error of an earlier datagram on the next send as well,
	// which then did not happen. The error queue has it too.
	var err error
	for range sendTries {
		if err = msg.send(m.fd); err == nil || !fromThePast(err) {
			break
		}
	}
	return err
}

// fromThePast reports whether err may be the echo of an ICMP error.
func fromThePast(err error) bool {
	switch err {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPROTO, unix.EOPNOTSUPP,
		unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET, unix.EMSGSIZE:
		return true
	}
	return false
}

// unsent drops p, which the kernel did not take, and tells the sandbox.
func (s *Sockets) unsent(m *mapping, p *packet.Packet, err error) {
	switch {
	case err == errClosing:
		s.drop(packet.Closed)
	case err == unix.EAGAIN, err == unix.ENOBUFS, err == unix.ENOMEM:
		s.drop(packet.QueueFull)
	case err == unix.EMSGSIZE:
		if mtu := routeMTU(m.key.external, p); p.DF && mtu > 0 {
			s.refuse(packet.TooBig, codeFragment, uint32(mtu), p.B)
		} else {
			s.drop(packet.TooBig)
		}
	case err == unix.ENETUNREACH:
		s.refuse(packet.Unreachable, codeNet, 0, p.B)
	case err == unix.EACCES, err == unix.EPERM:
		s.refuse(packet.Unreachable, codeProhibited, 0, p.B)
	default:
		if err != unix.EHOSTUNREACH {
			s.complain(err)
		}
		s.refuse(packet.Unreachable, codeHost, 0, p.B)
	}
}

// routeMTU asks the kernel what the largest packet is that p's way takes; 0 when it
// does not say. Only a connected socket can be asked, so this opens one.
func routeMTU(from endpoint, p *packet.Packet) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if unix.Bind(fd, &unix.SockaddrInet4{Addr: from.addr}) != nil ||
		unix.Connect(fd, &unix.SockaddrInet4{Addr: p.Dst.As4(), Port: 9}) != nil {
		return 0
	}
	mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
	if err != nil {
		return 0
	}
	return mtu
}

// ready reads a mapping's socket: errors first, then datagrams. The poller calls it.
func (s *Sockets) ready(m *mapping) {
	m.receiving.Lock()
	defer m.receiving.Unlock()
	if m.fd < 0 {
		return
	}
	s.readErrors(m)
	r := &s.rx
	at := headroom
	if m.key.proto == packet.ICMP {
		at = ipv4Len
	}
	for range receiveTurn {
		n, a, err := r.msg.receive(m.fd, r.data[at:], 0)
		switch {
		case err == unix.EAGAIN, errors.Is(err, unix.EBADF):
			return
		case err == unix.EMSGSIZE:
			continue // longer than any datagram: not possible
		case err != nil:
			continue // the echo of an ICMP error
		}
		if m.key.proto == packet.UDP {
			s.received(m, n, a)
		} else {
			s.receivedEcho(m, n, a)
		}
	}
}

// readErrors takes what is in the socket's error queue.
func (s *Sockets) readErrors(m *mapping) {
	r := &s.rx
	for range receiveTurn {
		n, a, err := r.msg.receive(m.fd, r.data[headroom:], unix.MSG_ERRQUEUE)
		if err != nil {
			return
		}
		// The kernel's own errors went to whoever sent.
		if a.isErr && a.err.Origin == unix.SO_EE_ORIGIN_ICMP {
			s.relayError(m, n, a)
		}
	}
}

// relayError makes the ICMP error that reached the socket anew, about the packet
// that caused it as far as the error quoted it.
func (s *Sockets) relayError(m *mapping, n int, a ancillary) {
	r := &s.rx
	e := icmpError{typ: a.err.Type, code: a.err.Code, from: a.offender}
	switch e.typ {
	case packet.ICMPUnreachable:
		if e.code == codeFragment {
			e.info = a.err.Info & 0xffff
		}
	case packet.ICMPTimeExceeded:
	case packet.ICMPParameter:
		e.info = a.err.Info << 24
	default: // source quench (RFC 6633)
		s.drop(packet.ICMPType)
		return
	}
	var size int
	if m.key.proto == packet.UDP {
		size = r.quoteDatagram(m, n)
	} else {
		size = r.quoteEcho(m, n)
	}
	if size == 0 {
		s.drop(packet.MalformedL4)
		return
	}
	s.deliver(r.errors[:e.build(r.errors[:], r.quoted[:size])])
}
