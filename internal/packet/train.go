package packet

import (
	"bytes"
	"encoding/binary"
)

// Train is one or more segments of one flow that travel as one packet, as a kernel
// carries them before it segments (GSO) and after it has joined (GRO): the headers of
// the first, and the payloads of all.
//
// The headers speak of the whole: the total length of IP and the length of UDP count
// all payload, and FIN and PSH, which the last segment has, stand in the flags. The
// sum of the IP header is right. That of a transport which is Partial says
// nothing; setters may amend it all the same, and whoever sends the train computes it.
//
// A single packet is a train too: the whole of it is Head, and Size is 0.
type Train struct {
	Head    []byte   // headers and the first payload; the IP header at its start
	Rest    [][]byte // more payload, in order
	Size    int      // payload bytes of each segment but the last, which may have fewer; 0: a single packet
	SameID  bool     // all segments have the identification of the head; else it counts up by one
	Partial bool     // the transport checksum is not computed yet (what a kernel leaves to its device)
}

// Len returns the bytes of the whole train as one packet: headers once, and all payload.
func (t *Train) Len() int {
	n := len(t.Head)
	for _, b := range t.Rest {
		n += len(b)
	}
	return n
}

// Segments returns how many packets the train is when it is cut at Size, and the bytes
// of the largest of them. The headers must be those of a train that was made by a
// [Coalescer] or has passed [Cutter.Start].
func (t *Train) Segments() (n, largest int) {
	whole := t.Len()
	if t.Size <= 0 {
		return 1, whole
	}
	head := t.headers()
	payload := whole - head
	return max((payload+t.Size-1)/t.Size, 1), head + min(payload, t.Size)
}

// Checksum readies the checksum field of a Partial train for whoever completes it behind
// this program, as kernels want it: it holds the sum of the pseudo-header. It returns
// where the transport header begins, where in it the field is, and the bytes of all headers. The
// headers must be such as for Segments.
func (t *Train) Checksum() (l4, field, headers int) {
	l4 = int(t.Head[0]&15) * 4
	field = 6
	if Proto(t.Head[9]) == TCP {
		field = 16
	}
	binary.BigEndian.PutUint16(t.Head[l4+field:], fold(pseudo(t.Head, t.Len()-l4)))
	return l4, field, t.headers()
}

