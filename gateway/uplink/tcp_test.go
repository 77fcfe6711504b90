package uplink

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

func TestTCPCarriesBytesFromExactAddress(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)
	c := s.mustDial("10.9.0.1:40001", l.Addr())
	far := accept(t, l)
	if got := far.RemoteAddr().String(); got != "127.77.0.1:40001" {
		t.Errorf("server sees %s, want 127.77.0.1:40001", got)
	}
	data := make([]byte, 5<<20+17)
	rand.NewChaCha8([32]byte{1}).Read(data)
	want := sha256.Sum256(data)
	for name, ends := range map[string][2]net.Conn{"egress": {c, far}, "ingress": {far, c}} {
		go ends[0].Write(data)
		h := sha256.New()
		if _, err := io.CopyN(h, ends[1], int64(len(data))); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(h.Sum(nil), want[:]) {
			t.Errorf("%s: bytes differ", name)
		}
	}
	if st := s.up.Stats(); st.TCP != 1 || st.Pending != 0 {
		t.Errorf("stats %+v, want one session, none pending", st)
	}
	s.wantDrops(nil)
}

// connections to several destinations share one external port.
func TestTCPOnePortManyDestinations(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	for i := range 6 {
		l := listen(t)
		from := netip.AddrPortFrom([]netip.Addr{dedicated1, dedicated2}[i%2], 40002)
		s.send(syn(from, l.Addr().(*net.TCPAddr).AddrPort(), 7))
		if got := accept(t, l).RemoteAddr().String(); got != from.String() {
			t.Errorf("server sees %s, want %v", got, from)
		}
	}
}

func TestTCPRefusedByRST(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)
	l.Close()
	if _, err := s.dial("10.9.0.1:40003", l.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v, want connection refused", err)
	}
	s.eventually("sessions", func() bool { return s.up.Stats().TCP == 0 })
	s.wantDrops(nil)
}

// listenStuck starts a listener whose backlog is full, so that it does not answer SYNs.
func listenStuck(t *testing.T) net.Listener {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "stuck")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return l
}

func TestTCPAnswersOnlyAfterTheFarSide(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listenStuck(t)
	dialled := make(chan error, 1)
	go func() {
		_, err := s.dial("10.9.0.1:40004", l.Addr())
		dialled <- err
	}()
	s.eventually("pending", func() bool { return s.up.Stats().Pending == 1 })
	select {
	case err := <-dialled:
		t.Fatalf("dial returned %v before the server answered", err)
	default:
	}
	accept(t, l) // makes room; the kernel repeats its SYN within a second or two
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
	if st := s.up.Stats(); st.Pending != 0 || st.TCP != 1 {
		t.Errorf("stats %+v", st)
	}
}

// T-2: either side may end its half, and the other goes on.
func TestTCPHalfClose(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	s.up.linger.queues[0].wait = time.Millisecond
	l := listen(t)
	for _, first := range []string{"sandbox", "server"} {
		c := s.mustDial("10.9.0.1:0", l.Addr())
		far := accept(t, l)
		from := far.RemoteAddr().(*net.TCPAddr).AddrPort()
		type end interface {
			net.Conn
			CloseWrite() error
		}
		a, b := end(c), end(far)
		if first == "server" {
			a, b = b, a
		}
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("%s closed first: other end read %d, %v, want EOF", first, n, err)
		}
		if _, err := b.Write([]byte("still here")); err != nil {
			t.Fatal(err)
		}
		if err := b.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(a); err != nil || string(got) != "still here" {
			t.Fatalf("%s closed first: read %q, %v", first, got, err)
		}
		want := Event{SessionClosed, Flow{packet.TCP, from, l.Addr().(*net.TCPAddr).AddrPort()}}
		if e := s.event(); e != want {
			t.Errorf("event %v, want %v", e, want)
		}
		if st := s.up.Stats(); st.TCP != 0 {
			t.Errorf("%d sessions left", st.TCP)
		}
	}
}

func TestTCPResetCrosses(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)

	c := s.mustDial("10.9.0.1:0", l.Addr())
	far := accept(t, l)
	c.Abort()
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server reads %v after the sandbox's RST", err)
	}

	c = s.mustDial("10.9.0.1:0", l.Addr())
	far = accept(t, l)
	far.SetLinger(0)
	far.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("sandbox reads %v after the server's RST", err)
	}
	s.eventually("sessions", func() bool { return s.up.Stats().TCP == 0 })
}

// A server that answers and closes with unread data sends RST behind its answer.
func TestTCPAnswerBeforeReset(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)
	c := s.mustDial("10.9.0.1:0", l.Addr())
	far := accept(t, l)
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	far.Read(make([]byte, 1))
	far.Write([]byte("too large"))
	far.Close()
	got := make([]byte, 9)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "too large" {
		t.Errorf("sandbox read %q, %v", got, err)
	}
	if _, err := c.Read(got); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("then %v, want a reset", err)
	}
}

