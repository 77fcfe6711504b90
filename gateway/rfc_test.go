package gateway

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/nat"
)

// Rows of docs/conformance.md that the Forwarder keeps, and not its tables alone.

// withTables gives the rig other tables.
func (r *rig) withTables(change func(*nat.Config)) {
	r.t.Helper()
	for i := range r.f.tables {
		c := nat.Config{External: pair[i], Seed: [32]byte{byte(i + 1)}}
		change(&c)
		t, err := nat.New(c)
		if err != nil {
			r.t.Fatal(err)
		}
		r.f.tables[i].nat = t
	}
}

// U-2, C-2, X-5: all flows of a sandbox leave from its own address of the pair. Where
// that one has no port left new flows are refused, though the other has: pairing is hard.
func TestU2X5PairingIsHard(t *testing.T) {
	r := newRig(t)
	r.withTables(func(c *nat.Config) { c.Ports = nat.PortRange{First: 2000, Last: 2003} })
	for i := range uint16(6) {
		r.write(udp(t, at(alice, 5000+i), origin, nil))
	}
	r.write(udp(t, at(bob, 5000), origin, nil))
	if len(r.up.sent) != 5 {
		t.Fatalf("%d packets left, want alice's 4 and bob's 1", len(r.up.sent))
	}
	for i, b := range r.up.sent {
		inner := alice
		if i == 4 {
			inner = bob
		}
		if p := parsed(t, b); p.Src != pair[spec.EgressIndex(inner)] {
			t.Errorf("packet %d of %v left from %v", i, inner, p.Src)
		}
	}
	if pair[spec.EgressIndex(alice)] == pair[spec.EgressIndex(bob)] {
		t.Fatal("both sandboxes have the same address of the pair")
	}
	r.wantCounts(map[string]uint64{"egress": 5, "egress ports_exhausted": 2, "replies": 2})
}

// I-8, C-11, R-7: one ICMP error for each refused flow: 3/13 at a limit, 3/1 without
// a port. It comes from the gateway's inner address and quotes the packet as it was.
func TestI8C11RefusalsAreTold(t *testing.T) {
	for reason, c := range map[string]struct {
		change func(*nat.Config)
		code   uint8
	}{
		"session_limit":   {func(c *nat.Config) { c.Limits.Sessions = 1 }, 13},
		"rate_limit":      {func(c *nat.Config) { c.Limits.NewPerSecond, c.Limits.Burst = 1, 1 }, 13},
		"ports_exhausted": {func(c *nat.Config) { c.Ports = nat.PortRange{First: 2000, Last: 2000} }, 1},
	} {
		r := newRig(t)
		r.withTables(c.change)
		r.write(udp(t, at(alice, 5000), origin, nil))
		for i := range uint16(10) {
			large := udp(t, at(alice, 6000+i), origin, make([]byte, 1200))
			r.write(large)
			got := r.read()
			if len(got) != 1 {
				t.Fatalf("%s: %d errors about one packet", reason, len(got))
			}
			e := &got[0]
			if e.Kind != packet.KindICMPError || e.ICMPType != 3 || e.ICMPCode != c.code || e.Src != gw || e.Dst != alice ||
				e.TTL < 64 || len(e.B) != 576 || e.Inner.SrcPort != 6000+i || e.Inner.Src != alice {
				t.Errorf("%s: told %+v", reason, e)
			}
		}
		r.wantCounts(map[string]uint64{"egress": 1, "egress " + reason: 10, "replies": 10})
	}
}

