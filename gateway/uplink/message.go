package uplink

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxSegments is how many datagrams the kernel takes or gives in one message
// (UDP_MAX_SEGMENTS of the kernels that have the smallest).
const maxSegments = 64

// message is one sendmsg or recvmsg with everything that it points to, so that
// nothing is allocated per call. It belongs to one call at a time.
type message struct {
	hdr     unix.Msghdr
	name    unix.RawSockaddrInet4
	iov     [maxSegments]unix.Iovec
	control [16]uint64 // for alignment; bytes are what counts
}

func (m *message) controlBytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&m.control)), unsafe.Sizeof(m.control))
}

// address makes the message go to e; receiving overwrites it.
func (m *message) address(e endpoint) {
	m.name.Family, m.name.Addr = unix.AF_INET, e.addr
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&m.name.Port))[:], e.port)
	m.hdr.Name, m.hdr.Namelen = (*byte)(unsafe.Pointer(&m.name)), unix.SizeofSockaddrInet4
}

// peer is who sent a received message, and in an error queue where the original went.
func (m *message) peer() endpoint {
	return endpoint{m.name.Addr, binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&m.name.Port))[:])}
}

// buffers sets the n first vectors as the message's data.
func (m *message) buffers(n int) { m.hdr.Iov, m.hdr.Iovlen = &m.iov[0], uint64(n) }

// vector sets the i-th vector to b, which must not be empty.
func (m *message) vector(i int, b []byte) {
	m.iov[i].Base = &b[0]
	m.iov[i].SetLen(len(b))
}

// noControl removes the ancillary data.
func (m *message) noControl() { m.hdr.Control, m.hdr.Controllen = nil, 0 }

// addControl appends ancillary data whose value is the first size bytes of v in the
// host's byte order: 4 or 2.
func (m *message) addControl(level, typ int32, v uint32, size int) {
	b := m.controlBytes()[m.hdr.Controllen:]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(size))
	data := b[unix.CmsgLen(0):]
	if size == 2 {
		binary.NativeEndian.PutUint16(data, uint16(v))
	} else {
		binary.NativeEndian.PutUint32(data, v)
	}
	m.hdr.Control = (*byte)(unsafe.Pointer(&m.control))
	m.hdr.Controllen += uint64(unix.CmsgSpace(size))
}

// send sends the message on fd without waiting.
func (m *message) send(fd int) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&m.hdr)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// ancillary is what came with a received message.
type ancillary struct {
	ttl, tos uint8
	segment  int // size of the datagrams that the kernel joined; 0: it is one
	err      unix.SockExtendedErr
	isErr    bool
	offender [4]byte // sender of the ICMP error
}

// receive reads one message from fd into buf without waiting. flags may be
// MSG_ERRQUEUE. A message that is longer than buf is an error of its own kind, EMSGSIZE.
func (m *message) receive(fd int, buf []byte, flags int) (n int, a ancillary, err error) {
	m.address(endpoint{})
	m.vector(0, buf)
	m.buffers(1)
	m.hdr.Control, m.hdr.Controllen = (*byte)(unsafe.Pointer(&m.control)), uint64(unsafe.Sizeof(m.control))
	for {
		r, _, errno := unix.Syscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&m.hdr)), uintptr(flags|unix.MSG_DONTWAIT))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, a, errno
		case m.hdr.Flags&unix.MSG_TRUNC != 0:
			return 0, a, unix.EMSGSIZE
		}
		a.parse(m.controlBytes()[:m.hdr.Controllen])
		return int(r), a, nil
	}
}

// parse reads ancillary data as the kernel wrote it.
func (a *ancillary) parse(b []byte) {
	a.ttl = 64 // where the kernel does not say
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len)
		if size < unix.CmsgLen(0) || size > len(b) {
			return
		}
		data := b[unix.CmsgLen(0):size]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL && len(data) >= 4:
			a.ttl = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			a.tos = data[0]
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			a.segment = int(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR && len(data) >= int(unsafe.Sizeof(a.err)):
			a.isErr = true
			a.err = *(*unix.SockExtendedErr)(unsafe.Pointer(&data[0]))
			// A sockaddr_in follows: family, port, address.
			if rest := data[unsafe.Sizeof(a.err):]; len(rest) >= 8 && binary.NativeEndian.Uint16(rest) == unix.AF_INET {
				a.offender = [4]byte(rest[4:8])
			}
		}
		b = b[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(b)):]
	}
}
