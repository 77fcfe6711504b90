package traffic

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/wire"
)

// Load says what a run sends.
type Load struct {
	// Run is a number that each packet carries, so that far side and source can tell runs
	// apart. No two loads of a source should have the same.
	Run uint64
	// Rate is how many packets per second all sandboxes together send, For how long.
	Rate float64
	For  time.Duration
	// Size is that of the IP packet in bytes, from 64 to the tunnel's MTU.
	Size int
	// Sandboxes is how many take part, the first ones; 0: all.
	Sandboxes int
	// Remotes are where packets go, IPv4.
	Remotes []netip.AddrPort
	// Flows is how many pairs of a sandbox's port and a remote there are: they are spread
	// over sandboxes first, then over remotes, then over ports. 0: one for each sandbox.
	// Each is sent one packet, in an order without pattern, before any gets its next.
	Flows int
	// Patience is how long an answer may take. What is later counts as lost. When nothing
	// was answered for so long that was asked of a gateway, the gateway is taken for
	// dead. 0: 2 s.
	Patience time.Duration
	// All says that every packet is sent, however late, up to ten times For, or 10 s if that
	// is longer: of a load that prepares, and is not to be measured.
	All bool
	// Unasked says that nothing on the far side answers: a Blast then asks for nothing, and
	// cannot notice that a gateway died.
	Unasked bool
}

// Smallest is the least size of a load's packets in bytes.
const Smallest = 64

const (
	headers = 20 + 8 // IPv4 and UDP, in bytes
	// usualPatience is what Load.Patience is by itself.
	usualPatience = 2 * time.Second
	// pulses is how many packets of a Blast ask for an answer, per second.
	pulses = 20
)

// Sent is what a run sent.
type Sent struct {
	// Packets left, Bytes of them from the IP header on. Those that asked for an answer in
	// a Blast come on top.
	Packets, Bytes uint64
	// Due is how many packets the schedule asked for until the run ended. Those that the
	// source could not make up for within bounds were left out.
	Due uint64
	// Unsent is how many datagrams the kernel did not take.
	Unsent uint64
	// Reached is Packets per Due, 1 being all.
	Reached float64
	// Took is how long was sent.
	Took time.Duration
	// Behind is by how much packets left after they were due, the first of each batch.
	Behind *histogram.Histogram
	// Asked is how many packets asked for an answer: all in Echo, some 20 per second in Blast.
	Asked uint64
	// Answered is how many of them were, within Load.Patience.
	Answered uint64
	// Latency is that of those, counted from when they were due to be sent. Of an Echo it has
	// those that were not, too, as of Load.Patience: without them a gateway would look the
	// quicker the more it loses.
	Latency *histogram.Histogram
}

// Answers is what came of requests.
type Answers struct {
	Sent
	Lost uint64 // not answered within Load.Patience
	Late uint64 // of Lost, those that were answered after it
	// Received counts all that came, the late ones too.
	Received Received
}

// Received are counts of packets that came to no client, since the last load began.
type Received struct {
	// Packets are those of the run that arrived right, duplicates included; Bytes of them
	// from the IP header on.
	Packets, Bytes uint64
	// Ranges are the same packets by flow, each a sixteenth of all flows.
	Ranges [16]uint64
	// Duplicates came before; Reordered after a later one of their flow; Stale so late that
	// nobody can say whether they are duplicates.
	Duplicates, Reordered, Stale uint64
	// Old are of loads before, and TCP segments of clients before.
	Old uint64
	// Errors are ICMP errors, by which somebody says that packets do not arrive.
	Errors uint64
	// Foreign are for an address that is none of the device's sandboxes, or for another
	// flow than theirs; Damaged have a wrong checksum or length; Strange ones nobody here
	// asked for. A good gateway sends none of them.
	Foreign, Damaged, Strange uint64
}

// Arrived is how many packets came, each once. What may be a duplicate has not.
func (r Received) Arrived() uint64 { return r.Packets - r.Duplicates - r.Stale }

