package nat

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// auditBlocks checks that what is known of port blocks in several places is the same in each.
func auditBlocks(tb reporter, t *Table) {
	tb.Helper()
	if t.blocks == nil {
		return
	}
	used := make([]uint32, len(t.blocks.all))
	use := func(port uint16, hi uint32) {
		b := t.blocks.of(port)
		used[b]++
		if t.blocks.all[b].owner != hi {
			tb.Fatalf("port %d is of host %d, but its block of %d", port, hi, t.blocks.all[b].owner)
		}
	}
	for i := uint32(1); i < t.sessions.top; i++ {
		if s := t.sessions.at(i); s.state != stateFree && s.flags&mapped == 0 {
			use(s.port, s.owner)
		}
	}
	for i := uint32(1); i < t.mappings.top; i++ {
		if m := t.mappings.at(i); m.proto != 0 {
			use(m.port, m.owner)
		}
	}
	free, owned, listed := 0, 0, 0
	for b := range t.blocks.all {
		switch s := t.blocks.all[b]; {
		case s.owner == nobody:
			free++
			fallthrough
		case s.owner == never:
			if s.used != 0 || used[b] != 0 {
				tb.Fatalf("block %d is nobody's and in use", b)
			}
		default:
			owned++
			if s.used != used[b] {
				tb.Fatalf("block %d counts %d ports in use, but has %d", b, s.used, used[b])
			}
		}
	}
	for i := uint32(1); i < t.hosts.top; i++ {
		prev := noBlock
		for b := t.hosts.at(i).firstBlock(); t.hosts.at(i).known && b != noBlock; b = t.blocks.all[b].next {
			if listed++; t.blocks.all[b].owner != i || t.blocks.all[b].prev != prev {
				tb.Fatalf("block %d is in the list of host %d: %+v", b, i, t.blocks.all[b])
			}
			prev = b
		}
	}
	if free != t.blocks.free || owned != t.blocks.total-free || listed != owned {
		tb.Fatalf("%d blocks are free, %d owned, %d in lists; counted %d of %d", free, owned, listed, t.blocks.free, t.blocks.total)
	}
}

func unlimitedBlocks(size int, mode Mapping) func(*Config) {
	return func(c *Config) {
		c.PortBlock, c.TCPMapping, c.Limits = size, mode, Limits{-1, -1, -1, -1, 0}
	}
}

// blockEvents are the records of a log by blocks, of those that wait.
func (l *lab) blockEvents() (all []Event) {
	for _, e := range l.events() {
		if e.Kind == BlockAllocated || e.Kind == BlockReleased {
			all = append(all, e)
		}
	}
	return all
}

// L-3, C-14: one record when a block is taken and one when it is given back, however many
// mappings of whatever protocol it served; and not before nothing in it is on hold.
func TestL3OneRecordPerBlock(t *testing.T) {
	l := newLab(t, unlimitedBlocks(512, AddressAndPortDependent))
	var c *conn
	for i := range 512 {
		must2(l.udpOut(netip.AddrPortFrom(box.Addr(), port(i)), web))(l, packet.Pass)
		must2(l.echoOut(netip.AddrPortFrom(box.Addr(), port(i)), web.Addr()))(l, packet.Pass)
		for _, to := range []netip.AddrPort{web, other} {
			c = l.conn(netip.AddrPortFrom(box.Addr(), port(i)), to).syn()
		}
	}
	e := l.blockEvents()
	if len(e) != 1 || e[0].Kind != BlockAllocated || e[0].Inner.Addr() != box.Addr() || e[0].Ports != 512 ||
		e[0].External.Addr() != external || e[0].External.Port()%512 != 0 || e[0].At != l.now {
		t.Fatalf("records %+v, want one", e)
	}
	if s := l.Stats(); s.Blocks != 1 || s.FreeBlocks != 125 {
		t.Errorf("%d blocks given out, %d free", s.Blocks, s.FreeBlocks)
	}
	audit(t, l.Table)
	must2(l.udpOut(box, web))(l, packet.Pass) // the 513th
	if e := l.blockEvents(); len(e) != 1 {
		t.Fatalf("records %+v, want one more", e)
	}
	l.wait(100 * time.Second)
	c.mustSend(packet.Pass, seg{flags: packet.SYN, seq: c.out - 1}) // the last one goes later
	l.Revoke(box.Addr(), l.now)
	if l.wait(119 * time.Second); l.settle() != 0 || len(l.blockEvents()) != 0 {
		t.Fatal("a block was given back while ports in it were on hold")
	}
	l.wait(2 * time.Second)
	l.settle()
	if e := l.blockEvents(); len(e) != 2 || e[0].Kind != BlockReleased || e[1].Kind != BlockReleased || e[0].Ports != 512 ||
		e[0].Inner.Addr() != box.Addr() || e[0].External == e[1].External {
		t.Fatalf("records %+v, want two of blocks given back", e)
	}
	audit(t, l.Table)
}

