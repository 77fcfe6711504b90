package netstack

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// raw is a packet made by hand; its builders fill in lengths and checksums.
type raw struct {
	src, dst netip.AddrPort
	flags    header.TCPFlags
	seq, ack uint32
	window   uint16
	ttl, tos uint8
	options  []byte // of TCP
	payload  []byte
}

// tcp builds a TCP packet.
func (r raw) tcp() []byte {
	hdr := header.TCPMinimumSize + len(r.options)
	l4 := make([]byte, hdr+len(r.payload))
	h := header.TCP(l4)
	h.Encode(&header.TCPFields{
		SrcPort: r.src.Port(), DstPort: r.dst.Port(), SeqNum: r.seq, AckNum: r.ack,
		DataOffset: uint8(hdr), Flags: r.flags, WindowSize: r.window,
	})
	copy(l4[header.TCPMinimumSize:], r.options)
	copy(l4[hdr:], r.payload)
	b := r.ip(header.TCPProtocolNumber, l4)
	l4 = b[header.IPv4MinimumSize:]
	header.TCP(l4).SetChecksum(^checksum.Checksum(l4, r.pseudo(header.TCPProtocolNumber, len(l4))))
	return b
}

// udp builds a UDP packet.
func (r raw) udp() []byte {
	l4 := make([]byte, header.UDPMinimumSize+len(r.payload))
	copy(l4[header.UDPMinimumSize:], r.payload)
	header.UDP(l4).Encode(&header.UDPFields{SrcPort: r.src.Port(), DstPort: r.dst.Port(), Length: uint16(len(l4))})
	b := r.ip(header.UDPProtocolNumber, l4)
	l4 = b[header.IPv4MinimumSize:]
	header.UDP(l4).SetChecksum(^checksum.Checksum(l4, r.pseudo(header.UDPProtocolNumber, len(l4))))
	return b
}

// icmp builds an ICMP message; payload is what follows the first four bytes.
func (r raw) icmp(typ header.ICMPv4Type, code header.ICMPv4Code) []byte {
	l4 := append([]byte{byte(typ), byte(code), 0, 0}, r.payload...)
	sum := ^checksum.Checksum(l4, 0)
	l4[2], l4[3] = byte(sum>>8), byte(sum)
	return r.ip(header.ICMPv4ProtocolNumber, l4)
}

func (r raw) ip(proto tcpip.TransportProtocolNumber, l4 []byte) []byte {
	b := make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(l4))
	ttl := r.ttl
	if ttl == 0 {
		ttl = 64
	}
	h := header.IPv4(b)
	h.Encode(&header.IPv4Fields{
		TOS: r.tos, TotalLength: uint16(cap(b)), TTL: ttl, Protocol: uint8(proto),
		Flags: header.IPv4FlagDontFragment, SrcAddr: address(r.src.Addr()), DstAddr: address(r.dst.Addr()),
	})
	h.SetChecksum(^h.CalculateChecksum())
	return append(b, l4...)
}

func (r raw) pseudo(proto tcpip.TransportProtocolNumber, n int) uint16 {
	return header.PseudoHeaderChecksum(proto, address(r.src.Addr()), address(r.dst.Addr()), uint16(n))
}

// reader reads single packets of a device that nobody else reads.
type reader struct {
	t     testing.TB
	d     *Device
	bufs  [][]byte
	sizes []int
	n, at int
}

func newReader(t testing.TB, d *Device) *reader {
	r := &reader{t: t, d: d, bufs: make([][]byte, BatchSize), sizes: make([]int, BatchSize)}
	for i := range r.bufs {
		r.bufs[i] = make([]byte, 2048)
	}
	return r
}

// next returns a copy of the next packet, or nil when there is none.
func (r *reader) next() []byte {
	r.t.Helper()
	if r.at == r.n {
		r.d.Wake() // so that an empty queue is told from a slow one by nobody having to wait
		n, err := r.d.Read(r.bufs, r.sizes, 0)
		if err != nil {
			r.t.Fatalf("read: %v", err)
		}
		r.n, r.at = n, 0
		if n == 0 {
			return nil
		}
	}
	r.at++
	return append([]byte(nil), r.bufs[r.at-1][:r.sizes[r.at-1]]...)
}

// wait returns the next packet, for which it waits.
func (r *reader) wait() []byte {
	r.t.Helper()
	if r.at == r.n {
		n := 0
		for n == 0 {
			var err error
			if n, err = r.d.Read(r.bufs, r.sizes, 0); err != nil {
				r.t.Fatalf("read: %v", err)
			}
		}
		r.n, r.at = n, 0
	}
	return r.next()
}

// write gives one packet to the device.
func write(t testing.TB, d *Device, pkts ...[]byte) {
	t.Helper()
	if n, err := d.Write(pkts, 0); err != nil || n != len(pkts) {
		t.Fatalf("write: %d, %v", n, err)
	}
}

// headers returns the IP and TCP headers of a packet.
func headers(t testing.TB, b []byte) (header.IPv4, header.TCP) {
	t.Helper()
	if len(b) < header.IPv4MinimumSize+header.TCPMinimumSize || b[ipProtocol] != byte(header.TCPProtocolNumber) {
		t.Fatalf("not a TCP packet: %x", b)
	}
	ip := header.IPv4(b)
	return ip, header.TCP(ip.Payload())
}
