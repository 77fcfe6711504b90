package sidecar

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// proofInterval is the time between two probes while somebody waits for proof
// that a path works.
const proofInterval = 50 * time.Millisecond

// proofWindow is how many of its probes may be under way; older ones are lost.
const proofWindow = 64

// proof asks a gateway, beside those who watch it, on behalf of sandboxes that
// may run only after an answer. The path's lock guards it.
type proof struct {
	nonce   uint64
	last    uint64                   // sequence of the last probe
	open    [proofWindow]uint64      // sequence of the probe in the slot; 0: answered
	waiters map[chan struct{}]uint64 // who waits for the answer to this probe or a later one
}

// newNonce draws what tells an asker's answers from all others.
func newNonce() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the program instead
	return binary.BigEndian.Uint64(b[:])
}

// wait has the channel closed at the answer to a probe that is yet to be sent.
func (p *proof) wait(answered chan struct{}) {
	if p.waiters == nil {
		p.waiters = make(map[chan struct{}]uint64)
	}
	p.waiters[answered] = p.last + 1
}

// ask returns the probe to send now.
func (p *proof) ask() packet.Probe {
	p.last++
	p.open[p.last%proofWindow] = p.last
	return packet.Probe{Type: packet.ProbeRequest, Nonce: p.nonce, Sequence: p.last}
}

// answer says whether a sequence is that of a probe under way. Each is answered once.
func (p *proof) answer(sequence uint64) bool {
	slot := &p.open[sequence%proofWindow]
	if sequence == 0 || *slot != sequence {
		return false
	}
	*slot = 0
	for w, wanted := range p.waiters {
		if sequence >= wanted {
			close(w)
			delete(p.waiters, w)
		}
	}
	return true
}