// P-2: within its blocks an inner address gets each free port with the same probability, and
// each free block comes as often as any other.
func TestP2UniformWithinBlocks(t *testing.T) {
	l := newLab(t, unlimitedBlocks(1024, AddressAndPortDependent))
	must2(l.udpOut(box, web))(l, packet.Pass)
	hi := l.hostOf(number(box.Addr()))
	for range 3 {
		if !l.takeBlock(hi) {
			t.Fatal("no block")
		}
	}
	sp, dice := l.space(udpSpace), rand.New(rand.NewPCG(3, 4))
	free := map[uint16]int{}
	for b := l.hosts.at(hi).firstBlock(); b != noBlock; b = l.blocks.all[b].next {
		for i := range 1024 {
			if p := b*1024 + uint16(i); dice.IntN(10) < 3 {
				sp.set.take(p)
			} else if sp.set.has(p) {
				free[p] = 0
			}
		}
	}
	for range 20 * len(free) {
		p, ok := l.pickPort(hi, sp)
		if _, is := free[p]; !ok || !is {
			t.Fatalf("port %d is not free in a block of the address", p)
		}
		free[p]++
	}
	counts := make([]int, 64)
	i := 0
	for p := range 1 << 16 {
		if n, is := free[uint16(p)]; is && i < len(free)/64*64 {
			counts[i%64] += n
			i++
		}
	}
	if x := chiSquare(counts); x > chi63 {
		t.Errorf("chi-square of ports is %.1f", x)
	}
	blocks := make([]int, 63)
	for i := range 6300 {
		hi := l.hostOf(0x0a010000 + uint32(i))
		if !l.takeBlock(hi) {
			t.Fatal("no block")
		}
		b := l.hosts.at(hi).firstBlock()
		blocks[b-1]++
		l.dropBlock(b)
	}
	for b := l.hosts.at(hi).firstBlock(); b != noBlock; b = l.blocks.all[b].next {
		if blocks[b-1] != 0 {
			t.Errorf("block %d was given out twice", b)
		}
		blocks[b-1] = 6300 / 59
	}
	if x := chiSquare(blocks); x > chi63 {
		t.Errorf("chi-square of blocks is %.1f", x)
	}
}

// P-2: TCP ports towards many destinations are uniform within the block, too.
func TestP2UniformTuplesWithinBlocks(t *testing.T) {
	l := newLab(t, unlimitedBlocks(4096, AddressAndPortDependent))
	bins, gaps, last := make([]int, 64), make([]int, 64), 0
	for i := range 20_000 {
		p := int(l.conn(netip.AddrPortFrom(box.Addr(), uint16(1+i)), makeEndpoint(0xcb007101+uint32(i%10_000), 443).addrPort()).syn().external.Port()) % 4096
		bins[p/64]++
		gaps[(p-last+4096)%4096/64]++
		last = p
	}
	if n := l.Stats().Blocks; n != 1 {
		t.Fatalf("%d blocks, want one", n)
	}
	if b, g := chiSquare(bins), chiSquare(gaps); b > chi63 || g > chi63 {
		t.Errorf("chi-square of ports is %.1f, of gaps %.1f", b, g)
	}
}

