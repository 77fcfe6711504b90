package mmsg

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func room() []byte { return make([]byte, 0, ControlSize) }

// grouped is what the kernel says of datagrams that it joined.
func grouped(b []byte, size int32) []byte {
	var data [4]byte
	binary.NativeEndian.PutUint32(data[:], uint32(size))
	return appendMessage(b, unix.IPPROTO_UDP, unix.UDP_GRO, data[:])
}

// received is what the kernel says of an IPv4 datagram that came in.
func received(b []byte, to, local netip.Addr) []byte {
	at := len(b)
	b = AppendSource(b, local, 0)
	addr := to.As4()
	copy(b[at+unix.CmsgLen(0)+8:], addr[:]) // ipi_addr is behind ipi_ifindex and ipi_spec_dst
	return b
}

func TestParse(t *testing.T) {
	a, b, six := netip.MustParseAddr("198.18.0.7"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fe80::7")
	for name, c := range map[string]struct {
		b    []byte
		want Control
	}{
		"nothing":              {nil, Control{}},
		"IPv4":                 {received(room(), a, b), Control{To: a, Local: b}},
		"IPv6":                 {AppendSource(room(), six, 3), Control{To: six, Local: six, Link: 3}},
		"joined":               {grouped(room(), 1400), Control{Segment: 1400}},
		"all of a datagram's":  {grouped(received(room(), a, b), 1400), Control{To: a, Local: b, Segment: 1400}},
		"a size below 0":       {grouped(room(), -5), Control{}},
		"what is not asked":    {grouped(appendMessage(room(), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, []byte{1, 0, 0, 0}), 9), Control{Segment: 9}},
		"a size that we write": {AppendSegment(room(), 1400), Control{}},
		"no address, no size":  {AppendSegment(AppendSource(room(), netip.Addr{}, 7), 0), Control{}},
		"too short for it":     {appendMessage(room(), unix.IPPROTO_IP, unix.IP_PKTINFO, make([]byte, 8)), Control{}},
		"an empty message":     {grouped(appendMessage(room(), 0, 0, nil), 9), Control{Segment: 9}},
	} {
		if got := Parse(c.b); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		for n := range c.b {
			Parse(bytes.Clone(c.b[:n:n])) // does not run over
		}
	}
	// A message that claims to be longer than all there is.
	long := grouped(room(), 9)
	binary.NativeEndian.PutUint64(long, 1<<63)
	if got := Parse(long); got != (Control{}) {
		t.Errorf("too long: %+v", got)
	}
}

// The way of a datagram allocates nothing.
func TestNoAllocs(t *testing.T) {
	var memory [ControlSize]byte
	from := netip.MustParseAddr("192.0.2.1")
	if n := testing.AllocsPerRun(100, func() {
		b := AppendSegment(AppendSource(memory[:0], from, 0), 1400)
		if c := Parse(b); c.Local != from {
			t.Errorf("%+v", c)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// slowParse is the same by the words of golang.org/x/sys/unix. Messages before one that is
// broken count, so that it is asked for ever shorter parts.
func slowParse(b []byte) (c Control) {
	var list []unix.SocketControlMessage
	for n := len(b); n > 0; n-- {
		var err error
		if list, err = unix.ParseSocketControlMessage(b[:n]); err == nil && len(list) > 0 {
			break
		}
	}
	for _, m := range list {
		d := m.Data
		switch [2]int32{m.Header.Level, m.Header.Type} {
		case [2]int32{unix.IPPROTO_IP, unix.IP_PKTINFO}:
			if len(d) >= 12 {
				c.Local, c.To, c.Link = netip.AddrFrom4([4]byte(d[4:8])), netip.AddrFrom4([4]byte(d[8:12])), 0
			}
		case [2]int32{unix.IPPROTO_IPV6, unix.IPV6_PKTINFO}:
			if len(d) >= 20 {
				c.To = netip.AddrFrom16([16]byte(d))
				c.Local, c.Link = c.To, binary.NativeEndian.Uint32(d[16:])
			}
		case [2]int32{unix.IPPROTO_UDP, unix.UDP_GRO}:
			if len(d) >= 4 {
				c.Segment = max(0, int(int32(binary.NativeEndian.Uint32(d))))
			}
		}
	}
	return c
}

// Whatever stands in control messages: nothing outside of them is read, and what is read is
// what a slower parser reads. What is written is read back.
func FuzzParse(f *testing.F) {
	a, b := netip.MustParseAddr("198.18.0.7"), netip.MustParseAddr("192.0.2.1")
	f.Add([]byte(nil))
	f.Add(grouped(received(room(), a, b), 1400))
	f.Add(AppendSegment(AppendSource(room(), netip.MustParseAddr("fe80::1"), 3), 1400))
	f.Add(bytes.Repeat([]byte{0xff}, ControlSize))
	f.Add(append(grouped(room(), -1<<31), make([]byte, unix.SizeofCmsghdr)...))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := Parse(bytes.Clone(text))
		if want := slowParse(text); c != want {
			t.Errorf("%x: %+v, want %+v", text, c, want)
		}
		if c.Segment < 0 || c.Local.IsValid() != c.To.IsValid() || c.Link != 0 && !c.To.Is6() {
			t.Errorf("%x: %+v", text, c)
		}
		if again := Parse(AppendSource(room(), c.Local, c.Link)); again.Local != c.Local || again.Link != c.Link {
			t.Errorf("%+v is read back as %+v", c, again)
		}
	})
}
