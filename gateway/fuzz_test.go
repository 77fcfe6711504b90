package gateway

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// world is what FuzzForwarder plays with: a rig, and what has passed so far, to
// be answered, quoted and damaged.
type world struct {
	*peeredRig
	sent, got [][]byte // the last of each kind
	across    [][]byte // the last that the site tunnel sent
	looked    int      // of r.up.sent
}

// The steps that an input is made of: a kind, a choice, a length and as many bytes.
const (
	stepRawOut    = iota // bytes as they are, from inside
	stepOut              // the same with a sound IP header from an address that the choice names
	stepRawBack          // bytes as they are, from outside
	stepBack             // the same with a sound IP header to one of the pair
	stepAnswer           // the answer to what left last, with the bytes laid over it
	stepError            // an ICMP error about what left last, with the bytes laid over it
	stepComplaint        // an ICMP error of a sandbox about what it got last, the same
	stepLocal            // bytes with a sound header from the services
	stepRevoke
	stepTime
	stepSite       // bytes with a sound IP header from the site tunnel, of either end
	stepSiteAnswer // the answer to what the site tunnel sent last, with the bytes laid over it
	stepSiteError  // an ICMP error about it, the same
	stepPeering    // the peering ends, or begins again
	stepTurn       // bytes with a sound header to whence something left last, and back
	stepDrain      // an IP of the pair drains, or no more
	steps
)

// FuzzForwarder lets all sides send anything. Nothing panics, nothing leaves with
// a source outside the pair or with an inner address in any of its headers, nothing
// goes to a peered network that is not from a sandbox or the gateway, and nothing
// reaches the tunnel that is not for the network.
func FuzzForwarder(f *testing.F) {
	query := []byte{0, 53, 0, 53, 0, 8, 0, 0}
	datagram := []byte{0x13, 0x88, 1, 187, 0, 12, 0, 0, 'd', 'a', 't', 'a'}
	echo := []byte{8, 0, 0xf7, 0xff, 0, 1, 0, 0}
	f.Add(append(append(step(stepOut, 0, 17, datagram), step(stepAnswer, 0, 17, nil)...), step(stepComplaint, 0, 3, nil)...))
	f.Add(append(append(step(stepOut, 1, 1, echo), step(stepAnswer, 0, 1, nil)...), step(stepError, 0, 11, nil)...))
	f.Add(append(step(stepOut, 1, 6, tcpSYN()), step(stepError, 0, 3, nil)...))
	f.Add(append(step(stepOut, 2, 17, query), step(stepLocal, 0, 17, query)...))
	f.Add(append(step(stepOut, 0, 17, datagram), step(stepRevoke, 0, 0, nil)...))
	f.Add(append(step(stepRawOut, 0, 0, []byte("nonsense")), step(stepRawBack, 0, 0, []byte{0x45})...))
	across := step(stepOut, 36, 17, datagram)
	f.Add(append(append(across, step(stepSiteAnswer, 0, 17, nil)...), step(stepSiteError, 0, 3, nil)...))
	f.Add(append(append(step(stepSite, 36, 17, datagram), step(stepSiteAnswer, 0, 17, nil)...), step(stepPeering, 0, 0, nil)...))
	f.Add(append(append(step(stepOut, 0, 17, datagram), step(stepTurn, 1, 17, datagram)...), step(stepTurn, 0, 17, datagram)...))
	f.Add(append(append(step(stepDrain, 2, 0, nil), step(stepOut, 0, 17, datagram)...), step(stepDrain, 0, 0, nil)...))
	bufs := readBuffers()
	f.Fuzz(func(t *testing.T, script []byte) {
		w := &world{peeredRig: newPeeredRig(t, holdsSite)}
		w.bufs = bufs
		for len(script) >= 4 {
			kind, choice, proto, n := script[0]%steps, script[1], script[2], min(int(script[3]), len(script)-4)
			w.step(kind, choice, proto, script[4:4+n])
			script = script[4+n:]
			w.check()
		}
	})
}