// C-13: where one inner address may take all, all ports of the range can be used; the others are
// refused then, as no block is free, and lose nothing.
func TestC13BlocksFillTheRange(t *testing.T) {
	for _, tt := range []struct {
		size  int
		mode  Mapping
		proto packet.Proto
	}{
		{64, AddressAndPortDependent, packet.UDP}, {4096, AddressAndPortDependent, packet.ICMP}, {4096, EndpointIndependent, packet.TCP},
		{64, AddressAndPortDependent, packet.TCP}, {2048, AddressAndPortDependent, packet.TCP},
	} {
		l := newLab(t, func(c *Config) {
			unlimitedBlocks(tt.size, tt.mode)(c)
			c.Ports, c.Reserved = PortRange{1024, 20_000}, []uint16{2000, 2001}
		})
		ask := func(from netip.AddrPort) packet.Outcome {
			switch tt.proto {
			case packet.UDP:
				_, o := l.udpOut(from, web)
				return o
			case packet.ICMP:
				_, o := l.echoOut(from, web.Addr())
				return o
			}
			return l.conn(from, web).send(seg{flags: packet.SYN, seq: 1000})
		}
		if o := ask(box2); o != packet.Pass {
			t.Fatal(o)
		}
		neighbours := l.blocks.count(&l.blank.taken, ^uint64(0), l.blocks.of(l.src().Port()))
		n := 0
		for p := range 20_000 {
			o := ask(netip.AddrPortFrom(box.Addr(), uint16(1+p)))
			if o == packet.PortsExhausted {
				break
			}
			n++
		}
		if want := 20_000 - 1024 + 1 - 2 - neighbours; n != want {
			t.Errorf("%+v: %d ports of %d were given out", tt, n, want)
		}
		if o := ask(ap("10.9.9.9:9")); o != packet.PortsExhausted {
			t.Errorf("%+v: a third address: %v", tt, o)
		}
		if s := l.Stats(); s.FreeBlocks != 0 || s.Refused.Of(ReasonNoPorts) != 2 {
			t.Errorf("%+v: %d free blocks, %d refusals", tt, s.FreeBlocks, s.Refused.Of(ReasonNoPorts))
		}
		for i := range neighbours - 1 { // who has a block has all of it
			if o := ask(netip.AddrPortFrom(box2.Addr(), uint16(1+i))); o != packet.Pass {
				t.Fatalf("%+v: port %d of the neighbour's block: %v", tt, i, o)
			}
		}
		if o := ask(netip.AddrPortFrom(box2.Addr(), 60_000)); o != packet.PortsExhausted {
			t.Errorf("%+v: beyond the neighbour's block: %v", tt, o)
		}
		audit(t, l.Table)
	}
}

// C-8: a block that nothing uses stays its owner's until no port in it is on hold. Its
// owner may use it again meanwhile, which no record tells of; the next one may have it then.
func TestC8BlocksRest(t *testing.T) {
	l := newLab(t, func(c *Config) {
		unlimitedBlocks(64, AddressAndPortDependent)(c)
		c.Ports = PortRange{2048, 2048 + 63}
	})
	c := l.conn(box, web).syn()
	l.Close(Flow{packet.TCP, c.external, web}, l.now)
	l.wait(60 * time.Second)
	l.settle()
	l.conn(box2, web).mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	l.wait(70 * time.Second)
	l.conn(box2, web).mustSend(packet.PortsExhausted, seg{flags: packet.SYN, seq: 1})
	l.Close(Flow{Proto: packet.UDP, External: at}, l.now)
	l.wait(119 * time.Second)
	must2(l.udpOut(box2, web))(l, packet.PortsExhausted)
	if e := l.blockEvents(); len(e) != 1 {
		t.Errorf("records %+v, want one", e)
	}
	l.wait(2 * time.Second)
	must2(l.udpOut(box2, web))(l, packet.Pass) // with no sweep in between
	if e := l.blockEvents(); len(e) != 2 || e[0].Kind != BlockReleased || e[0].Inner.Addr() != box.Addr() || e[1].Inner.Addr() != box2.Addr() {
		t.Errorf("records %+v, want one released and one allocated", e)
	}
	audit(t, l.Table)
}

