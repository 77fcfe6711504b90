package packet

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// follower is the second segment of a train of TCP or UDP with 100 bytes each.
func follower(t testing.TB, proto Proto) (first, second []byte) {
	data := string(make([]byte, 100))
	if proto == UDP {
		first, second = udpPacket(t, inner, remote, data), udpPacket(t, inner, remote, data)
	} else {
		h := TCPHeader{Src: inner, Dst: remote, Seq: 5, Ack: 9, Flags: ACK, Window: 500}
		first = tcpPacket(t, h, data)
		h.Seq += 100
		second = tcpPacket(t, h, data)
	}
	for i, b := range [][]byte{first, second} {
		b[6] = flagDF >> 8
		binary.BigEndian.PutUint16(b[4:], 40+uint16(i))
		sums(b)
	}
	return first, second
}

func joins(first, second []byte) bool {
	var p [2]Packet
	Parse(&p[0], bytes.Clone(first))
	Parse(&p[1], bytes.Clone(second))
	return len(NewCoalescer(2).Coalesce(p[:])) == 1
}

// What two segments must not differ in, and what they may.
func TestRulesOfJoining(t *testing.T) {
	type change func(first, second []byte)
	second := func(at int, v byte) change { return func(_, b []byte) { b[at] = v } }
	first := func(at int, v byte) change { return func(b, _ []byte) { b[at] = v } }
	both := func(at int, v byte) change { return func(a, b []byte) { a[at], b[at] = v, v } }
	for _, c := range []struct {
		name   string
		proto  Proto
		change change
		want   bool
	}{
		{"plain", TCP, second(0, 0x45), true},
		{"datagrams", UDP, second(0, 0x45), true},
		{"type of service", TCP, second(1, 3), false},
		{"the same type of service", TCP, both(1, 3), true},
		{"TTL", UDP, second(8, 9), false},
		{"source", TCP, second(15, 9), false},
		{"destination", UDP, second(19, 9), false},
		{"source port", TCP, second(21, 9), false},
		{"destination port", UDP, second(23, 9), false},
		{"the same identification", TCP, second(5, 40), true},
		{"an identification further on", TCP, second(5, 42), false},
		{"the one before", UDP, second(5, 39), false},
		{"first without DF", TCP, first(6, 0), false},
		{"second without DF", TCP, second(6, 0), false},
		{"both without DF", TCP, both(6, 0), false},
		{"the reserved bit", UDP, both(6, 0xc0), false},
		{"sequence", TCP, second(27, 0), false},
		{"acknowledgement", TCP, second(31, 1), false},
		{"window", TCP, second(34, 2), false},
		{"reserved bits", TCP, second(32, 0x51), false},
		{"the same reserved bits", TCP, both(32, 0x51), true},
		{"urgent pointer", TCP, second(39, 1), false},
		{"PSH last", TCP, second(33, uint8(ACK|PSH)), true},
		{"FIN last", TCP, second(33, uint8(ACK|FIN|PSH)), true},
		{"PSH first", TCP, first(33, uint8(ACK|PSH)), false},
		{"FIN first", TCP, first(33, uint8(ACK|FIN)), false},
		{"SYN", TCP, second(33, uint8(ACK|SYN)), false},
		{"SYN first", TCP, first(33, uint8(ACK|SYN)), false},
		{"RST", TCP, second(33, uint8(ACK|RST)), false},
		{"both URG", TCP, both(33, uint8(ACK|URG)), false},
		{"CWR first", TCP, first(33, uint8(ACK)|0x80), true},
		{"CWR last", TCP, second(33, uint8(ACK)|0x80), false},
		{"CWR in both", TCP, both(33, uint8(ACK)|0x80), false},
		{"ECE in both", TCP, both(33, uint8(ACK)|0x40), true},
		{"ECE last", TCP, second(33, uint8(ACK)|0x40), false},
	} {
		a, b := follower(t, c.proto)
		c.change(a, b)
		if got := joins(sums(a), sums(b)); got != c.want {
			t.Errorf("%s: joined %t", c.name, got)
		}
	}
}

