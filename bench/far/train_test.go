package far_test

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// sendTrain lets the kernel cut a train into datagrams, which loopback does not.
func sendTrain(t *testing.T, c *net.UDPConn, train []byte, size int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if _, err := c.Write(train); err != nil {
		t.Fatal(err)
	}
}
