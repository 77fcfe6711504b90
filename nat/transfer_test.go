package nat

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// export writes a whole export, with at most budget records a step.
func export(tb reporter, t *Table, now packet.Instant, budget int) []byte {
	tb.Helper()
	var c ExportCursor
	var all []byte
	for !c.Done() {
		var step []byte
		step, c = t.AppendExport(nil, c, budget, now)
		if len(step) > budget*ExportStepBytes+40 {
			tb.Fatalf("a step of %d records took %d bytes", budget, len(step))
		}
		all = append(all, step...)
	}
	return all
}

// twin is an empty lab with the settings of another but for seed and clock.
func (l *lab) twin() *lab {
	l.Helper()
	t := newLab(l, func(c *Config) {
		seed := c.Seed
		*c = l.config
		c.Seed, c.Seed[31] = seed, 77
		for p := int(c.Ports.First); p < int(c.Ports.Last) && !c.Identity; p++ {
			if !l.blank.has(uint16(p)) {
				c.Reserved = append(c.Reserved, uint16(p))
			}
		}
	})
	t.now = l.now%packet.Instant(tickLength) + packet.Instant(1234*time.Hour)
	return t
}

// known is what two tables must agree upon, with the time that is left.
func (l *lab) known() map[Session]time.Duration {
	l.clock(l.now)
	all := map[Session]time.Duration{}
	for s := range l.Sessions() {
		left := time.Duration(s.Expires - l.now)
		s.Expires, s.Created = 0, 0
		all[s] = left
	}
	return all
}

// sameSessions checks that b has what a has, with the time left there, up to two
// ticks more; what is about to go in a may have gone in one of them. It returns what both have.
func sameSessions(tb testing.TB, a, b *lab) (both []Session) {
	tb.Helper()
	const soon = 3 * tickLength
	as, bs := a.known(), b.known()
	for s, left := range as {
		got, ok := bs[s]
		if left > soon && (!ok || got < left || got > left+2*tickLength) {
			tb.Fatalf("%+v has %v left, its copy %v (%v)", s, left, got, ok)
		}
		if left > soon {
			both = append(both, s)
		}
	}
	for s, left := range bs {
		if _, ok := as[s]; !ok && left > soon {
			tb.Fatalf("%+v is in the copy only", s)
		}
	}
	return both
}

// history is an oracle after some time of random traffic.
func history(tb reporter, mode Mapping, seed, commands int) (*oracle, *rand.Rand) {
	dice := rand.New(rand.NewPCG(uint64(seed), 99))
	o := newOracle(tb, mode, seed)
	for range commands {
		o.command(dice.IntN)
	}
	return o, dice
}

// trial sends the same packet of a session through both tables.
func trial(tb testing.TB, a, b *lab, s Session, dice *rand.Rand) packet.Outcome {
	tb.Helper()
	inner, remote := makeEndpoint(number(s.Inner.Addr()), s.Inner.Port()), makeEndpoint(number(s.Remote.Addr()), s.Remote.Port())
	d := dice.IntN(2)
	n := 0
	switch s.Proto {
	case packet.TCP:
		r := a.sessions.at(a.findOutbound(a.flowHash(s.Proto, inner, remote), s.Proto, inner, remote))
		g := seg{flags: choose(dice.IntN, packet.SYN, synAck, packet.ACK, packet.ACK, finAck, rstAck, packet.RST), payload: dice.IntN(2) * 100}
		g.seq = r.end[d] + choose[uint32](dice.IntN, 0, 0, 0, 1, ^uint32(0), 70_000, 1<<31)
		g.ack = r.end[1-d] + choose[uint32](dice.IntN, 0, 0, 0, 1, ^uint32(0), 1<<31)
		from, to := s.Inner, s.Remote
		if d == inward {
			from, to = s.Remote, s.External
		}
		n = a.build(from, to, g)
	case packet.UDP:
		if d == outward {
			n = packet.BuildUDP(a.buf[:], s.Inner, s.Remote, []byte("ping"), 64, 0)
		} else {
			n = packet.BuildUDP(a.buf[:], s.Remote, s.External, []byte("pong"), 64, 0)
		}
	default:
		e := packet.Echo{Src: s.Inner.Addr(), Dst: s.Remote.Addr(), Ident: s.Inner.Port(), TTL: 64}
		if d == inward {
			e = packet.Echo{Src: s.Remote.Addr(), Dst: s.External.Addr(), Ident: s.External.Port(), TTL: 64, Reply: true}
		}
		n = packet.BuildICMPEcho(a.buf[:], e, []byte("ping"))
	}
	copy(b.buf[:], a.buf[:n])
	send := (*lab).egress
	if d == inward {
		send = (*lab).ingress
	}
	was, got := send(a, n), send(b, n)
	if was != got || !bytes.Equal(a.buf[:n], b.buf[:n]) || was == packet.Pass && a.config.Identity && a.Marked() != b.Marked() {
		tb.Fatalf("%+v direction %d: %v %x, in the copy %v %x", s, d, was, a.buf[:n], got, b.buf[:n])
	}
	return was
}

