package uplink

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/sallyport-net/sallyport/internal/netstack"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// udpServer is a UDP socket on the loopback.
func udpServer(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func TestUDPEcho(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	for i := range 4 { // one external port, four remote ends
		server := udpServer(t)
		sent := fmt.Sprintf("hello %d", i)
		s.send(datagram("127.77.0.2:42000", server.LocalAddr().String(), []byte(sent)))
		buf := make([]byte, 100)
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != sent || from.String() != "127.77.0.2:42000" {
			t.Fatalf("server read %q from %v, %v", buf[:n], from, err)
		}
		server.WriteToUDPAddrPort([]byte("answer"), from)
		p := s.udp(42000)
		if p.Src != netip.MustParseAddr("127.0.0.1") || int(p.SrcPort) != server.LocalAddr().(*net.UDPAddr).Port ||
			p.Dst != dedicated2 || string(p.Data()) != "answer" || p.DF {
			t.Errorf("answer %q from %v:%d to %v, DF %v", p.Data(), p.Src, p.SrcPort, p.Dst, p.DF)
		}
	}
	if st := s.up.Stats(); st.UDP != 1 {
		t.Errorf("%d sockets, want 1", st.UDP)
	}
	// An empty datagram is one, too.
	server := udpServer(t)
	s.send(datagram("127.77.0.2:42000", server.LocalAddr().String(), nil))
	if n, from, err := server.ReadFromUDPAddrPort(make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read %d, %v", n, err)
	} else {
		server.WriteToUDPAddrPort(nil, from)
	}
	if p := s.udp(42000); p.Payload != 0 {
		t.Errorf("%d bytes", p.Payload)
	}
	s.wantDrops(nil)
}

// TTL and type of service cross both ways.
func TestUDPKeepsTTLAndTypeOfService(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	server := udpServer(t)
	pc := ipv4.NewPacketConn(server)
	if err := pc.SetControlMessage(ipv4.FlagTTL, true); err != nil {
		t.Fatal(err)
	}
	b := datagramTTL("127.77.0.1:42100", server.LocalAddr().String(), []byte("x"), 17, 1)
	markService(b, 0xb8)
	s.send(b)
	_, cm, from, err := pc.ReadFrom(make([]byte, 10))
	if err != nil || cm.TTL != 17 {
		t.Errorf("server: TTL %v, %v", cm, err)
	}
	pc.SetTTL(9)
	pc.SetTOS(0x28)
	pc.WriteTo([]byte("y"), nil, from)
	if p := s.udp(42100); p.TTL != 9 || p.B[1] != 0x28 {
		t.Errorf("answer has TTL %d, type of service %#x", p.TTL, p.B[1])
	}
}

func TestUDPBatches(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	server := udpServer(t)
	var batch [][]byte
	var want [][]byte
	for i := range 100 {
		size := 1200
		if i%40 == 39 {
			size = 700 // ends a run
		}
		payload := bytes.Repeat([]byte{byte(i)}, size)
		want = append(want, payload)
		batch = append(batch, datagram("127.77.0.1:42200", server.LocalAddr().String(), payload))
	}
	s.send(batch...)
	buf := make([]byte, 2000)
	var from netip.AddrPort
	for i := range want {
		var n int
		var err error
		if n, from, err = server.ReadFromUDPAddrPort(buf); err != nil || !bytes.Equal(buf[:n], want[i]) {
			t.Fatalf("datagram %d: %d bytes of %d, %v", i, n, buf[0], err)
		}
	}
	if !s.up.segmentation.Load() {
		t.Error("the kernel does not cut datagrams")
	}
	// Towards the sandbox: the kernel joins what is sent as one message.
	far := newSandbox(t, SocketsConfig{Addresses: []netip.Addr{netip.MustParseAddr("127.77.0.9")}})
	batch = nil
	for i := range want {
		batch = append(batch, datagram("127.77.0.9:42201", from.String(), want[i]))
	}
	far.send(batch...)
	for i := range want {
		if p := s.udp(42200); !bytes.Equal(p.Data(), want[i]) {
			t.Fatalf("datagram %d towards the sandbox: %d bytes", i, p.Payload)
		}
	}
	s.wantDrops(nil)
}

// U-13: a datagram that is larger than the tunnel is handed over whole.
func TestUDPLargerThanTheTunnel(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	server := udpServer(t)
	big := bytes.Repeat([]byte("large"), 10000)
	s.send(datagram("127.77.0.1:42300", server.LocalAddr().String(), big))
	buf := make([]byte, 1<<16)
	n, from, err := server.ReadFromUDPAddrPort(buf)
	if err != nil || !bytes.Equal(buf[:n], big) {
		t.Fatalf("server read %d bytes, %v", n, err)
	}
	server.WriteToUDPAddrPort(big, from)
	if p := s.udp(42300); !bytes.Equal(p.Data(), big) || p.DF {
		t.Errorf("%d bytes, DF %v", p.Payload, p.DF)
	}
}

func TestUDPPortUnreachable(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	server := udpServer(t)
	to := server.LocalAddr().String()
	server.Close()
	for range 3 { // the error of the past must not swallow the next datagram
		sent := datagram("127.77.0.1:42400", to, []byte("anybody there?"))
		s.send(append([]byte(nil), sent...))
		p := s.error(42400)
		if p.ICMPType != 3 || p.ICMPCode != 3 || p.Src != netip.MustParseAddr("127.0.0.1") || p.Dst != dedicated1 {
			t.Errorf("error %d/%d from %v to %v", p.ICMPType, p.ICMPCode, p.Src, p.Dst)
		}
		if p.Inner.Src != dedicated1 || netip.AddrPortFrom(p.Inner.Dst, p.Inner.DstPort).String() != to ||
			!bytes.HasSuffix(p.B[p.Inner.Off:p.Inner.End], []byte("anybody there?")) {
			t.Errorf("error about %v:%d to %v:%d", p.Inner.Src, p.Inner.SrcPort, p.Inner.Dst, p.Inner.DstPort)
		}
	}
	s.wantDrops(nil)
}

func TestUDPPortRefused(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	taken, err := net.ListenPacket("udp4", "0.0.0.0:0") // another process's
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	from := netip.AddrPortFrom(dedicated1, taken.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	s.send(datagram(from.String(), "127.0.0.1:9", []byte("x")))
	want := Event{PortRefused, Flow{Proto: packet.UDP, External: from}}
	if e := s.event(); e != want {
		t.Errorf("event %v, want %v", e, want)
	}
	s.wantDrops(map[packet.Outcome]uint64{packet.PortRefused: 1})
	if st := s.up.Stats(); st.UDP != 0 || s.up.sockets.used.Load() != 0 {
		t.Errorf("stats %+v, %d sockets", st, s.up.sockets.used.Load())
	}
}

func TestUDPRelease(t *testing.T) {
	s := newSandbox(t, SocketsConfig{MaxSessions: 1})
	server := udpServer(t)
	to := server.LocalAddr().String()
	s.send(datagram("127.77.0.1:42500", to, []byte("x")))
	s.send(datagram("127.77.0.1:42501", to, []byte("x")))
	if p := s.error(42501); p.ICMPType != 3 || p.ICMPCode != 13 {
		t.Errorf("error %d/%d beyond the limit, want 3/13", p.ICMPType, p.ICMPCode)
	}
	s.up.Release(Flow{Proto: packet.UDP, External: netip.MustParseAddrPort("127.77.0.1:42500")})
	s.up.Release(Flow{Proto: packet.UDP, External: netip.MustParseAddrPort("127.77.0.1:42500")})
	if st := s.up.Stats(); st.UDP != 0 {
		t.Errorf("%d sockets after Release", st.UDP)
	}
	c, err := net.ListenPacket("udp4", "127.77.0.1:42500")
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	c.Close()
	s.send(datagram("127.77.0.1:42501", to, []byte("again")))
	server.ReadFrom(make([]byte, 10))
	if n, _, err := server.ReadFrom(make([]byte, 10)); n != 5 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	s.wantDrops(map[packet.Outcome]uint64{packet.SocketLimit: 1})
}

func TestWriteDropsWhatMustNotLeave(t *testing.T) {
	s := newSandbox(t, SocketsConfig{Addresses: []netip.Addr{dedicated1}})
	server := udpServer(t)
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	good := func() []byte { return datagram("127.77.0.1:42600", to.String(), []byte("good")) }
	damaged := good()
	damaged[len(damaged)-1]++
	fragment := good()
	fragment[6] |= 0x20
	fragment[10], fragment[11] = 0, 0
	sum := checksum(fragment[:ipv4Len])
	fragment[10], fragment[11] = byte(sum>>8), byte(sum)
	var about packet.Packet
	packet.Parse(&about, datagram("10.0.0.1:1", "10.0.0.2:2", nil))
	fromInside := make([]byte, errorMax)
	e := icmpError{typ: 3, code: 3, from: dedicated1.As4()}
	fromInside = fromInside[:e.build(fromInside, about.B)]
	s.send(
		datagram("127.77.0.2:42600", to.String(), []byte("foreign")),
		datagram("10.9.0.1:42600", to.String(), []byte("inner")),
		syn(netip.MustParseAddrPort("127.77.0.2:1234"), to, 1),
		damaged, fragment, fromInside, []byte{0x60, 0, 0, 0}, nil,
		good())
	buf := make([]byte, 10)
	if n, _, err := server.ReadFrom(buf); err != nil || string(buf[:n]) != "good" {
		t.Errorf("server read %q, %v", buf[:n], err)
	}
	st := s.up.Stats()
	want := map[packet.Outcome]uint64{packet.WrongSource: 3, packet.MalformedL4: 1, packet.Fragment: 1, packet.ICMPUnavailable: 1}
	for o, n := range want {
		if st.Drops[o] != n {
			t.Errorf("%v: %d, want %d", o, st.Drops[o], n)
		}
	}
	total := uint64(0)
	for _, n := range st.Drops {
		total += n
	}
	if total != 8 {
		t.Errorf("%d drops in all, want 8: %v", total, drops(s.up))
	}
}

// Downloads keep the stack's queue full; datagrams must come through beside them.
func TestUDPBesideTCP(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	s.slow.Store(true)
	l := listen(t)
	for range 10 {
		c := s.mustDial("10.9.0.1:0", l.Addr())
		far := accept(t, l)
		go io.Copy(far, zeros{})
		go io.Copy(io.Discard, c)
	}
	s.eventually("queue", func() bool { return s.up.device.Queued() >= netstack.BatchSize/2 })
	server := udpServer(t)
	longest := 0
	for i := range 40 {
		longest = max(longest, s.up.device.Queued())
		s.send(datagram("127.77.0.1:42700", server.LocalAddr().String(), []byte{byte(i)}))
		_, from, err := server.ReadFromUDPAddrPort(make([]byte, 1))
		if err != nil {
			t.Fatal(err)
		}
		server.WriteToUDPAddrPort([]byte{byte(i)}, from)
		if p := s.udp(42700); p.Data()[0] != byte(i) {
			t.Fatalf("answer %d to question %d", p.Data()[0], i)
		}
	}
	s.wantDrops(nil)
	if longest == 0 {
		t.Error("the downloads left the queue empty: the test shows nothing")
	}
	s.eventually("the downloads go on", func() bool { return s.up.device.Queued() > 0 })
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
