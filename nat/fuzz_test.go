package nat

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// repair makes the checksums and lengths right that would stop most mutations
// at the door: those of the IP header, of an ICMP message and of the IP header it quotes.
func repair(b []byte) []byte {
	b = bytes.Clone(b)
	if len(b) < 20 || len(b) > 0xffff {
		return b
	}
	if head := repairHeader(b); head > 0 && b[9] == 1 && len(b) >= head+8 {
		m := b[head:]
		if len(m) >= 28 && m[0] != 0 && m[0] != 8 {
			repairHeader(m[8:])
		}
		clear(m[2:4])
		binary.BigEndian.PutUint16(m[2:], sumOf(m))
	}
	return b
}

func repairHeader(b []byte) int {
	head := int(b[0]&15) * 4
	if head < 20 || head > len(b) {
		return 0
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	clear(b[10:12])
	binary.BigEndian.PutUint16(b[10:], sumOf(b[:head]))
	return head
}

// fuzzLab is a table with a session of each kind, and packets of them.
func fuzzLab(r reporter, mode Mapping) (*lab, [][]byte) {
	l := newLab(r, func(c *Config) {
		c.EventBuffer = 16
		if mode == identity {
			c.Identity, c.External = true, netip.Addr{}
		} else {
			c.Ports, c.TCPMapping = PortRange{2000, 2015}, mode
		}
	})
	seen := external
	if mode == identity {
		seen = box.Addr()
	}
	l.udpOut(box, web)
	quote := bytes.Clone(l.p.B)
	l.echoOut(box, web.Addr())
	c := l.conn(box, web).open()
	var seeds [][]byte
	add := func(n int) { seeds = append(seeds, bytes.Clone(l.buf[:n])) }
	add(packet.BuildUDP(l.buf[:], box, web, []byte("x"), 64, 0))
	add(packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: box.Addr(), Dst: web.Addr(), Ident: box.Port(), TTL: 64}, nil))
	add(l.build(box, web, seg{flags: packet.ACK, seq: c.out, ack: c.in, payload: 3}))
	add(l.build(box2, web, seg{flags: packet.SYN, seq: 1, scale: 8}))
	add(l.errorAbout(3, 3, 0, box.Addr(), web.Addr(), seeds[0]))
	for s := range l.Sessions() {
		switch s.Proto {
		case packet.UDP:
			add(packet.BuildUDP(l.buf[:], web, s.External, []byte("x"), 64, 0))
		case packet.TCP:
			add(l.build(web, s.External, seg{flags: finAck, seq: c.in, ack: c.out}))
			add(l.build(web, s.External, seg{flags: packet.RST, seq: c.in}))
		default:
			add(packet.BuildICMPEcho(l.buf[:], packet.Echo{Src: web.Addr(), Dst: seen, Reply: true, Ident: s.External.Port(), TTL: 64}, nil))
		}
	}
	add(l.errorAbout(3, 4, 1400, router, seen, quote))
	add(l.errorAbout(11, 0, 0, router, seen, quote[:28]))
	return l, seeds
}

func fuzzSeeds(f *testing.F) {
	_, seeds := fuzzLab(f, AddressAndPortDependent)
	for _, s := range seeds {
		f.Add(s, uint8(0))
		f.Add(s, uint8(1))
	}
	_, seeds = fuzzLab(f, identity)
	for _, s := range seeds {
		f.Add(s, uint8(2))
	}
	f.Add([]byte{}, uint8(0))
}

func modeOf(n uint8) Mapping {
	return [...]Mapping{AddressAndPortDependent, EndpointIndependent, identity}[n%3]
}

// whatever comes from inside, nothing panics, what leaves has the
// external source and shows no inner address where the table rewrites, and what is dropped
// is unchanged.
func FuzzEgress(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte, mode uint8) {
		l, _ := fuzzLab(t, modeOf(mode))
		b = repair(b)
		was := bytes.Clone(b)
		var p packet.Packet
		if packet.Parse(&p, b) != packet.Pass {
			return
		}
		switch o := l.Egress(&p, l.now); {
		case o != packet.Pass:
			if !bytes.Equal(b, was) {
				t.Fatalf("dropped for %v, but changed", o)
			}
		case l.config.Identity:
			if !bytes.Equal(b, was) {
				t.Fatal("an identity table changed a packet")
			}
		default:
			var q packet.Packet
			if packet.Parse(&q, b) != packet.Pass || q.Src != external || q.Kind == packet.KindFragment {
				t.Fatalf("left as %+v", q)
			}
			if q.Kind == packet.KindICMPError && q.Inner.Dst != external {
				t.Fatalf("an error left that quotes %v", q.Inner.Dst)
			}
			if q.Kind != packet.KindICMPError && (q.SrcPort < 2000 || q.SrcPort > 2015) {
				t.Fatalf("left from port %d", q.SrcPort)
			}
		}
		audit(t, l.Table)
		l.wait(3 * time.Hour)
		l.settle()
		audit(t, l.Table)
	})
}

// whatever comes from outside, nothing panics or makes state, and
// only what belongs to a session gets in.
func FuzzIngress(f *testing.F) {
	fuzzSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte, mode uint8) {
		l, _ := fuzzLab(t, modeOf(mode))
		before := l.Stats()
		b = repair(b)
		was := bytes.Clone(b)
		var p packet.Packet
		if packet.Parse(&p, b) != packet.Pass {
			return
		}
		remote := netip.AddrPortFrom(p.Src, p.SrcPort)
		if o := l.Ingress(&p, l.now); o != packet.Pass {
			if !bytes.Equal(b, was) {
				t.Fatalf("dropped for %v, but changed", o)
			}
		} else {
			var q packet.Packet
			if packet.Parse(&q, b) != packet.Pass || q.Dst != box.Addr() {
				t.Fatalf("arrived as %+v", q)
			}
			if l.config.Identity && !bytes.Equal(b, was) {
				t.Fatal("an identity table changed a packet")
			}
			if q.Kind == packet.KindICMPError && q.Inner.Src != box.Addr() {
				t.Fatalf("an error arrived that quotes %v", q.Inner.Src)
			}
			if q.Kind != packet.KindICMPError && (q.DstPort != box.Port() || remote.Addr() != web.Addr()) {
				t.Fatalf("from %v arrived as %+v", remote, q)
			}
		}
		after := l.Stats()
		if after.Sessions != before.Sessions || after.Mappings != before.Mappings || after.Hosts != before.Hosts {
			t.Fatal("a packet from outside made or ended state")
		}
		audit(t, l.Table)
	})
}