func TestWrongChecksumsAreNotJoined(t *testing.T) {
	for _, proto := range []Proto{TCP, UDP} {
		for i := range 2 {
			a, b := follower(t, proto)
			[][]byte{a, b}[i][60] ^= 1
			if joins(a, b) {
				t.Errorf("protocol %d: packet %d is damaged, and joined", proto, i)
			}
		}
	}
	a, b := follower(t, UDP)
	a[26], a[27], b[26], b[27] = 0, 0, 0, 0
	if joins(a, b) {
		t.Error("datagrams without checksum are joined")
	}
}

func TestJoinedSizes(t *testing.T) {
	datagrams := func(sizes ...int) (lens []int) {
		packets := make([]Packet, len(sizes))
		for i, size := range sizes {
			b := udpPacket(t, inner, remote, string(make([]byte, size)))
			b[6] = flagDF >> 8
			Parse(&packets[i], sums(b))
		}
		for _, train := range NewCoalescer(200).Coalesce(packets) {
			n, _ := train.Segments()
			lens = append(lens, n)
		}
		return lens
	}
	for _, c := range []struct{ sizes, want []int }{
		{[]int{100, 100, 100}, []int{3}},
		{[]int{100, 100, 40, 100}, []int{3, 1}},
		{[]int{100, 101}, []int{1, 1}},
		{[]int{100, 0, 100}, []int{1, 1, 1}},
		{[]int{30000, 30000, 5507}, []int{3}}, // 65,535 bytes
		{[]int{30000, 30000, 5508}, []int{2, 1}},
		{slices.Repeat([]int{10}, 130), []int{64, 64, 2}},
	} {
		got := datagrams(c.sizes...)
		same := len(got) == len(c.want)
		for i := 0; same && i < len(got); i++ {
			same = got[i] == c.want[i]
		}
		if !same {
			t.Errorf("%v: trains of %v, want %v", c.sizes, got, c.want)
		}
	}
}

