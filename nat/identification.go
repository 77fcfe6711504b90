package nat

import (
	"math/rand/v2"

	"github.com/sallyport-net/sallyport/internal/packet"
)

const (
	// idCounters is how many counters there are: 8 KiB. Remotes that share one use up
	// each other's numbers.
	idCounters = 1 << 12
	// idRounds is the number of rounds of the permutation. Four with random boxes
	// leave nothing of the order in which a counter counts (Luby and Rackoff).
	idRounds = 4
)

// identities give packets their IP identification. A counter, one for many pairs of
// remote address and protocol, goes through a secret permutation of the 16-bit numbers
// that is the pair's own. So 65,536 datagrams in a row of one counter have as many
// identifications for each remote, whichever sandboxes sent them (X-12: RFC 7857
// section 9, RFC 6864 section 5.3.1), and what a remote sees of them says neither how many
// sandboxes there are, nor which of them sent which, nor how much goes elsewhere.
type identities struct {
	boxes    [idRounds][256]uint8
	counters [idCounters]uint16
	// pair is the one of the packet before, and hash its hash: packets come in trains.
	pair, hash uint64
}

// newIdentities fills the boxes from the table's cryptographic generator, and lets
// counters begin anywhere.
func newIdentities(source *rand.ChaCha8) *identities {
	x := new(identities)
	for i := range x.boxes {
		source.Read(x.boxes[i][:])
	}
	for i := range x.counters {
		x.counters[i] = uint16(source.Uint64())
	}
	return x
}

// next returns the next number of the pair with hash h.
func (x *identities) next(h uint64) uint16 {
	n := &x.counters[h%idCounters]
	*n++
	left, right, k := uint8(*n>>8), uint8(*n), uint32(h>>32)
	left ^= x.boxes[0][right^uint8(k)] // written out: a loop takes twice as long
	right ^= x.boxes[1][left^uint8(k>>8)]
	left ^= x.boxes[2][right^uint8(k>>16)]
	right ^= x.boxes[3][left^uint8(k>>24)]
	return uint16(left)<<8 | uint16(right)
}

// identify gives a translated packet from inside its identification. One that must not be
// fragmented needs none and has 0 (RFC 6864 section 4.1: an atomic datagram).
func (t *Table) identify(p *packet.Packet) {
	switch {
	case t.ids == nil:
	case p.DF:
		p.SetID(0)
	default:
		const domain = 1 << 32 // sets this hash apart from those of the indexes
		x := t.ids
		if pair := uint64(number(p.Dst))<<8 | uint64(p.Proto); pair != x.pair {
			x.pair, x.hash = pair, t.key.sum(uint64(number(p.Dst)), domain|uint64(p.Proto))
		}
		p.SetID(x.next(x.hash))
	}
}
