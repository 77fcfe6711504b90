package tundev

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

var (
	guestMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	routerMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	guestAddr  = netip.MustParseAddr("10.20.0.7")
	routerAddr = netip.MustParseAddr("10.20.0.1")
	broadcast  = net.HardwareAddr{255, 255, 255, 255, 255, 255}
)

// ethernetBench is an ethernetMedium whose wire is a socket pair.
type ethernetBench struct {
	*ethernetMedium
	near, far int
}

func newEthernetBench(t *testing.T) *ethernetBench {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(pair[0]); _ = unix.Close(pair[1]) })
	p := &packetMedium{count: &counters{}, in: make([]byte, ethernetHeader+usualMTU), out: make([]byte, ethernetHeader+testMTU)}
	m := &ethernetMedium{packetMedium: p, mtu: testMTU, config: Config{
		MTU: testMTU, LocalMAC: routerMAC, PeerMAC: guestMAC, LocalAddr: routerAddr, PeerAddr: guestAddr,
	}}
	copy(m.answer[:], frame(guestMAC, routerMAC, 0, nil))
	return &ethernetBench{m, pair[0], pair[1]}
}

func frame(to, from net.HardwareAddr, etherType int, payload []byte) []byte {
	return bytes.Join([][]byte{to, from, {byte(etherType >> 8), byte(etherType)}, payload}, nil)
}

func arp(operation byte, mac net.HardwareAddr, sender, target netip.Addr) []byte {
	s, t := sender.As4(), target.As4()
	return bytes.Join([][]byte{{0, 1, 8, 0, 6, 4, 0, operation}, mac, s[:], make([]byte, 6), t[:]}, nil)
}

// guestDatagram is an IPv4 packet of n bytes.
func guestDatagram(n int) []byte {
	b := make([]byte, n)
	packet.BuildUDP(b, netip.AddrPortFrom(guestAddr, 1000), netip.AddrPortFrom(routerAddr, 9), make([]byte, n-28), 64, 0)
	return b
}

// put sends a frame and returns the packet that came of it, and the frame that answered it.
func (b *ethernetBench) put(t *testing.T, f []byte) (passed, answer []byte) {
	t.Helper()
	if _, err := unix.Write(b.far, f); err != nil {
		t.Fatal(err)
	}
	in, out := make([]byte, testMTU), make([]byte, 2000)
	n, err := b.receive(b.near, in)
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Read(b.far, out)
	if err != nil && err != unix.EAGAIN {
		t.Fatal(err)
	}
	return in[:n], out[:max(m, 0)]
}

