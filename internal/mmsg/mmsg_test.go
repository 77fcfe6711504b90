package mmsg

import (
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const pieces, pieceSize = 5, 100

// socket is one on loopback that tells where its datagrams went to, and joins them.
func socket(t *testing.T) (raw syscall.RawConn, port int) {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("0.0.0.0:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if raw, err = c.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err == nil {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		}
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return raw, c.LocalAddr().(*net.UDPAddr).Port
}

// Datagrams that the kernel cuts and joins, and one alone, by one call each way: they come
// from the address that was asked for, and to the one that was named.
func TestLoopback(t *testing.T) {
	from, _ := socket(t)
	to, port := socket(t)
	source := netip.MustParseAddr("127.0.0.9")
	name := [unix.SizeofSockaddrInet4]byte{unix.AF_INET, 0, byte(port >> 8), byte(port), 127, 0, 0, 7}
	payloads := [2][]byte{make([]byte, pieces*pieceSize), make([]byte, 30)}
	var out [2]Message
	var iovecs [2]unix.Iovec
	var controls [2][ControlSize]byte
	for i, p := range payloads {
		b := AppendSource(controls[i][:0], source, 0)
		if i == 0 {
			b = AppendSegment(b, pieceSize)
		}
		iovecs[i].Base = &p[0]
		iovecs[i].SetLen(len(p))
		h := &out[i].Header
		h.Name, h.Namelen, h.Iov, h.Control = &name[0], uint32(len(name)), &iovecs[i], &b[0]
		h.SetIovlen(1)
		h.SetControllen(len(b))
	}
	sent := 0
	if err := from.Write(func(fd uintptr) bool {
		n, errno := Send(fd, out[sent:])
		if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
			t.Errorf("send: %v", errno)
			return true
		}
		if errno == 0 {
			sent += n
		}
		return sent == len(out)
	}); err != nil {
		t.Fatal(err)
	}
	checkArrived(t, to, source)
}

// checkArrived receives what TestLoopback sends, joined or not.
func checkArrived(t *testing.T, raw syscall.RawConn, source netip.Addr) {
	t.Helper()
	const slots = 4
	var in [slots]Message
	var iovecs [slots]unix.Iovec
	var names [slots][unix.SizeofSockaddrInet6]byte
	var controls [slots][ControlSize]byte
	var memory [slots][2000]byte
	datagrams, bytes := 0, 0
	if err := raw.Read(func(fd uintptr) bool {
		for datagrams < pieces+1 && !t.Failed() {
			for i := range in {
				iovecs[i].Base = &memory[i][0]
				iovecs[i].SetLen(len(memory[i]))
				h := &in[i].Header
				h.Name, h.Namelen, h.Iov, h.Control = &names[i][0], uint32(len(names[i])), &iovecs[i], &controls[i][0]
				h.SetIovlen(1)
				h.SetControllen(ControlSize)
			}
			n, errno := Receive(fd, in[:])
			switch errno {
			case unix.EAGAIN:
				return false
			case unix.EINTR:
				continue
			case 0:
			default:
				t.Errorf("receive: %v", errno)
				return true
			}
			for i, m := range in[:n] {
				c := Parse(controls[i][:m.Header.Controllen])
				if c.To != netip.AddrFrom4([4]byte{127, 0, 0, 7}) || c.Local != c.To || [4]byte(names[i][4:]) != source.As4() {
					t.Errorf("%+v, from %v", c, names[i][4:8])
				}
				size := int(m.Size)
				if c.Segment > 0 {
					size = c.Segment
				}
				datagrams += (int(m.Size) + size - 1) / size
				bytes += int(m.Size)
			}
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if datagrams != pieces+1 || bytes != pieces*pieceSize+30 {
		t.Errorf("%d datagrams of %d bytes together", datagrams, bytes)
	}
}