// A smaller link gets smaller segments of TCP, in sequence; datagrams stay as they are.
func TestCutsToASmallerLimit(t *testing.T) {
	data := make([]byte, 5000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	b := make([]byte, 6000)
	b = b[:BuildTCP(b, TCPHeader{Src: inner, Dst: remote, Seq: 0xffffff00, Ack: 9, Flags: ACK | PSH | FIN, TTL: 64, ID: 0xfffe}, data)]
	b[33] |= flagCWR
	b = sums(b)
	for _, limit := range []int{41, 576, 1420, 1500, 9000} {
		train := Train{Head: b[:300:300], Rest: [][]byte{b[300:301], nil, b[301:]}, Size: 1460, Partial: true}
		size := min(1460, limit-40)
		var c Cutter
		if o := c.Start(&train, limit); o != Pass || c.Payload() != size {
			t.Fatalf("limit %d: %v, %d", limit, o, c.Payload())
		}
		at, index, buf := 0, 0, make([]byte, 1500)
		for c.More() {
			n := c.Next(buf)
			var p Packet
			if n == 0 || n > limit || Parse(&p, buf[:n]) != Pass || !p.ChecksumOK() {
				t.Fatalf("limit %d: % x", limit, buf[:n])
			}
			last := at+p.Payload == len(data)
			if p.Seq != uint32(0xffffff00+at) || p.ID() != uint16(0xfffe+index) || !bytes.Equal(p.Data(), data[at:at+p.Payload]) ||
				!last && p.Payload != size || (buf[33]&flagCWR != 0) != (index == 0) || (p.Flags&(PSH|FIN) != 0) != last {
				t.Fatalf("limit %d, at %d: %+v", limit, at, p)
			}
			at += p.Payload
			index++
		}
		if at != len(data) {
			t.Errorf("limit %d: %d bytes", limit, at)
		}
	}
	u := udpPacket(t, inner, remote, string(data))
	for _, c := range []struct {
		train Train
		limit int
		want  Outcome
	}{
		{Train{Head: u, Size: 1400, Partial: true}, 1428, Pass},
		{Train{Head: u, Size: 1400, Partial: true}, 1427, TooBig},
		{Train{Head: b, Partial: true}, 1420, TooBig}, // nobody said that it may be cut
		{Train{Head: b}, 1420, TooBig},
		{Train{Head: b, Size: 1460, Partial: true}, 40, TooBig},
		{Train{Head: u}, 1420, TooBig},
	} {
		var cut Cutter
		if o := cut.Start(&c.train, c.limit); o != c.want {
			t.Errorf("%d bytes of %d, limit %d: %v, want %v", c.train.Size, c.train.Len(), c.limit, o, c.want)
		}
	}
}

// Headers that do not fit their train are refused.
func TestCutterRefuses(t *testing.T) {
	tcp, _ := follower(t, TCP)
	udp, _ := follower(t, UDP)
	for _, c := range []struct {
		name   string
		b      []byte
		change func(b []byte) []byte
		want   Outcome
	}{
		{"nothing", tcp, func(b []byte) []byte { return b[:0] }, Malformed},
		{"IPv6", tcp, func(b []byte) []byte { b[0] = 0x65; return b }, Malformed},
		{"a header sum", tcp, func(b []byte) []byte { b[10]++; return b }, Malformed},
		{"a short total", tcp, func(b []byte) []byte { b[3]--; return fixHeader(b) }, Malformed},
		{"cut off", tcp, func(b []byte) []byte { return b[:30] }, Malformed},
		{"a short header", tcp, func(b []byte) []byte { b[0] = 0x44; return b }, Malformed},
		{"a fragment", tcp, func(b []byte) []byte { b[7] = 1; return fixHeader(b) }, Fragment},
		{"another protocol", tcp, func(b []byte) []byte { b[9] = 47; return fixHeader(b) }, BadProtocol},
		{"a data offset", tcp, func(b []byte) []byte { b[32] = 0x40; return b }, MalformedL4},
		{"no transport", tcp, func(b []byte) []byte { b[3] = 30; return fixHeader(b)[:30] }, MalformedL4},
		{"a length of UDP", udp, func(b []byte) []byte { b[25]--; return b }, MalformedL4},
	} {
		train := Train{Head: c.change(bytes.Clone(c.b)), Size: 10, Partial: true}
		var cut Cutter
		if o := cut.Start(&train, 1420); o != c.want || cut.More() {
			t.Errorf("%s: %v, want %v", c.name, o, c.want)
		}
	}
}

// FuzzCut cuts whatever comes: what comes out is sound, and all of the payload.
func FuzzCut(f *testing.F) {
	a, _ := follower(f, TCP)
	b, _ := follower(f, UDP)
	f.Add(a, 10, 1420, true, true)
	f.Add(b, 10, 60, false, true)
	f.Add(withTCPOptions(a, 1, 1, 1, 1), 1, 1420, false, true)
	f.Add(withOptions(b, 148, 4, 0, 0), 99, 1420, false, false)
	f.Add(withOptions(b, 148, 48, 0, 0), 99, 1420, true, false) // an option that is too long
	buf := make([]byte, maxTotal)
	f.Fuzz(func(t *testing.T, head []byte, size, limit int, same, partial bool) {
		if len(head) > maxTotal || size < 0 {
			return
		}
		for range 2 { // as it is, and with right sums
			train := Train{Head: head, Size: size, SameID: same, Partial: partial || size > 0}
			cutSoundly(t, &train, limit, buf)
			if len(head) >= 20 {
				head = sums(bytes.Clone(head))
			}
		}
	})
}

func cutSoundly(t *testing.T, train *Train, limit int, buf []byte) {
	var c Cutter
	if c.Start(train, limit) != Pass || !train.Partial {
		return
	}
	var payload []byte
	packets := 0
	for c.More() {
		n := c.Next(buf)
		if n == 0 || n > limit {
			t.Fatalf("%d bytes of at most %d", n, limit)
		}
		var p Packet
		o := Parse(&p, buf[:n])
		// Options are copied as they are, which Parse may like or not.
		sounds := soundHeader(buf, int(buf[0]&15)*4) && int(binary.BigEndian.Uint16(buf[2:])) == n
		if !sounds || o == Pass && !p.ChecksumOK() {
			t.Fatalf("%v: % x", o, buf[:n])
		}
		head := train.headers()
		payload = append(payload, buf[head:n]...)
		packets++
	}
	if !bytes.Equal(payload, train.Head[train.headers():]) {
		t.Fatal("other payload")
	}
	if n, _ := train.Segments(); packets < n {
		t.Fatalf("%d packets of %d", packets, n)
	}
}
