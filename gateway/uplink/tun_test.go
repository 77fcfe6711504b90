package uplink

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// tunLab is a Tun on a host with a link of 1500 bytes to a router, whose second link, to
// the server, takes 1200.
type tunLab struct {
	t            *testing.T
	trains       bool // packets go by WriteTrains and ReadTrains
	up           *Tun
	host, server *netlab.Namespace
	got          chan []byte // what Read gave
	ended        chan error  // how reading ended
}

var (
	pairOfTun = [2]netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.11")}
	tunServer = netip.MustParseAddr("198.51.100.2")
)

// eachWay runs a test on packets and on trains.
func eachWay(t *testing.T, test func(t *testing.T, l *tunLab)) {
	t.Run("packets", func(t *testing.T) { test(t, newTunLab(t, false)) })
	t.Run("trains", func(t *testing.T) { test(t, newTunLab(t, true)) })
}

func newTunLab(t *testing.T, trains bool) *tunLab {
	t.Helper()
	netlab.Require(t)
	current := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, current) })
	lab := netlab.Test(t)
	l := &tunLab{t: t, trains: trains, host: lab.Namespace("host"), server: lab.Namespace("server"), got: make(chan []byte, 1024), ended: make(chan error, 1)}
	router := lab.Namespace("router")
	end := func(n *netlab.Namespace, link, address string, mtu int) netlab.End {
		return netlab.End{Namespace: n, Link: link, Address: netip.MustParsePrefix(address), MTU: mtu}
	}
	lab.Connect(end(l.host, "eth0", "203.0.113.1/24", 1500), end(router, "eth0", "203.0.113.254/24", 1500))
	lab.Connect(end(router, "eth1", "198.51.100.1/24", 1200), end(l.server, "eth0", tunServer.String()+"/24", 1200))
	l.host.Route(hostnet.DefaultIPv4, netip.MustParseAddr("203.0.113.254"))
	l.server.Route(hostnet.DefaultIPv4, netip.MustParseAddr("198.51.100.1"))
	router.Route(netip.MustParsePrefix("192.0.2.0/24"), netip.MustParseAddr("203.0.113.1"))
	for _, n := range []*netlab.Namespace{l.host, router} {
		n.Forward(true)
		n.Sysctl("net.ipv4.conf.all.rp_filter", "0")
		n.Sysctl("net.ipv4.icmp_ratemask", "0")
	}
	l.host.Sysctl("net.ipv6.conf.default.disable_ipv6", "1")
	err := l.host.Do(func() (err error) {
		l.up, err = NewTun(TunConfig{Interface: "up0", Addresses: pairOfTun[:], Log: slog.New(slog.DiscardHandler)})
		return err
	})
	if err != nil {
		netlab.NotRun(t, err.Error())
	}
	l.run("ip", "link", "set", "up0", "mtu", "65535", "up")
	for _, a := range pairOfTun {
		l.run("ip", "route", "add", a.String()+"/32", "dev", "up0")
	}
	go l.pump()
	t.Cleanup(func() {
		l.up.Close()
		for range l.got {
		}
	})
	return l
}

func (l *tunLab) run(args ...string) {
	l.t.Helper()
	if err := l.host.Run(exec.Command(args[0], args[1:]...)); err != nil {
		l.t.Fatalf("%v: %v", args, err)
	}
}

// pump keeps what Read gives until it fails.
func (l *tunLab) pump() {
	defer close(l.got)
	bufs, sizes := buffers()
	read := func() (int, error) { return l.up.Read(bufs, sizes, 8) }
	if l.trains {
		list := make([]packet.Train, len(bufs))
		read = func() (int, error) {
			n, err := l.up.ReadTrains(list)
			for i := range n {
				sizes[i] = copy(bufs[i][8:], list[i].Head)
			}
			return n, err
		}
	}
	for {
		n, err := read()
		if err != nil {
			l.ended <- err
			return
		}
		for i := range n {
			if sizes[i] > 0 {
				l.got <- bytes.Clone(bufs[i][8 : 8+sizes[i]])
			}
		}
	}
}

// want waits for a packet.
func (l *tunLab) want(match func(*packet.Packet) bool) (p packet.Packet) {
	l.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case b := <-l.got:
			if packet.Parse(&p, b) == packet.Pass && match(&p) {
				return p
			}
		case <-deadline:
			l.t.Fatal("the packet does not come")
		}
	}
}