// after an export and an import the same packets fare the same, byte for byte, and
// all timers go on, whatever seed and clock the copy has.
func TestImportGoesOnAlike(t *testing.T) {
	passed, refused := 0, 0
	for seed := range 12 {
		o, dice := history(t, [...]Mapping{AddressAndPortDependent, EndpointIndependent, identity}[seed%3], seed, 400)
		if o.config.Identity {
			for i := uint32(1); i < o.Table.sessions.top; i++ {
				o.last = i
				o.Mark(o.Table.sessions.at(i).state != stateFree && dice.IntN(2) == 0)
			}
		}
		o.wait(150 * time.Millisecond)
		o.settle()
		o.wait(tickLength)
		b := o.twin()
		x := export(t, o.Table, o.now, 1+dice.IntN(20))
		if err := b.Import(x, b.now); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		audit(t, b.Table)
		was, is := o.Stats(), b.Stats()
		if was.Sessions != is.Sessions || was.Mappings != is.Mappings || was.HalfOpen != is.HalfOpen || was.Ports != is.Ports ||
			was.HeldPorts != is.HeldPorts || was.HeldTuples != is.HeldTuples || was.FreePorts != is.FreePorts {
			t.Fatalf("seed %d: the copy has %+v of %+v", seed, is, was)
		}
		for range 300 {
			both := sameSessions(t, o.lab, b)
			if len(both) == 0 {
				break
			}
			for range 3 {
				s := both[dice.IntN(len(both))]
				if _, there := o.known()[s]; !there {
					continue // a packet has changed its state
				}
				if trial(t, o.lab, b, s, dice) == packet.Pass {
					passed++
				} else {
					refused++
				}
			}
			d := time.Duration(dice.Int64N(int64(20 * time.Second)))
			o.wait(d)
			b.wait(d)
			o.settle()
			b.settle()
		}
		audit(t, b.Table)
	}
	if passed < 1000 || refused < 50 {
		t.Errorf("%d packets passed and %d were refused, which proves little", passed, refused)
	}
}

