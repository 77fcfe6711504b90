package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math"
	"time"
)

// KeySize is the length of the key that harness and far side share, in bytes.
const KeySize = 32

// Control is a message under the key: a request that makes the far side send or tell,
// or the answer to one. On the wire it is a Head, an Order, Until, and the seal over
// all of it; a report has the counters between.
type Control struct {
	Head  Head
	Order Order
	// Until is when the message stops to be valid, in whole milliseconds. See [Validity].
	Until time.Time
}

// Order is what is to be done, or was.
type Order struct {
	Rate   uint64        // packets per second, of all flows together
	For    time.Duration // in whole milliseconds, up to 49 days
	Size   uint16        // of each packet's UDP payload, in bytes
	Reason Reason        // of a refusal
	Flows  uint32        // that joined
	Bytes  uint64        // over TCP; 0: For counts
}

// Reason says why a request was not done.
type Reason uint16

// Reasons of refusals.
const (
	ReasonNone    Reason = iota
	ReasonExpired        // Until is past, or too far ahead: compare the clocks of both machines
	ReasonRuns           // as many runs as the far side keeps are in use
	ReasonRun            // the run is not open: ask for its report first
	ReasonRate           // faster, longer or larger than the far side is willing to send
	ReasonNumber         // Sequence is less than that of an order before
	ReasonFlows          // no flow has joined, or more than the far side keeps
)

func (r Reason) String() string {
	switch r {
	case ReasonNone:
		return "none"
	case ReasonExpired:
		return "expired: the clocks of the two machines differ by minutes"
	case ReasonRuns:
		return "too many runs at once"
	case ReasonRun:
		return "the run is not open"
	case ReasonRate:
		return "faster, longer or larger than the far side sends"
	case ReasonNumber:
		return "an order with a greater number came before"
	case ReasonFlows:
		return "no flow joined, or too many"
	}
	return "unknown"
}

const (
	// Validity is how long after it is made a Control should be valid.
	Validity = 2 * time.Minute
	// ahead is how far Until may be ahead: the clocks may differ by Validity.
	ahead = 2 * Validity

	orderSize = 32
	untilSize = 8
	sealSize  = sha256.Size
	// ControlSize is the length of every Control but reports, in bytes.
	ControlSize = HeadSize + orderSize + untilSize + sealSize
)

// size is the length of a message of a kind that is sealed; 0 for other kinds.
func (k Kind) size() int {
	switch k {
	case KindJoin, KindJoinAnswer, KindGenerate, KindGenerateAnswer, KindRefusal, KindSource:
		return ControlSize
	case KindReport, KindReportAnswer:
		return ReportSize
	}
	return 0
}

// Verdict is what [Sealer.Open] thinks of a message.
type Verdict uint8

// Verdicts.
const (
	Foreign  Verdict = iota // no message of ours, damaged, or not of a kind that is sealed
	Unsealed                // sealed with another key, or changed since
	Expired                 // sealed rightly, and not valid now
	Good
)

// Sealer makes and checks seals. One goroutine at a time may use it.
type Sealer struct {
	mac hash.Hash
	sum [sealSize]byte
}

// NewSealer returns a Sealer with the key.
func NewSealer(key [KeySize]byte) *Sealer { return &Sealer{mac: hmac.New(sha256.New, key[:])} }

// Append appends the sealed message to b. Its kind must be one that is sealed and no
// report's answer; a request for a report is as long as its answer.
func (s *Sealer) Append(b []byte, c Control) []byte { return s.append(b, c, &Report{}) }

// AppendReport appends a report, the answer to a request with c's head and Until.
func (s *Sealer) AppendReport(b []byte, c Control, r *Report) []byte {
	c.Head.Kind = KindReportAnswer
	return s.append(b, c, r)
}

func (s *Sealer) append(b []byte, c Control, r *Report) []byte {
	at := len(b)
	b = append(b, make([]byte, HeadSize)...)
	c.Head.Put(b[at:])
	b = c.Order.append(b)
	if c.Head.Kind.size() == ReportSize {
		b = r.append(b)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(c.Until.UnixMilli()))
	return append(b, s.seal(b[at:])...)
}

// Open checks a message and reads it. Answers never expire: they are told by the
// run and the number of their request.
func (s *Sealer) Open(b []byte, now time.Time) (c Control, v Verdict) {
	h, ok := Decode(b)
	if size := h.Kind.size(); !ok || size == 0 || len(b) != size {
		return Control{}, Foreign
	}
	sealed := len(b) - sealSize
	if !hmac.Equal(s.seal(b[:sealed]), b[sealed:]) {
		return Control{}, Unsealed
	}
	milli := binary.BigEndian.Uint64(b[sealed-untilSize:])
	c = Control{Head: h, Order: readOrder(b[HeadSize:]), Until: time.UnixMilli(int64(milli))}
	left := c.Until.Sub(now)
	if h.Kind.request() && (milli > math.MaxInt64 || left <= 0 || left > ahead) {
		return c, Expired
	}
	return c, Good
}

// OpenReport is Open for an answer with a report.
func (s *Sealer) OpenReport(b []byte, now time.Time) (c Control, r Report, v Verdict) {
	if c, v = s.Open(b, now); v != Good {
		return c, r, v
	}
	if c.Head.Kind != KindReportAnswer {
		return Control{}, Report{}, Foreign
	}
	r.read(b[HeadSize+orderSize:])
	return c, r, Good
}

func (k Kind) request() bool {
	switch k {
	case KindJoin, KindGenerate, KindReport, KindSource:
		return true
	}
	return false
}

// seal is valid until the next one.
func (s *Sealer) seal(b []byte) []byte {
	s.mac.Reset()
	s.mac.Write(b)
	return s.mac.Sum(s.sum[:0])
}

func (o Order) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, o.Rate)
	b = binary.BigEndian.AppendUint64(b, o.Bytes)
	b = binary.BigEndian.AppendUint32(b, uint32(min(max(o.For.Milliseconds(), 0), math.MaxUint32)))
	b = binary.BigEndian.AppendUint32(b, o.Flows)
	b = binary.BigEndian.AppendUint16(b, o.Size)
	b = binary.BigEndian.AppendUint16(b, uint16(o.Reason))
	return append(b, 0, 0, 0, 0)
}

// readOrder reads what append wrote; b has it.
func readOrder(b []byte) Order {
	return Order{
		Rate: binary.BigEndian.Uint64(b), Bytes: binary.BigEndian.Uint64(b[8:]),
		For:   time.Duration(binary.BigEndian.Uint32(b[16:])) * time.Millisecond,
		Flows: binary.BigEndian.Uint32(b[20:]), Size: binary.BigEndian.Uint16(b[24:]), Reason: Reason(binary.BigEndian.Uint16(b[26:])),
	}
}
