package tundev

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// A TUN with IFF_VNET_HDR puts a virtio_net_hdr in front of every packet, in both
// directions, in the byte order of the machine:
//
//	0  flags        the transport checksum is left to the device (needsChecksum)
//	1  type         the packet is a train, and of what kind
//	2  header bytes
//	4  segment size payload bytes of each segment
//	6  where the sum begins
//	8  where behind that the sum is to be put
//
// What stands there comes from the kernel of a sandbox, where it may have been made up
// by whoever owns the sandbox; so nothing of it is believed that the packet does not bear out.
const (
	vnetLen = 10

	needsChecksum = 1

	gsoNone = 0
	gsoTCP4 = 1
	gsoUDP  = 5
	gsoECN  = 0x80 // beside gsoTCP4: the first segment, and no other, has CWR
)

// maxSegments is the most that a train is believed to have. The smallest segments of TCP
// are of 36 bytes (Linux's least MSS of 48, less options): more are made up, to have us
// work on tens of thousands of packets for one system call.
const maxSegments = 1 << 11

// Places of the checksum fields in the transport headers.
const (
	tcpField = 16
	udpField = 6
)

// vnetHeader is a virtio_net_hdr.
type vnetHeader [vnetLen]byte

func (h *vnetHeader) word(at int) int { return int(binary.NativeEndian.Uint16(h[at:])) }

func (h *vnetHeader) setWord(at, v int) { binary.NativeEndian.PutUint16(h[at:], uint16(v)) }

// train makes t a train of the IPv4 packet b that came behind h. What is no train when it
// is looked at, or fits into one segment, gets its checksum here. It says whether h makes sense
// for b. The Cutter is one for the time being.
func (h *vnetHeader) train(b []byte, t *packet.Train, c *packet.Cutter) bool {
	partial := h[0]&needsChecksum != 0
	start, field := h.word(6), h.word(8)
	*t = packet.Train{Head: b}
	if h[1] == gsoNone {
		if !partial {
			return true
		}
		if total := int(binary.BigEndian.Uint16(b[2:])); total < len(b) {
			t.Head = b[:max(total, 20)] // what follows is no part of the sum
		}
		return packet.CompleteChecksum(t.Head, start, field)
	}
	size, wanted := h.word(4), -1
	switch proto := packet.Proto(b[9]); {
	case h[1]&^gsoECN == gsoTCP4 && proto == packet.TCP:
		wanted = tcpField
	case h[1] == gsoUDP && proto == packet.UDP:
		wanted = udpField
	}
	if !partial || size == 0 || field != wanted || start != int(b[0]&15)*4 {
		return false
	}
	t.Size, t.Partial = size, true
	if c.Start(t, maxMTU) != packet.Pass {
		return false
	}
	n, _ := t.Segments()
	if n > maxSegments {
		return false
	}
	if n == 1 {
		t.Checksum()
		t.Size, t.Partial = 0, false
		return packet.CompleteChecksum(b, start, field)
	}
	return true
}

// put makes h fit the train t, of whose payload size bytes are to be in each segment, and
// the checksum field of t fit h.
func (h *vnetHeader) put(t *packet.Train, size int) {
	*h = vnetHeader{}
	if !t.Partial {
		return
	}
	start, field, headers := t.Checksum()
	h[0] = needsChecksum
	h.setWord(2, headers)
	h.setWord(6, start)
	h.setWord(8, field)
	if t.Size == 0 {
		return
	}
	h.setWord(4, size)
	h[1] = gsoUDP
	if field == tcpField {
		const cwr = 0x80
		h[1] = gsoTCP4 | t.Head[start+13]&cwr // the same bit as gsoECN
	}
}

// Offload says what the kernel of a device does.
type Offload struct {
	VNet bool // packets have a virtio_net_hdr
	TCP  bool // trains of TCP pass
	UDP  bool // trains of UDP pass (Linux 6.2)
}

func (o Offload) String() string {
	switch {
	case o.UDP:
		return "checksums, TCP and UDP segmentation"
	case o.TCP:
		return "checksums and TCP segmentation; UDP segmentation needs Linux 6.2"
	case o.VNet:
		return "none: switched off, or refused by the kernel"
	}
	return "none: the interface has no vnet headers"
}

// adopt finds out whether packets of the TUN have vnet headers, and has the kernel offload
// as much as it can, or nothing. It needs no privilege.
func adopt(fd int, wanted bool) (Offload, error) {
	var o Offload
	req, err := unix.NewIfreq("")
	if err != nil {
		return o, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return o, err
	}
	if req.Uint16()&unix.IFF_VNET_HDR == 0 {
		return o, nil
	}
	n, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		return o, err
	}
	if n != vnetLen {
		return o, fmt.Errorf("its vnet headers have %d bytes; make it with %d", n, vnetLen)
	}
	return ask(wanted, func(bits int) bool { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, bits) == nil }), nil
}

// ask asks a kernel for as much as it has; set says whether it takes a set of offloads.
func ask(wanted bool, set func(bits int) bool) Offload {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO_ECN
	switch {
	case !wanted:
	case set(tcp | unix.TUN_F_USO4 | unix.TUN_F_USO6): // the kernel wants both of the latter or none
		return Offload{VNet: true, TCP: true, UDP: true}
	case set(tcp):
		return Offload{VNet: true, TCP: true}
	}
	set(0) // a kernel that refuses this offloads nothing anyhow
	return Offload{VNet: true}
}
