package nat

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
	"pgregory.net/rapid"
)

// twins are two tables with one seed. One takes batches, the other single packets;
// nothing may tell them apart.
type twins struct {
	batch, single *lab
	dice          *rand.Rand
	peers         int           // remotes, and inner endpoints per address
	seen          [3][]seenPort // by protocol: what has left, so that answers can come
	bufs          [2][][]byte
	views         [2][]packet.Packet
}

type seenPort struct {
	port   uint16
	remote netip.AddrPort
}

func newTwins(tb reporter, seed uint64, change func(*Config)) *twins {
	dice := rand.New(rand.NewPCG(seed, 1))
	return &twins{batch: newLab(tb, change), single: newLab(tb, change), dice: dice, peers: 1 + dice.IntN(12)}
}

func (w *twins) inner() netip.AddrPort {
	return makeEndpoint(0x0a000001+uint32(w.dice.IntN(3)), uint16(3000+w.dice.IntN(w.peers))).addrPort()
}

func (w *twins) remote() netip.AddrPort {
	return makeEndpoint(0xcb007101+uint32(w.dice.IntN(w.peers)), uint16(443+w.dice.IntN(2))).addrPort()
}

// flags are more often those of a connection that goes as it should.
func (w *twins) flags() packet.TCPFlags {
	return []packet.TCPFlags{
		packet.SYN, packet.SYN, packet.SYN | packet.ACK, packet.ACK, packet.ACK, packet.ACK,
		packet.FIN | packet.ACK, packet.RST, packet.RST | packet.ACK,
	}[w.dice.IntN(9)]
}

// build makes a packet of the given direction.
func (w *twins) build(b []byte, out bool) int {
	which := w.dice.IntN(3)
	from, to := w.inner(), w.remote()
	if !out {
		from, to = to, netip.AddrPortFrom(external, uint16(2000+w.dice.IntN(50)))
		if w.batch.config.Identity {
			to = w.inner()
		} else if s := w.seen[which]; len(s) > 0 && w.dice.IntN(8) > 0 {
			k := s[w.dice.IntN(len(s))]
			from, to = k.remote, netip.AddrPortFrom(external, k.port)
		}
	}
	switch which {
	case tcpSpace:
		return packet.BuildTCP(b, packet.TCPHeader{
			Src: from, Dst: to, TTL: 64, Window: 1000, Flags: w.flags(),
			Seq: uint32(1000 + w.dice.IntN(3)), Ack: uint32(1000 + w.dice.IntN(3)),
		}, nil)
	case udpSpace:
		return packet.BuildUDP(b, from, to, []byte("x"), 64, 0)
	}
	e := packet.Echo{Src: from.Addr(), Dst: to.Addr(), Ident: from.Port(), TTL: 64, Reply: !out}
	if !out {
		e.Ident = to.Port()
	}
	return packet.BuildICMPEcho(b, e, []byte("x"))
}

// fill makes n packets, the same for both; now and then one that is repeated, cut
// into a fragment, an error about the last one, or of no kind at all.
func (w *twins) fill(n int, out bool) {
	var last []byte
	for k := range w.bufs {
		w.bufs[k], w.views[k] = w.bufs[k][:0], make([]packet.Packet, n)
	}
	for i := range n {
		b := make([]byte, 200)
		switch w.dice.IntN(12) {
		case 0, 1, 2:
			b = b[:copy(b, last)]
		case 3:
			b = b[:w.about(b, last, out)]
		default:
			b = b[:w.build(b, out)]
		}
		last = b
		for k := range w.bufs {
			c := slices.Clone(b)
			w.bufs[k] = append(w.bufs[k], c)
			packet.Parse(&w.views[k][i], c)
		}
	}
}

// about makes an ICMP error about a packet of the other direction that looks
// like the answer to the last one.
func (w *twins) about(b, last []byte, out bool) int {
	if len(last) < 28 || last[9] == byte(packet.ICMP) {
		return w.build(b, out)
	}
	q := slices.Clone(last[:28])
	copy(q[12:16], last[16:20])
	copy(q[16:20], last[12:16])
	copy(q[20:22], last[22:24])
	copy(q[22:24], last[20:22])
	binary.BigEndian.PutUint16(q[10:], 0)
	binary.BigEndian.PutUint16(q[10:], sumOf(q[:20]))
	l := w.batch
	n := l.errorAbout(3, 1, 0, netip.AddrFrom4([4]byte(last[12:16])), netip.AddrFrom4([4]byte(last[16:20])), q)
	return copy(b, l.buf[:n])
}

