package handshake

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// TestConnections makes connections over networks from good to bad. Each ends well, each latency
// is recorded once, and the far side saw at least one SYN, request and FIN of each.
func TestConnections(t *testing.T) {
	for _, tc := range []struct {
		name                string
		load                Load
		loss, double, delay float64
	}{
		{"open loop", Load{Rate: 5000, For: time.Second}, 0, 0, 0},
		{"closed loop", Load{Open: 50, For: time.Second}, 0, 0, 0},
		{"all slots", Load{For: time.Second}, 0, 0, 0},
		{"doubled and out of order", Load{Rate: 5000, For: time.Second}, 0, 0.3, 3},
		{"lost, doubled, out of order", Load{Rate: 100, For: 5 * time.Second}, 0.1, 0.2, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config()
			var connect, exchange latencies
			a := newAnswerer(t, c)
			w := &world{client: newClient(t, c), far: stateless{a}, chance: rand.New(rand.NewPCG(1, 2)), loss: tc.loss, double: tc.double, delay: tc.delay, now: 5}
			tc.load.Connect, tc.load.Exchange = &connect, &exchange
			w.client.Start(tc.load, w.now)
			for steps := 0; w.step(); steps++ {
				if steps%100 == 0 {
					if err := sound(w.client); err != nil {
						t.Fatal(err)
					}
				}
			}
			n, served := w.client.Counts(), a.Counts()
			want := uint64(tc.load.Rate * tc.load.For.Seconds())
			if n.Begun == 0 || n.OK != n.Begun || n.Skipped != 0 || w.client.Open() != 0 || tc.load.Rate > 0 && n.Begun != want || n.Damaged != 0 {
				t.Errorf("%+v", n)
			}
			if connect.n != n.OK || exchange.n != n.OK || connect.most < 2*time.Millisecond || connect.sum > exchange.sum {
				t.Errorf("latencies %+v, %+v of %d", connect, exchange, n.OK)
			}
			if served.Opened < n.OK || served.Asked < n.OK || served.Closed < n.OK || served.Refused != 0 || served.Damaged != 0 || served.WrongSource != 0 {
				t.Errorf("the far side counts %+v", served)
			}
			lossless := tc.loss == 0 && tc.double == 0
			if lossless && (served.Opened != n.OK || served.Asked != n.OK || served.Closed != n.OK || n.Sent != 4*n.OK || n.Received != 3*n.OK || n.Stray != 0) || (n.Resent != 0) != (tc.loss > 0) {
				t.Errorf("%+v; the far side counts %+v", n, served)
			}
			if err := sound(w.client); err != nil {
				t.Error(err)
			}
		})
	}
}

// mute answers nothing, or always the same.
type mute struct {
	typ packet.TCPFlags
	at  func(*packet.Packet) bool
	a   far
}

func (m mute) answer(b []byte) [][]byte {
	var p packet.Packet
	packet.Parse(&p, b)
	if !m.at(&p) {
		return m.a.answer(b)
	}
	if m.typ == 0 {
		return nil
	}
	h := packet.TCPHeader{Src: netip.AddrPortFrom(p.Dst, p.DstPort), Dst: netip.AddrPortFrom(p.Src, p.SrcPort), Flags: m.typ, Seq: p.Ack, Ack: p.End(), TTL: 64}
	dst := make([]byte, 100)
	n := packet.BuildTCP(dst, h, nil)
	return [][]byte{dst[:n]}
}

// barred answers SYNs by an ICMP error.
type barred struct{}

func (barred) answer(b []byte) [][]byte {
	var p packet.Packet
	packet.Parse(&p, b)
	dst := make([]byte, 200)
	return [][]byte{dst[:packet.BuildICMPError(dst, packet.ICMPUnreachable, 13, 0, netip.MustParseAddr("198.51.100.1"), &p)]}
}

func isSYN(p *packet.Packet) bool    { return p.Flags&packet.SYN != 0 }
func isFIN(p *packet.Packet) bool    { return p.Flags&packet.FIN != 0 }
func asks(p *packet.Packet) bool     { return p.Payload > 0 }
func always(*packet.Packet) bool     { return true }
func resend(tries int) time.Duration { return 200 * time.Millisecond * (1<<tries - 1) }

