package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// there is how innerA is known in another network, whose gateway is thereGateway.
var (
	there        = netip.MustParseAddr("172.16.3.9")
	thereGateway = netip.MustParseAddr("172.16.3.1")
	moved        = Renumbering{Local: [2][4]byte{innerA.As4(), there.As4()}, Remote: [2][4]byte{gateway.As4(), thereGateway.As4()}}
)

func TestRenumber(t *testing.T) {
	dns := netip.AddrPortFrom(gateway, 53)
	reply := func(to, from netip.Addr) []byte {
		return udpPacket(t, netip.AddrPortFrom(from, 53), netip.AddrPortFrom(to, 4000), "answer")
	}
	quoting := func(src, dst netip.Addr) []byte {
		return errorPacket(t, 3, 3, udpPacket(t, netip.AddrPortFrom(src, 53), netip.AddrPortFrom(dst, 4000), "answer"))
	}
	set := func(b []byte, src, dst netip.Addr) []byte {
		b = bytes.Clone(b)
		s, d := src.As4(), dst.As4()
		copy(b[12:], s[:])
		copy(b[16:], d[:])
		return fixHeader(b)
	}
	for name, c := range map[string]struct {
		apply    func(b []byte) Outcome
		in, want []byte
	}{
		"source":            {moved.Egress, tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: SYN, MSS: 1380}, ""), tcpPacket(t, TCPHeader{Src: netip.AddrPortFrom(there, inner.Port()), Dst: remote, Flags: SYN, MSS: 1380}, "")},
		"gateway":           {moved.Egress, udpPacket(t, inner, dns, "?"), udpPacket(t, netip.AddrPortFrom(there, inner.Port()), netip.AddrPortFrom(thereGateway, 53), "?")},
		"echo":              {moved.Egress, echoPacket(t, innerA, gateway, false, 7, "x"), echoPacket(t, there, thereGateway, false, 7, "x")},
		"back":              {moved.Ingress, reply(there, remoteA), reply(innerA, remoteA)},
		"back from gateway": {moved.Ingress, reply(there, thereGateway), reply(innerA, gateway)},
		"others stay":       {moved.Ingress, reply(extA, remoteA), reply(extA, remoteA)},
		"error out":         {moved.Egress, set(quoting(remoteA, innerA), innerA, remoteA), set(quoting(remoteA, there), there, remoteA)},
		"error to gateway":  {moved.Egress, set(quoting(gateway, innerA), innerA, gateway), set(quoting(thereGateway, there), there, thereGateway)},
		"error in":          {moved.Ingress, set(quoting(there, remoteA), remoteA, there), set(quoting(innerA, remoteA), remoteA, innerA)},
		"error by a router": {moved.Ingress, set(quoting(there, remoteA), extA, there), set(quoting(innerA, remoteA), extA, innerA)},
	} {
		b := bytes.Clone(c.in)
		if o := c.apply(b); o != Pass || !bytes.Equal(b, c.want) {
			t.Errorf("%s: %v\n got % x\nwant % x", name, o, b, c.want)
		}
		if !soundWhole(b) {
			t.Errorf("%s: a checksum is wrong in % x", name, b)
		}
	}
	for _, b := range [][]byte{nil, {0x45}, make([]byte, 20), withVersion(6), withTotal(19), withTotal(41)} {
		was := bytes.Clone(b)
		if o := moved.Egress(b); o != Malformed || !bytes.Equal(b, was) {
			t.Errorf("% x: %v, now % x", was, o, b)
		}
	}
	same := Renumbering{Local: [2][4]byte{innerA.As4(), innerA.As4()}}
	b := tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: SYN}, "")
	was := bytes.Clone(b)
	if same.Egress(b); !bytes.Equal(b, was) {
		t.Error("the same address in both networks changes the packet")
	}
}

func withVersion(v byte) []byte {
	b := make([]byte, 40)
	b[0], b[3] = v<<4|5, 40
	return b
}

func withTotal(n byte) []byte {
	b := withVersion(4)
	b[3] = n
	return b
}

// drawRenumbering draws addresses in both networks, which may overlap and then
// hold the same address for different hosts.
func drawRenumbering(t *rapid.T) Renumbering {
	var r Renumbering
	for _, a := range []*[4]byte{&r.Local[0], &r.Local[1], &r.Remote[0], &r.Remote[1]} {
		*a = drawAddr(t, "address").As4()
		if rapid.Bool().Draw(t, "few") {
			*a = [4]byte{10, 0, 0, rapid.ByteRange(1, 3).Draw(t, "host")}
		}
	}
	return r
}

