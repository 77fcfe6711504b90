package traffic

// seen knows which sequences of each flow came, as far back as a window.
type seen struct {
	words int // of 64 sequences, for each flow
	next  []uint64
	bits  []uint64
}

const (
	// seenBits are those of all flows together, if that is a word for each.
	seenBits = 1 << 20
	wordBits = 64
)

// arrival says what a sequence is beside those that came before.
type arrival uint8

const (
	arrivalNew  arrival = iota
	arrivalLate         // new, after a later one
	arrivalAgain
	arrivalStale // before the window
)

func newSeen(flows int) *seen {
	words := max(1, seenBits/wordBits/flows)
	return &seen{words: words, next: make([]uint64, flows), bits: make([]uint64, flows*words)}
}

// take takes in a sequence of a flow.
func (s *seen) take(flow int, sequence uint64) arrival {
	window := uint64(s.words * wordBits)
	bits := s.bits[flow*s.words:][:s.words]
	at := sequence % window
	word, bit := &bits[at/wordBits], uint64(1)<<(at%wordBits)
	next := s.next[flow]
	switch {
	case sequence >= next:
		if sequence-next >= window {
			clear(bits)
		} else {
			for ; next < sequence; next++ {
				bits[next%window/wordBits] &^= 1 << (next % wordBits)
			}
		}
		*word |= bit
		s.next[flow] = sequence + 1
		return arrivalNew
	case next-sequence > window:
		return arrivalStale
	case *word&bit != 0:
		return arrivalAgain
	}
	*word |= bit
	return arrivalLate
}
