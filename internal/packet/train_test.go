package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

// convoy makes batches of packets as senders make them, and some that are nearly so.
type convoy struct {
	dice  *rand.Rand
	seq   [4]uint32
	id    [4]uint16
	fixed [4]bool
}

func newConvoy(seed uint64) *convoy { return &convoy{dice: rand.New(rand.NewPCG(seed, 4))} }

// batch returns n packets of up to four flows. Each is as long as its bytes.
func (c *convoy) batch(t testing.TB, n int) [][]byte {
	var frames [][]byte
	for i := range c.fixed {
		c.fixed[i] = c.dice.IntN(2) == 0
		c.id[i] = uint16(c.dice.Uint32())
		c.seq[i] = c.dice.Uint32()
		if c.dice.IntN(8) == 0 {
			c.seq[i] = -uint32(c.dice.IntN(3000)) // wraps on the way
		}
	}
	size := []int{1 + c.dice.IntN(1400), 1380, 1 + c.dice.IntN(40), 1}[c.dice.IntN(4)]
	for len(frames) < n {
		flow := c.dice.IntN(4)
		for range 1 + c.dice.IntN(20) {
			payload := size
			if c.dice.IntN(12) == 0 {
				payload = c.dice.IntN(size + 20)
			}
			frames = append(frames, c.segment(t, flow, payload))
			if c.dice.IntN(30) == 0 {
				frames[len(frames)-1] = c.spoil(frames[len(frames)-1])
			}
		}
	}
	return frames[:n]
}

// segment returns the next packet of a flow: 0 and 1 are TCP, the others UDP.
func (c *convoy) segment(t testing.TB, flow, payload int) []byte {
	data := make([]byte, payload)
	for i := range data {
		data[i] = byte(c.dice.Uint32())
	}
	src := inner
	if flow%2 == 1 {
		src = ext
	}
	var b []byte
	if flow < 2 {
		h := TCPHeader{Src: src, Dst: remote, Seq: c.seq[flow], Ack: 77, Flags: ACK, Window: 500, TTL: 64}
		if c.dice.IntN(20) == 0 {
			h.Flags |= []TCPFlags{PSH, FIN, FIN | PSH, URG, SYN, 0x40, 0x80}[c.dice.IntN(7)]
		}
		if h.Flags&SYN != 0 {
			h.MSS = 1460
		}
		b = tcpPacket(t, h, string(data))
		if flow == 1 && h.MSS == 0 {
			b = withTCPOptions(b, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8)
		}
		c.seq[flow] += uint32(payload)
	} else {
		b = udpPacket(t, src, remote, string(data))
	}
	binary.BigEndian.PutUint16(b[4:], c.id[flow])
	b[6] = flagDF >> 8
	b = sums(b)
	if !c.fixed[flow] {
		c.id[flow]++
	}
	return b
}

// withTCPOptions puts options into a segment without any.
func withTCPOptions(b []byte, options ...byte) []byte {
	out := append(append(bytes.Clone(b[:40]), options...), b[40:]...)
	out[32] += byte(len(options) / 4 << 4)
	binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
	return sums(out)
}

// sums makes the checksums of a packet right, slowly, and cuts off what is behind it.
func sums(b []byte) []byte {
	var p Packet
	if head := int(b[0]&15) * 4; head < 20 || head > len(b) {
		return b
	}
	fixHeader(b)
	if Parse(&p, b) != Pass || p.Kind != KindTCP && p.Kind != KindUDP {
		return p.B
	}
	at := p.L4 + 16
	if p.Kind == KindUDP {
		at = p.L4 + 6
	}
	b = p.B
	b[at], b[at+1] = 0, 0
	pseudo := append(append(bytes.Clone(b[12:20]), 0, b[9], byte((len(b)-p.L4)>>8), byte(len(b)-p.L4)), b[p.L4:]...)
	acc := uint32(0)
	for i, v := range pseudo {
		acc += uint32(v) << (8 * (1 - i%2))
	}
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	if acc = ^acc & 0xffff; acc == 0 && p.Kind == KindUDP {
		acc = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], uint16(acc))
	return b
}

// spoil changes something: a field, a byte of payload with or without the checksum.
func (c *convoy) spoil(b []byte) []byte {
	i := c.dice.IntN(len(b))
	switch c.dice.IntN(6) {
	case 0:
		b[i] ^= 1 << c.dice.IntN(8)
		return b // the sums are wrong
	case 1:
		b[6] = 0 // no DF
	case 2:
		b[1] = 3 // congested
	case 3:
		b[8] = 63
	case 4:
		b[i] ^= 1 << c.dice.IntN(8)
	case 5:
		b = withOptions(b, 148, 4, 0, 0)
	}
	return sums(b)
}