// carry takes n packets through both tables and compares all that can be seen.
func (w *twins) carry(tb reporter, n int, out bool) {
	w.fill(n, out)
	ps, got := make([]*packet.Packet, n), make([]packet.Outcome, n)
	for i := range ps {
		ps[i] = &w.views[0][i]
	}
	if out {
		w.batch.EgressBatch(ps, got, w.batch.now)
	} else {
		w.batch.IngressBatch(ps, got, w.batch.now)
	}
	for i := range ps {
		p := &w.views[1][i]
		o := packet.Unspecified
		if out {
			o = w.single.Egress(p, w.batch.now)
		} else {
			o = w.single.Ingress(p, w.batch.now)
		}
		if got[i] != o {
			tb.Fatalf("packet %d of %d: %v in a batch, %v alone", i, n, got[i], o)
		}
		if !bytes.Equal(w.bufs[0][i], w.bufs[1][i]) {
			tb.Fatalf("packet %d of %d: %x in a batch, %x alone", i, n, w.bufs[0][i], w.bufs[1][i])
		}
		q := *ps[i]
		if q.B = p.B; q.Src != p.Src || q.Dst != p.Dst || q.SrcPort != p.SrcPort || q.DstPort != p.DstPort {
			tb.Fatalf("packet %d of %d: the views differ", i, n)
		}
		if out && o == packet.Pass && p.Kind != packet.KindICMPError {
			k := seenPort{p.SrcPort, netip.AddrPortFrom(p.Dst, p.DstPort)}
			w.seen[spaceOf(p.Proto)] = append(w.seen[spaceOf(p.Proto)], k)
		}
	}
	w.same(tb)
}

// same compares the tables.
func (w *twins) same(tb reporter) {
	if a, b := w.batch.Stats(), w.single.Stats(); a != b {
		tb.Fatalf("counts differ: %+v in batches, %+v alone", a, b)
	}
	if !slices.Equal(w.batch.events(), w.single.events()) {
		tb.Fatal("events differ")
	}
	if !slices.Equal(slices.Collect(w.batch.Sessions()), slices.Collect(w.single.Sessions())) {
		tb.Fatal("sessions differ")
	}
}

// A batch does to each packet, and to the table, what single calls do: of all
// protocols and both directions, with flows that begin, close and expire on the way.
func TestBatchAgainstSingle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mode := rapid.SampledFrom([]Mapping{AddressAndPortDependent, EndpointIndependent, identity}).Draw(t, "mode")
		few := rapid.Bool().Draw(t, "few ports")
		w := newTwins(t, rapid.Uint64().Draw(t, "seed"), func(c *Config) {
			c.Limits = Limits{Sessions: 200, Ports: 60, HalfOpen: 40, NewPerSecond: 1000}
			if mode == identity {
				c.Identity, c.External = true, netip.Addr{}
				return
			}
			if c.TCPMapping = mode; few {
				c.Ports = PortRange{2000, 2011}
			}
		})
		for range 30 {
			n := 1 + w.dice.IntN(40)
			if w.dice.IntN(8) == 0 {
				n = batchMax + w.dice.IntN(batchMax+2)
			}
			w.carry(t, n, w.dice.IntN(2) == 0)
			switch w.dice.IntN(6) {
			case 0:
				w.batch.wait(time.Duration(w.dice.IntN(400)) * time.Second)
			case 1:
				budget := w.dice.IntN(50)
				w.batch.Expire(w.batch.now, budget)
				w.single.Expire(w.batch.now, budget)
			case 2:
				gone := w.inner().Addr()
				w.batch.Revoke(gone, w.batch.now)
				w.single.Revoke(gone, w.batch.now)
			}
		}
		audit(t, w.batch.Table)
		if s := w.batch.Stats(); s.Egress.Of(packet.Pass) == 0 {
			t.Fatal("nothing has passed")
		}
	})
}