// U-13: what is larger than the tunnel and may be cut comes in fragments whose
// offsets ascend, none larger than the MTU.
func TestU13LargerThanTheTunnel(t *testing.T) {
	r := newRig(t)
	r.write(udp(t, at(alice, 5000), origin, nil))
	p := parsed(t, r.up.sent[0])
	for _, size := range []int{1393, 3000, 9000} {
		r.up.queue = [][]byte{udp(t, origin, at(p.Src, p.SrcPort), make([]byte, size))}
		next := 0
		got := r.read()
		for i, part := range got {
			field := binary.BigEndian.Uint16(part.B[6:])
			if int(field&0x1fff)*8 != next || len(part.B) > 1420 || (field&0x2000 == 0) != (i == len(got)-1) {
				t.Errorf("%d bytes: fragment %d has offset %d, %d bytes, want offset %d", size, i, field&0x1fff*8, len(part.B), next)
			}
			next += len(part.B) - part.L4
		}
		if next != size+8 {
			t.Errorf("%d bytes: %d arrived", size+8, next)
		}
	}
}

// the type of service passes unchanged both ways, congestion marks included.
func TestR9TypeOfServiceStays(t *testing.T) {
	r := newRig(t)
	for _, tos := range []byte{0, 0xb8, 0xb9, 0xbb, 0x03, 0x28} {
		b := udp(t, at(alice, 5000), origin, nil)
		b[1], b[10], b[11] = tos, 0, 0
		fixHeader(b)
		r.up.sent = nil
		r.write(b)
		p := parsed(t, r.up.sent[0])
		if p.B[1] != tos {
			t.Errorf("type of service %#x left as %#x", tos, p.B[1])
		}
		b = udp(t, origin, at(p.Src, p.SrcPort), nil)
		b[1], b[10], b[11] = tos, 0, 0
		fixHeader(b)
		r.up.queue = [][]byte{b}
		if got := r.read(); len(got) != 1 || got[0].B[1] != tos {
			t.Errorf("type of service %#x arrived as %+v", tos, got)
		}
	}
}

// SYNs out and SYN/ACKs in are clamped to what fits the tunnel, and never raised.
func TestR12SegmentSizeIsClamped(t *testing.T) {
	for offered, want := range map[uint16]uint16{1460: 1380, 1381: 1380, 1380: 1380, 536: 536, 8960: 1380} {
		r := newRig(t)
		r.write(tcp(t, packet.TCPHeader{Src: at(alice, 5000), Dst: origin, Flags: packet.SYN, Seq: 1, Window: 1000, TTL: 64, MSS: offered}))
		p := parsed(t, r.up.sent[0])
		if got := binary.BigEndian.Uint16(p.B[42:]); got != want || !p.ChecksumOK() {
			t.Errorf("%d left as %d", offered, got)
		}
		r.up.queue = [][]byte{tcp(t, packet.TCPHeader{
			Src: origin, Dst: at(p.Src, p.SrcPort), Flags: packet.SYN | packet.ACK, Seq: 9, Ack: 2, Window: 1000, TTL: 64, MSS: offered,
		})}
		got := r.read()
		if len(got) != 1 || binary.BigEndian.Uint16(got[0].B[42:]) != want || !got[0].ChecksumOK() {
			t.Errorf("%d arrived as %+v", offered, got)
		}
	}
}

// N-7: IPv6 of any kind is dropped from both sides, and nothing is said about it.
func TestN7NoIPv6(t *testing.T) {
	r := newRig(t)
	for next := range 256 {
		b := make([]byte, 80)
		b[0], b[5], b[6], b[7] = 0x60, 40, byte(next), 64
		r.write(b)
		r.up.queue = append(r.up.queue, b)
	}
	if got := append(r.read(), r.read()...); len(got) != 0 || len(r.up.sent) != 0 {
		t.Errorf("%d packets left, %d arrived", len(r.up.sent), len(got))
	}
	r.wantCounts(map[string]uint64{"egress not_ipv4": 256, "ingress not_ipv4": 256})
}

