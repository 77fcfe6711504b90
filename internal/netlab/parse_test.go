package netlab

import (
	"net/netip"
	"testing"
)

func TestParseHeaders(t *testing.T) {
	v4 := func(proto byte, fragment uint16, payload ...byte) []byte {
		return append([]byte{0x45, 0, 0, 40, 0, 0, byte(fragment >> 8), byte(fragment), 64, proto, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1}, payload...)
	}
	v6 := append(append([]byte{0x60, 0, 0, 0, 0, 8, 58, 255}, netip.MustParseAddr("2001:db8::1").AsSlice()...), netip.MustParseAddr("2001:db8::2").AsSlice()...)
	for _, c := range []struct {
		name  string
		ether uint16
		b     []byte
		want  string
		frag  bool
	}{
		{"TCP", 0x0800, v4(6, 0, 0x12, 0x34, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12), "in  10.0.0.1:4660 > 192.0.2.1:80 protocol 6, 0 bytes, TCP flags 0x12, ICMP 0/0", false},
		{"TCP cut short", 0x0800, v4(6, 0, 0x12), "in  10.0.0.1:0 > 192.0.2.1:0 protocol 6, 0 bytes, TCP flags 0x00, ICMP 0/0", false},
		{"UDP first fragment", 0x0800, v4(17, 0x2000, 0, 53, 0, 54, 0, 8, 0, 0), "in  10.0.0.1:53 > 192.0.2.1:54 protocol 17, 0 bytes, TCP flags 0x00, ICMP 0/0", true},
		{"UDP later fragment", 0x0800, v4(17, 0x0010, 0, 53, 0, 54, 0, 8, 0, 0), "in  10.0.0.1:0 > 192.0.2.1:0 protocol 17, 0 bytes, TCP flags 0x00, ICMP 0/0", true},
		{"echo", 0x0800, v4(1, 0, 8, 0, 0, 0, 0, 99, 0, 1), "in  10.0.0.1:99 > 192.0.2.1:99 protocol 1, 0 bytes, TCP flags 0x00, ICMP 8/0", false},
		{"unreachable", 0x0800, v4(1, 0, 3, 1, 0, 0, 0, 99, 0, 1), "in  10.0.0.1:0 > 192.0.2.1:0 protocol 1, 0 bytes, TCP flags 0x00, ICMP 3/1", false},
		{"ICMPv6", 0x86dd, append(v6, 135, 0, 0, 0, 0, 0, 0, 0), "in  [2001:db8::1]:0 > [2001:db8::2]:0 protocol 58, 0 bytes, TCP flags 0x00, ICMP 135/0", false},
		{"ARP", 0x0806, make([]byte, 28), "in  ethertype 0x0806, 0 bytes", false},
		{"IPv4 cut short", 0x0800, make([]byte, 19), "in  ethertype 0x0800, 0 bytes", false},
	} {
		p := Packet{EtherType: c.ether}
		p.parse(c.b)
		if p.String() != c.want || p.Fragment != c.frag {
			t.Errorf("%s: got %q (fragment %t), want %q (fragment %t)", c.name, p, p.Fragment, c.want, c.frag)
		}
	}
}

func TestParseQuoted(t *testing.T) {
	b := append([]byte{0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 203, 0, 113, 2, 3, 1, 0, 0, 0, 0, 0, 0},
		0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 192, 0, 2, 80)
	for _, c := range []struct {
		b    []byte
		want string
	}{{b, "10.0.0.1 192.0.2.80"}, {b[:len(b)-1], "invalid IP invalid IP"}, {append(append(b[:20:20], 8), b[21:]...), "invalid IP invalid IP"}} {
		p := Packet{EtherType: 0x0800}
		p.parse(c.b)
		if got := p.QuotedSrc.String() + " " + p.QuotedDst.String(); got != c.want {
			t.Errorf("%x quotes %s, want %s", c.b, got, c.want)
		}
	}
}

func FuzzParseHeaders(f *testing.F) {
	f.Add(true, []byte{0x4f, 19: 0})
	f.Add(false, []byte{0x60, 39: 0})
	f.Fuzz(func(t *testing.T, v4 bool, b []byte) {
		p := Packet{EtherType: 0x86dd}
		if v4 {
			p.EtherType = 0x0800
		}
		p.parse(b)
		if long := len(b) >= 40; long && !p.Src.IsValid() {
			t.Errorf("no source in %x", b)
		}
	})
}

func TestCaptureIsBounded(t *testing.T) {
	c := &Capture{sources: make(map[Source]uint64), changed: make(chan struct{})}
	const packets = keptPackets + 1000
	for i := range packets {
		src := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		c.add(Packet{Src: netip.AddrPortFrom(src, uint16(i))})
	}
	kept := c.Packets()
	if len(kept) != keptPackets || kept[0].Src.Port() != 1000 || kept[len(kept)-1].Src.Port() != uint16((packets-1)&0xffff) {
		t.Errorf("kept %d packets, %v to %v", len(kept), kept[0], kept[len(kept)-1])
	}
	stats := c.Stats()
	want := CaptureStats{Seen: packets, Forgotten: 1000, Untallied: packets - talliedSource}
	if stats != want || len(c.Sources()) != talliedSource {
		t.Errorf("got %+v, want %+v", stats, want)
	}
	if stats.Complete() == nil || (CaptureStats{Lost: 1}).Complete() == nil || (CaptureStats{Seen: 5}).Complete() != nil {
		t.Error("Complete is wrong about completeness")
	}
}
