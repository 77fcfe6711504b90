package conformance

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// rawSocket sends whole IPv4 packets as the machine itself would: its kernel routes
// them, and writes their length and the checksum of their IP header.
type rawSocket struct {
	t  *testing.T
	fd int
}

func raw(t *testing.T, n *netlab.Namespace) *rawSocket {
	t.Helper()
	s := &rawSocket{t: t}
	err := n.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(s.fd) })
	return s
}

func (s *rawSocket) send(b []byte) {
	s.t.Helper()
	for {
		err := unix.Sendto(s.fd, b, 0, &unix.SockaddrInet4{Addr: [4]byte(b[16:])})
		if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			s.t.Fatalf("send %x: %v", b[:20], err)
		}
		return
	}
}

// wire puts packets before the Forwarder as they are, past the checks of the
// gateway's kernel.
type wire struct {
	t     *testing.T
	g     *ground
	fd    int
	index int
}

func (g *ground) wire() *wire {
	g.t.Helper()
	w := &wire{t: g.t, g: g}
	err := g.gateway.Do(func() (err error) {
		if w.fd, err = packetSocket("upA", 0); err != nil {
			return err
		}
		local, err := unix.Getsockname(w.fd)
		if ll, ok := local.(*unix.SockaddrLinklayer); ok {
			w.index = ll.Ifindex
		}
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

// send sends packets and waits until the Forwarder has dealt with them.
func (w *wire) send(packets ...[]byte) {
	w.t.Helper()
	before := w.g.a.up.seen()
	for i, b := range packets {
		to := unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: w.index, Halen: 0}
		if err := unix.Sendto(w.fd, b, 0, &to); err != nil {
			w.t.Fatalf("packet %d, %x: %v", i, b[:min(len(b), 40)], err)
		}
	}
	eventually(w.t, "the Forwarder takes what was sent", func() bool {
		return w.g.a.up.seen() >= before+uint64(len(packets)) && w.g.a.idle()
	})
}

// seen is how many packets the kernel has brought, those included that are no IPv4.
func (u *rawUplink) seen() uint64 {
	s := u.dev.Stats()
	return s.Read + s.NotIPv4 + s.TooBig
}

// idle says whether nothing waits for the Forwarder.
func (o *ours) idle() bool {
	o.gate.Lock()
	defer o.gate.Unlock()
	return len(o.up.queue) == 0 && o.up.received.Load() == o.up.dev.Stats().Read
}

// udp, tcp and echo build packets that are right, for tests to make wrong.
func udp(src, dst netip.AddrPort, payload string) []byte {
	b := make([]byte, 28+len(payload))
	return b[:packet.BuildUDP(b, src, dst, []byte(payload), 64, 7)]
}

func tcp(src, dst netip.AddrPort, flags packet.TCPFlags, seq, ack uint32) []byte {
	b := make([]byte, 40)
	return b[:packet.BuildTCP(b, packet.TCPHeader{Src: src, Dst: dst, Flags: flags, Seq: seq, Ack: ack, Window: 65535, TTL: 64}, nil)]
}

func echo(src, dst netip.Addr, ident uint16, reply bool) []byte {
	b := make([]byte, 36)
	return b[:packet.BuildICMPEcho(b, packet.Echo{Src: src, Dst: dst, Reply: reply, Ident: ident, Seq: 1, TTL: 64}, []byte("whatever"))]
}

// icmp builds an ICMP message of any type about another packet.
func icmp(src, dst netip.Addr, typ, code uint8, info uint32, about []byte) []byte {
	b := make([]byte, 28+min(len(about), 540))
	packet.BuildICMPEcho(b, packet.Echo{Src: src, Dst: dst, TTL: 64, ID: 9}, about[:len(b)-28])
	m := b[20:]
	m[0], m[1], m[2], m[3] = typ, code, 0, 0
	binary.BigEndian.PutUint32(m[4:], info)
	binary.BigEndian.PutUint16(m[2:], sum(m))
	return b
}

// fixed is b with the checksum of its IP header put right.
func fixed(b []byte) []byte {
	head := int(b[0]&15) * 4
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], sum(b[:head]))
	return b
}

// withOptions is b with options in its IP header, padded to four bytes.
func withOptions(b []byte, options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	out := append(append(append([]byte(nil), b[:20]...), options...), b[20:]...)
	out[0] = 0x40 | byte(len(out)-len(b)+20)/4
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	return fixed(out)
}

// changed is a copy of b with one byte changed and a right IP checksum.
func changed(b []byte, at int, to byte) []byte {
	out := append([]byte(nil), b...)
	out[at] = to
	return fixed(out)
}

// fragments cuts a packet for an MTU.
func fragments(t *testing.T, b []byte, mtu int) (list [][]byte) {
	t.Helper()
	for at := 0; ; {
		f := make([]byte, mtu)
		n, next := packet.NextFragment(f, b, mtu, at)
		if n == 0 {
			t.Fatalf("%d bytes cannot be cut for %d", len(b), mtu)
		}
		list = append(list, f[:n])
		if at = next; at == 0 {
			return list
		}
	}
}

// socketError is what a kernel knows of an ICMP error about a socket's packet.
type socketError struct {
	errno     unix.Errno
	typ, code uint8
	info      uint32
	from      netip.Addr // whose error it is
}

// nextError takes one error from a socket's queue; nil if there is none.
func nextError(fd int) *socketError {
	oob := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 2048), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return nil
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil
	}
	for _, m := range messages {
		const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
		if m.Header.Level != unix.IPPROTO_IP || m.Header.Type != unix.IP_RECVERR || len(m.Data) < size {
			continue
		}
		d := m.Data
		e := &socketError{errno: unix.Errno(binary.NativeEndian.Uint32(d)), typ: d[5], code: d[6], info: binary.NativeEndian.Uint32(d[8:])}
		if d[4] == unix.SO_EE_ORIGIN_ICMP && len(d) >= size+8 {
			e.from = netip.AddrFrom4([4]byte(d[size+4:]))
		}
		return e
	}
	return nil
}

// awaitEvents waits for something on a socket.
func awaitEvents(fd int, events int16) int16 {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(p, int(patience.Milliseconds()))
		if err != unix.EINTR {
			return p[0].Revents
		}
	}
}