// a source that is no attached inner address makes no state and gets no
// answer, whatever it is.
func TestA16SpoofedInnerSources(t *testing.T) {
	r := newRig(t)
	for source, reason := range map[string]string{
		stranger.String(): "unattached", "10.20.0.1": "", "192.0.2.1": "spoofed_source", "10.99.0.2": "spoofed_source",
		pair[0].String(): "", "127.0.0.1": "", "0.0.0.0": "", "224.0.0.1": "", "255.255.255.255": "", origin.Addr().String(): "spoofed_source",
	} {
		before := r.counts()
		r.write(udp(t, at(netip.MustParseAddr(source), 5000), origin, nil))
		after := r.counts()
		if got := r.read(); len(got) != 0 || len(r.up.sent) != 0 {
			t.Errorf("from %s: %d packets left, told %+v", source, len(r.up.sent), got)
		}
		maps.DeleteFunc(after, func(k string, v uint64) bool { return before[k] == v })
		if _, ok := after["egress "+reason]; len(after) != 1 || reason != "" && !ok {
			t.Errorf("from %s: counted %v, want one drop for %s", source, after, reason)
		}
	}
	for i := range r.f.tables {
		if s := r.f.tables[i].nat.Stats(); s.Hosts != 0 {
			t.Errorf("%d hosts are known", s.Hosts)
		}
	}
}

// what comes to a dedicated address in a tunnel's clothes is never unpacked:
// protocols 4, 41 and 47, and the ports of GUE, VXLAN, Geneve and Teredo.
func TestA20NoTunnels(t *testing.T) {
	r := newRig(t)
	inside := udp(t, origin, at(alice, 5000), []byte("smuggled"))
	want := map[string]uint64{}
	for _, proto := range []byte{4, 41, 47} {
		b := udp(t, origin, at(pair[0], 1), inside)
		copy(b[20:], inside)
		b[9], b[10], b[11] = proto, 0, 0
		fixHeader(b)
		r.up.queue = append(r.up.queue, b)
		want["ingress bad_protocol"]++
	}
	for _, port := range []uint16{6080, 4789, 6081, 3544, 2152, 4500, 1701} {
		r.up.queue = append(r.up.queue, udp(t, origin, at(pair[0], port), inside))
		want["ingress no_mapping"]++
	}
	if got := r.read(); len(got) != 0 || len(r.up.sent) != 0 || len(r.local.got) != 0 {
		t.Errorf("%d packets arrived, %d left", len(got), len(r.up.sent))
	}
	r.wantCounts(want)
}

// T-4: nothing that comes from outside is answered to the outside, by no
// packet of any kind; errors go to sandboxes only.
func TestA22StrangersAreNotAnswered(t *testing.T) {
	r := newRig(t)
	r.write(udp(t, at(alice, 19), origin, nil))
	seen := parsed(t, r.up.sent[0])
	r.up.sent = nil
	foreign := netip.MustParseAddrPort("198.51.100.7:19")
	for _, to := range []netip.AddrPort{at(seen.Src, seen.SrcPort), at(pair[0], 7), at(pair[1], 53), at(pair[0], 51820)} {
		r.up.queue = append(r.up.queue,
			udp(t, foreign, to, []byte("error")),
			tcp(t, packet.TCPHeader{Src: foreign, Dst: to, Flags: packet.SYN, Seq: 1, Window: 1000, TTL: 64}),
			tcp(t, packet.TCPHeader{Src: foreign, Dst: to, Flags: packet.ACK, Seq: 1, Ack: 1, Window: 1000, TTL: 64}),
			tcp(t, packet.TCPHeader{Src: foreign, Dst: to, Flags: packet.SYN, Seq: 1, Window: 1000, TTL: 1}),
		)
		ping := make([]byte, 64)
		n := packet.BuildICMPEcho(ping, packet.Echo{Src: foreign.Addr(), Dst: to.Addr(), Ident: 1, TTL: 64}, nil)
		r.up.queue = append(r.up.queue, ping[:n], []byte("nonsense"))
	}
	if got := append(r.read(), r.read()...); len(got) != 0 {
		t.Errorf("a stranger reached %+v", got)
	}
	if len(r.up.sent) != 0 {
		t.Errorf("%d answers left", len(r.up.sent))
	}
	if r.f.counters.Replies() != 0 {
		t.Errorf("%d replies", r.f.counters.Replies())
	}
}