// CompleteChecksum finishes in place what a kernel has left to its device: the field
// of the packet b at start+field holds the sum of a pseudo-header, to which everything
// from start on is to be added. It says whether the place makes sense: in the payload of a
// sound IPv4 header, and of no fragment. Otherwise nothing is changed.
func CompleteChecksum(b []byte, start, field int) bool {
	if len(b) < ipv4Len || start < int(b[0]&15)*4 || start < ipv4Len || field < 0 || start+field+2 > len(b) ||
		binary.BigEndian.Uint16(b[6:])&(flagMF|offsetMask) != 0 {
		return false
	}
	check := checksum(b[start:], 0)
	if check == 0 && Proto(b[9]) == UDP {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(b[start+field:], check)
	return true
}

// Bytes returns the bytes of the packets that the train is made of, headers included.
func (t *Train) Bytes() int {
	n, _ := t.Segments()
	if n == 1 {
		return t.Len()
	}
	return t.Len() + (n-1)*t.headers()
}

// headers returns the bytes of the IP and the transport header.
func (t *Train) headers() int {
	l4 := int(t.Head[0]&15) * 4
	if Proto(t.Head[9]) == TCP {
		return l4 + int(t.Head[l4+12]>>4)*4
	}
	return l4 + udpLen
}

// flagCWR is the bit beside TCPFlags by which a sender says, once, that it has slowed
// down (RFC 3168 section 6.1.2).
const flagCWR = 0x80

// maxTotal is the largest total length of an IPv4 packet, and so of a train.
const maxTotal = 0xffff

// maxDatagrams is the most datagrams that become one train: the least that kernels took
// at once (UDP_MAX_SEGMENTS of Linux before 6.10).
const maxDatagrams = 64

// slots are the places of flows in a Coalescer; a power of two.
const slots = 256

// Coalescer joins the packets of a batch to trains. It owns the memory of a batch,
// so that joining allocates nothing.
type Coalescer struct {
	trains []Train
	open   []joint      // of each train
	owner  []int16      // the train of each packet
	rest   [][]byte     // the payloads behind heads, those of a train together
	slot   [slots]int16 // the last train of a flow, plus one
}

// joint is what a train has become, and what its next packet has to be.
type joint struct {
	first    int // place of the head in the batch
	segments int
	size     int    // payload bytes of the head
	payload  int    // of all
	total    int    // bytes as one packet
	seq      uint32 // TCP: the sequence number that follows
	id       uint16 // identification of the last packet
	step     uint16 // 0 or 1: by which identifications count up; known from two packets on
	flags    TCPFlags
	closed   bool // nothing follows
	verified bool // the head's checksum was found right
}

// NewCoalescer returns a Coalescer of batches of at most n packets, which is at most 32,767.
func NewCoalescer(n int) *Coalescer {
	n = min(n, 1<<15-1)
	return &Coalescer{
		trains: make([]Train, 0, n),
		open:   make([]joint, 0, n),
		owner:  make([]int16, 0, n),
		rest:   make([][]byte, n),
	}
}

// Coalesce joins parsed packets to trains, which are in the order of their heads, so
// that every flow keeps its own. It changes the head of a train, its bytes and its
// packet: Payload and Flags become those of the whole, B stays the head's own bytes. With that one
// call to a translator moves the train. Data and ChecksumOK of it say nothing. The packets behind a
// head are used up. A packet that was not parsed, or not let pass, is a train of its own.
//
// Segments are joined by the rules of Linux's GRO: the same addresses, ports, TTL, type of
// service, acknowledgement, window and options, in sequence, of one size, of which only the last may be
// shorter, have FIN or PSH; no SYN, RST or URG, CWR only in the first; at most 64
// datagrams. Beyond that, packets without DF are not joined, since their identifications
// have to stay as a translator chooses them (RFC 6864 section 4.2); nor is a packet
// joined whose checksum is wrong or absent, which would come out repaired.
//
// The trains, and what they refer to in the Coalescer, are valid until the next call.
func (c *Coalescer) Coalesce(packets []Packet) []Train {
	packets = packets[:min(len(packets), cap(c.owner))]
	c.trains, c.open, c.owner = c.trains[:0], c.open[:0], c.owner[:0]
	clear(c.slot[:])
	for i := range packets {
		c.owner = append(c.owner, c.place(packets, i))
	}
	c.couple(packets)
	return c.trains
}

// Head returns the place in the batch of the head of the train with number i.
func (c *Coalescer) Head(i int) int { return c.open[i].first }

// Release drops what the Coalescer refers to of the last batch.
func (c *Coalescer) Release() {
	clear(c.trains)
	clear(c.rest)
	c.trains, c.open, c.owner = c.trains[:0], c.open[:0], c.owner[:0]
}

// place returns the train of the packet with number i.
func (c *Coalescer) place(packets []Packet, i int) int16 {
	p := &packets[i]
	if p.Kind != KindTCP && p.Kind != KindUDP {
		return c.begin(p, i, true)
	}
	slot := &c.slot[flowSlot(p)]
	may := joinable(p)
	if at := *slot - 1; at >= 0 && may {
		j := &c.open[at]
		if head := &packets[j.first]; !j.closed && j.follows(head, p) && j.sound(head) && p.ChecksumOK() {
			j.add(p)
			return at
		}
	}
	train := c.begin(p, i, !may || ends(p))
	*slot = train + 1
	return train
}

// begin makes a train of which p, the packet with number i, is the head.
func (c *Coalescer) begin(p *Packet, i int, closed bool) int16 {
	j := joint{first: i, segments: 1, total: len(p.B), closed: closed}
	if !closed {
		j.size, j.payload, j.id, j.flags = p.Payload, p.Payload, p.ID(), p.Flags
		j.seq = p.Seq + uint32(p.Payload)
	}
	c.open = append(c.open, j)
	return int16(len(c.open) - 1)
}

// flowSlot returns the place of a flow. Flows that share one are joined less, which
// is all that a sandbox gains by making such flows.
func flowSlot(p *Packet) uint8 {
	h := uint64(binary.BigEndian.Uint32(p.B[p.L4:])) ^ binary.BigEndian.Uint64(p.B[offSrc:])*0x9e3779b97f4a7c15
	h ^= h >> 29
	return uint8(h * 0xbf58476d1ce4e5b9 >> 56)
}

// joinable says whether p may be one of several segments: it has payload, no IP
// options, DF, nothing behind a datagram, and sums as senders compute them, so that
// cutting makes the same.
func joinable(p *Packet) bool {
	if !p.DF || p.L4 != ipv4Len || p.Payload == 0 || binary.BigEndian.Uint16(p.B[6:]) != flagDF || minusZero(p.B[offChecksum:]) {
		return false
	}
	t := p.B[ipv4Len:]
	if p.Kind == KindUDP {
		return p.Payload+udpLen == len(t) && t[6]|t[7] != 0
	}
	return p.Flags&(SYN|RST|URG|ACK) == ACK && !minusZero(t[16:])
}

// minusZero says whether a checksum is one that no sender computes, although it may be right.
func minusZero(b []byte) bool { return b[0]&b[1] == 0xff }

// ends says whether nothing may follow p.
func ends(p *Packet) bool { return p.Kind == KindTCP && p.Flags&(FIN|PSH) != 0 }

// follows says whether p continues the train.
func (j *joint) follows(head, p *Packet) bool {
	a, b := head.B, p.B
	step := p.ID() - j.id
	switch {
	case p.Kind != head.Kind, p.TTL != head.TTL, a[1] != b[1], p.Payload > j.size, j.total+p.Payload > maxTotal,
		binary.BigEndian.Uint64(a[offSrc:]) != binary.BigEndian.Uint64(b[offSrc:]),
		binary.BigEndian.Uint32(a[ipv4Len:]) != binary.BigEndian.Uint32(b[ipv4Len:]),
		step > 1, j.segments > 1 && step != j.step:
		return false
	case p.Kind == KindUDP:
		return true
	}
	a, b = a[ipv4Len:len(a)-head.Payload], b[ipv4Len:len(b)-p.Payload]
	const last = uint8(FIN | PSH)
	return p.Seq == j.seq && p.Ack == head.Ack && p.Window == head.Window && a[12] == b[12] &&
		a[13]&^(flagCWR|last) == b[13]&^last && // so b has no CWR
		bytes.Equal(a[18:], b[18:])
}

// sound verifies the head's checksum, once. Where it is wrong nothing joins the head.
func (j *joint) sound(head *Packet) bool {
	if !j.verified {
		j.verified = head.ChecksumOK()
		j.closed = !j.verified
	}
	return j.verified
}

// add joins p, which follows.
func (j *joint) add(p *Packet) {
	j.step = p.ID() - j.id
	j.id = p.ID()
	j.segments++
	j.payload += p.Payload
	j.total += p.Payload
	j.seq += uint32(p.Payload)
	j.flags |= p.Flags
	j.closed = p.Payload < j.size || ends(p) || p.Kind == KindUDP && j.segments == maxDatagrams
}

// couple makes the trains of the joints. What the packets of a train bring stands together
// in rest, so first each train gets its place there.
func (c *Coalescer) couple(packets []Packet) {
	n := 0
	for i := range c.open {
		j := &c.open[i]
		head := &packets[j.first]
		t := Train{Head: head.B}
		if more := j.segments - 1; more > 0 {
			t.Rest = c.rest[n : n : n+more]
			t.Size, t.SameID, t.Partial = j.size, j.step == 0, true
			n += more
		}
		c.trains = append(c.trains, t)
	}
	if n == 0 {
		return
	}
	for i, owner := range c.owner {
		if t := &c.trains[owner]; c.open[owner].first != i {
			t.Rest = append(t.Rest, packets[i].Data())
		}
	}
	for i := range c.open {
		if j := &c.open[i]; j.segments > 1 {
			j.lead(&packets[j.first])
		}
	}
}

// lead writes into the headers of the head what is true of the whole train.
func (j *joint) lead(head *Packet) {
	b, t := head.B, head.B[ipv4Len:]
	amendAt(b[offChecksum:], put16(b[2:], uint16(j.total)))
	if head.Kind == KindUDP {
		binary.BigEndian.PutUint16(t[4:], uint16(j.total-ipv4Len))
	} else {
		t[13] |= uint8(j.flags)
		head.Flags = j.flags
	}
	head.Payload = j.payload
}
