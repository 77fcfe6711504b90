package far

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/wire"
)

// What the far side itself lost is not put down to the gateway.
func TestDroppedIsKnown(t *testing.T) {
	c, err := listenUDP(netip.MustParseAddrPort("127.0.0.1:0"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	k, err := newSocket(&Server{}, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) }); err != nil {
		t.Fatal(err)
	}
	if n := k.dropped(); n != 0 {
		t.Errorf("%d dropped before anything came", n)
	}
	from, err := net.Dial("udp", c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for range 1000 {
		if _, err := from.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if n := k.dropped(); n < 900 || n > 1000 {
		t.Errorf("%d of 1000 dropped, want nearly all", n)
	}
	if k.buffer <= 0 {
		t.Errorf("its buffer is %d bytes", k.buffer)
	}
}

// An upload may take longer than a connection has to say what it wants: it is answered all the same.
func TestLongSinkIsAnswered(t *testing.T) {
	s, err := New(Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Key: [wire.KeySize]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err = near.Write(make([]byte, 5)); err == nil {
		err = near.(*net.TCPConn).CloseWrite()
	}
	if err == nil {
		err = far.SetDeadline(time.Unix(1, 0)) // all that it had was long ago
	}
	if err != nil {
		t.Fatal(err)
	}
	c := &connection{TCPConn: far.(*net.TCPConn), server: s, first: make([]byte, wire.HeadSize)}
	if !c.sink(wire.Head{Kind: wire.KindSink, Run: 3}) {
		t.Error("it is not answered")
	}
	_ = far.Close()
	b, err := io.ReadAll(near)
	if h, ok := wire.Decode(b); err != nil || !ok || h.Kind != wire.KindSinkAnswer || h.Sequence != 5 {
		t.Errorf("%+v, %t, %v", h, ok, err)
	}
}