// The memory for destinations to which blocks are full is bounded, and nobody is refused for it.
func TestBlockCrowdsAreBounded(t *testing.T) {
	l := newLab(t, unlimitedBlocks(64, AddressAndPortDependent))
	for i := range 400 * 80 {
		l.conn(netip.AddrPortFrom(box.Addr(), uint16(1+i/400)), makeEndpoint(0xcb007101+uint32(i%400), 443).addrPort()).syn()
	}
	if n := l.Stats().Crowded; n != maxBlockCrowds {
		t.Errorf("%d crowds, want %d", n, maxBlockCrowds)
	}
	if n := l.Stats().Blocks; n < 2 || n > 3 {
		t.Errorf("%d blocks for 80 connections to each destination", n)
	}
	audit(t, l.Table)
	for range 2 {
		l.wait(2 * time.Second)
		l.settle()
	}
	if n := l.Stats().Crowded; n != 0 {
		t.Errorf("%d crowds are remembered", n)
	}
}

// P-2, U-11: an address with many blocks gets ports that are free towards a remote of which
// nothing is known, each as likely as any other.
func TestP2UniformWhileBlocksAreUnknown(t *testing.T) {
	l := newLab(t, unlimitedBlocks(1024, AddressAndPortDependent))
	hi := l.hostOf(number(box.Addr()))
	for range 16 {
		l.takeBlock(hi)
	}
	h, remote := l.hosts.at(hi), makeEndpoint(0xcb007101, 443)
	free := map[uint16]int{}
	for b := h.firstBlock(); b != noBlock; b = l.blocks.all[b].next {
		for i := range 1024 {
			if p := b*1024 + uint16(i); i%8 != int(b%8) {
				l.holdTuple(makeTuple(p, remote))
			} else {
				free[p] = 0
			}
		}
	}
	c := l.newCrowd(remote)
	for n := range 16 * len(free) {
		if n%16 == 0 { // nothing is known again, and then more and more
			c.set = *l.blank
		}
		p, ok := l.pickOwnTuple(hi, remote, 0)
		if _, is := free[p]; !ok || !is {
			t.Fatalf("port %d is not free", p)
		}
		free[p]++
	}
	counts := make([]int, 64)
	i := 0
	for p := range 1 << 16 {
		if n, is := free[uint16(p)]; is {
			counts[i/(len(free)/64)] += n
			i++
		}
	}
	if x := chiSquare(counts); x > chi63 {
		t.Errorf("chi-square of ports is %.1f", x)
	}
}

// U-11: no packet looks at more ports than its bound, whatever is in use and on hold, and the
// last free port of all is found though nothing is known of the remote.
func TestBlockLooksAreBounded(t *testing.T) {
	remote := makeEndpoint(number(web.Addr()), web.Port())
	for _, size := range []int{64, 1024, 4096} {
		l := newLab(t, unlimitedBlocks(size, AddressAndPortDependent))
		l.clock(l.now)
		hi := l.hostOf(number(box.Addr()))
		for l.takeBlock(hi) {
		}
		last := uint16(1024 + l.dice.below(64512))
		for p := 1024; p < 1<<16; p++ {
			if uint16(p) != last {
				l.holdTuple(makeTuple(uint16(p), remote))
			}
		}
		for n := 0; ; n++ {
			known := 0
			if c := l.crowds[remote]; c != nil {
				known = c.set.total - c.set.free
			}
			o := l.conn(box, web).send(seg{flags: packet.SYN})
			c := l.crowds[remote]
			if learnt := c.set.total - c.set.free - known; learnt > ownLooks {
				t.Fatalf("blocks of %d: %d ports were looked at for one packet", size, learnt)
			}
			if o == packet.Pass {
				if l.src().Port() != last {
					t.Errorf("blocks of %d: port %d, want %d", size, l.src().Port(), last)
				}
				break
			}
			if n == 62 {
				t.Errorf("blocks of %d: %d packets found no port", size, n+1)
				break
			}
		}
		audit(t, l.Table)
	}
}

