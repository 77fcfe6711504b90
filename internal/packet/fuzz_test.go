package packet

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func seeds(f *testing.F) {
	f.Helper()
	for _, b := range [][]byte{
		tcpPacket(f, TCPHeader{Src: inner, Dst: remote, Flags: SYN, MSS: 1460}, ""),
		tcpPacket(f, TCPHeader{Src: inner, Dst: remote, Flags: PSH | ACK}, "hello"),
		udpPacket(f, inner, remote, "ping"),
		withOptions(udpPacket(f, inner, remote, "ping"), 30, 3, 4, 148, 4, 0, 0),
		echoPacket(f, innerA, remoteA, false, 77, "abc"),
		errorPacket(f, 3, 4, tcpPacket(f, TCPHeader{Src: ext, Dst: remote, Flags: SYN}, "")[:28]),
		errorPacket(f, 11, 0, withOptions(udpPacket(f, ext, remote, "x"), 30, 3, 4)),
		errorPacket(f, 3, 3, echoPacket(f, extA, remoteA, false, 5, "x")),
		piece(f, UDP, 1, 8, true, make([]byte, 16)),
	} {
		f.Add(b)
	}
}

// mend makes the checksums that Parse verifies right, so that mutations get past them.
func mend(b []byte) {
	if len(b) < 20 {
		return
	}
	head := int(b[0]&15) * 4
	if head < 20 || head > len(b) {
		return
	}
	fixHeader(b)
	total := int(b[2])<<8 | int(b[3])
	if b[9] != uint8(ICMP) || total < head+8 || total > len(b) {
		return
	}
	if q := b[head+8 : total]; len(q) >= 20 {
		if h := int(q[0]&15) * 4; h >= 20 && h <= len(q) {
			fixHeader(q)
		}
	}
	fixICMP(b[:total])
}

// FuzzParse is A-26: nothing panics, and what passes has its fields inside the bytes.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		mend(b)
		var p Packet
		if Parse(&p, b) != Pass {
			if p.Kind != KindUnknown {
				t.Fatal("a dropped packet has a kind")
			}
			return
		}
		if p.Kind == KindUnknown || len(p.B) > len(b) || p.L4 < 20 || p.L4 > len(p.B) {
			t.Fatalf("%+v", p)
		}
		if d := p.Data(); len(d) != p.Payload && p.Kind != KindFragment && p.Kind != KindICMPError {
			t.Fatalf("%d bytes of data, payload %d", len(d), p.Payload)
		}
		if e := p.Inner; p.Kind == KindICMPError && (e.L4 < e.Off+20 || e.End < e.L4+8 || e.End > len(p.B)) {
			t.Fatalf("%+v", e)
		}
		p.ChecksumOK()
		buf := make([]byte, 600)
		if n := BuildICMPError(buf, 3, 13, 0, gateway, &p); n > 0 {
			var e Packet
			// The quotation ends where 576 bytes do, and a short fragment has no ports.
			if o := Parse(&e, buf[:n]); o != Pass && p.Kind != KindFragment {
				t.Fatalf("our own error is %v", o)
			}
		}
		if n := BuildRST(buf, &p); n > 0 {
			var e Packet
			if o := Parse(&e, buf[:n]); o != Pass || !e.ChecksumOK() {
				t.Fatalf("our own reset is %v", o)
			}
		}
	})
}

// FuzzRewrite: what is rewritten parses again to what was written, corrupt
// transport checksums stay corrupt, and nothing outside the fields changes.
func FuzzRewrite(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		mend(b)
		var p Packet
		if Parse(&p, b) != Pass || p.Kind == KindFragment {
			return
		}
		was, empty, ok := p, nothing(&p), p.ChecksumOK()
		data, size := bytes.Clone(p.Data()), len(p.B)
		p.SetSource(ext)
		p.SetDestination(remote)
		p.SetEmbeddedSource(remote)
		p.SetEmbeddedDestination(inner)
		p.ClampMSS(1380)
		p.DecrementTTL()
		var again Packet
		if o := Parse(&again, b); o != Pass {
			t.Fatalf("rewritten, it is %v", o)
		}
		if !empty && again.ChecksumOK() != ok {
			t.Fatalf("checksum was %v, is %v", ok, !ok)
		}
		if len(again.B) != size || !bytes.Equal(again.Data(), data) {
			t.Fatal("payload changed")
		}
		if again.Src != extA || again.Dst != remoteA || again.SrcPort != p.SrcPort || again.DstPort != p.DstPort ||
			again.Kind != was.Kind || again.TTL != p.TTL {
			t.Fatalf("%+v, %+v", p, again)
		}
		if p.Kind == KindICMPError && (again.Inner != p.Inner || again.Inner.Src != remoteA || again.Inner.Dst != innerA) {
			t.Fatalf("%+v, %+v", p.Inner, again.Inner)
		}
	})
}