// step writes one step of a script.
func step(kind, choice, proto byte, b []byte) []byte {
	return append([]byte{kind, choice, proto, byte(len(b))}, b...)
}

func tcpSYN() []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, 5000)
	binary.BigEndian.PutUint16(b[2:], 443)
	b[12], b[13] = 5<<4, byte(packet.SYN)
	return b
}

func (w *world) step(kind, choice, proto byte, b []byte) {
	inner := []netip.Addr{alice, bob, worker, stranger, gw, pair[0]}[choice%6]
	to := []netip.Addr{origin.Addr(), gw, resolver.Addr(), forbidden.Addr(), pair[1], bob, database.Addr()}[choice/6%7]
	switch kind {
	case stepRawOut:
		w.write(b)
	case stepOut:
		w.write(header(proto, inner, to, choice, b))
	case stepRawBack:
		w.up.queue = append(w.up.queue, append([]byte(nil), b...))
	case stepBack:
		w.up.queue = append(w.up.queue, header(proto, to, pair[choice%2], choice, b))
	case stepAnswer:
		w.answer(w.sent, &w.up.queue, b)
	case stepError:
		w.complain(w.sent, &w.up.queue, to, proto, b)
	case stepComplaint:
		var out [][]byte
		w.complain(w.got, &out, inner, proto, b)
		w.write(out...)
	case stepLocal:
		w.f.WriteLocal([][]byte{header(proto, gw, []netip.Addr{alice, resolver.Addr(), to}[choice%3], choice, b)}, 0)
	case stepRevoke:
		w.f.Revoke(inner)
	case stepTime:
		w.clock.now += packet.Instant(choice) * 1e9
		w.f.expireFragments(w.clock.now)
	case stepSite:
		if choice%2 == 0 {
			inner, to = to, inner
		}
		w.arrive(header(proto, to, inner, choice, b))
	case stepSiteAnswer:
		var in [][]byte
		w.answer(w.across, &in, b)
		w.arrive(in...)
	case stepSiteError:
		var in [][]byte
		w.complain(w.across, &in, database.Addr(), proto, b)
		w.arrive(in...)
	case stepTurn:
		w.turn(inner, proto, choice, b)
	case stepDrain:
		w.drain(pair[choice%2], choice&2 != 0)
	case stepPeering:
		if w.f.peered.Load() == w.way {
			w.unpeer()
			return
		}
		w.f.setPeered(w.way)
		w.rules(peeredRange)
	}
}

// turn sends from one sandbox to the external endpoint of what left last, twice: what the
// first time opened may let the answer through.
func (w *world) turn(inner netip.Addr, proto, choice byte, b []byte) {
	if len(w.sent) == 0 {
		return
	}
	last := parsed(w.t, w.sent[len(w.sent)-1])
	b = append([]byte(nil), b...)
	if len(b) >= 4 {
		binary.BigEndian.PutUint16(b[2:], last.SrcPort)
	}
	w.write(header(proto, inner, last.Src, choice, b), header(proto, bob, pair[choice%2], choice, b), header(proto, inner, last.Src, choice, b))
}

