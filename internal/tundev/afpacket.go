package tundev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	ethernetHeader = 14
	etherTypeIPv4  = 0x0800
	// packetBuffer is the receive buffer asked for, in bytes; the kernel grants
	// what net.core.rmem_max allows.
	packetBuffer = 8 << 20
)

// OpenPacket opens an AF_PACKET socket (SOCK_RAW) on the Ethernet interface
// ifname of the calling thread's network namespace, for [FromPacket]. The
// interface is one end of a veth pair: what the owner of the other end sends is
// read, what is written arrives there. It needs CAP_NET_RAW in the namespace.
//
// The other end must have its checksum and segmentation offloads switched off;
// otherwise its kernel hands over packets whose checksums it never computed.
func OpenPacket(ifname string) (*os.File, error) {
	f, err := openPacket(ifname)
	if err == nil {
		return f, nil
	}
	remedy := ""
	switch {
	case errors.Is(err, fs.ErrPermission):
		remedy = ": give CAP_NET_RAW in the network namespace"
	case err == unix.ENODEV:
		remedy = ": there is no such interface in this network namespace"
	}
	return nil, fmt.Errorf("tundev: open packet socket on %q%s: %w", ifname, remedy, err)
}

func openPacket(ifname string) (_ *os.File, err error) {
	// Protocol 0 receives nothing until bind names the interface, so that no
	// packet of another interface can slip in between.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	req, err := unix.NewIfreq(ifname)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return nil, err
	}
	if err := preparePacket(fd); err != nil {
		return nil, err
	}
	addr := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: int(req.Uint32())}
	if err := unix.Bind(fd, addr); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet socket on "+ifname), nil
}

// preparePacket sets the options that a device relies on.
func preparePacket(fd int) error {
	// Without this the socket would read its own frames back (Linux 4.20).
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("ignore outgoing packets (Linux 4.20 or later): %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, packetBuffer) // best effort: a small buffer only drops earlier
	}
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// FromPacket makes a Device on a socket that OpenPacket returned, here or in
// another process. It strips and prepends the Ethernet header: frames go out
// from LocalMAC to PeerMAC, and every IPv4 frame that arrives is read, whatever
// its destination, since a peer without ARP (NOARP) addresses its frames to
// itself. The device owns f from now on, if the error is nil.
func FromPacket(f *os.File, c Config) (*Device, error) {
	m, err := newPacketMedium(f, c)
	if err != nil {
		return nil, err
	}
	return newDevice(f, maker{Config: c, medium: m, count: m.count})
}

// newPacketMedium checks the settings and takes the socket into use.
func newPacketMedium(f *os.File, c Config) (*packetMedium, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if len(c.PeerMAC) != 6 || len(c.LocalMAC) != 6 {
		return nil, errors.New("tundev: a packet socket needs LocalMAC and PeerMAC of 6 bytes: take them from the two ends of the veth pair")
	}
	room := ethernetHeader + c.MTU
	m := &packetMedium{count: &counters{}, in: make([]byte, room), out: make([]byte, room)}
	copy(m.out[0:6], c.PeerMAC)
	copy(m.out[6:12], c.LocalMAC)
	m.out[12], m.out[13] = etherTypeIPv4>>8, etherTypeIPv4&0xff
	err := control(f, func(fd int) error {
		addr, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		ll, ok := addr.(*unix.SockaddrLinklayer)
		if !ok || ll.Ifindex == 0 {
			return errors.New("not a packet socket bound to an interface")
		}
		m.ifindex = ll.Ifindex
		return preparePacket(fd)
	})
	if err != nil {
		return nil, fmt.Errorf("tundev: use %s: %w", f.Name(), err)
	}
	return m, nil
}

// packetMedium carries Ethernet frames. in belongs to Read's goroutine and out,
// which holds the constant header in front, to Write's; both have room for a frame
// of the MTU.
type packetMedium struct {
	count   *counters
	ifindex int
	in, out []byte
}

func (m *packetMedium) receive(fd int, b []byte) (int, error) {
	n, err := unix.Read(fd, m.in)
	if err != nil {
		return 0, err
	}
	return m.unpack(n, b)
}

// unpack copies the packet out of a frame of n bytes.
func (m *packetMedium) unpack(n int, b []byte) (int, error) {
	ip := m.in[min(ethernetHeader, n):n]
	if !isIPv4(ip) || m.etherType() != etherTypeIPv4 {
		m.count.notIPv4.Add(1)
		return 0, nil
	}
	// Ethernet pads short frames; the packet ends where its own header says. The
	// kernel cuts longer ones off.
	total := int(ip[2])<<8 | int(ip[3])
	if total >= 20 && total < len(ip) {
		ip = ip[:total]
	}
	if len(ip) > len(b) || total > len(ip) && n == len(m.in) {
		m.count.tooBig.Add(1)
		return 0, nil
	}
	return copy(b, ip), nil
}

// etherType is that of the frame that was read last, which is at least as long.
func (m *packetMedium) etherType() int { return int(m.in[12])<<8 | int(m.in[13]) }

func (m *packetMedium) send(fd int, b []byte) error {
	n := ethernetHeader + copy(m.out[ethernetHeader:], b)
	_, err := unix.Write(fd, m.out[:n])
	return err
}

// survives: a link that goes down is told once to the socket (ENETDOWN) and
// comes back by itself; only an interface that no longer exists ends the device.
func (m *packetMedium) survives(fd int, err error) bool {
	if err != unix.ENETDOWN {
		return false
	}
	_, err = m.name(fd)
	return err == nil
}

func (m *packetMedium) name(fd int) (string, error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	req.SetUint32(uint32(m.ifindex))
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFNAME, req); err != nil {
		return "", err
	}
	return req.Name(), nil
}