// FuzzReassemble feeds fragments cut from the input, in the input's order. The
// charge stays within its limits and comes back to nothing, and a whole
// datagram has the bytes that its fragments had.
func FuzzReassemble(f *testing.F) {
	f.Add([]byte{0, 0x21, 4, 4, 0x00, 4})
	f.Add([]byte{0, 0x20, 4, 2, 0x20, 4, 4, 0x00, 4})
	f.Add([]byte{16, 0, 1, 0, 0x20, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := NewReassembler(ReassemblyConfig{MaxBytes: 8 << 10, MaxPerSource: 4 << 10})
		if err != nil {
			t.Fatal(err)
		}
		now := Instant(0)
		for in = in[:min(len(in), 600)]; len(in) >= 3; in = in[3:] { // long inputs tell nothing new
			off, flags, words := int(in[0])*8, in[1], int(in[2])
			data := make([]byte, words*8)
			for i := range data {
				data[i] = byte(off + i) // equal at equal offsets
			}
			b := piece(t, UDP, uint16(flags&3), off, flags&0x20 != 0, data)
			b[15] = flags & 0x0c
			b = fixHeader(b)
			now += Instant(flags>>6) * 10 * second
			var frag Packet
			if Parse(&frag, b) != Pass || frag.Kind != KindFragment {
				continue // offset 0 without more fragments is a whole packet
			}
			whole, o := r.Add(&frag, now)
			if r.Used() > 8<<10 || r.Used() < 0 {
				t.Fatalf("%d bytes charged", r.Used())
			}
			if whole == nil {
				continue
			}
			if o != Pass {
				t.Fatalf("a datagram with %v", o)
			}
			var p Packet
			if o := Parse(&p, whole); o == Malformed || p.Kind == KindFragment {
				t.Fatalf("reassembled, it is %v", o)
			}
			for i, v := range whole[20:] {
				if v != byte(i) {
					t.Fatalf("byte %d is %d", i, v)
				}
			}
		}
		r.Expire(now + 30*second)
		if r.Used() != 0 || len(r.perSource) != 0 || len(r.datagrams) != 0 {
			t.Fatalf("%d bytes remain charged", r.Used())
		}
	})
}

// FuzzFragment cuts what parses, whole or already a fragment: every piece is
// within the MTU, sound, in order, and together they are what they were.
func FuzzFragment(f *testing.F) {
	for _, mtu := range []uint16{28, 68, 576, 1420} {
		f.Add([]byte(withOptions(udpPacket(f, inner, remote, string(make([]byte, 300))), 30, 3, 4, 148, 4, 0, 0)), mtu)
		f.Add(piece(f, ICMP, 1, 65000, true, make([]byte, 600)), mtu)
	}
	f.Fuzz(func(t *testing.T, b []byte, mtu uint16) {
		mend(b)
		var p Packet
		if Parse(&p, b) != Pass {
			return
		}
		base := binary.BigEndian.Uint16(p.B[6:])
		buf, joined := make([]byte, mtu), []byte(nil)
		for at, n := 0, 0; ; {
			was := at
			n, at = NextFragment(buf, p.B, int(mtu), at)
			if n == 0 {
				if int(mtu) >= ipv4MaxLen+8 && int(base&offsetMask)+was/8 <= offsetMask {
					t.Fatalf("no fragment at %d, MTU %d", was, mtu)
				}
				return
			}
			var q Packet
			if o := Parse(&q, buf[:n]); o != Pass || len(q.B) != n || q.Src != p.Src || q.Dst != p.Dst || q.ID() != p.ID() || q.TTL != p.TTL || q.B[1] != p.B[1] {
				if len(joined) > 0 || at != 0 || o == Malformed { // a packet that needs no cut stays what it is
					t.Fatalf("at %d: %v, %+v", was, o, q)
				}
			}
			field := binary.BigEndian.Uint16(buf[6:])
			if field&offsetMask != base&offsetMask+uint16(was/8) || (field&flagMF != 0) != (at != 0 || base&flagMF != 0) || field&flagDF != base&flagDF {
				t.Fatalf("at %d: field %#x of %#x", was, field, base)
			}
			joined = append(joined, buf[int(buf[0]&15)*4:n]...)
			if at == 0 {
				break
			}
		}
		if !bytes.Equal(joined, p.B[p.L4:]) {
			t.Fatal("payload changed")
		}
	})
}
