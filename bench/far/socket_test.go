package far

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
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