// TestOutcomes lets connections end otherwise than well.
func TestOutcomes(t *testing.T) {
	other := config()
	other.Answer = []byte("it is long enough to be bad")
	short := config()
	short.Answer = short.Answer[:5]
	long := config()
	long.Answer = append([]byte(nil), append(long.Answer, "!"...)...)
	good := func() far { return stateless{newAnswerer(t, config())} }
	for _, tc := range []struct {
		name string
		far  far
		want func(Counts) uint64
		took time.Duration
	}{
		{"nobody there", mute{at: always}, func(n Counts) uint64 { return n.TimedOut }, resend(8)},
		{"no answer", mute{at: asks, a: good()}, func(n Counts) uint64 { return n.TimedOut }, resend(8)},
		{"no end", mute{at: isFIN, a: good()}, func(n Counts) uint64 { return n.TimedOut }, resend(8)},
		{"refused", mute{at: isSYN, typ: packet.RST | packet.ACK}, func(n Counts) uint64 { return n.Refused }, 0},
		{"reset", mute{at: asks, typ: packet.RST, a: good()}, func(n Counts) uint64 { return n.Reset }, 0},
		{"barred", barred{}, func(n Counts) uint64 { return n.Unreachable }, 0},
		{"end instead of an answer", mute{at: asks, typ: packet.FIN | packet.ACK, a: good()}, func(n Counts) uint64 { return n.Wrong }, 0},
		{"another answer", stateless{newAnswerer(t, other)}, func(n Counts) uint64 { return n.Wrong }, 0},
		{"half an answer", stateless{newAnswerer(t, short)}, func(n Counts) uint64 { return n.Wrong }, 0},
		{"too long an answer", stateless{newAnswerer(t, long)}, func(n Counts) uint64 { return n.Wrong }, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := &world{client: newClient(t, config()), far: tc.far, chance: rand.New(rand.NewPCG(1, 2))}
			w.client.Start(Load{Rate: 100, For: 200 * time.Millisecond}, w.now)
			for w.step() {
				if err := sound(w.client); err != nil {
					t.Fatal(err)
				}
			}
			n := w.client.Counts()
			if n.Begun != 20 || tc.want(n) != 20 || n.Failed() != 20 || n.OK != 0 {
				t.Errorf("%+v", n)
			}
			if took := time.Duration(w.now) - 190*time.Millisecond; took < tc.took || took > tc.took+10*time.Millisecond {
				t.Errorf("it took %v, want %v", took, tc.took)
			}
		})
	}
}

// TestSkipped counts what was due and could not begin, and what was asked for too late.
func TestSkipped(t *testing.T) {
	w := &world{client: newClient(t, config()), far: mute{at: always}, chance: rand.New(rand.NewPCG(1, 2))}
	w.client.Start(Load{Rate: 1000, Open: 30, For: 200 * time.Millisecond}, 0)
	for w.client.Running() {
		w.step()
	}
	if n := w.client.Counts(); n.Begun != 30 || n.Skipped != 170 || w.client.Open() != 30 {
		t.Errorf("%+v", n)
	}
	w.client.Abandon()
	if n := w.client.Counts(); n.TimedOut != 30 || w.client.Open() != 0 || w.client.Wait(w.now) >= 0 {
		t.Errorf("%+v, then %v", n, w.client.Wait(w.now))
	}
	late := newClient(t, config())
	late.Start(Load{Rate: 1000, For: 100 * time.Millisecond}, 0)
	if n := late.Next(make([]byte, late.SegmentSize()), 200*millisecond); n != 0 || late.Counts().Skipped != 100 {
		t.Errorf("%d, %+v", n, late.Counts())
	}
}

// TestSpread says that sandboxes, ports and destinations take turns.
func TestSpread(t *testing.T) {
	c := config()
	cl := newClient(t, c)
	cl.Start(Load{For: time.Second}, 0)
	buf := make([]byte, cl.SegmentSize())
	locals, from, to := map[netip.AddrPort]int{}, map[netip.Addr]int{}, map[netip.AddrPort]int{}
	for cl.Next(buf, 0) > 0 {
		var p packet.Packet
		packet.Parse(&p, buf)
		locals[netip.AddrPortFrom(p.Src, p.SrcPort)]++
		from[p.Src]++
		to[netip.AddrPortFrom(p.Dst, p.DstPort)]++
	}
	if len(locals) != 200 || len(from) != 4 || len(to) != 20 || from[c.Sandboxes[3]] != 50 || to[c.Remotes[19]] != 10 {
		t.Errorf("%d local endpoints, %v, %v", len(locals), from, to)
	}
}

