package nat

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// fragmentable sends a datagram that may be cut, with an identification that
// counts up in the sandbox, and returns the one that the far side sees.
func (l *lab) fragmentable(from, to netip.AddrPort, id uint16) uint16 {
	l.Helper()
	n := packet.BuildUDP(l.buf[:], from, to, nil, 64, id)
	l.buf[6] = 0
	binary.BigEndian.PutUint16(l.buf[10:], 0)
	binary.BigEndian.PutUint16(l.buf[10:], sumOf(l.buf[:20]))
	if o := l.egress(n); o != packet.Pass {
		l.Fatal(o)
	}
	return l.p.ID()
}

// datagrams of three sandboxes that all count alike go to one remote, and
// to others between, which have other counters. None of 65,536 in a row has the
// identification of another.
func TestX12IdentificationsDoNotRepeat(t *testing.T) {
	l := newLab(t, nil)
	var seen [1 << 16]int // when, counted from 1
	for i := 1; i <= 3<<16; i++ {
		from := makeEndpoint(0x0a000002+uint32(i%3), 4000)
		id := l.fragmentable(from.addrPort(), web, uint16(i/3))
		if was := seen[id]; was != 0 && i-was < 1<<16 {
			t.Fatalf("datagram %d has identification %d, and so had the one %d before", i, id, i-was)
		}
		if seen[id] = i; i%8 == 0 {
			l.fragmentable(from.addrPort(), makeEndpoint(0xcb007200+uint32(i&0xff), 53).addrPort(), 7)
		}
	}
}

// what must not be fragmented has no identification (RFC 6864 section 4.1).
func TestX12AtomicDatagrams(t *testing.T) {
	l := newLab(t, nil)
	if l.conn(box, web).open(); !l.p.DF || l.p.ID() != 0 {
		t.Errorf("a segment left with DF %v and identification %d, want 0", l.p.DF, l.p.ID())
	}
	n := packet.BuildUDP(l.buf[:], box, web, nil, 64, 1234)
	l.buf[6] |= 0x40
	binary.BigEndian.PutUint16(l.buf[10:], 0)
	binary.BigEndian.PutUint16(l.buf[10:], sumOf(l.buf[:20]))
	if o := l.egress(n); o != packet.Pass || l.p.ID() != 0 {
		t.Errorf("%v, identification %d, want pass and 0", o, l.p.ID())
	}
}

// identifications tell neither whose datagrams are whose nor how many went
// elsewhere: whatever a sandbox's own order, steps from one to the next are flat.
func TestA21IdentificationsTellNothing(t *testing.T) {
	l := newLab(t, nil)
	own, across, elsewhere := make([]int, 64), make([]int, 64), make([]int, 64)
	var last [2]uint16
	for i := range uint16(20_000) {
		a, b := l.fragmentable(box, web, i), l.fragmentable(box2, web, i)
		c := l.fragmentable(box, other, i)
		if i > 0 {
			own[(a-last[0])>>10]++
			own[(b-last[1])>>10]++
		}
		across[(b-a)>>10]++
		elsewhere[(c-a)>>10]++
		last = [2]uint16{a, b}
	}
	for name, bins := range map[string][]int{"own": own, "across": across, "elsewhere": elsewhere} {
		if x := chiSquare(bins); x > chi63 {
			t.Errorf("%s: chi-square of the steps is %.1f, want at most %.1f", name, x, chi63)
		}
	}
	// Another process, another order.
	m := newLab(t, func(c *Config) { c.Seed[20] = 9 })
	same := 0
	for i := range uint16(1000) {
		if l.fragmentable(box, web, i) == m.fragmentable(box, web, i) {
			same++
		}
	}
	if same > 3 {
		t.Errorf("%d identifications of 1000 are alike in two tables", same)
	}
}

// nothing changes in an identity table.
func TestX12IdentityTable(t *testing.T) {
	l := newIdentityLab(t, nil)
	if id := l.fragmentable(box, web, 1234); id != 1234 {
		t.Errorf("identification %d, want 1234", id)
	}
}