// header puts a sound IP header before b. High bits of choice make it a fragment.
func header(proto byte, src, dst netip.Addr, choice byte, b []byte) []byte {
	p := append(make([]byte, 20), b...)
	p[0], p[8], p[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	switch choice >> 6 {
	case 1:
		p[6] = 0x20 // the first fragment
	case 2:
		p[7] = 1 // the last, behind eight bytes
	}
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	fixHeader(p)
	return p
}

// answer swaps the ends of what was sent last and lays b over what follows the header.
func (w *world) answer(sent [][]byte, to *[][]byte, b []byte) {
	if len(sent) == 0 {
		return
	}
	p := append([]byte(nil), sent[len(sent)-1]...)
	for i := range 4 {
		p[12+i], p[16+i] = p[16+i], p[12+i]
	}
	l4 := p[int(p[0]&15)*4:]
	switch {
	case p[9] == 1:
		l4[0], l4[2] = 0, l4[2]+8 // an echo reply; the checksum follows
	default:
		l4[0], l4[1], l4[2], l4[3] = l4[2], l4[3], l4[0], l4[1]
	}
	copy(l4[4:], b)
	*to = append(*to, p)
}

// complain makes an ICMP error about the last of what was seen, as whom says, and
// lays b over the end of the quotation.
func (w *world) complain(seen [][]byte, out *[][]byte, whom netip.Addr, typ byte, b []byte) {
	if len(seen) == 0 {
		return
	}
	quoted := append([]byte(nil), seen[len(seen)-1]...)
	copy(quoted[max(20, len(quoted)-len(b)):], b)
	p := header(1, whom, netip.AddrFrom4([4]byte(quoted[12:16])), 0, append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, quoted...))
	var sum uint32
	for i := 20; i < len(p); i += 2 {
		sum += uint32(p[i]) << 8
		if i+1 < len(p) {
			sum += uint32(p[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	p[22], p[23] = ^byte(sum>>8), ^byte(sum)
	*out = append(*out, p)
}

// check looks at what left and at what reached the tunnel since the last time.
func (w *world) check() {
	for _, b := range w.up.sent[w.looked:] {
		p := parsed(w.t, b)
		if p.Src != pair[0] && p.Src != pair[1] {
			w.t.Fatalf("left from %v", p.Src)
		}
		if network16.Contains(p.Dst) || p.Dst == pair[0] || p.Dst == pair[1] || p.Kind == packet.KindFragment {
			w.t.Fatalf("left for %v, kind %d", p.Dst, p.Kind)
		}
		if p.Kind == packet.KindICMPError && (network16.Contains(p.Inner.Src) || network16.Contains(p.Inner.Dst)) {
			w.t.Fatalf("an error left that quotes %v -> %v", p.Inner.Src, p.Inner.Dst)
		}
		w.sent = append(w.sent, b)
	}
	w.looked = len(w.up.sent)
	w.checkSite()
	for more := true; more; more = len(w.up.queue) > 0 {
		for _, p := range w.read() {
			if !network16.Contains(p.Dst) || p.Dst == gw || network16.Contains(p.Src) && p.Src != gw {
				w.t.Fatalf("%v -> %v reached the tunnel", p.Src, p.Dst)
			}
			if len(p.B) > 1420 {
				w.t.Fatalf("%d bytes reached the tunnel", len(p.B))
			}
			if p.Kind != packet.KindFragment {
				w.got = append(w.got, p.B)
			}
		}
	}
	if n := w.f.counters.Drops(Egress, packet.WrongSource) + w.f.counters.Drops(Egress, packet.Unspecified) +
		w.f.counters.Drops(Ingress, packet.Unspecified); n != 0 {
		w.t.Fatalf("unexplained drops: %v", w.counts())
	}
}

// checkSite looks at what the site tunnel sent.
func (w *world) checkSite() {
	for _, p := range w.tunneled() {
		told := p.Kind == packet.KindICMPError || p.Kind == packet.KindTCP && p.Flags&packet.RST != 0
		out := peeredRange.Contains(p.Dst) && network16.Contains(p.Src) && (p.Src != gw || told)
		relayed := network16.Contains(p.Dst) && p.Dst != gw && (peeredRange.Contains(p.Src) || told)
		if !out && !relayed || len(p.B) > 1420 {
			w.t.Fatalf("%v -> %v, kind %d, %d bytes went by the site tunnel", p.Src, p.Dst, p.Kind, len(p.B))
		}
		if p.Kind != packet.KindFragment {
			w.across = append(w.across, p.B)
		}
	}
}
