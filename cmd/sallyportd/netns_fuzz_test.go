package main

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// seedVariable makes fuzzed traffic the same as in the run that printed the seed, as far
// as the order of goroutines lets it be.
const seedVariable = "SALLYPORT_SEED"

// newSeed returns a seed and prints it.
func newSeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s=%q is no seed: %v", seedVariable, text, err)
		}
	}
	t.Logf("the seed is %d (%s)", seed, seedVariable)
	return seed
}

// fuzzer makes packets that no stack would send.
type fuzzer struct {
	*rand.Rand
	own netip.Addr
	b   [1600]byte
}

func pick[T any](f *fuzzer, from ...T) T { return from[f.IntN(len(from))] }

func (f *fuzzer) any4() netip.Addr {
	return netip.AddrFrom4([4]byte{byte(f.Uint32()), byte(f.Uint32()), byte(f.Uint32()), byte(f.Uint32())})
}

// source is mostly its own address, else one that it has no right to.
func (f *fuzzer) source() netip.Addr {
	if f.IntN(10) < 6 {
		return f.own
	}
	return pick(f, innerGateway, f.own.Next(), f.own.Prev(), acmePair[0], globexPair[1], iad1Addr, workerAddr, originAddr,
		netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("255.255.255.255"), f.any4())
}

// destination is mostly the origin. It is never the worker's own address, which would answer.
func (f *fuzzer) destination() netip.Addr {
	if f.IntN(10) < 6 {
		return originAddr
	}
	return pick(f, nameServer, lostAddr, refusedByHub, refusedHere, innerGateway, f.own.Next(), f.own.Prev(), acmePair[0], acmePair[1], globexPair[0], iad1Addr,
		netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("192.0.2.255"), f.any4())
}

func (f *fuzzer) port() uint16 {
	return pick[uint16](f, portHTTP, portUDP, portEcho, portClosed, 53, 0, 67, 51820, packet.ProbePort, 40000, uint16(f.Uint32()))
}

func (f *fuzzer) ttl() byte { return pick[byte](f, 64, 64, 64, 0, 1, 2, 3, 4, 255) }

// payload is some bytes, up to a little more than the MTU leaves.
func (f *fuzzer) payload() []byte {
	b := make([]byte, pick(f, 0, 1, 8, 31, 512, f.IntN(1450)))
	for i := range b {
		b[i] = byte(f.Uint32())
	}
	return b
}

// next makes a packet. It is valid until the next call.
func (f *fuzzer) next() []byte {
	n := 0
	src, dst := netip.AddrPortFrom(f.source(), f.port()), netip.AddrPortFrom(f.destination(), f.port())
	switch f.IntN(8) {
	case 0, 1:
		n = packet.BuildTCP(f.b[:], packet.TCPHeader{
			Src: src, Dst: dst, Seq: f.Uint32(), Ack: f.Uint32(), Flags: packet.TCPFlags(pick[byte](f, 0x02, 0x10, 0x18, 0x04, 0x11, 0x00, 0xff, byte(f.Uint32()))),
			Window: uint16(f.Uint32()), MSS: pick[uint16](f, 0, 1460, 1, 65535), TTL: f.ttl(), ID: pick(f, uint16(0), uint16(f.Uint32())),
		}, f.payload())
	case 2, 3:
		n = packet.BuildUDP(f.b[:], src, dst, f.payload(), f.ttl(), pick(f, uint16(0), uint16(f.Uint32())))
	case 4:
		n = packet.BuildICMPEcho(f.b[:], packet.Echo{Src: src.Addr(), Dst: dst.Addr(), Reply: f.IntN(2) == 0, Ident: src.Port(), Seq: dst.Port(), TTL: f.ttl()}, f.payload())
	case 5:
		n = f.icmpError(src.Addr(), dst.Addr())
	case 6: // some other protocol
		n = packet.BuildUDP(f.b[:], src, dst, f.payload(), f.ttl(), 0)
		f.b[9] = pick[byte](f, 0, 2, 4, 41, 47, 50, 51, 89, 132, 136, 255, byte(f.Uint32()))
	case 7: // IPv6, or nothing known
		copy(f.b[:], f.payload())
		n = 40 + f.IntN(100)
		if f.b[0] = byte(f.Uint32()); f.IntN(2) == 0 {
			f.b[0] = 0x60
			binary.BigEndian.PutUint16(f.b[4:], uint16(n-40))
		}
		return f.b[:n]
	}
	return f.spoil(n)
}

