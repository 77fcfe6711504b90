package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Check implements Uplink by a TCP connect of its own.
//
// Its port is the kernel's choice at the moment of the connect (see ip(7),
// IP_BIND_ADDRESS_NO_PORT), so that none is held before, and one that a session
// has towards the same remote end is not taken. Where a session wants the check's
// port for that remote end in the same moment, it is refused and gets another. The
// connection ends by RST, so that nothing of it stays.
func (s *Sockets) Check(ctx context.Context, from netip.Addr, to netip.AddrPort) error {
	if !from.Is4() || !s.holds(from.As4()) {
		return fmt.Errorf("check whether %v answers: %v is none of the uplink's addresses", to, from)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	dialer := net.Dialer{KeepAlive: -1, Control: bindLate}
	c, err := dialer.DialTCP(ctx, "tcp4", netip.AddrPortFrom(from, 0), to)
	switch {
	case err == nil:
		reset(c)
		return nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ECONNRESET):
		return nil // a remote end that refuses is one that answers
	case s.ctx.Err() != nil:
		return os.ErrClosed
	}
	return fmt.Errorf("check whether %v answers %v: %w", to, from, err)
}

// bindLate leaves the choice of a port to connect, and shares the port with
// connections to other remote ends.
func bindLate(network, address string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	return errors.Join(err, failed, reuseAddress(network, address, c))
}
