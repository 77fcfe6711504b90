package spec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ErrExhausted says that a network has no free address.
var ErrExhausted = errors.New("every address of the network's CIDR is in use")

// Allocator hands out the inner addresses of one network.
//
// Of the CIDR the first address (the network's), the second (the gateway's) and
// the last (broadcast) are never handed out. Addresses that were never used go
// first, in ascending order; then those that were freed, the longest free one
// first, so that an address rests as long as possible before another sandbox gets
// it. Each call takes constant time, averaged over the life of the allocator.
//
// It is not safe for concurrent use.
type Allocator struct {
	cidr  netip.Prefix
	base  uint32 // the address that has offset 0
	size  uint32 // offsets from firstOffset to below size are handed out
	fresh uint32 // offsets from here on were never handed out by Allocate
	inUse int
	used  []uint64 // one bit per offset
	// The freed offsets below fresh, oldest first, as a doubly linked list; Take
	// unlinks from the middle. Offset 0 is never handed out, so that it can be its ends.
	next, prev []uint16
}

// firstOffset is that of the first address that is handed out: after the
// network's own and the gateway's.
const firstOffset = 2

// NewAllocator returns an allocator for the CIDR of a valid network.
func NewAllocator(cidr netip.Prefix) (*Allocator, error) {
	if problem, bad := checkCIDR(cidr); bad {
		return nil, fmt.Errorf("allocate addresses: %s; %s", problem.Message, problem.Remedy)
	}
	base := cidr.Addr().As4()
	size := uint32(1)<<(32-cidr.Bits()) - 1
	return &Allocator{
		cidr:  cidr,
		base:  binary.BigEndian.Uint32(base[:]),
		size:  size,
		fresh: firstOffset,
		used:  make([]uint64, size/64+1),
		next:  make([]uint16, firstOffset),
		prev:  make([]uint16, firstOffset),
	}, nil
}

// InUse is how many are in use.
func (a *Allocator) InUse() int { return a.inUse }

// Allocate takes the next free address. The error is [ErrExhausted].
func (a *Allocator) Allocate() (netip.Addr, error) {
	for a.fresh < a.size {
		off := a.fresh
		a.grow()
		if !a.isUsed(off) { // else Take was here before
			return a.mark(off), nil
		}
	}
	if off := uint32(a.next[0]); off != 0 {
		a.unlink(off)
		return a.mark(off), nil
	}
	return netip.Addr{}, ErrExhausted
}

// Take takes one address that the caller names. The error says that it is not in
// the network, is reserved, or is in use.
func (a *Allocator) Take(addr netip.Addr) error {
	off, ok := a.offset(addr)
	if !ok {
		return fmt.Errorf("%v is not an address for sandboxes of %v", addr, a.cidr)
	}
	if a.isUsed(off) {
		return fmt.Errorf("%v is in use", addr)
	}
	if off < a.fresh {
		a.unlink(off)
	}
	a.mark(off)
	return nil
}

// Free gives an address back and reports whether it was in use.
func (a *Allocator) Free(addr netip.Addr) bool {
	off, ok := a.offset(addr)
	if !ok || !a.isUsed(off) {
		return false
	}
	a.used[off/64] &^= 1 << (off % 64)
	a.inUse--
	if off < a.fresh {
		a.link(off)
	}
	return true
}

// grow moves the border of the fresh addresses up by one.
func (a *Allocator) grow() {
	a.fresh++
	a.next = append(a.next, 0)
	a.prev = append(a.prev, 0)
}

// link appends to the list of freed offsets.
func (a *Allocator) link(off uint32) {
	last := a.prev[0]
	a.next[last], a.prev[off] = uint16(off), last
	a.next[off], a.prev[0] = 0, uint16(off)
}

func (a *Allocator) unlink(off uint32) {
	n, p := a.next[off], a.prev[off]
	a.next[p], a.prev[n] = n, p
}

func (a *Allocator) isUsed(off uint32) bool { return a.used[off/64]&(1<<(off%64)) != 0 }

func (a *Allocator) mark(off uint32) netip.Addr {
	a.used[off/64] |= 1 << (off % 64)
	a.inUse++
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], a.base+off)
	return netip.AddrFrom4(b)
}

// offset is where an address stands in the CIDR, if it can be handed out.
func (a *Allocator) offset(addr netip.Addr) (uint32, bool) {
	if !addr.Is4() {
		return 0, false
	}
	b := addr.As4()
	off := binary.BigEndian.Uint32(b[:]) - a.base // below base it wraps to above size
	return off, off >= firstOffset && off < a.size
}
