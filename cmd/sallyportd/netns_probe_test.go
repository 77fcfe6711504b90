package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// probe is a UDP socket whose datagrams must not be cut, and that is told what becomes
// of them.
type probe struct {
	c   *net.UDPConn
	raw syscall.RawConn
}

// newProbe makes one of a socket, which stays the caller's.
func newProbe(c *net.UDPConn) (probe, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return probe{}, err
	}
	p := probe{c, raw}
	return p, errors.Join(p.set(unix.IP_RECVERR, 1), p.set(unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO))
}

// set sets an option of IP.
func (p probe) set(option, value int) error {
	var failed error
	err := p.raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, option, value) })
	return errors.Join(err, failed)
}

// send sends, where the socket is connected, to its peer.
//
// The kernel puts an ICMP error into the queue, and then notes it for the next call. Who takes
// it out of the queue in between has that call fail once more, which sends nothing.
func (p probe) send(to netip.AddrPort, b []byte) (err error) {
	for range 2 {
		if p.c.RemoteAddr() == nil {
			_, err = p.c.WriteToUDPAddrPort(b, to)
		} else {
			_, err = p.c.Write(b)
		}
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ECONNREFUSED) {
			break
		}
	}
	return err
}

// verdict is an ICMP error as a socket is told of it, and by whom.
type verdict struct {
	typ, code uint8
	info      uint32 // of 3/4 the MTU
	by        netip.Addr
}

// told waits for an ICMP error about what the socket sent.
func (p probe) told(within time.Duration) (v verdict, err error) {
	_ = p.c.SetReadDeadline(time.Now().Add(within))
	defer func() { _ = p.c.SetReadDeadline(time.Time{}) }()
	var failed error
	err = p.raw.Read(func(fd uintptr) bool {
		v, failed = nextVerdict(int(fd))
		return !errors.Is(failed, unix.EAGAIN)
	})
	return v, errors.Join(err, failed)
}

// nextVerdict takes one error from a socket's queue.
func nextVerdict(fd int) (v verdict, err error) {
	oob := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 2048), oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return v, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	for _, m := range messages {
		const size = int(unsafe.Sizeof(unix.SockExtendedErr{}))
		d := m.Data
		if m.Header.Level != unix.IPPROTO_IP || m.Header.Type != unix.IP_RECVERR || len(d) < size+8 {
			continue
		}
		if d[4] != unix.SO_EE_ORIGIN_ICMP {
			return v, fmt.Errorf("an error of origin %d", d[4])
		}
		return verdict{d[5], d[6], binary.NativeEndian.Uint32(d[8:]), netip.AddrFrom4([4]byte(d[size+4:]))}, err
	}
	return v, errors.Join(err, errors.New("an error without a reason"))
}

// tooBig returns what the way of a datagram that it is too narrow for takes.
func tooBig(ctx context.Context, t task) (int64, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp4", t.Target)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	p, err := newProbe(c.(*net.UDPConn))
	if err == nil {
		err = p.send(netip.AddrPort{}, make([]byte, t.Size))
	}
	if err != nil {
		return 0, err
	}
	v, err := p.told(5 * time.Second)
	if err == nil && (v.typ != 3 || v.code != 4) {
		err = fmt.Errorf("told ICMP %d/%d", v.typ, v.code)
	}
	return int64(v.info), err
}

// sendRaw sends IPv4 packets from a machine as they are.
func sendRaw(n *netlab.Namespace, packets ...[]byte) error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		for _, b := range packets {
			if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: [4]byte(b[16:])}); err != nil {
				return fmt.Errorf("send %d bytes: %w", len(b), err)
			}
		}
		return nil
	})
}
