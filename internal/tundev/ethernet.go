package tundev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// An Ethernet of two (FromEthernet): the peer, who may be a stack of its own that
// takes its neighbours for real, and the local end, which is its router.
//
// A frame goes on if its sender is the peer's MAC, and it holds IPv4. ARP is answered
// for the local address and for no other (RFC 826), to nobody but the peer; a
// sender in ARP that is not the peer's own pair of addresses, or no address yet
// (RFC 5227), is counted as spoofed. A packet that is longer than the MTU and must not
// be fragmented is answered with the MTU (RFC 1191), because no kernel of ours is
// at that end that would know it. Everything else is dropped and counted.

const (
	etherTypeARP = 0x0806
	arpSize      = 28
	arpRequest   = 1
	arpReply     = 2
	// usualMTU is that of an Ethernet that was told of no other, in bytes.
	usualMTU = 1500
	// answerSize is the most that is answered with: an ICMP error in its frame.
	answerSize = ethernetHeader + 576
)

// FromEthernet makes a Device on a socket that OpenPacket returned, for a peer that
// speaks ARP and may be anyone. It needs both MACs and both addresses. The
// device owns f from now on, if the error is nil.
func FromEthernet(f *os.File, c Config) (*Device, error) {
	if !c.LocalAddr.Is4() || !c.PeerAddr.Is4() {
		return nil, errors.New("tundev: an Ethernet needs LocalAddr and PeerAddr: IPv4 addresses")
	}
	p, err := newPacketMedium(f, c)
	if err != nil {
		return nil, err
	}
	// What the peer's link carries may be longer than the MTU.
	p.in = make([]byte, ethernetHeader+max(c.MTU, usualMTU))
	m := &ethernetMedium{packetMedium: p, config: c, mtu: c.MTU}
	copy(m.answer[:], p.out[:ethernetHeader])
	return newDevice(f, maker{Config: c, medium: m, count: m.count})
}

// ethernetMedium is a packetMedium with an eye on who sends. answer belongs to
// Read's goroutine; its header is that of frames to the peer.
type ethernetMedium struct {
	*packetMedium
	config Config
	mtu    int
	about  packet.Packet
	answer [answerSize]byte
}

func (m *ethernetMedium) receive(fd int, b []byte) (int, error) {
	n, err := unix.Read(fd, m.in)
	if err != nil {
		return 0, err
	}
	if n < ethernetHeader {
		m.count.notIPv4.Add(1)
		return 0, nil
	}
	if !bytes.Equal(m.in[6:12], m.config.PeerMAC) {
		m.count.spoofed.Add(1)
		return 0, nil
	}
	switch m.etherType() {
	case etherTypeARP:
		m.resolve(fd, m.in[ethernetHeader:n])
		return 0, nil
	case etherTypeIPv4:
		if m.tooBig(fd, m.in[ethernetHeader:n]) {
			return 0, nil
		}
	}
	return m.unpack(n, b)
}

// resolve takes an ARP packet.
func (m *ethernetMedium) resolve(fd int, arp []byte) {
	// Ethernet and IPv4, whose addresses are 6 and 4 bytes long.
	if len(arp) < arpSize || binary.BigEndian.Uint64(arp)>>16 != 0x0001_0800_0604 {
		m.count.notIPv4.Add(1)
		return
	}
	operation := binary.BigEndian.Uint16(arp[6:])
	senderMAC, sender, target := net.HardwareAddr(arp[8:14]), [4]byte(arp[14:18]), [4]byte(arp[24:28])
	unset := sender == [4]byte{}
	switch {
	case !bytes.Equal(senderMAC, m.config.PeerMAC) || sender != m.config.PeerAddr.As4() && !unset:
		m.count.spoofed.Add(1)
	case operation != arpRequest || target != m.config.LocalAddr.As4():
		m.count.notIPv4.Add(1) // there is nobody else to ask for, or to tell
	default:
		a := m.answer[ethernetHeader : ethernetHeader+arpSize]
		copy(a, arp[:6])
		binary.BigEndian.PutUint16(a[6:], arpReply)
		copy(a[8:14], m.config.LocalMAC)
		copy(a[14:18], target[:])
		copy(a[18:24], senderMAC)
		copy(a[24:28], sender[:])
		m.reply(fd, etherTypeARP, arpSize)
	}
}

// tooBig answers a packet beyond the MTU, and says whether it was one.
func (m *ethernetMedium) tooBig(fd int, ip []byte) bool {
	if len(ip) <= m.mtu || packet.Parse(&m.about, ip) != packet.Pass || len(m.about.B) <= m.mtu {
		return false
	}
	m.count.tooBig.Add(1)
	if m.about.DF && m.about.Src == m.config.PeerAddr {
		n := packet.BuildICMPError(m.answer[ethernetHeader:], packet.ICMPUnreachable, 4, uint32(m.mtu), m.config.LocalAddr, &m.about)
		m.reply(fd, etherTypeIPv4, n)
	}
	return true
}

// reply sends the answer of n bytes behind its header, unless that would have to wait.
func (m *ethernetMedium) reply(fd int, etherType uint16, n int) {
	if n == 0 {
		return
	}
	binary.BigEndian.PutUint16(m.answer[12:], etherType)
	if _, err := unix.Write(fd, m.answer[:ethernetHeader+n]); err == nil {
		m.count.answered.Add(1)
	}
}
