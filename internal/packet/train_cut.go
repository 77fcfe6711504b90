package packet

import "encoding/binary"

// Cutter cuts trains into the packets that they are made of, or into smaller ones
// where a link wants that:
//
//	for o := c.Start(&train, mtu); o == packet.Pass && c.More(); {
//		n := c.Next(buf)
//		...
//	}
//
// A Cutter is used again and again and allocates nothing.
type Cutter struct {
	train *Train
	head  int // bytes of the headers
	l4    int
	size  int    // payload of each segment but the last
	left  int    // payload that is still to come
	index uint16 // of the next segment
	more  bool
	chunk []byte // payload that comes next, and then that of rest
	rest  [][]byte
	ip    uint64 // sum of the IP header without length and identification
	seq   uint32
	id    uint16
	whole bool  // the packet is copied as it is
	flags uint8 // TCP
}

// Start begins with another train. limit is the most bytes that a packet may have,
// the MTU of the next link: TCP is cut smaller than the train's Size where that is larger.
// It returns TooBig where a packet cannot be made smaller: datagrams end where
// their sender says, and so does whatever is no train; those can
// be told to their sender or cut into fragments. It returns Malformed or MalformedL4 where the
// headers do not fit the train, so that whatever comes in may be given to it.
//
// The train must not change until the last of it was cut.
func (c *Cutter) Start(t *Train, limit int) Outcome {
	*c = Cutter{train: t}
	total := t.Len()
	if t.Size == 0 && !t.Partial {
		if total > limit {
			return TooBig
		}
		c.whole, c.more = true, true
		return Pass
	}
	if o := c.parse(t, total); o != Pass {
		return o
	}
	c.left = total - c.head
	c.size = c.left
	if t.Size > 0 && t.Size < c.size {
		c.size = t.Size
	}
	if room := limit - c.head; c.size > room {
		if room <= 0 || t.Size <= 0 || Proto(t.Head[9]) != TCP {
			return TooBig
		}
		c.size = room
	}
	c.chunk, c.rest, c.more = t.Head[c.head:], t.Rest, true
	return Pass
}

// parse checks the headers of a train of total bytes.
func (c *Cutter) parse(t *Train, total int) Outcome {
	h := t.Head
	if len(h) < ipv4Len || h[0]>>4 != 4 {
		return Malformed
	}
	c.l4 = int(h[0]&15) * 4
	if c.l4 < ipv4Len || c.l4 > len(h) || int(binary.BigEndian.Uint16(h[2:])) != total || !soundHeader(h, c.l4) {
		return Malformed
	}
	if binary.BigEndian.Uint16(h[6:])&(flagMF|offsetMask) != 0 {
		return Fragment // no transport of its own
	}
	l4 := h[c.l4:]
	switch Proto(h[9]) {
	case TCP:
		if len(l4) < tcpLen {
			return MalformedL4
		}
		n := int(l4[12]>>4) * 4
		if n < tcpLen || n > len(l4) {
			return MalformedL4
		}
		c.head = c.l4 + n
		c.seq, c.flags = binary.BigEndian.Uint32(l4[4:]), l4[13]
	case UDP:
		if len(l4) < udpLen || int(binary.BigEndian.Uint16(l4[4:])) != total-c.l4 {
			return MalformedL4
		}
		c.head = c.l4 + udpLen
	default:
		return BadProtocol
	}
	c.id = binary.BigEndian.Uint16(h[4:])
	c.ip = sum(h[6:10], sum(h[12:c.l4], uint64(binary.BigEndian.Uint16(h))))
	return Pass
}

// More says whether there is another packet.
func (c *Cutter) More() bool { return c.more }

// Size returns the bytes of the largest packet that is still to come.
func (c *Cutter) Size() int {
	if c.whole {
		return c.train.Len()
	}
	return c.head + min(c.size, c.left)
}

// Payload returns the payload bytes of each packet but the last: the train's Size, or
// less where the limit wants that.
func (c *Cutter) Payload() int { return c.size }

// Drop gives up what is still to come, and returns how many packets that was.
func (c *Cutter) Drop() int {
	n := 1
	if c.size > 0 {
		n = (c.left + c.size - 1) / c.size
	}
	c.more = false
	return n
}

// Next writes the next packet to dst and returns its length. It returns 0, and makes
// nothing, where dst has less room than Size.
func (c *Cutter) Next(dst []byte) int {
	n := c.Size()
	if !c.more || n > len(dst) {
		return 0
	}
	if c.whole {
		c.more = false
		at := copy(dst, c.train.Head)
		for _, b := range c.train.Rest {
			at += copy(dst[at:], b)
		}
		return n
	}
	dst = dst[:n:n]
	copy(dst, c.train.Head[:c.head])
	c.fill(dst[c.head:])
	c.left -= n - c.head
	c.more = c.left > 0
	c.address(dst)
	c.index++
	return n
}

// fill copies as much payload as dst has room for.
func (c *Cutter) fill(dst []byte) {
	for {
		n := copy(dst, c.chunk)
		dst, c.chunk = dst[n:], c.chunk[n:]
		if len(dst) == 0 {
			return
		}
		c.chunk, c.rest = c.rest[0], c.rest[1:]
	}
}

// address writes what differs from packet to packet into the headers of b: the
// lengths, the identification, sequence number and flags, and the sums.
func (c *Cutter) address(b []byte) {
	id := c.id
	if !c.train.SameID {
		id += c.index
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[offChecksum:], ^fold(c.ip+uint64(len(b))+uint64(id)))
	t := b[c.l4:]
	if Proto(b[9]) == UDP {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
		t[6], t[7] = 0, 0
		check := checksum(t, pseudo(b, len(t)))
		if check == 0 {
			check = 0xffff
		}
		binary.BigEndian.PutUint16(t[6:], check)
		return
	}
	binary.BigEndian.PutUint32(t[4:], c.seq)
	c.seq += uint32(len(b) - c.head)
	flags := c.flags
	if c.index > 0 {
		flags &^= flagCWR
	}
	if c.more {
		flags &^= uint8(FIN | PSH)
	}
	t[13] = flags
	t[16], t[17] = 0, 0
	binary.BigEndian.PutUint16(t[16:], checksum(t, pseudo(b, len(t))))
}