// Holds go on, too: no tuple or port is given out before its time, and all are after it.
func TestImportKeepsHolds(t *testing.T) {
	for _, mode := range []Mapping{AddressAndPortDependent, EndpointIndependent} {
		a := newLab(t, func(c *Config) { c.Ports, c.TCPMapping = PortRange{2000, 2000}, mode })
		c := a.conn(box, web).syn()
		at := must2(a.udpOut(box, web))(a, packet.Pass)
		a.Close(Flow{packet.TCP, c.external, web}, a.now)
		a.wait(30 * time.Second)
		a.Close(Flow{Proto: packet.UDP, External: at}, a.now)
		a.wait(10 * time.Second)
		b := a.twin()
		if err := b.Import(export(t, a.Table, a.now, 1), b.now); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			wait time.Duration
			want packet.Outcome
			tcp  bool
		}{
			{79 * time.Second, packet.PortsExhausted, true},
			{2 * time.Second, packet.Pass, true},
			{28 * time.Second, packet.PortsExhausted, false},
			{2 * time.Second, packet.Pass, false},
		} {
			b.wait(step.wait)
			if step.tcp {
				b.conn(box2, web).mustSend(step.want, seg{flags: packet.SYN, seq: 1})
			} else {
				must2(b.udpOut(box2, web))(b, step.want)
			}
		}
		audit(t, b.Table)
	}
}

// U-9: sessions of two sandboxes by the external address are part of an export like any other.
func TestImportKeepsHairpins(t *testing.T) {
	a := newLab(t, nil)
	ours := must2(a.udpOut(box, web))(a, packet.Pass)
	theirs := must2(a.udpOut(box2, web))(a, packet.Pass)
	must2(a.udpOut(box, theirs))(a, packet.Pass)
	must2(a.udpOut(box2, ours))(a, packet.Pass)
	a.wait(time.Second)
	b := a.twin()
	if err := b.Import(export(t, a.Table, a.now, 2), b.now); err != nil {
		t.Fatal(err)
	}
	audit(t, b.Table)
	sameSessions(t, a, b)
	for _, l := range []*lab{a, b} {
		if at := must2(l.udpOut(box, theirs))(l, packet.Pass); at != ours {
			t.Errorf("sent from %v, not from %v", at, ours)
		}
		if o := l.Hairpin(&l.p, l.now); o != packet.Pass || l.dst() != box2 {
			t.Errorf("%v at %v", o, l.dst())
		}
	}
}

// What happens between the steps of an export leaves it consistent: it can be taken in, and
// holds nothing but what was there at its beginning.
func TestExportAmidTraffic(t *testing.T) {
	for seed := range 30 {
		o, dice := history(t, [...]Mapping{AddressAndPortDependent, EndpointIndependent, identity}[seed%3], seed, 300)
		o.wait(150 * time.Millisecond)
		o.pass()
		began := map[Session]bool{}
		for s := range o.Sessions() {
			s.State, s.Expires, s.Created = "", 0, 0
			began[s] = true
		}
		var x []byte
		for c := (ExportCursor{}); !c.Done(); {
			x, c = o.AppendExport(x, c, 1+dice.IntN(3), o.now)
			for range dice.IntN(6) {
				o.command(dice.IntN)
				o.compare()
			}
		}
		b := o.twin()
		if err := b.Import(x, b.now); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		audit(t, b.Table)
		for s := range b.Sessions() {
			s.State, s.Expires, s.Created = "", 0, 0
			if !began[s] {
				t.Fatalf("seed %d: %+v was not there when the export began", seed, s)
			}
		}
	}
}

// seal puts the right checksum under changed bytes.
func seal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// exported is an export with a connection, a datagram's session, a held tuple and a held port.
func exported(tb reporter) (*lab, []byte) {
	tb.Helper()
	l := newLab(tb, nil)
	l.conn(box, web).open()
	l.conn(box2, web).open()
	at := must2(l.udpOut(box, web))(l, packet.Pass)
	must2(l.udpOut(box2, web))(l, packet.Pass)
	must2(l.udpOut(box2, other))(l, packet.Pass)
	l.Close(Flow{Proto: packet.UDP, External: at}, l.now)
	gone := l.conn(box, other).syn()
	l.Close(Flow{packet.TCP, gone.external, other}, l.now)
	l.wait(time.Second)
	return l, export(tb, l.Table, l.now, 3)
}