// TestCuttingUndoesJoining: what comes out of joining and cutting is what went in, bit for
// bit and in the order of each flow.
func TestCuttingUndoesJoining(t *testing.T) {
	c := newConvoy(1)
	co := NewCoalescer(128)
	trains, segments, damaged := 0, 0, 0
	for round := range 400 {
		frames := c.batch(t, 1+c.dice.IntN(128))
		got := undo(t, co, frames, &trains, &segments, &damaged)
		if err := sameFlows(frames, got); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if segments < 4*trains || damaged < 50 {
		t.Errorf("%d segments in %d trains; %d damaged packets", segments, trains, damaged)
	}
}

// undo joins and cuts the frames.
func undo(t testing.TB, co *Coalescer, frames [][]byte, trains, segments, damaged *int) [][]byte {
	t.Helper()
	packets := make([]Packet, len(frames))
	for i, f := range frames {
		b := bytes.Clone(f)
		Parse(&packets[i], b[:len(b):len(b)])
		if p := &packets[i]; p.Kind == KindTCP || p.Kind == KindUDP {
			if !p.ChecksumOK() {
				*damaged++
			}
		}
	}
	var got [][]byte
	var cut Cutter
	buf := make([]byte, maxTotal)
	for i, train := range co.Coalesce(packets) {
		whole(t, &train, &packets[co.Head(i)])
		n, largest := train.Segments()
		o := cut.Start(&train, maxTotal)
		if o != Pass {
			t.Fatalf("train %d: %v: % x", i, o, train.Head)
		}
		if train.Size > 0 {
			*trains++
			*segments += n
		}
		bytesOf, most := 0, 0
		for cut.More() {
			size := cut.Size()
			k := cut.Next(buf[:size])
			if k == 0 || k > size {
				t.Fatalf("train %d: %d bytes in %d", i, k, size)
			}
			got = append(got, bytes.Clone(buf[:k]))
			bytesOf, most, n = bytesOf+k, max(most, k), n-1
		}
		if n != 0 || most != largest || bytesOf != train.Bytes() {
			t.Fatalf("train %d: %d segments missing, largest %d of %d, %d bytes of %d", i, n, most, largest, bytesOf, train.Bytes())
		}
	}
	return got
}

// whole checks that the headers and the packet of a train speak of all of it.
func whole(t testing.TB, train *Train, p *Packet) {
	t.Helper()
	if train.Size == 0 {
		return
	}
	all := bytes.Clone(train.Head)
	for _, b := range train.Rest {
		all = append(all, b...)
	}
	var again Packet
	if o := Parse(&again, all); o != Pass || len(again.B) != train.Len() || again.Payload != p.Payload || again.Flags != p.Flags || again.Seq != p.Seq {
		t.Fatalf("%v: %+v, want %+v", o, again, p)
	}
	if !train.Partial || &p.B[0] != &train.Head[0] {
		t.Fatal("a train with a checksum, or of another packet")
	}
}

// sameFlows compares two lists of packets, flow by flow.
func sameFlows(want, got [][]byte) error {
	key := func(b []byte) string {
		var p Packet
		if Parse(&p, b); p.Kind != KindTCP && p.Kind != KindUDP {
			return fmt.Sprint(p.Kind) // fragments and what is malformed have no ports
		}
		return string(b[9:10]) + string(b[12:20]) + string(b[p.L4:p.L4+4])
	}
	order := map[string][][]byte{}
	for _, b := range got {
		order[key(b)] = append(order[key(b)], b)
	}
	for i, b := range want {
		rest := order[key(b)]
		if len(rest) == 0 || !bytes.Equal(rest[0], b) {
			return fmt.Errorf("packet %d of %d: want\n% x\ngot\n% x", i, len(want), b, rest)
		}
		order[key(b)] = rest[1:]
	}
	if len(want) != len(got) {
		return fmt.Errorf("%d packets became %d", len(want), len(got))
	}
	return nil
}

// FuzzJoin joins batches that a seed makes, and what cutting them makes of that.
func FuzzJoin(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, uint8(40))
	}
	co := NewCoalescer(128)
	f.Fuzz(func(t *testing.T, seed uint64, n uint8) {
		frames := newConvoy(seed).batch(t, 1+int(n)%128)
		var trains, segments, damaged int
		if err := sameFlows(frames, undo(t, co, frames, &trains, &segments, &damaged)); err != nil {
			t.Fatal(err)
		}
	})
}