// Where all ports of an address's blocks are taken and unknown, one packet takes one more block,
// whose ports are free, and where fresh blocks are full, no more than a few.
func TestFreshBlocksAreBounded(t *testing.T) {
	remote := makeEndpoint(number(web.Addr()), web.Port())
	for _, full := range []bool{false, true} {
		l := newLab(t, unlimitedBlocks(64, AddressAndPortDependent))
		l.clock(l.now)
		hi := l.hostOf(number(box.Addr()))
		for range 200 {
			l.takeBlock(hi)
		}
		for p := 1024; p < 1<<16; p++ {
			if full || l.blocks.all[l.blocks.of(uint16(p))].owner == hi {
				l.holdTuple(makeTuple(uint16(p), remote))
			}
		}
		want, outcome := 201, packet.Pass
		if full {
			want, outcome = 200+freshMost, packet.PortsExhausted
		}
		l.conn(box, web).mustSend(outcome, seg{flags: packet.SYN})
		if n := l.Stats().Blocks; n != want {
			t.Errorf("%d blocks, want %d", n, want)
		}
		c := l.crowds[remote]
		if learnt := c.set.total - c.set.free; learnt < ownLooks || learnt > ownLooks+freshLooks {
			t.Errorf("%d ports were looked at", learnt)
		}
		audit(t, l.Table)
	}
}

// blockHistory is random traffic of few inner addresses in a small range of small blocks.
func blockHistory(l *lab, dice *rand.Rand, steps int, each func()) {
	for i := range steps { // inner addresses come and go
		from := makeEndpoint(0x0a000001+uint32(i/300+dice.IntN(4)), uint16(1+dice.IntN(60))).addrPort()
		to := makeEndpoint(0xcb007101+uint32(dice.IntN(2)), 443).addrPort()
		switch k := dice.IntN(20); {
		case k == 0 && dice.IntN(4) == 0:
			l.wait(time.Duration(dice.Int64N(int64(100 * time.Second))))
			l.settle()
		case k == 1 && dice.IntN(4) == 0:
			l.Revoke(from.Addr(), l.now)
		case k < 6:
			l.udpOut(from, to)
		case k < 8:
			l.echoOut(from, to.Addr())
		case k == 8:
			l.PortRefused(Flow{packet.UDP, netip.AddrPortFrom(external, uint16(2000+dice.IntN(500))), to}, l.now)
		default:
			c := l.conn(from, to)
			if c.send(seg{flags: packet.SYN, seq: 1000}) == packet.Pass && dice.IntN(2) == 0 {
				l.Close(Flow{packet.TCP, c.external, to}, l.now)
			}
		}
		each()
	}
}

func smallBlocks(mode Mapping) func(*Config) {
	return func(c *Config) {
		c.Ports, c.Reserved, c.PortBlock = PortRange{2000, 2400}, []uint16{2100, 2101, 2102}, 64
		c.TCPMapping, c.Limits = mode, Limits{-1, 90, -1, -1, 0}
	}
}

// L-1, L-3: from the records of blocks alone each session's port leads to its inner address at
// any time; no port lies outside of its address's blocks, over random histories in which
// blocks run out and come back.
func TestL1BlockLogTellsWhoHadAPort(t *testing.T) {
	for seed := range 6 {
		mode := [...]Mapping{AddressAndPortDependent, EndpointIndependent}[seed%2]
		l, dice := newLab(t, smallBlocks(mode)), rand.New(rand.NewPCG(uint64(seed), 5))
		owner := map[uint16]netip.Addr{}
		allocated, released, steps := 0, 0, 0
		blockHistory(l, dice, 4000, func() {
			for _, e := range l.blockEvents() {
				for p := range e.Ports {
					at := e.External.Port() + uint16(p)
					if at < 2000 || at > 2400 {
						t.Fatalf("%+v goes beyond the range", e)
					}
					if was, is := owner[at]; is == (e.Kind == BlockAllocated) || is && was != e.Inner.Addr() {
						t.Fatalf("%+v, but the log says %v", e, was)
					}
					if e.Kind == BlockAllocated {
						owner[at] = e.Inner.Addr()
					} else {
						delete(owner, at)
					}
				}
				if e.Kind == BlockAllocated {
					allocated++
				} else {
					released++
				}
			}
			for s := range l.Sessions() {
				if owner[s.External.Port()] != s.Inner.Addr() || s.External.Port() >= 2100 && s.External.Port() <= 2102 {
					t.Fatalf("%+v has a port that the log gives to %v", s, owner[s.External.Port()])
				}
			}
			if steps++; steps%4 == 0 {
				audit(l, l.Table)
			}
		})
		if s := l.Stats(); allocated < 15 || released < 8 || s.Refused.Of(ReasonNoPorts) == 0 || s.EventsLost != 0 {
			t.Errorf("seed %d: %d records, %d of release, refused %v: this proves little", seed, allocated, released, s.Refused)
		}
	}
}

