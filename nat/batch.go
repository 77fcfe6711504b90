package nat

import "github.com/sallyport-net/sallyport/internal/packet"

// EgressBatch is Egress of each packet in turn: out[i] becomes the outcome of
// ps[i]. out must be as long as ps.
func (t *Table) EgressBatch(ps []*packet.Packet, out []packet.Outcome, now packet.Instant) {
	for i, p := range ps {
		out[i] = t.Egress(p, now)
	}
}

// IngressBatch is Ingress of each packet in turn, as EgressBatch.
func (t *Table) IngressBatch(ps []*packet.Packet, out []packet.Outcome, now packet.Instant) {
	for i, p := range ps {
		out[i] = t.Ingress(p, now)
	}
}
