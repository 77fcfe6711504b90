package sidecar

import (
	"sync/atomic"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// traffic counts packets and their bytes, IP headers included.
type traffic struct{ packets, bytes atomic.Uint64 }

func (t *traffic) add(packets, bytes int) {
	t.packets.Add(uint64(packets))
	t.bytes.Add(uint64(bytes))
}

// drops counts dropped packets by reason.
type drops [packet.NumOutcomes]atomic.Uint64

func (d *drops) add(why packet.Outcome, n int) { d[why].Add(uint64(n)) }

// total sums all reasons up.
func (d *drops) total() uint64 {
	var sum uint64
	for i := range d {
		sum += d[i].Load()
	}
	return sum
}

// counters are those of a whole sidecar. Egress is what sandboxes send.
type counters struct{ egress, ingress drops }