// icmpError is one about a packet of its own, or of others.
func (f *fuzzer) icmpError(src, dst netip.Addr) int {
	n := packet.BuildICMPEcho(f.b[:], packet.Echo{Src: src, Dst: dst, TTL: f.ttl()}, make([]byte, 28+f.IntN(100)))
	packet.BuildUDP(f.b[28:n], netip.AddrPortFrom(pick(f, dst, f.own, acmePair[0]), f.port()), netip.AddrPortFrom(pick(f, src, f.own, originAddr), f.port()), nil, f.ttl(), 0)
	f.b[20], f.b[21] = pick[byte](f, 3, 3, 4, 5, 11, 12, byte(f.Uint32())), byte(f.IntN(16))
	f.b[28+9] = pick[byte](f, 17, 6, 1, byte(f.Uint32()))
	f.b[22], f.b[23] = 0, 0
	binary.BigEndian.PutUint16(f.b[22:], ^sum16(f.b[20:n]))
	return n
}

// spoil makes a packet a fragment, gives it options or breaks its header, and mostly
// makes the header's checksum good again.
func (f *fuzzer) spoil(n int) []byte {
	if f.IntN(4) == 0 {
		binary.BigEndian.PutUint16(f.b[4:], uint16(f.IntN(4))) // a few datagrams, whose fragments overlap
		binary.BigEndian.PutUint16(f.b[6:], pick[uint16](f, 0x2000, 0x2000, 0x2000|uint16(f.IntN(200)), uint16(f.IntN(200)), uint16(f.Uint32())))
	}
	if f.IntN(6) == 0 { // options, in what was the beginning of the payload
		f.b[0] = 0x40 | byte(f.IntN(16))
		f.b[20] = pick[byte](f, 0, 1, 7, 68, 131, 137, 148, byte(f.Uint32()))
	}
	if f.IntN(8) == 0 {
		f.b[f.IntN(min(n, 60))] = byte(f.Uint32())
	}
	if f.IntN(8) == 0 {
		binary.BigEndian.PutUint16(f.b[2:], uint16(f.Uint32()))
	}
	head := int(f.b[0]&15) * 4
	if f.IntN(8) != 0 && head >= 20 && head <= n {
		f.b[10], f.b[11] = 0, 0
		binary.BigEndian.PutUint16(f.b[10:], ^sum16(f.b[:head]))
	}
	return f.b[:n]
}

// sum16 is the sum that Internet checksums are the complement of (RFC 1071).
func sum16(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// spray is the raw sockets of somebody who is root in a sandbox.
type spray struct {
	ip, link int // by the routes; and by the interface alone, whatever they say
	ethernet bool
	to       unix.SockaddrLinklayer
	own, far net.HardwareAddr
}

// newSpray opens raw sockets in a namespace, the second on a link.
func newSpray(ns *hostnet.Namespace, link string, ethernet bool) (*spray, error) {
	s := &spray{ip: -1, link: -1, ethernet: ethernet, far: net.HardwareAddr{0x02, 0x53, 0x61, 0x50, 0, 2}}
	err := ns.Do(func() (err error) {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		s.own = dev.HardwareAddr
		if s.ip, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW); err != nil {
			return err
		}
		if s.link, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		s.to = unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8}
		return errors.Join(unix.SetsockoptInt(s.ip, unix.SOL_SOCKET, unix.SO_BROADCAST, 1), unix.Bind(s.link, &s.to))
	})
	if err != nil {
		s.close()
	}
	return s, err
}

func (s *spray) close() {
	for _, fd := range []int{s.ip, s.link} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// send sends a packet by one of the sockets. Much of it the sandbox's own kernel refuses.
func (s *spray) send(f *fuzzer, b []byte) error {
	if f.IntN(3) == 0 && len(b) >= 20 {
		return unix.Sendto(s.ip, b, 0, &unix.SockaddrInet4{Addr: [4]byte(b[16:])})
	}
	if s.ethernet {
		b = f.frame(b, s.own, s.far)
	}
	return unix.Sendto(s.link, b, 0, &s.to)
}

// frame puts an Ethernet header before a packet: the right one, or another.
func (f *fuzzer) frame(b []byte, own, far net.HardwareAddr) []byte {
	other := net.HardwareAddr{2, 0, 0, 0, 0, byte(f.Uint32())}
	frame := append(append(make([]byte, 0, 14+len(b)), pick[net.HardwareAddr](f, far, far, far, other, net.HardwareAddr{255, 255, 255, 255, 255, 255})...), pick(f, own, own, own, other)...)
	return append(binary.BigEndian.AppendUint16(frame, pick[uint16](f, unix.ETH_P_IP, unix.ETH_P_IP, unix.ETH_P_IP, unix.ETH_P_IPV6, unix.ETH_P_ARP, 0x8100, uint16(f.Uint32()))), b...)
}

// gone says whether an error means that the sandbox has no network any more.
func gone(err error) bool {
	for _, e := range []error{unix.ENETDOWN, unix.ENXIO, unix.ENODEV, unix.ENETUNREACH, unix.EHOSTUNREACH} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// burst is how many packets a fuzzer sends each tick: all of them together less than
// the captures take.
const (
	burst = 8
	tick  = 3 * time.Millisecond
)
