package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A capture reads from a ring that it shares with the kernel (PACKET_MMAP,
// TPACKET_V2) and not from a socket's buffer: the buffer's size is limited by
// net.core.rmem_max for all but real root, the ring's is not. A frame holds the
// kernel's header, the link-layer address, and the first bytes from the IP
// header on; a busy link needs 0.8 s to fill the ring with 80,000 packets a second.
const (
	frameSize  = 256
	frames     = 1 << 16
	blockSize  = 1 << 18
	snapLength = 128 // bytes of a packet that are kept: the longest headers of IPv4 and TCP
	// addressOffset is where struct sockaddr_ll stands in a frame.
	addressOffset = unix.SizeofTpacket2Hdr
	// everyProtocol is what a packet socket binds to for all of a link's frames.
	everyProtocol = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
)

// ring is a ring of frames shared with the kernel. Its owner serialises the calls.
type ring struct {
	fd     int
	memory []byte
	at     int // the frame that the kernel fills next, as far as was read
}

// openRing opens a packet socket with a ring on a link of the calling thread's
// network namespace.
func openRing(link string) (_ *os.File, _ *ring, err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open packet socket (needs CAP_NET_RAW): %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	req, err := unix.NewIfreq(link)
	if err != nil {
		return nil, nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return nil, nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return nil, nil, fmt.Errorf("choose ring format: %w", err)
	}
	keep := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: snapLength}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &keep[0]}); err != nil {
		return nil, nil, fmt.Errorf("set length of capture: %w", err)
	}
	size := &unix.TpacketReq{Block_size: blockSize, Block_nr: frames * frameSize / blockSize, Frame_size: frameSize, Frame_nr: frames}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, size); err != nil {
		return nil, nil, fmt.Errorf("make ring: %w", err)
	}
	memory, err := unix.Mmap(fd, 0, frames*frameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map ring: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Munmap(memory)
		}
	}()
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everyProtocol, Ifindex: int(req.Uint32())}); err != nil {
		return nil, nil, fmt.Errorf("bind: %w", err)
	}
	return os.NewFile(uintptr(fd), "capture on "+link), &ring{fd: fd, memory: memory}, nil
}

func (r *ring) close() error { return unix.Munmap(r.memory) }

// lost returns the packets that the kernel had no room for, since the last call.
func (r *ring) lost() uint64 {
	stats, err := unix.GetsockoptTpacketStats(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return uint64(stats.Drops)
}

// next takes the next packet out of the ring.
func (r *ring) next() (Packet, bool) {
	frame := r.memory[r.at*frameSize : (r.at+1)*frameSize]
	header := (*unix.Tpacket2Hdr)(unsafe.Pointer(&frame[0]))
	// The status word hands the frame over: the kernel writes it last, and so do we.
	status := &header.Status
	if atomic.LoadUint32(status)&unix.TP_STATUS_USER == 0 {
		return Packet{}, false
	}
	p := Packet{
		At:        time.Unix(int64(header.Sec), int64(header.Nsec)),
		EtherType: binary.BigEndian.Uint16(frame[addressOffset+2:]),
		Out:       frame[addressOffset+10] == unix.PACKET_OUTGOING,
		Length:    int(header.Len),
	}
	start := min(int(header.Net), frameSize)
	p.parse(frame[start:min(start+int(header.Snaplen), frameSize)])
	atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
	r.at = (r.at + 1) % frames
	return p, true
}

// parse fills in what the headers in b say.
func (p *Packet) parse(b []byte) {
	switch {
	case p.EtherType == unix.ETH_P_IP && len(b) >= 20:
		offset := binary.BigEndian.Uint16(b[6:])
		p.Fragment = offset&0x3fff != 0 // more fragments, or not the first
		p.Proto = b[9]
		src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		p.transport(src, dst, b[min(int(b[0]&15)*4, len(b)):], offset&0x1fff == 0)
	case p.EtherType == unix.ETH_P_IPV6 && len(b) >= 40:
		p.Proto = b[6]
		p.transport(netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[40:], true)
	}
}

// transport fills in what the transport header in b says, if it is one.
func (p *Packet) transport(src, dst netip.Addr, b []byte, present bool) {
	var from, to uint16
	if present && len(b) >= 8 {
		switch p.Proto {
		case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
			from, to = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
			if p.Proto == unix.IPPROTO_TCP && len(b) >= 14 {
				p.TCPFlags = b[13]
			}
		case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
			p.ICMPType, p.ICMPCode = b[0], b[1]
			if p.Proto == unix.IPPROTO_ICMP && (b[0] == 0 || b[0] == 8) {
				from = binary.BigEndian.Uint16(b[4:])
				to = from
			}
			if p.Proto == unix.IPPROTO_ICMP {
				p.quoted(b)
			}
		}
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
}

// quoted fills in what an ICMP message quotes, if it is an error (RFC 792).
func (p *Packet) quoted(b []byte) {
	const unreachable, quench, redirect, exceeded, parameter = 3, 4, 5, 11, 12
	switch b[0] {
	case unreachable, quench, redirect, exceeded, parameter:
		if len(b) >= 8+20 {
			p.QuotedSrc, p.QuotedDst = netip.AddrFrom4([4]byte(b[8+12:])), netip.AddrFrom4([4]byte(b[8+16:]))
		}
	}
}