// Whatever is wrong with an export, it is refused whole, with an error that says what.
func TestImportRefuses(t *testing.T) {
	_, good := exported(t)
	second := headerSize + recordSize(recordTCP)
	datagram := second + recordSize(recordTCP)
	tuple := datagram + 2*recordSize(recordOther)
	held := tuple + recordSize(recordTuple)
	if good[datagram] != recordOther || good[tuple] != recordTuple || good[held] != recordPort {
		t.Fatalf("the sample is laid out otherwise: %x", good)
	}
	edit := func(at int, with ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], with)
		return seal(b)
	}
	half := edit(headerSize+2, byte(stateOpening), 0)
	half[second+2], half[second+3] = byte(stateOpening), 0
	seal(half)
	for name, tt := range map[string]struct {
		b      []byte
		change func(*Config)
		says   string
	}{
		"nothing":                 {nil, nil, "do not begin"},
		"something else":          {bytes.Repeat([]byte("x"), 100), nil, "do not begin"},
		"header only":             {good[:headerSize], nil, "before its trailer"},
		"cut short":               {good[:len(good)-1], nil, "checksum"},
		"too long":                {append(bytes.Clone(good), 0), nil, "checksum"},
		"too long, sealed":        {seal(append(bytes.Clone(good), 0, 0, 0, 0)), nil, "behind the trailer"},
		"damaged":                 {append(bytes.Clone(good[:40]), append([]byte{good[40] ^ 1}, good[41:]...)...), nil, "checksum"},
		"version":                 {edit(4, 2), nil, "version 2"},
		"damaged kind":            {append(bytes.Clone(good[:5]), append([]byte{32}, good[6:]...)...), nil, "checksum"},
		"damaged mapping":         {append(bytes.Clone(good[:6]), append([]byte{64}, good[7:]...)...), nil, "checksum"},
		"damaged blocks":          {append(bytes.Clone(good[:7]), append([]byte{64}, good[8:]...)...), nil, "checksum"},
		"damaged address":         {append(bytes.Clone(good[:8]), append([]byte{64}, good[9:]...)...), nil, "checksum"},
		"no such kind":            {edit(5, 32), nil, "header 53504e5401"},
		"no such mapping":         {edit(6, 64), nil, "header 53504e5401"},
		"no such blocks":          {edit(7, 64), nil, "header 53504e5401"},
		"kind":                    {good, func(c *Config) { c.Identity, c.External = true, netip.Addr{} }, "of a table that translates, this is an identity table"},
		"mapping":                 {good, func(c *Config) { c.TCPMapping = EndpointIndependent }, "maps TCP address-and-port-dependently, this one does endpoint-independently"},
		"address":                 {good, func(c *Config) { c.External = netip.MustParseAddr("198.51.100.8") }, "198.51.100.7"},
		"blocks":                  {edit(7, 10), nil, "port blocks of 512, this one has no port blocks"},
		"no such record":          {edit(headerSize, 99), nil, "begins with 99"},
		"end within a record":     {seal(bytes.Clone(good[:second+20])), nil, "byte 64"},
		"no trailer":              {seal(bytes.Clone(good[:second])), nil, "trailer is missing"},
		"counts":                  {edit(len(good)-recordSize(recordEnd)+4, 9), nil, "sessions"},
		"protocol":                {edit(headerSize+1, 132), nil, "protocol 132"},
		"protocol of UDP":         {edit(datagram+1, 132), nil, "protocol"},
		"state":                   {edit(headerSize+2, byte(stateLive)), nil, "state live"},
		"flags of UDP":            {edit(datagram+3, byte(mapped|finOut)), nil, "flags"},
		"no mapping":              {edit(datagram+3, 0), nil, "mapping"},
		"a mapping":               {edit(headerSize+3, byte(opened|mapped)), nil, "mapping"},
		"no time left":            {edit(headerSize+18, 0, 0, 0, 0), nil, "0 ticks left"},
		"not born yet":            {edit(headerSize+22, 0xff), nil, "ticks left after"},
		"two of one tuple":        {seal(append(append(bytes.Clone(good[:second]), good[headerSize:second]...), good[datagram:]...)), nil, "same port and far side"},
		"two between endpoints":   {seal(twice(good, second, headerSize, 4, 12)), nil, "same endpoints"},
		"two ports of one":        {edit(datagram+16, 8, 0), nil, "has port"},
		"two owners":              {edit(datagram+recordSize(recordOther)+4, 10, 0, 0, 99), nil, "another inner endpoint"},
		"reserved port":           {good, func(c *Config) { c.Reserved = []uint16{binary.BigEndian.Uint16(good[headerSize+16:])} }, "to nobody"},
		"port out of range":       {edit(headerSize+16, 0, 80), nil, "to nobody"},
		"reserved port on hold":   {good, func(c *Config) { c.Reserved = []uint16{binary.BigEndian.Uint16(good[held+2:])} }, "on hold, which"},
		"own address inside":      {edit(headerSize+4, 198, 51, 100, 7), nil, "between these"},
		"tuple held and in use":   {edit(tuple+1, append(bytes.Clone(good[headerSize+16:headerSize+18]), good[headerSize+10:headerSize+16]...)...), nil, "in use"},
		"hold without time":       {edit(tuple+9, 0, 0, 0, 0), nil, "0 ticks"},
		"hold of TCP's space":     {edit(held+1, tcpSpace), nil, "mapping does not have"},
		"hold of no space":        {edit(held+1, 3), nil, "port space 3"},
		"too many sessions":       {good, func(c *Config) { c.MaxSessions = 3 }, "3 sessions of the table"},
		"too many of one":         {good, func(c *Config) { c.Limits.Sessions = 2 }, "2 sessions of the inner"},
		"too many ports of one":   {good, func(c *Config) { c.Limits.Ports = 1 }, "1 ports of the inner"},
		"too many ports together": {good, func(c *Config) { c.Network.Ports = 2 }, "2 ports of the network"},
		"half-open":               {half, func(c *Config) { c.Network.HalfOpen = 1 }, "1 half-open connections of the network"},
	} {
		l := newLab(t, tt.change)
		err := l.Import(tt.b, l.now)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v does not say %q", name, err, tt.says)
		}
		untouched(t, l)
	}
}

