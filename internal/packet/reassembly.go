package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// What a fragment and a datagram under reassembly are charged beyond their
// bytes, so that a flood of tiny ones meets the limit too.
const (
	fragmentCost = 64
	datagramCost = 256
	// maxFragments per datagram: 65,535 bytes in fragments of the least MTU that
	// is still in use (552 of RFC 1191's table) are 123.
	maxFragments = 128
	// expireBudget is how many datagrams one call forgets at most, so that the
	// end of a flood is no pause on the packet path.
	expireBudget = 512
)

// ReassemblyConfig bounds a Reassembler. Zero fields take the default.
type ReassemblyConfig struct {
	// MaxBytes is the memory for all datagrams under reassembly; default 4 MiB.
	MaxBytes int
	// MaxPerSource is the part of it that one source address may use; default 256 KiB.
	MaxPerSource int
	// Timeout counts from a datagram's first fragment; default 30 s, at most
	// 120 s (RFC 791 and RFC 1122 section 3.3.2 ask for 15 to 120).
	Timeout time.Duration
}

func (c *ReassemblyConfig) validate() error {
	if c.MaxBytes == 0 {
		c.MaxBytes = 4 << 20
	}
	if c.MaxPerSource == 0 {
		c.MaxPerSource = min(256<<10, c.MaxBytes)
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	switch {
	case c.MaxPerSource < 0 || c.MaxPerSource > c.MaxBytes:
		return fmt.Errorf("reassembly: a source's %d bytes must be positive and at most the network's %d", c.MaxPerSource, c.MaxBytes)
	case c.Timeout < 0 || c.Timeout > 120*time.Second:
		return errors.New("reassembly: the timeout must be positive and at most 120 s")
	}
	return nil
}

// Reassembler puts the fragments of one network's datagrams together (RFC 815
// in spirit; RFC 4787 REQ-14: in and out of order). Networks never share one,
// because their inner addresses and identifications may be equal.
//
// It keeps a copy of each fragment in memory of the fragment's size, so that a
// short packet cannot claim a long buffer; when a limit is reached it refuses
// the new fragment and keeps what it has. A datagram with overlapping
// fragments, or with any that contradict each other, is condemned: its bytes
// are freed at once, and its later fragments are dropped until the timeout.
//
// It has no lock and no clock. The zero value is not usable.
type Reassembler struct {
	config    ReassemblyConfig
	datagrams map[datagramKey]*datagram
	perSource map[[4]byte]int
	used      int
	oldest    *datagram // the timeout is one for all: order of arrival is order of expiry
	newest    *datagram
	expired   int // forgotten for their time since Expire was last asked
	whole     []byte
}

// datagramKey names a datagram (RFC 791 section 3.2); it holds no pointer.
type datagramKey struct {
	src, dst [4]byte
	id       uint16
	proto    Proto
}

// datagram is one under reassembly, or one condemned (parts is nil then).
type datagram struct {
	key        datagramKey
	began      Instant
	cost       int
	parts      []part // by offset, never overlapping
	have       int    // bytes of payload in parts
	end        int    // payload length, known from the last fragment; -1 before
	header     []byte // IP header of the first fragment
	ecn        uint8  // set of the ECN codepoints of the parts: bit c for codepoint c
	condemned  bool
	prev, next *datagram
}

// part is the payload of one fragment.
type part struct {
	off  int
	data []byte
}

// NewReassembler returns an empty Reassembler, or what is wrong with c.
func NewReassembler(c ReassemblyConfig) (*Reassembler, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	return &Reassembler{
		config:    c,
		datagrams: make(map[datagramKey]*datagram),
		perSource: make(map[[4]byte]int),
	}, nil
}

// Used returns the bytes charged at the moment.
func (r *Reassembler) Used() int { return r.used }

// Add takes a copy of the fragment p, which must be KindFragment. With the last
// missing one it returns the whole datagram, to be parsed like any packet; the
// bytes are the Reassembler's and valid until the next call. Pass without a
// datagram says that the fragment is kept and others are awaited; everything
// else that it was dropped.
//
// The DF bit of a whole datagram is clear: it has been fragmented before. Its
// header is that of the first fragment, but for congestion that another one met
// (RFC 3168 section 5.3); congestion beside a fragment that says its sender
// would not know what that is loses the datagram.
func (r *Reassembler) Add(p *Packet, now Instant) ([]byte, Outcome) {
	r.sweep(now)
	f, ok := fragmentOf(p)
	if !ok {
		return nil, Fragment
	}
	d := r.datagrams[f.key]
	if d != nil && r.due(d, now) {
		r.expire(d)
		d = nil
	}
	if d == nil {
		if !r.affords(f.key.src, datagramCost) {
			return nil, FragmentLimit
		}
		d = r.begin(f.key, now)
	}
	if d.condemned {
		return nil, Fragment
	}
	at, o := d.place(f)
	if o != Pass {
		if o == FragmentOverlap || o == FragmentLimit {
			r.condemn(d)
		}
		return nil, o
	}
	cost := fragmentCost + len(f.data)
	if !r.affords(f.key.src, cost) {
		if len(d.parts) == 0 {
			r.remove(d)
		}
		return nil, FragmentLimit
	}
	r.charge(d, cost)
	d.insert(at, f)
	if d.end < 0 || d.have < d.end {
		return nil, Pass
	}
	if len(d.header)+d.end > 0xffff || !d.congestionTold() { // the first header may be longer than that of the last
		r.remove(d)
		return nil, Fragment
	}
	r.assemble(d)
	r.remove(d)
	return r.whole, Pass
}

// Expire forgets datagrams whose time is over, 512 at most, and returns how many
// were forgotten so since it was last called, those condemned included: Add
// forgets them too, and never uses one whose time is over.
func (r *Reassembler) Expire(now Instant) int {
	r.sweep(now)
	n := r.expired
	r.expired = 0
	return n
}

func (r *Reassembler) sweep(now Instant) {
	for range expireBudget {
		if r.oldest == nil || !r.due(r.oldest, now) {
			return
		}
		r.expire(r.oldest)
	}
}

func (r *Reassembler) expire(d *datagram) {
	r.remove(d)
	r.expired++
}

func (r *Reassembler) due(d *datagram, now Instant) bool {
	return now-d.began >= Instant(r.config.Timeout)
}

// fragment is a parsed fragment; data and header are views of the packet.
type fragment struct {
	key    datagramKey
	off    int
	last   bool
	header []byte
	data   []byte
}

// fragmentOf refuses what no sender makes and attackers do: an empty fragment,
// one in the middle that is no multiple of eight, one that reaches beyond 65,535
// bytes, and a first one too short for its transport header, or a TCP fragment
// that begins inside one (RFC 1858, RFC 3128).
func fragmentOf(p *Packet) (f fragment, ok bool) {
	if p.Kind != KindFragment {
		return f, false
	}
	field := binary.BigEndian.Uint16(p.B[6:])
	f = fragment{
		key:    datagramKey{src: p.Src.As4(), dst: p.Dst.As4(), id: p.ID(), proto: p.Proto},
		off:    int(field&offsetMask) * 8,
		last:   field&flagMF == 0,
		header: p.B[:p.L4],
		data:   p.B[p.L4:],
	}
	n := len(f.data)
	if n == 0 || !f.last && n%8 != 0 || p.L4+f.off+n > 0xffff {
		return f, false
	}
	switch {
	case f.off == 0 && p.Proto == TCP:
		return f, n >= tcpLen && n >= int(f.data[12]>>4)*4
	case f.off == 0:
		return f, n >= udpLen
	case p.Proto == TCP:
		return f, f.off >= tcpLen
	}
	return f, true
}

// place finds where among its parts the datagram wants f. An exact copy of a
// part is not needed and does no harm (RFC 8200 section 4.5 says so of IPv6).
func (d *datagram) place(f fragment) (int, Outcome) {
	stop := f.off + len(f.data)
	if d.end >= 0 && stop > d.end {
		return 0, FragmentOverlap
	}
	i, found := slices.BinarySearchFunc(d.parts, f.off, func(q part, off int) int { return q.off - off })
	if found && f.last == (stop == d.end) && bytes.Equal(d.parts[i].data, f.data) {
		return 0, Fragment
	}
	if found ||
		i > 0 && d.parts[i-1].off+len(d.parts[i-1].data) > f.off ||
		i < len(d.parts) && (stop > d.parts[i].off || f.last) {
		return 0, FragmentOverlap
	}
	if len(d.parts) == maxFragments {
		return 0, FragmentLimit
	}
	return i, Pass
}

func (d *datagram) insert(i int, f fragment) {
	d.parts = slices.Insert(d.parts, i, part{off: f.off, data: bytes.Clone(f.data)})
	d.have += len(f.data)
	d.ecn |= 1 << (f.header[1] & ecnMask)
	if f.last {
		d.end = f.off + len(f.data)
	}
	if f.off == 0 {
		d.header = bytes.Clone(f.header)
	}
}

// assemble writes the complete datagram into r.whole. Its options are those of
// the first fragment, whose header may be longer than the others were.
func (r *Reassembler) assemble(d *datagram) {
	total := len(d.header) + d.end
	if cap(r.whole) < total {
		r.whole = make([]byte, 0, max(total, 4096))
	}
	w := append(r.whole[:0], d.header...)
	for _, q := range d.parts {
		w = append(w, q.data...)
	}
	binary.BigEndian.PutUint16(w[2:], uint16(total))
	w[6], w[7], w[10], w[11] = 0, 0, 0, 0
	if d.ecn&ecnMet != 0 {
		w[1] |= ecnCE
	}
	binary.BigEndian.PutUint16(w[10:], checksum(w[:len(d.header)], 0))
	r.whole = w
}

// The ECN field of the IP header (RFC 3168 section 5), and sets of its codepoints.
const (
	ecnMask   = 3
	ecnCE     = 3
	ecnMet    = 1 << ecnCE
	ecnNotECT = 1 << 0
)

// congestionTold says whether the whole datagram can tell of the congestion that its parts met.
func (d *datagram) congestionTold() bool { return d.ecn&ecnMet == 0 || d.ecn&ecnNotECT == 0 }

func (r *Reassembler) affords(src [4]byte, cost int) bool {
	return r.used+cost <= r.config.MaxBytes && r.perSource[src]+cost <= r.config.MaxPerSource
}

func (r *Reassembler) charge(d *datagram, cost int) {
	d.cost += cost
	r.used += cost
	if n := r.perSource[d.key.src] + cost; n > 0 {
		r.perSource[d.key.src] = n
	} else {
		delete(r.perSource, d.key.src)
	}
}

func (r *Reassembler) begin(key datagramKey, now Instant) *datagram {
	d := &datagram{key: key, began: now, end: -1, prev: r.newest}
	if r.newest != nil {
		r.newest.next = d
	} else {
		r.oldest = d
	}
	r.newest = d
	r.datagrams[key] = d
	r.charge(d, datagramCost)
	return d
}

// condemn frees the bytes of d and keeps its name until its time is over.
func (r *Reassembler) condemn(d *datagram) {
	d.condemned = true
	d.parts, d.header = nil, nil
	r.charge(d, datagramCost-d.cost)
}

func (r *Reassembler) remove(d *datagram) {
	r.charge(d, -d.cost)
	delete(r.datagrams, d.key)
	if d.prev != nil {
		d.prev.next = d.next
	} else {
		r.oldest = d.next
	}
	if d.next != nil {
		d.next.prev = d.prev
	} else {
		r.newest = d.prev
	}
	d.prev, d.next = nil, nil
}