// TestStrangers answers what is of another connection as RFC 9293 has it, and takes no RST whose
// number is not exact.
func TestStrangers(t *testing.T) {
	c := config()
	cl, a := newClient(t, c), newAnswerer(t, c)
	cl.Start(Load{Open: 1, For: time.Second}, 0)
	syn, in := make([]byte, cl.SegmentSize()), make([]byte, 200)
	n := cl.Next(syn, 0)
	var p packet.Packet
	packet.Parse(&p, syn[:n])
	h := packet.TCPHeader{Src: netip.AddrPortFrom(p.Dst, 80), Dst: netip.AddrPortFrom(p.Src, p.SrcPort), Seq: 99, Ack: 12345, Flags: packet.ACK, TTL: 64}
	cl.Deliver(in[:packet.BuildTCP(in, h, nil)], 1)
	out := make([]byte, cl.SegmentSize())
	packet.Parse(&p, out[:cl.Next(out, 1)])
	if p.Flags != packet.RST || p.Seq != 12345 || cl.Counts().Stray != 1 {
		t.Errorf("an old acknowledgement is answered by flags %x with number %d: %+v", p.Flags, p.Seq, cl.Counts())
	}
	cl.Deliver(in[:a.Answer(in, syn[:n])], 2)
	h.Seq, h.Ack, h.Flags = 99, p.Ack, packet.RST
	cl.Deliver(in[:packet.BuildTCP(in, h, nil)], 3)
	if n := cl.Counts(); n.Reset != 0 || n.Stray != 2 || cl.Open() != 1 {
		t.Errorf("a RST with a guessed number: %+v", n)
	}
	in[30] ^= 1
	cl.Deliver(in[:40], 3)
	if n := cl.Counts(); n.Damaged != 1 {
		t.Errorf("a damaged segment: %+v", n)
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Remotes = nil }, "destinations"},
		{func(c *Config) { c.LastPort = 1 }, "local ports"},
		{func(c *Config) { c.FirstPort, c.LastPort, c.Sandboxes = 1, 65535, addresses("10.0.0.1", 65) }, "slots"},
		{func(c *Config) { c.Request = make([]byte, 1201) }, "request"},
		{func(c *Config) { c.Answer = nil }, "answer"},
		{func(c *Config) { c.Tries = 9 }, "tries"},
		{func(c *Config) { c.Sandboxes = []netip.Addr{netip.IPv6Loopback()} }, "IPv4"},
		{func(c *Config) { c.Sandboxes = append(c.Sandboxes, c.Sandboxes[0]) }, "twice"},
		{func(c *Config) { c.Remotes = []netip.AddrPort{{}} }, "port"},
	} {
		c := config()
		tc.change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v, want something about %q", err, tc.want)
		}
	}
	for _, c := range []AnswererConfig{{}, {Request: []byte{1}, Answer: make([]byte, 1201)}} {
		if _, err := NewAnswerer(c); err == nil {
			t.Errorf("%+v passes", c)
		}
	}
}

// run makes connections without a network between.
func run(c *Client, a *Answerer, now *packet.Instant, until uint64) {
	segment, answer := make([]byte, c.SegmentSize()), make([]byte, a.Size())
	for c.Counts().OK < until {
		*now += 1000
		for n := c.Next(segment, *now); n > 0 && c.Counts().OK < until; n = c.Next(segment, *now) {
			if m := a.Answer(answer, segment[:n]); m > 0 {
				c.Deliver(answer[:m], *now)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	if size := unsafe.Sizeof(slot{}); size > 64 {
		t.Errorf("a slot has %d bytes", size)
	}
	c := config()
	cl, a, now := newClient(t, c), newAnswerer(t, c), packet.Instant(0)
	cl.Start(Load{Open: 10, For: time.Hour}, now)
	until := uint64(0)
	if n := testing.AllocsPerRun(10, func() { until += 100; run(cl, a, &now, until) }); n > 2 { // the buffers
		t.Errorf("%v allocations for 100 connections", n)
	}
}

func BenchmarkConnections(b *testing.B) {
	c := config()
	c.LastPort = 15000
	cl, a, now := newClient(b, c), newAnswerer(b, c), packet.Instant(0)
	cl.Start(Load{Open: 50, For: 1 << 60}, now)
	b.ReportAllocs()
	run(cl, a, &now, uint64(b.N))
}

// FuzzDeliver lets anything come while connections are open: the books stay right.
func FuzzDeliver(f *testing.F) {
	f.Add(uint8(0x12), int32(0), int32(1), []byte("it is long"), uint8(0))
	f.Add(uint8(0x11), int32(1), int32(20), []byte{}, uint8(2))
	f.Add(uint8(0x04), int32(1), int32(0), []byte{}, uint8(3))
	f.Fuzz(func(t *testing.T, flags uint8, seq, ack int32, data []byte, at uint8) {
		c := config()
		cl, a, now := newClient(t, c), newAnswerer(t, c), packet.Instant(0)
		cl.Start(Load{Open: 8, For: time.Second}, now)
		segment, in := make([]byte, cl.SegmentSize()), make([]byte, 2000)
		for step := range uint8(40) {
			now += 50 * millisecond
			for range 50 { // there is always another connection
				n := cl.Next(segment, now)
				if m := a.Answer(in, segment[:n]); m > 0 && step%3 != at%3 {
					cl.Deliver(in[:m], now)
				}
			}
			if step == at%40 {
				for i := 1; i < 9; i++ {
					s := &cl.slots[i]
					h := packet.TCPHeader{Src: c.Remotes[s.remote], Dst: cl.local(uint32(i)), Flags: packet.TCPFlags(flags), Seq: s.receive + uint32(seq), Ack: s.isn + uint32(ack), TTL: 64}
					cl.Deliver(in[:packet.BuildTCP(in, h, data[:min(len(data), 1000)])], now)
				}
				cl.Deliver(data, now)
			}
			if err := sound(cl); err != nil {
				t.Fatal(err)
			}
		}
	})
}
