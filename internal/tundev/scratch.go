package tundev

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// maxRest is how many payloads behind the first a train has at most that is written by one
// system call. Callers' batches may be larger than BatchSize.
const maxRest = 256

// enoughBytes is how much ReadTrains takes from the kernel before it returns, short of one
// of the longest trains: about what one message to the tunnel carries. Three times as much
// cost TCP 6 % more: it leaves the cache before it is encrypted.
const enoughBytes = 60 << 10

// Scratch is memory that many devices use in turn: one that is idle holds none of it.
// Its zero value is ready for use.
type Scratch struct{ frames, slabs, out sync.Pool }

// frameScratch is what Read needs while there is something to read.
type frameScratch struct {
	bytes  [vnetLen + maxMTU]byte
	train  packet.Train
	cutter packet.Cutter
}

// slabScratch is what ReadTrains needs while there is something to read, and what it
// returns points to. There is room for enough bytes, and the longest train behind them.
type slabScratch struct {
	bytes  [enoughBytes + vnetLen + maxMTU]byte
	used   int
	cutter packet.Cutter
}

// outScratch is what Write and WriteTrains need.
type outScratch struct {
	packets   [BatchSize]packet.Packet
	trains    [BatchSize]packet.Train
	used      int // of the two
	coalescer *packet.Coalescer
	cutter    packet.Cutter
	header    vnetHeader
	vectors   [2 + maxRest]unix.Iovec
	// piece is one packet of a train that has to be cut, in pieces.
	piece, pieces []byte
}

func (s *Scratch) takeFrame() *frameScratch {
	if b, ok := s.frames.Get().(*frameScratch); ok {
		return b
	}
	return &frameScratch{}
}

func (s *Scratch) takeSlab() *slabScratch {
	if b, ok := s.slabs.Get().(*slabScratch); ok {
		return b
	}
	return &slabScratch{}
}

func (s *Scratch) takeOut() *outScratch {
	if b, ok := s.out.Get().(*outScratch); ok {
		return b
	}
	return &outScratch{coalescer: packet.NewCoalescer(BatchSize)}
}

// giveOut gives b back, without what it refers to.
func (s *Scratch) giveOut(b *outScratch) {
	for i := range b.used {
		b.packets[i].B = nil
	}
	clear(b.trains[:b.used])
	b.coalescer.Release()
	b.cutter = packet.Cutter{}
	s.out.Put(b)
}
