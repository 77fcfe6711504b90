// Package traffic is the harness's source of packets: thousands of sandboxes in this
// process, behind a few WireGuard devices or one each.
package traffic

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
)

// Gateway is a gateway's end of a tunnel, as its sandboxes know it.
type Gateway struct {
	PublicKey string // in base64
	Endpoint  netip.AddrPort
	MTU       int // of packets inside, in bytes; 0: 1420
}

// End is a WireGuard device of this process: that of a worker, whose sandboxes share
// it, or that of one sandbox.
type End struct {
	PrivateKey string // in base64
	Gateway    Gateway
	Inners     []netip.Addr // its sandboxes' addresses, IPv4
}

// Place is where sockets are opened, as a *netlab.Namespace is.
type Place interface {
	// Do runs f there and waits for it.
	Do(f func() error) error
}

// Config says what a source is made of.
type Config struct {
	Ends []End
	// Place is where the devices' sockets are opened; nil: where the process is.
	Place Place
}

// Source sends and receives as many sandboxes. One load runs at a time; clients may be
// attached beside it.
type Source struct{}

// New makes the devices. No packet leaves before Connect or a load.
func New(cfg Config) (*Source, error) { return nil, errors.ErrUnsupported }

// Connect shakes hands with the gateway on every device and waits for the last.
func (s *Source) Connect(ctx context.Context) error { return errors.ErrUnsupported }

// Sandboxes is how many there are: those of all ends, in order.
func (s *Source) Sandboxes() int { return 0 }

// Close ends all devices.
func (s *Source) Close() {}

// Load says what a run sends.
type Load struct {
	// Run is a number that each packet carries, so that the far side can tell runs apart.
	Run uint64
	// Rate is how many packets per second all sandboxes together send, For how long.
	Rate float64
	For  time.Duration
	// Size is that of the IP packet in bytes, from 64 to the tunnel's MTU.
	Size int
	// Sandboxes is how many take part, the first ones; 0: all.
	Sandboxes int
	// Remotes are where packets go.
	Remotes []netip.AddrPort
	// Flows is how many pairs of a sandbox's port and a remote there are: they are spread
	// over sandboxes first, then over remotes, then over ports. 0: one for each sandbox.
	// Each is sent one packet, in an order that looks random, before any gets its next.
	Flows int
	// Patience is how long an answer may take. What is later counts as lost. When nothing
	// at all was answered for so long, the gateway is taken for dead. 0: 2 s.
	Patience time.Duration
}

// Sent is what a run sent.
type Sent struct {
	// Packets left, Bytes of them from the IP header on.
	Packets, Bytes uint64
	// Due is how many packets the schedule asked for until the run ended. What the source
	// could not make up for within bounds was left out.
	Due uint64
	// Reached is Packets per Due, 1 being all.
	Reached float64
	// Took is from the first packet's time to the end of sending.
	Took time.Duration
	// Behind is by how much packets left after they were due, the first of each batch.
	Behind *histogram.Histogram
	// Asked is how many packets asked for an answer: all in Echo, about 20 a second in Blast.
	Asked uint64
	// Answered of them, within Load.Patience.
	Answered uint64
	// Latency of those, from when they were due to be sent.
	Latency *histogram.Histogram
}

// Answers is what came of requests.
type Answers struct {
	Sent
	Lost     uint64 // not answered within Load.Patience
	Late     uint64 // of Lost, those that were answered after it
	Received Received
}

// Received are counts of packets that came, since the last load began.
type Received struct {
	// Packets are those of the run that arrived right, duplicates included; Bytes of them
	// from the IP header on.
	Packets, Bytes uint64
	// Ranges are the same packets by flow: a range holds 1/16 of all flows.
	Ranges [16]uint64
	// Duplicates came before, Reordered after a later one of the same kind; both are found
	// within the last 2^20 packets.
	Duplicates, Reordered uint64
	// Wrong packets.
	Wrong Wrong
}

// Wrong are packets that should not have come, by reason.
type Wrong struct {
	Foreign uint64 // for an address that is none of the device's sandboxes
	Damaged uint64 // a checksum or length does not fit
	Strange uint64 // nobody here asked for it: neither of the run nor of a client
}

// Blast sends packets at a fixed rate, on schedule whatever comes back.
func (s *Source) Blast(ctx context.Context, l Load) (Sent, error) {
	return Sent{}, errors.ErrUnsupported
}

// Echo sends requests at a fixed rate, on schedule whatever comes back, and waits for the
// answers.
func (s *Source) Echo(ctx context.Context, l Load) (Answers, error) {
	return Answers{}, errors.ErrUnsupported
}

// Received reads the counts.
func (s *Source) Received() Received { return Received{} }

// Client sends and takes raw IPv4 packets as sandboxes of one end. Its methods are called
// by the end's own goroutines, Deliver by one and Fill by another; neither may wait.
type Client interface {
	// Deliver takes packets that came, whole and with right checksums. They are the
	// caller's again when it returns.
	Deliver(packets [][]byte)
	// Fill writes packets that are to leave into bufs, from offset on, and their lengths
	// into sizes. It returns how many, and in what time it is to be asked again if neither
	// a call of Wake nor anything else makes it sooner; 0: not by itself.
	Fill(bufs [][]byte, sizes []int, offset int) (n int, again time.Duration)
}

// Attachment is a client's hold on its sandboxes.
type Attachment struct{}

// Attach gives addresses of an end, by its number in Config.Ends, to a client: all that
// arrives for them is its own. Without addresses it gets all of the end's.
func (s *Source) Attach(end int, c Client, inners ...netip.Addr) (*Attachment, error) {
	return nil, errors.ErrUnsupported
}

// Wake has the client's Fill be called soon.
func (a *Attachment) Wake() {}

// Close detaches the client. No method of it is called after that.
func (a *Attachment) Close() {}
