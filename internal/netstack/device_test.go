package netstack

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestConfig(t *testing.T) {
	nothing := handler(func(*Request) {})
	for name, c := range map[string]Config{
		"no address":         {},
		"IPv6":               {Addresses: []netip.Addr{netip.IPv6Loopback()}},
		"small MTU":          {Addresses: []netip.Addr{clientAddr}, MTU: 60},
		"large MTU":          {Addresses: []netip.Addr{clientAddr}, MTU: 70000},
		"small queue":        {Addresses: []netip.Addr{clientAddr}, Queue: 10},
		"no pending":         {Addresses: []netip.Addr{clientAddr}, MaxPending: -1},
		"no handler":         {Intercept: true},
		"handler for naught": {Addresses: []netip.Addr{clientAddr}, Handler: nothing},
		"negative time":      {Addresses: []netip.Addr{clientAddr}, TimeWait: -1},
		"buffers":            {Addresses: []netip.Addr{clientAddr}, ReceiveBuffer: 1 << 20, MaxBuffer: 1 << 19},
		"twice the address":  {Addresses: []netip.Addr{clientAddr, clientAddr}},
	} {
		if d, err := New(c); err == nil {
			d.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTUNDevice(t *testing.T) {
	d := open(t, clientConfig())
	if mtu, err := d.MTU(); mtu != 1420 || err != nil {
		t.Errorf("MTU %d, %v", mtu, err)
	}
	if d.BatchSize() != 128 || d.File() != nil {
		t.Errorf("batch %d, file %v", d.BatchSize(), d.File())
	}
	if _, up := <-d.Events(); !up {
		t.Error("no event")
	}
	d.Close()
	if _, up := <-d.Events(); up {
		t.Error("events stay open after Close")
	}
}

func TestInjectAndWake(t *testing.T) {
	c := clientConfig()
	c.Queue = BatchSize
	d := open(t, c)
	r := newReader(t, d)
	if b := r.next(); b != nil {
		t.Fatalf("read %x after Wake, want nothing", b)
	}
	pkt := bytes.Repeat([]byte{7}, 100)
	for i := range BatchSize {
		pkt[0] = byte(i)
		if !d.Inject(pkt) {
			t.Fatalf("inject %d refused", i)
		}
	}
	if d.Inject(pkt) {
		t.Error("injected into a full queue")
	}
	n, err := d.Read(r.bufs, r.sizes, 10)
	if err != nil || n != BatchSize {
		t.Fatalf("read %d, %v; want a whole batch", n, err)
	}
	for i := range n {
		pkt[0] = byte(i)
		if !bytes.Equal(r.bufs[i][10:10+r.sizes[i]], pkt) {
			t.Fatalf("packet %d: %x", i, r.bufs[i][:110])
		}
	}
	if d.Inject(make([]byte, 1421)) {
		t.Error("injected a packet above the MTU")
	}
	if st := d.Stats(); st.Injected != BatchSize || st.InjectRefused != 2 || st.PacketsOut != BatchSize || st.Queued != 0 {
		t.Errorf("stats %+v", st)
	}
	if _, err := d.Read([][]byte{make([]byte, 1419)}, r.sizes, 0); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("read into a short buffer: %v", err)
	}
}

// TestWakeUnblocks wakes a Read that has nothing to read.
func TestWakeUnblocks(t *testing.T) {
	d := open(t, clientConfig())
	r := newReader(t, d)
	read := make(chan int)
	go func() {
		n, _ := d.Read(r.bufs, r.sizes, 0)
		read <- n
	}()
	d.Wake()
	if n := <-read; n != 0 {
		t.Errorf("read %d", n)
	}
}

func TestClose(t *testing.T) {
	d := open(t, clientConfig())
	r := newReader(t, d)
	read := make(chan error)
	go func() {
		_, err := d.Read(r.bufs, r.sizes, 0)
		read <- err
	}()
	d.Close()
	if err := <-read; !errors.Is(err, os.ErrClosed) {
		t.Errorf("blocked read: %v", err)
	}
	if _, err := d.Read(r.bufs, r.sizes, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if _, err := d.Write([][]byte{{}}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if d.Inject([]byte{1}) {
		t.Error("injected into a closed device")
	}
	local := netip.AddrPortFrom(clientAddr, 0)
	remote := netip.AddrPortFrom(serverAddr, 80)
	_, dial := d.DialTCP(testContext(t), local, remote)
	_, listen := d.ListenTCP(local)
	_, udp := d.ListenUDP(local)
	for _, err := range []error{dial, listen, udp} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v, want os.ErrClosed", err)
		}
	}
	d.Close()
}

// TestDropped gives the device what it must not pass on, and one good packet.
func TestDropped(t *testing.T) {
	good := raw{src: netip.AddrPortFrom(serverAddr, 1000), dst: netip.AddrPortFrom(clientAddr, 2000), flags: header.TCPFlagSyn}
	edit := func(b []byte, f func([]byte)) []byte {
		f(b)
		return b
	}
	ipSum := func(b []byte) {
		h := header.IPv4(b)
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	}
	echo := raw{src: good.src, dst: good.dst, payload: []byte{0, 1, 0, 1}}
	udp := raw{src: good.src, dst: good.dst, payload: []byte("hello")}
	d := open(t, clientConfig())
	write(t, d,
		nil,
		make([]byte, 19),
		edit(good.tcp(), func(b []byte) { b[0] = 0x65 }),
		edit(good.tcp(), func(b []byte) { b[0] = 0x44 }),
		good.tcp()[:30],
		edit(good.tcp(), func(b []byte) { b[20+tcpOffset] = 0x40 }),
		edit(good.tcp(), func(b []byte) { b[20+tcpOffset] = 0xf0 }),
		edit(udp.udp(), func(b []byte) { b[20+udpLength+1] = 7 }),
		edit(udp.udp(), func(b []byte) { b[20+udpLength+1] = 200 }),
	)
	write(t, d,
		edit(good.tcp(), func(b []byte) { b[ipTTL]-- }),
		edit(good.tcp(), func(b []byte) { b[25]++ }),
		edit(udp.udp(), func(b []byte) { b[30]++ }),
		edit(echo.icmp(header.ICMPv4Echo, 0), func(b []byte) { b[24]++ }),
	)
	write(t, d,
		edit(good.tcp(), func(b []byte) { b[ipFragment] = 0x20; ipSum(b) }),
		edit(good.tcp(), func(b []byte) { b[ipFragment+1] = 1; ipSum(b) }),
	)
	write(t, d, good.tcp())
	st := d.Stats()
	if st.Malformed != 9 || st.BadChecksum != 4 || st.Fragments != 2 || st.PacketsIn != 1 || st.ResetsSent != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestEchoIsAnswered(t *testing.T) {
	d := open(t, clientConfig())
	r := newReader(t, d)
	write(t, d, raw{src: netip.AddrPortFrom(serverAddr, 0), dst: netip.AddrPortFrom(clientAddr, 0), payload: []byte{0, 9, 0, 1, 'x'}}.icmp(header.ICMPv4Echo, 0))
	b := r.wait()
	if ip := header.IPv4(b); ip.SourceAddress() != address(clientAddr) || ip.DestinationAddress() != address(serverAddr) {
		t.Errorf("reply from %v to %v", ip.SourceAddress(), ip.DestinationAddress())
	}
	if want := []byte{0, 9, 0, 1, 'x'}; b[20] != byte(header.ICMPv4EchoReply) || !bytes.Equal(b[24:], want) {
		t.Errorf("reply %x", b[20:])
	}
}

func TestUDP(t *testing.T) {
	n := connect(t, clientConfig(), serverConfig(), nil)
	server, err := n.server.ListenUDP(netip.AddrPortFrom(serverAddr, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := n.client.DialUDP(netip.AddrPortFrom(clientAddr, 0), netip.AddrPortFrom(serverAddr, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(deadlineOf(t))
	server.SetDeadline(deadlineOf(t))
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	k, from, err := server.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:k]) != "ping" || from != client.LocalAddrPort() {
		t.Fatalf("%q from %v, %v", buf[:k], from, err)
	}
	if _, err := server.WriteToUDPAddrPort([]byte("pong"), from); err != nil {
		t.Fatal(err)
	}
	if k, err := client.Read(buf); err != nil || string(buf[:k]) != "pong" {
		t.Fatalf("%q, %v", buf[:k], err)
	}
	server.Close()
	if _, _, err := server.ReadFrom(buf); err == nil {
		t.Error("read of a closed socket")
	}
	// Nobody listens any more: the other stack says so.
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(buf); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("read: %v, want ECONNREFUSED", err)
	}
}

func FuzzWrite(f *testing.F) {
	r := raw{src: netip.AddrPortFrom(serverAddr, 1000), dst: netip.AddrPortFrom(clientAddr, 2000), flags: header.TCPFlagAck, payload: []byte("hello")}
	f.Add(r.tcp())
	f.Add(r.udp())
	f.Add(r.icmp(header.ICMPv4DstUnreachable, header.ICMPv4FragmentationNeeded))
	plain, err := New(clientConfig())
	if err != nil {
		f.Fatal(err)
	}
	all, err := New(interceptConfig(func(r *Request) { r.Reset() }))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		plain.Close()
		all.Close()
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, d := range []*Device{plain, all} {
			got, v := d.admit(b)
			if v == admitted {
				ip := header.IPv4(got)
				if !ip.IsValid(len(got)) || !ip.IsChecksumValid() {
					t.Errorf("admitted a broken IP header: %x", got)
				}
			}
			write(t, d, b, b)
			newReader(t, d).next() // so that replies do not fill the queue
		}
	})
}