// An export carries blocks: those in use by what uses them, those at rest by themselves.
func TestImportKeepsBlocks(t *testing.T) {
	resting := 0
	for seed := range 8 {
		mode := [...]Mapping{AddressAndPortDependent, EndpointIndependent}[seed%2]
		a, dice := newLab(t, smallBlocks(mode)), rand.New(rand.NewPCG(uint64(seed), 6))
		if seed < 4 {
			a = newLab(t, func(c *Config) { smallBlocks(mode)(c); c.PortBlock, c.Ports.First = 2048, 1024 })
		}
		blockHistory(a, dice, 300+dice.IntN(300), func() {})
		a.Revoke(box.Addr(), a.now)
		a.wait(time.Second)
		a.settle()
		a.wait(tickLength)
		b := a.twin()
		if err := b.Import(export(t, a.Table, a.now, 7), b.now); err != nil {
			t.Fatal(err)
		}
		audit(t, b.Table)
		for i := range a.blocks.all {
			x, y := a.blocks.all[i], b.blocks.all[i]
			if x.used != y.used || (x.owner == nobody) != (y.owner == nobody) ||
				x.owner != nobody && x.owner != never && a.hosts.at(x.owner).addr != b.hosts.at(y.owner).addr {
				t.Fatalf("block %d: %+v, in the copy %+v", i, x, y)
			}
			if x.used == 0 && x.owner != nobody && x.owner != never {
				if resting++; x.until-a.tick > y.until-b.tick || x.until-a.tick+1 < y.until-b.tick {
					t.Errorf("block %d rests for %d ticks, in the copy %d", i, x.until-a.tick, y.until-b.tick)
				}
			}
		}
		was, is := a.Stats(), b.Stats()
		if was.Sessions != is.Sessions || was.Blocks != is.Blocks || was.FreePorts != is.FreePorts || was.HeldTuples != is.HeldTuples {
			t.Errorf("seed %d: the copy has %v %v %v %d %d of %v %v %v %d %d", seed, is.Sessions, is.Blocks, is.FreePorts, is.HeldTuples, is.HeldPorts, was.Sessions, was.Blocks, was.FreePorts, was.HeldTuples, was.HeldPorts)
		}
	}
	if resting == 0 {
		t.Error("no block was at rest")
	}
}

// Blocks that contradict what uses them are refused.
func TestImportRefusesBlocks(t *testing.T) {
	a := newLab(t, unlimitedBlocks(512, AddressAndPortDependent))
	must2(a.udpOut(box, web))(a, packet.Pass)
	at := must2(a.udpOut(box2, web))(a, packet.Pass)
	a.Close(Flow{Proto: packet.UDP, External: at}, a.now)
	a.wait(time.Second)
	good := export(t, a.Table, a.now, 5)
	block := len(good) - recordSize(recordEnd) - recordSize(recordBlock)
	used := byte(a.blocks.of(uint16(good[headerSize+16])<<8 | uint16(good[headerSize+17])))
	foreign := append(bytes.Clone(good[:headerSize+recordSize(recordOther)]), good[headerSize:]...)
	foreign[headerSize+7], foreign[headerSize+17] = 99, foreign[headerSize+17]^1
	edit := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return seal(b)
	}
	for says, b := range map[string][]byte{
		"none of this table's":    edit(block+1, 0, 0),
		"rests and is in use":     edit(block+1, 0, used),
		"0 ticks left":            edit(block+7, 0, 0, 0, 0),
		"another inner address's": seal(foreign),
	} {
		to := a.twin()
		if err := to.Import(b, to.now); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v does not say %q", err, says)
		}
		untouched(t, to)
		if err := to.Import(good, to.now); err != nil {
			t.Error(err)
		}
	}
	if err := newLab(t, nil).Import(good, a.now); err == nil || !strings.Contains(err.Error(), "port blocks of 512") {
		t.Errorf("got %v", err)
	}
}