// There and back is the same packet; sound checksums stay sound, wrong ones wrong.
func TestRenumberThereAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, r := drawPacket(t), drawRenumbering(t)
		if rapid.Bool().Draw(t, "known source") {
			src := r.Local[rapid.IntRange(0, 1).Draw(t, "side")]
			mustParseRapid(t, b).SetSource(netip.AddrPortFrom(netip.AddrFrom4(src), mustParseRapid(t, b).SrcPort))
		}
		sane := func() bool { return soundWhole(b) }
		if rapid.Bool().Draw(t, "quoted") {
			e := make([]byte, errorMax)
			p := mustParseRapid(t, b)
			h := ipv4{src: remoteA, dst: p.Src, proto: ICMP, ttl: 9}
			n := 28 + min(len(b), rapid.IntRange(28, 300).Draw(t, "quote"))
			h.put(e, n)
			e[20], e[21] = ICMPUnreachable, 3
			copy(e[28:n], b)
			b = fixICMP(e[:n])
			sane = func() bool { return sound(b[:20], 0) && sound(b[20:], 0) && sound(b[28:48], 0) }
		}
		corrupt := rapid.Bool().Draw(t, "corrupt")
		if corrupt { // one bit behind the addresses, and not what says how long things are
			b[len(b)-1] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		was, soundBefore := bytes.Clone(b), sane()
		if r.Egress(b) != Pass || sane() != soundBefore {
			t.Fatalf("sound: %v, then %v\n% x\n% x", soundBefore, sane(), was, b)
		}
		if r.Egress(b) != Pass || !bytes.Equal(b, was) {
			t.Fatalf("there and back by %v\n% x\n% x", r, was, b)
		}
		if r.Ingress(b) != Pass || sane() != soundBefore || r.Ingress(b) != Pass || !bytes.Equal(b, was) {
			t.Fatalf("back and there by %v\n% x\n% x", r, was, b)
		}
	})
}

// Fragments that are renumbered one by one are those of the renumbered datagram,
// however small they are.
func TestRenumberFragments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawPacket(t)
		p := mustParseRapid(t, b)
		r := drawRenumbering(t)
		r.Local[0] = p.Src.As4()
		whole := bytes.Clone(b)
		r.Egress(whole)
		mtu := rapid.IntRange(28, 120).Draw(t, "mtu")
		buf := make([]byte, 300)
		for at := 0; ; {
			n, next := NextFragment(buf, b, mtu, at)
			if n == 0 {
				t.Fatal("no fragment")
			}
			r.Egress(buf[:n])
			if !bytes.Equal(buf[20:n], whole[20+at:20+at+n-20]) || !bytes.Equal(buf[12:20], whole[12:20]) || !sound(buf[:20], 0) {
				t.Fatalf("fragment at %d of %d bytes: % x\nof % x", at, mtu, buf[:n], whole)
			}
			if at = next; at == 0 {
				return
			}
		}
	})
}

func TestRenumberAllocatesNothing(t *testing.T) {
	for _, b := range [][]byte{
		tcpPacket(t, TCPHeader{Src: inner, Dst: remote, Flags: SYN}, ""),
		errorPacket(t, 3, 3, udpPacket(t, inner, remote, "x")),
	} {
		if n := testing.AllocsPerRun(100, func() { moved.Egress(b); moved.Ingress(b) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// FuzzRenumber: nothing panics or is read outside the packet, there and back is
// the same, and a packet that was sound is sound.
func FuzzRenumber(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		mend(b)
		var p Packet
		known := Parse(&p, b) == Pass
		ok := known && p.ChecksumOK()
		r := moved
		if len(b) >= 20 {
			r.Local[0] = [4]byte(b[12:])
		}
		was := bytes.Clone(b)
		if r.Egress(b) == Malformed && (known || !bytes.Equal(b, was)) {
			t.Fatalf("malformed: % x, now % x", was, b)
		}
		if known && (Parse(&p, b) != Pass || p.ChecksumOK() != ok) {
			t.Fatalf("was parsed, sound %v: % x, now % x", ok, was, b)
		}
		r.Egress(b)
		for i := 0; i < len(b); i++ {
			// All ones is minus zero, which comes back as plus zero.
			if w := i &^ 1; b[i] != was[i] && (binary.BigEndian.Uint16(was[w:]) != 0xffff || b[w] != 0 || b[w+1] != 0) {
				t.Fatalf("byte %d differs: % x, now % x", i, was, b)
			}
		}
	})
}

func BenchmarkRenumber(b *testing.B) {
	p := tcpPacket(b, TCPHeader{Src: inner, Dst: remote, Flags: ACK}, string(make([]byte, 1200)))
	b.ReportAllocs()
	for b.Loop() {
		moved.Egress(p)
	}
}