func TestEthernet(t *testing.T) {
	other, stranger := net.HardwareAddr{2, 0, 0, 0, 0, 9}, netip.MustParseAddr("10.20.0.9")
	zero := netip.IPv4Unspecified()
	small, big := guestDatagram(100), guestDatagram(testMTU+1)
	mayFragment := guestDatagram(testMTU + 1)
	packet.BuildUDP(mayFragment, netip.AddrPortFrom(guestAddr, 1000), netip.AddrPortFrom(routerAddr, 9), make([]byte, testMTU-27), 64, 7)
	for name, c := range map[string]struct {
		frame    []byte
		passes   bool
		answered int // bytes of the answer; 0: none
		count    func(*counters) uint64
	}{
		"a packet":          {frame(routerMAC, guestMAC, etherTypeIPv4, small), true, 0, nil},
		"padded":            {frame(routerMAC, guestMAC, etherTypeIPv4, append(guestDatagram(30), make([]byte, 16)...)), true, 0, nil},
		"another MAC":       {frame(routerMAC, other, etherTypeIPv4, small), false, 0, func(c *counters) uint64 { return c.spoofed.Load() }},
		"the gateway's MAC": {frame(routerMAC, routerMAC, etherTypeIPv4, small), false, 0, func(c *counters) uint64 { return c.spoofed.Load() }},
		"IPv6":              {frame(routerMAC, guestMAC, 0x86dd, append([]byte{0x60}, make([]byte, 60)...)), false, 0, func(c *counters) uint64 { return c.notIPv4.Load() }},
		"VLAN":              {frame(routerMAC, guestMAC, 0x8100, small), false, 0, func(c *counters) uint64 { return c.notIPv4.Load() }},
		"a runt":            {frame(routerMAC, guestMAC, etherTypeIPv4, nil)[:13], false, 0, func(c *counters) uint64 { return c.notIPv4.Load() }},
		"too big":           {frame(routerMAC, guestMAC, etherTypeIPv4, big), false, ethernetHeader + 576, func(c *counters) uint64 { return c.tooBig.Load() }},
		"too big, without DF": {frame(routerMAC, guestMAC, etherTypeIPv4, mayFragment), false, 0,
			func(c *counters) uint64 { return c.tooBig.Load() }},
		"who has the gateway": {frame(broadcast, guestMAC, etherTypeARP, arp(arpRequest, guestMAC, guestAddr, routerAddr)), false, ethernetHeader + arpSize, nil},
		"a probe for it":      {frame(broadcast, guestMAC, etherTypeARP, arp(arpRequest, guestMAC, zero, routerAddr)), false, ethernetHeader + arpSize, nil},
		"who has another":     {frame(broadcast, guestMAC, etherTypeARP, arp(arpRequest, guestMAC, guestAddr, stranger)), false, 0, func(c *counters) uint64 { return c.notIPv4.Load() }},
		"its announcement":    {frame(broadcast, guestMAC, etherTypeARP, arp(arpRequest, guestMAC, guestAddr, guestAddr)), false, 0, func(c *counters) uint64 { return c.notIPv4.Load() }},
		"an unasked reply":    {frame(routerMAC, guestMAC, etherTypeARP, arp(arpReply, guestMAC, guestAddr, routerAddr)), false, 0, func(c *counters) uint64 { return c.notIPv4.Load() }},
		"another's address":   {frame(broadcast, guestMAC, etherTypeARP, arp(arpRequest, guestMAC, stranger, routerAddr)), false, 0, func(c *counters) uint64 { return c.spoofed.Load() }},
		"another's MAC":       {frame(broadcast, guestMAC, etherTypeARP, arp(arpRequest, other, guestAddr, routerAddr)), false, 0, func(c *counters) uint64 { return c.spoofed.Load() }},
		"short ARP":           {frame(broadcast, guestMAC, etherTypeARP, arp(arpRequest, guestMAC, guestAddr, routerAddr)[:27]), false, 0, func(c *counters) uint64 { return c.notIPv4.Load() }},
	} {
		b := newEthernetBench(t)
		passed, answer := b.put(t, c.frame)
		if (len(passed) > 0) != c.passes {
			t.Errorf("%s: %d bytes go on; want some: %t", name, len(passed), c.passes)
		}
		if len(answer) != c.answered || b.count.answered.Load() != min(uint64(c.answered), 1) {
			t.Errorf("%s: an answer of %d bytes, %d counted; want %d", name, len(answer), b.count.answered.Load(), c.answered)
		}
		if len(answer) > 0 && (!bytes.Equal(answer[:6], guestMAC) || !bytes.Equal(answer[6:12], routerMAC)) {
			t.Errorf("%s: the answer's header is % x", name, answer[:14])
		}
		sum := b.count.spoofed.Load() + b.count.notIPv4.Load() + b.count.tooBig.Load()
		if c.count == nil && sum != 0 || c.count != nil && (sum != 1 || c.count(b.count) != 1) {
			t.Errorf("%s: counted %+v", name, b.count)
		}
	}
}

// What is answered is right.
func TestEthernetAnswers(t *testing.T) {
	b := newEthernetBench(t)
	_, answer := b.put(t, frame(broadcast, guestMAC, etherTypeARP, arp(arpRequest, guestMAC, guestAddr, routerAddr)))
	want := arp(arpReply, routerMAC, routerAddr, guestAddr)
	copy(want[18:], guestMAC)
	if got := answer[ethernetHeader:]; !bytes.Equal(got, want) {
		t.Errorf("ARP answers % x, want % x", got, want)
	}
	_, answer = b.put(t, frame(routerMAC, guestMAC, etherTypeIPv4, guestDatagram(testMTU+80)))
	var p packet.Packet
	if packet.Parse(&p, answer[ethernetHeader:]) != packet.Pass || p.ICMPType != packet.ICMPUnreachable || p.Src != routerAddr || p.Dst != guestAddr {
		t.Fatalf("answer %+v", p)
	}
	if mtu := int(p.B[26])<<8 | int(p.B[27]); p.B[21] != 4 || mtu != testMTU {
		t.Errorf("code %d, MTU %d; want 4 and %d", p.B[21], mtu, testMTU)
	}
}