func (l *tunLab) send(pkts ...[]byte) {
	l.t.Helper()
	var err error
	if l.trains {
		list := make([]packet.Train, len(pkts))
		for i, b := range pkts {
			list[i].Head = b
		}
		_, err = l.up.WriteTrains(list)
	} else {
		_, err = l.up.Write(pkts, 0)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// udpOf is a datagram of UDP from the dedicated IP with DF, or without where id is not 0.
func udpOf(from, to netip.AddrPort, size int, id uint16) []byte {
	b := make([]byte, 28+size)
	return b[:packet.BuildUDP(b, from, to, bytes.Repeat([]byte{'x'}, size), 64, id)]
}

func (l *tunLab) listen(at string) net.PacketConn {
	l.t.Helper()
	c, err := l.server.ListenPacket("udp4", at)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// TestTunCarries: packets go both ways as they are but for the hop that the kernel is,
// and what has another source than a dedicated IP goes nowhere.
func TestTunCarries(t *testing.T) { eachWay(t, testTunCarries) }

func testTunCarries(t *testing.T, l *tunLab) {
	c := l.listen("198.51.100.2:9000")
	to := netip.AddrPortFrom(tunServer, 9000)
	stranger := netip.MustParseAddr("192.0.2.99")
	l.send(udpOf(netip.AddrPortFrom(stranger, 4000), to, 10, 0), udpOf(netip.AddrPortFrom(pairOfTun[0], 4000), to, 11, 0),
		udpOf(netip.AddrPortFrom(stranger, 4000), to, 12, 0), udpOf(netip.AddrPortFrom(pairOfTun[1], 4000), to, 13, 0))
	b := make([]byte, 2000)
	for i, from := range pairOfTun {
		n, peer, err := c.ReadFrom(b)
		if err != nil || n != 11+2*i || peer.(*net.UDPAddr).AddrPort() != netip.AddrPortFrom(from, 4000) {
			t.Fatalf("the server gets %d bytes from %v, %v", n, peer, err)
		}
		if _, err := c.WriteTo([]byte("answer"), peer); err != nil {
			t.Fatal(err)
		}
		p := l.want(func(p *packet.Packet) bool { return p.Kind == packet.KindUDP })
		if string(p.Data()) != "answer" || p.Dst != from || p.TTL != 64-2 || !p.ChecksumOK() {
			t.Errorf("the answer is %q to %v with TTL %d: the router and this kernel take one each", p.Data(), p.Dst, p.TTL)
		}
	}
	s := l.up.Stats()
	if s.Drops[packet.WrongSource] != 2 {
		t.Errorf("%d wrong sources counted, want 2", s.Drops[packet.WrongSource])
	}
	// TTL: the kernel is the next hop, and says so when it is the last.
	last := udpOf(netip.AddrPortFrom(pairOfTun[0], 4000), to, 10, 0)
	last[8] = 1
	setSum(last)
	l.send(last)
	if p := l.want(func(p *packet.Packet) bool { return p.Kind == packet.KindICMPError }); p.ICMPType != 11 || p.Src != netip.MustParseAddr("203.0.113.1") {
		t.Errorf("of a packet whose time is over says %v type %d", p.Src, p.ICMPType)
	}
}

// setSum puts the checksum of an IP header right.
func setSum(b []byte) {
	b[10], b[11] = 0, 0
	s := checksum(b[:20])
	b[10], b[11] = byte(s>>8), byte(s)
}

// TestTunMTU (U-13, R-11): the uplink takes what is longer than any link. What may be cut
// arrives whole, what may not is refused with the MTU of the link that cannot take it,
// whether that is this host's or one beyond.
func TestTunMTU(t *testing.T) { eachWay(t, testTunMTU) }

func testTunMTU(t *testing.T, l *tunLab) {
	c := l.listen("198.51.100.2:9000")
	from, to := netip.AddrPortFrom(pairOfTun[0], 4000), netip.AddrPortFrom(tunServer, 9000)
	for _, size := range []int{1172, 1173, 1472, 1473, 60000} {
		l.send(udpOf(from, to, size, 77))
		b := make([]byte, 65536)
		if n, _, err := c.ReadFrom(b); n != size || err != nil {
			t.Fatalf("of %d bytes that may be cut %d come, %v", size, n, err)
		}
	}
	for _, v := range []struct {
		size int
		mtu  byte // low byte
		by   string
	}{{1173, 1200 & 255, "203.0.113.254"}, {1472, 1200 & 255, "203.0.113.254"}, {1473, 1500 & 255, "203.0.113.1"}, {9000, 1500 & 255, "203.0.113.1"}} {
		l.send(udpOf(from, to, v.size, 0))
		p := l.want(func(p *packet.Packet) bool { return p.Kind == packet.KindICMPError })
		if p.ICMPType != 3 || p.ICMPCode != 4 || p.B[27] != v.mtu || p.Src.String() != v.by || p.Inner.Src != from.Addr() || p.Inner.SrcPort != from.Port() {
			t.Errorf("%d bytes: type %d code %d MTU %d from %v about %v", v.size, p.ICMPType, p.ICMPCode, int(p.B[26])<<8|int(p.B[27]), p.Src, p.Inner.Src)
		}
	}
}

// TestTunReassembles (U-14): a datagram in three fragments comes whole in each of their
// six orders, and one that is never whole costs bounded memory and is counted.
func TestTunReassembles(t *testing.T) { eachWay(t, testTunReassembles) }

func testTunReassembles(t *testing.T, l *tunLab) {
	from, to := netip.AddrPortFrom(tunServer, 9000), netip.AddrPortFrom(pairOfTun[1], 5000)
	whole := udpOf(from, to, 3000, 5)
	for i, order := range [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		b := bytes.Clone(whole)
		b[5] = byte(i)
		setSum(b)
		parts := cutInto(b, 1100)
		for _, k := range order {
			l.inject(parts[k])
		}
		if p := l.want(func(p *packet.Packet) bool { return true }); !bytes.Equal(p.B[20:], whole[20:]) || !p.ChecksumOK() {
			t.Errorf("in order %v %d bytes come", order, len(p.B))
		}
	}
	l.inject(cutInto(whole, 1100)[0])
	l.inject(udpOf(from, to, 1, 0))
	l.want(func(p *packet.Packet) bool { return p.Payload == 1 })
	if d := l.up.Stats().Drops; d[packet.FragmentLimit]+d[packet.Fragment] != 0 {
		t.Errorf("fragments counted as dropped: %v", d)
	}
}

// TestTunKeepsWholes: datagrams of one Read that came in fragments stay as they are until the
// next, also where there are more than there is memory for, and few of them allocate nothing.
func TestTunKeepsWholes(t *testing.T) {
	var up Tun
	scratch := make([]byte, maxPacket)
	keep := func(fill byte) []byte {
		for i := range scratch {
			scratch[i] = fill
		}
		return up.keep(scratch)
	}
	for range 2 {
		up.wholes = up.wholes[:0]
		var kept [][]byte
		for i := range 5 {
			kept = append(kept, keep(byte(i)))
		}
		for i, b := range kept {
			if want := bytes.Repeat([]byte{byte(i)}, maxPacket); !bytes.Equal(b, want) {
				t.Errorf("datagram %d of %d bytes is another by now", i, len(b))
			}
		}
	}
	if n := testing.AllocsPerRun(10, func() {
		up.wholes = up.wholes[:0]
		up.keep(scratch)
		up.keep(scratch)
	}); n != 0 {
		t.Errorf("keeping two of the largest allocates %v times", n)
	}
}

func cutInto(b []byte, mtu int) (parts [][]byte) {
	for at := 0; ; {
		f := make([]byte, mtu)
		n, next := packet.NextFragment(f, b, mtu, at)
		parts = append(parts, f[:n])
		if at = next; at == 0 {
			return parts
		}
	}
}

// TestTunCheck: an answer and a refusal are both fine, nothing of them is seen by Read
// or stays at the far side, and silence is told with the address that kept it.
func TestTunCheck(t *testing.T) { eachWay(t, testTunCheck) }

func testTunCheck(t *testing.T, l *tunLab) {
	ln, err := l.server.Listen("tcp4", "198.51.100.2:443")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, from := range pairOfTun {
		for _, port := range []uint16{443, 444} {
			if err := l.up.Check(t.Context(), from, netip.AddrPortFrom(tunServer, port)); err != nil {
				t.Error(err)
			}
		}
	}
	if err := l.up.Check(t.Context(), netip.MustParseAddr("192.0.2.99"), netip.AddrPortFrom(tunServer, 443)); err == nil {
		t.Error("checked from an address that is none of ours")
	}
	if n := l.up.probes.pending.Load(); n != 0 || len(l.up.probes.by) != 0 {
		t.Errorf("%d checks remain", n)
	}
	if len(l.got) != 0 {
		t.Errorf("Read gave the answer to a check: %x", <-l.got)
	}
	silent := netip.MustParseAddrPort("198.51.100.77:1")
	l.run("ip", "route", "add", "blackhole", "198.51.100.77/32")
	ended := make(chan error, 1)
	go func() { ended <- l.up.Check(t.Context(), pairOfTun[0], silent) }()
	for deadline := time.Now().Add(patience); l.up.probes.pending.Load() == 0 && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	l.up.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("a check that the uplink's end interrupts: %v", err)
	}
}

// TestTunGone: a network whose interface is taken away learns it from Read; after Close
// Read and Write say so.
func TestTunGone(t *testing.T) { eachWay(t, testTunGone) }

func testTunGone(t *testing.T, l *tunLab) {
	l.run("ip", "link", "set", "up0", "down")
	l.send(udpOf(netip.AddrPortFrom(pairOfTun[0], 1024), netip.AddrPortFrom(tunServer, 9), 1, 0))
	if s := l.up.Stats(); s.Drops[packet.Unreachable] != 1 {
		t.Errorf("a packet on an interface that is down: %v", s.Drops)
	}
	l.run("ip", "link", "del", "up0")
	select {
	case err := <-l.ended:
		if errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "up0") {
			t.Errorf("Read says %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Read does not learn that the interface is gone")
	}
	if err := l.up.Close(); err != nil {
		t.Error(err)
	}
	if err := l.up.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.up.Write([][]byte{udpOf(netip.AddrPortFrom(pairOfTun[0], 1024), netip.AddrPortFrom(tunServer, 9), 1, 0)}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if _, ok := <-l.up.Events(); ok {
		t.Error("an event")
	}
}

// TestTunRefuses: what NewTun cannot do it says with what is missing.
func TestTunRefuses(t *testing.T) {
	for _, v := range []struct {
		c    TunConfig
		want string
	}{
		{TunConfig{Interface: "up0"}, "no dedicated address"},
		{TunConfig{Interface: "up0", Addresses: []netip.Addr{pairOfTun[0], pairOfTun[0]}}, "twice"},
		{TunConfig{Interface: "much-too-long-a-name", Addresses: pairOfTun[:]}, "longer than"},
	} {
		if _, err := NewTun(v.c); err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("%+v: %v", v.c, err)
		}
	}
	l := newTunLab(t, false)
	err := l.host.Do(func() error {
		_, err := NewTun(TunConfig{Interface: "eth0", Addresses: pairOfTun[:]})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("the name of an interface that is there: %v", err)
	}
}

// TestTunTrains: what a kernel joined goes as one and comes as one, and a train
// with another source than a dedicated IP goes nowhere, each segment counted.
func TestTunTrains(t *testing.T) {
	l := newTunLab(t, true)
	c := l.listen("198.51.100.2:9000")
	from, to := netip.AddrPortFrom(pairOfTun[0], 4000), netip.AddrPortFrom(tunServer, 9000)
	train := func(from netip.AddrPort) packet.Train {
		return packet.Train{Head: udpOf(from, to, 3500, 0), Size: 1000, Partial: true}
	}
	if _, err := l.up.WriteTrains([]packet.Train{train(netip.AddrPortFrom(tunServer, 4000)), train(from)}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2000)
	for _, size := range []int{1000, 1000, 1000, 500} {
		n, _, err := c.ReadFrom(b)
		if err != nil || n != size || !bytes.Equal(b[:n], bytes.Repeat([]byte{'x'}, n)) {
			t.Fatalf("the server gets %d bytes, want %d: %v", n, size, err)
		}
	}
	if n := l.up.Stats().Drops[packet.WrongSource]; n != 4 {
		t.Errorf("%d wrong sources counted, want 4", n)
	}
	if !strings.Contains(l.up.String(), "segmentation") {
		t.Errorf("the start-up line says nothing of offloads: %s", l.up)
	}
}