func TestTCPBackPressure(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)
	c := s.mustDial("10.9.0.1:0", l.Addr())
	far := accept(t, l)
	const bound = 64 << 20
	for name, ends := range map[string][2]net.Conn{"ingress": {far, c}, "egress": {c, far}} {
		total, piece := 0, make([]byte, 1<<20)
		for total < bound {
			ends[0].SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			n, err := ends[0].Write(piece)
			total += n
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if total >= bound {
			t.Errorf("%s: %d MiB were taken for a reader that does not read", name, total>>20)
		}
		t.Logf("%s: %d KiB in flight", name, total>>10)
		got, err := io.CopyN(io.Discard, ends[1], int64(total))
		if err != nil {
			t.Errorf("%s: read %d of %d: %v", name, got, total, err)
		}
	}
}

func TestTCPPendingLimits(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  SocketsConfig
		udp  uint16 // sockets that are open before
		want packet.Outcome
	}{
		{"of the network", SocketsConfig{MaxPending: 2}, 0, packet.PendingLimit},
		{"per destination", SocketsConfig{MaxPending: 100, MaxPendingPerDestination: 2}, 0, packet.PendingLimit},
		{"share of the sockets", SocketsConfig{MaxSessions: 8}, 0, packet.PendingLimit},
		{"sockets", SocketsConfig{MaxSessions: 12}, 10, packet.SocketLimit},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSandbox(t, c.cfg)
			server, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			for port := uint16(0); port < c.udp; port++ {
				s.send(datagram(netip.AddrPortFrom(dedicated1, 41010+port).String(), server.LocalAddr().String(), nil))
			}
			l := listenStuck(t)
			to := l.Addr().(*net.TCPAddr).AddrPort()
			for port := uint16(41000); port < 41002; port++ {
				s.send(syn(netip.AddrPortFrom(dedicated1, port), to, 7))
			}
			s.eventually("pending", func() bool { return s.up.Stats().Pending == 2 })
			s.send(syn(netip.AddrPortFrom(dedicated1, 41000), to, 7)) // repeated: no new one
			s.wantDrops(nil)
			refused := syn(netip.AddrPortFrom(dedicated1, 41002), to, 0xfeedbeef)
			s.send(append([]byte(nil), refused...))
			p := s.error(41002)
			if p.ICMPType != 3 || p.ICMPCode != 13 || p.Src != gateway || p.Dst != dedicated1 || p.Inner.Seq != 0xfeedbeef {
				t.Errorf("error %d/%d from %v to %v about sequence %x", p.ICMPType, p.ICMPCode, p.Src, p.Dst, p.Inner.Seq)
			}
			if got := p.B[p.Inner.Off:p.Inner.End]; !bytes.Equal(got, refused) {
				t.Errorf("quoted\n%x, want\n%x", got, refused)
			}
			s.wantDrops(map[packet.Outcome]uint64{c.want: 1})
			// Releasing one makes room, and nothing is pending at the end.
			s.up.Release(Flow{packet.TCP, netip.AddrPortFrom(dedicated1, 41000), to})
			s.eventually("pending", func() bool { return s.up.Stats().Pending == 1 })
			s.send(syn(netip.AddrPortFrom(dedicated1, 41003), to, 7))
			s.eventually("pending", func() bool { return s.up.Stats().Pending == 2 })
		})
	}
}

// The stack may not take a SYN that was admitted; its place must not be lost.
func TestUnclaimedSYNsAreForgotten(t *testing.T) {
	var x sessions
	slots := &budget{limit: 10}
	x.init(SocketsConfig{MaxPending: 2, MaxPendingPerDestination: 2}, slots)
	key := func(port uint16) flowKey {
		return flowKey{endpoint{[4]byte{127, 77, 0, 1}, port}, endpoint{[4]byte{127, 0, 0, 1}, 80}}
	}
	now := time.Now()
	for port := uint16(1); port <= 3; port++ {
		want := packet.Pass
		if port == 3 {
			want = packet.PendingLimit
		}
		if o := x.admit(key(port), nil, now); o != want {
			t.Errorf("SYN %d: %v, want %v", port, o, want)
		}
	}
	now = now.Add(unclaimedTime)
	if o := x.admit(key(3), nil, now); o != packet.Pass {
		t.Errorf("after %v: %v", unclaimedTime, o)
	}
	if open, pending := x.count(); open != 1 || pending != 1 || len(x.towards) != 1 || slots.used.Load() != 1 {
		t.Errorf("%d open, %d pending, %v, %d slots", open, pending, x.towards, slots.used.Load())
	}
}

// C-5: without a descriptor new flows are refused by ICMP 3/13.
func TestDescriptorsExhausted(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)
	to := l.Addr().(*net.TCPAddr).AddrPort()
	// The lowest free descriptor becomes the limit.
	fd, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(fd), Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	s.send(syn(netip.AddrPortFrom(dedicated1, 41100), to, 7))
	tcp := s.error(41100)
	s.send(datagram("127.77.0.1:41101", to.String(), []byte("x")))
	udp := s.error(41101)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	for _, p := range []packet.Packet{tcp, udp} {
		if p.ICMPType != 3 || p.ICMPCode != 13 {
			t.Errorf("error %d/%d, want 3/13", p.ICMPType, p.ICMPCode)
		}
	}
	s.wantDrops(map[packet.Outcome]uint64{packet.SocketLimit: 2})
}