// Wrong is how many packets should not have come.
func (r Received) Wrong() uint64 { return r.Foreign + r.Damaged + r.Strange }

// add adds the counts of another.
func (r *Received) add(o *Received) {
	r.Packets += o.Packets
	r.Bytes += o.Bytes
	for i, n := range o.Ranges {
		r.Ranges[i] += n
	}
	r.Duplicates += o.Duplicates
	r.Reordered += o.Reordered
	r.Stale += o.Stale
	r.Old += o.Old
	r.Errors += o.Errors
	r.Foreign += o.Foreign
	r.Damaged += o.Damaged
	r.Strange += o.Strange
}

// complete fills in what a load leaves open, and says what is wrong with it.
func (s *Source) complete(l Load) (Load, error) {
	if l.Sandboxes == 0 {
		l.Sandboxes = s.Sandboxes()
	}
	if l.Flows == 0 {
		l.Flows = l.Sandboxes
	}
	if l.Patience == 0 {
		l.Patience = usualPatience
	}
	mtu := math.MaxInt
	for _, e := range s.ends {
		mtu = min(mtu, e.mtu)
	}
	switch {
	case l.Sandboxes < 1 || l.Sandboxes > s.Sandboxes():
		return l, fmt.Errorf("there are %d sandboxes, and %d are to take part", s.Sandboxes(), l.Sandboxes)
	case l.Size < Smallest || l.Size > mtu:
		return l, fmt.Errorf("packets of %d bytes: they have from %d to the tunnel's MTU of %d", l.Size, Smallest, mtu)
	case !(l.Rate > 0) || l.Rate > 1e9 || l.For <= 0 || l.Rate*l.For.Seconds() < 1:
		return l, fmt.Errorf("%v packets per second for %v are none, or too many", l.Rate, l.For)
	case l.Patience < 0:
		return l, fmt.Errorf("a patience of %v", l.Patience)
	case len(l.Remotes) == 0:
		return l, errors.New("there is nowhere to send to: name a remote")
	case l.Flows < 1 || l.Flows > l.Sandboxes*len(l.Remotes)*(ports-1):
		return l, fmt.Errorf("%d flows: %d sandboxes and %d remotes have from 1 to %d", l.Flows, l.Sandboxes, len(l.Remotes), l.Sandboxes*len(l.Remotes)*(ports-1))
	}
	for _, r := range l.Remotes {
		if !r.Addr().Is4() || r.Port() == 0 {
			return l, fmt.Errorf("the remote %v is no IPv4 address with a port", r)
		}
	}
	return l, nil
}

// template is a packet of a run but for what differs from one to the next.
type template struct {
	bytes   []byte
	ip, udp uint64 // sums of what stays, for the checksums (RFC 1071)
}

// newTemplate makes packets of a size. What follows their head looks random, so that
// nothing on the way can make it smaller.
func newTemplate(size int) template {
	b := make([]byte, size)
	b[0], b[8], b[9] = 0x45, 64, 17
	put16(b[2:], uint16(size))
	put16(b[6:], 0x4000) // don't fragment
	put16(b[24:], uint16(size-20))
	x := uint64(0x9e3779b97f4a7c15)
	for i := headers + wire.HeadSize; i < size; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return template{bytes: b, ip: sum(b[:20]), udp: sum(b[20:]) + 17 + uint64(size-20)}
}

// put writes a packet into b, which has room for it.
func (t *template) put(b []byte, e endpoints, h wire.Head) {
	copy(b, t.bytes)
	addresses := words(e.inner) + words(e.to.addr)
	put32(b[12:], e.inner)
	put32(b[16:], e.to.addr)
	put16(b[10:], ^fold(t.ip+addresses))
	put16(b[20:], e.port)
	put16(b[22:], e.to.port)
	h.Put(b[headers:])
	check := ^fold(t.udp + addresses + uint64(e.port) + uint64(e.to.port) + sum(b[headers:headers+wire.HeadSize]))
	if check == 0 {
		check = 0xffff // 0 says that there is none (RFC 768)
	}
	put16(b[26:], check)
}