// twice copies n bytes within an export.
func twice(b []byte, to, from, at, n int) []byte {
	b = bytes.Clone(b)
	copy(b[to+at:], b[from+at:from+at+n])
	return b
}

// untouched checks that an import that was refused left nothing, and that a good one still goes.
func untouched(tb testing.TB, l *lab) {
	tb.Helper()
	s := l.Stats()
	if s.Hosts != 0 || s.Mappings != 0 || s.Ports != 0 || s.HalfOpen != 0 || s.HeldPorts != 0 || s.HeldTuples != 0 ||
		s.Created != (PerProtocol{}) || s.Ended != (PerReason{}) || len(l.events()) != 0 || s.EventsLost != 0 {
		tb.Fatalf("a refused import left %+v", s)
	}
	for range l.Sessions() {
		tb.Fatal("a refused import left a session")
	}
	audit(tb, l.Table)
	for _, p := range []packet.Proto{packet.TCP, packet.UDP, packet.ICMP} {
		if n := s.FreePorts.Of(p); !l.config.Identity && int(n) != l.blank.total {
			tb.Fatalf("%d ports are free of %d", n, l.blank.total)
		}
	}
}

// Any single bit that changed on the way is noticed.
func TestImportRefusesEveryFlippedBit(t *testing.T) {
	a, good := exported(t)
	l := a.twin()
	for i := range 8 * len(good) {
		b := bytes.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if err := l.Import(b, l.now); err == nil {
			t.Fatalf("taken in with bit %d of byte %d changed", i%8, i/8)
		}
	}
	untouched(t, l)
}