func TestTCPPortRefused(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)
	taken, err := net.Listen("tcp4", "127.77.0.1:0") // another process's
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	from, to := taken.Addr().(*net.TCPAddr).AddrPort(), l.Addr().(*net.TCPAddr).AddrPort()
	s.send(syn(from, to, 7))
	want := Event{PortRefused, Flow{packet.TCP, from, to}}
	if e := s.event(); e != want {
		t.Errorf("event %v, want %v", e, want)
	}
	// The kernel still has a connection of these ends.
	busy, err := (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(dedicated1, 0)), Control: reuseAddress}).Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	from = busy.LocalAddr().(*net.TCPAddr).AddrPort()
	s.send(syn(from, to, 7))
	want.Flow.External = from
	if e := s.event(); e != want {
		t.Errorf("event %v, want %v", e, want)
	}
	s.wantDrops(map[packet.Outcome]uint64{packet.PortRefused: 2})
	if st := s.up.Stats(); st.TCP != 0 || st.Pending != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestTCPRelease(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)
	c := s.mustDial("10.9.0.1:40010", l.Addr())
	far := accept(t, l)
	flow := Flow{packet.TCP, netip.MustParseAddrPort("127.77.0.1:40010"), l.Addr().(*net.TCPAddr).AddrPort()}
	s.up.Release(Flow{packet.TCP, flow.External, netip.MustParseAddrPort("127.0.0.1:1")}) // unknown
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s.up.Release(flow)
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server reads %v after Release, want a reset", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("sandbox reads %v after Release, want a reset", err)
	}
	s.eventually("sessions", func() bool { return s.up.Stats().TCP == 0 })
	if n := len(s.up.linger.queues[0].waiting) + len(s.up.Events()); n != 0 {
		t.Errorf("%d events about a session that the table released", n)
	}
}

func TestTCPUnreachable(t *testing.T) {
	s := newSandbox(t, SocketsConfig{ConnectTimeout: 50 * time.Millisecond})
	l := listenStuck(t)
	to := l.Addr().(*net.TCPAddr).AddrPort()
	s.send(syn(netip.AddrPortFrom(dedicated1, 41200), to, 99))
	p := s.error(41200)
	if p.ICMPType != 3 || p.ICMPCode != 1 || p.Inner.Seq != 99 || p.Inner.Dst != to.Addr() {
		t.Errorf("error %d/%d about %v sequence %d", p.ICMPType, p.ICMPCode, p.Inner.Dst, p.Inner.Seq)
	}
	s.wantDrops(map[packet.Outcome]uint64{packet.Unreachable: 1})
}

func TestCloseEndsSessions(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l, never := listen(t), listenStuck(t)
	s.mustDial("10.9.0.1:0", l.Addr())
	far := accept(t, l)
	s.send(syn(netip.AddrPortFrom(dedicated1, 41300), never.Addr().(*net.TCPAddr).AddrPort(), 1))
	s.send(datagram("127.77.0.1:41301", "127.0.0.1:9", []byte("x")))
	s.eventually("sockets", func() bool { st := s.up.Stats(); return st.TCP == 2 && st.UDP == 1 })
	s.up.Close()
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server reads %v, want a reset", err)
	}
	if st := s.up.Stats(); st.TCP != 0 || st.UDP != 0 || st.Pending != 0 || s.up.sockets.used.Load() != 0 {
		t.Errorf("after Close: %+v, %d sockets", st, s.up.sockets.used.Load())
	}
	if _, err := s.up.Write([][]byte{{}}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	for range s.up.Events() { // ends because Close closed it
	}
	s.up.Close()
}

func TestNewSocketsNamesTheMissingAddress(t *testing.T) {
	missing := netip.MustParseAddr("203.0.113.77")
	_, err := NewSockets(SocketsConfig{Addresses: []netip.Addr{dedicated1, missing}, Gateway: gateway})
	if !errors.Is(err, unix.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "ip address add 203.0.113.77/32") {
		t.Errorf("error %v", err)
	}
	for name, cfg := range map[string]SocketsConfig{
		"none":    {Gateway: gateway},
		"twice":   {Gateway: gateway, Addresses: []netip.Addr{dedicated1, dedicated1}},
		"IPv6":    {Gateway: gateway, Addresses: []netip.Addr{netip.IPv6LinkLocalAllNodes()}},
		"gateway": {Addresses: []netip.Addr{dedicated1}},
		"limit":   {Gateway: gateway, Addresses: []netip.Addr{dedicated1}, MaxPending: -1},
	} {
		if _, err := NewSockets(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// syn builds a SYN as the translator hands it to the uplink.
func syn(from, to netip.AddrPort, seq uint32) []byte {
	b := make([]byte, 64)
	return b[:packet.BuildTCP(b, packet.TCPHeader{Src: from, Dst: to, Seq: seq, Flags: packet.SYN, Window: 65535, MSS: 1380, TTL: 63}, nil)]
}
