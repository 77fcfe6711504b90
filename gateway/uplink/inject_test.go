package uplink

import (
	"golang.org/x/sys/unix"
)

// inject puts a packet before the uplink as it is, past the routing of its host.
func (l *tunLab) inject(b []byte) {
	l.t.Helper()
	err := l.host.Do(func() error {
		const ip = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq(l.up.Interface())
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
			return err
		}
		return unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: int(req.Uint32())})
	})
	if err != nil {
		l.t.Fatal(err)
	}
}