// An import goes into an empty table only, and what is there stays.
func TestImportWantsAnEmptyTable(t *testing.T) {
	a, good := exported(t)
	if err := a.Import(good, a.now); err == nil || !strings.Contains(err.Error(), "5 sessions") && !strings.Contains(err.Error(), "4 sessions") {
		t.Errorf("got %v", err)
	}
	audit(t, a.Table)
	b := a.twin()
	if err := b.Import(good, b.now); err != nil {
		t.Fatal(err)
	}
	sameSessions(t, a, b)
	if err := b.Import(good, b.now); err == nil {
		t.Error("taken in twice")
	}
}

// No bytes make Import panic, break the table, or change it when they are refused;
// an export with any byte changed is refused.
func FuzzImport(f *testing.F) {
	_, good := exported(f)
	f.Add(good, uint16(0), byte(0), false)
	f.Add(good, uint16(headerSize+16), byte(1), true)
	f.Add(good, uint16(headerSize), byte(recordTCP^recordOther), true)
	f.Add(good[:len(good)-20], uint16(5), byte(1), true)
	o, _ := history(f, EndpointIndependent, 3, 300)
	o.wait(time.Second)
	f.Add(export(f, o.Table, o.now, 100), uint16(40), byte(8), true)
	o, _ = history(f, identity, 3, 300)
	o.wait(time.Second)
	f.Add(export(f, o.Table, o.now, 100), uint16(41), byte(2), true)
	blocks := newLab(f, smallBlocks(EndpointIndependent))
	blockHistory(blocks, rand.New(rand.NewPCG(1, 6)), 400, func() {})
	blocks.Revoke(box.Addr(), blocks.now)
	blocks.wait(time.Second)
	f.Add(export(f, blocks.Table, blocks.now, 100), uint16(9), byte(0), true)
	f.Fuzz(func(t *testing.T, b []byte, at uint16, flip byte, sealed bool) {
		b = bytes.Clone(b)
		if bytes.Equal(b, good) && flip != 0 && !sealed {
			b[int(at)%len(b)] ^= flip
			if err := newLab(t, nil).Import(b, packet.Instant(time.Hour)); err == nil {
				t.Fatalf("taken in with byte %d changed by %02x", at, flip)
			}
		}
		if len(b) > headerSize {
			b[int(at)%len(b)] ^= flip
			if sealed && len(b) >= 4 {
				seal(b)
			}
		}
		for _, change := range []func(*Config){
			nil,
			func(c *Config) {
				c.TCPMapping, c.Ports, c.Limits = EndpointIndependent, PortRange{2000, 2005}, oracleLimits
			},
			func(c *Config) { c.Identity, c.External = true, netip.Addr{} },
			smallBlocks(EndpointIndependent),
		} {
			to := newLab(t, change)
			if err := to.Import(b, to.now); err != nil {
				untouched(t, to)
				continue
			}
			audit(t, to.Table)
			to.wait(8 * time.Hour)
			to.settle()
			audit(t, to.Table)
		}
	})
}

// An op is one step of 4096 records of a table with a million sessions: the time for
// which it keeps a table's lock. The longest one's is the processor's.
func BenchmarkExportStep(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := populate(b, 1_000_000)
	p.wait(tickLength)
	buf := make([]byte, 0, 4096*ExportStepBytes+40)
	var c ExportCursor
	var step effort
	for b.Loop() {
		if c.Done() {
			c = ExportCursor{}
		}
		step.start()
		_, c = p.AppendExport(buf, c, 4096, p.now)
		step.stop()
	}
	b.ReportMetric(float64(step.longest.Microseconds()), "us/longest")
}

// An op is a whole table.
func BenchmarkImport(b *testing.B) {
	p := populate(b, 1_000_000)
	p.wait(tickLength)
	x := export(b, p.Table, p.now, 1<<20)
	b.SetBytes(int64(len(x)))
	for b.Loop() {
		t := p.twin()
		if err := t.Import(x, t.now); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(p.n), "ns/session")
}
