package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// subjects are the packets of the benchmarks and of the count of allocations.
func subjects(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"tcp":   tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: ACK}, string(make([]byte, 1380))), // 1,420 bytes
		"syn":   withOptions(tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: SYN, MSS: 1460}, ""), 148, 4, 0, 0),
		"udp":   udpPacket(t, inner, remote, "0123456789"),
		"echo":  echoPacket(t, innerA, remoteA, false, 7, "0123456789"),
		"error": errorPacket(t, 3, 4, udpPacket(t, ext, remote, "0123456789")),
	}
}

// Nothing on the way of a packet allocates: parsing, every rewrite, verifying,
// cutting, and building what answers it.
func TestNothingAllocates(t *testing.T) {
	buf := make([]byte, 1500)
	payload := []byte("payload")
	for name, b := range subjects(t) {
		p := new(Packet)
		at := 0
		n := testing.AllocsPerRun(100, func() {
			if Parse(p, b) != Pass {
				t.Fatal("dropped")
			}
			p.SetSource(ext)
			p.SetDestination(remote)
			p.SetEmbeddedSource(inner)
			p.SetEmbeddedDestination(remote)
			p.ClampMSS(1300)
			p.ChecksumOK()
			p.SetID(p.ID() + 1)
			b[offTTL] = 64
			fixed := p.B[:p.L4]
			fixed[10], fixed[11] = 0, 0
			binary.BigEndian.PutUint16(fixed[10:], checksum(fixed, 0))
			if p.DecrementTTL() != Pass {
				t.Fatal("too old")
			}
			_, at = NextFragment(buf, p.B, 600, at)
			BuildICMPError(buf, 11, 0, 0, gateway, p)
			BuildRST(buf, p)
			BuildTCP(buf, TCPHeader{Src: inner, Dst: remote, Flags: ACK}, payload)
			BuildUDP(buf, inner, remote, payload, 64, 0)
			BuildICMPEcho(buf, Echo{Src: innerA, Dst: remoteA, TTL: 64}, payload)
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for name, frame := range subjects(b) {
		b.Run(name, func(b *testing.B) {
			p := new(Packet)
			b.ReportAllocs()
			for b.Loop() {
				if Parse(p, frame) != Pass {
					b.Fatal("dropped")
				}
			}
		})
	}
}

func BenchmarkSetSource(b *testing.B) {
	for name, frame := range subjects(b) {
		b.Run(name, func(b *testing.B) {
			p, i := mustParse(b, frame), 0
			to := [2]netip.AddrPort{ext, inner}
			b.ReportAllocs()
			for b.Loop() {
				p.SetSource(to[i&1])
				i++
			}
		})
	}
}

func BenchmarkSetDestination(b *testing.B) {
	for name, frame := range subjects(b) {
		b.Run(name, func(b *testing.B) {
			p, i := mustParse(b, frame), 0
			to := [2]netip.AddrPort{ext, inner}
			b.ReportAllocs()
			for b.Loop() {
				p.SetEmbeddedSource(to[i&1])
				p.SetDestination(to[i&1])
				i++
			}
		})
	}
}

func BenchmarkChecksumOK1420(b *testing.B) {
	p := mustParse(b, subjects(b)["tcp"])
	b.SetBytes(1420)
	for b.Loop() {
		if !p.ChecksumOK() {
			b.Fatal("wrong")
		}
	}
}

func BenchmarkReassemble(b *testing.B) {
	for name, size := range map[string]int{"2": 2600, "10": 13400} {
		b.Run(name, func(b *testing.B) {
			r := newReassembler(b, ReassemblyConfig{})
			var frags []*Packet
			for _, f := range split(b, udpPacket(b, inner, remote, string(make([]byte, size))), 1420) {
				frags = append(frags, mustParse(b, f))
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				for i, f := range frags {
					if whole, _ := r.Add(f, 0); (whole != nil) != (i == len(frags)-1) {
						b.Fatal("not whole")
					}
				}
			}
		})
	}
}

func BenchmarkNextFragment(b *testing.B) {
	whole := udpPacket(b, inner, remote, string(make([]byte, 2600)))
	buf := make([]byte, 1420)
	b.ReportAllocs()
	for b.Loop() {
		for at := 0; ; {
			if _, at = NextFragment(buf, whole, 1420, at); at == 0 {
				break
			}
		}
	}
}
