package handshake

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Config says who connects to whom and what is said. New copies none of it: leave it alone.
type Config struct {
	// Sandboxes are the addresses that connections come from, each with the local ports
	// FirstPort to LastPort: a slot each, at most 4 Mi in all.
	Sandboxes           []netip.Addr
	FirstPort, LastPort uint16
	// Remotes are where connections go, in turn.
	Remotes []netip.AddrPort
	// Request is sent, in one segment, and Answer expected, byte by byte. Both have bytes.
	Request, Answer []byte
	// MSS goes with the SYN, in bytes.
	MSS uint16
	// Resend is how long the first try waits for an acknowledgement, each further one twice as
	// long; default a second (RFC 6298). Tries are those of a SYN, a request or a FIN before a
	// connection has timed out, 1 to 8; default 5.
	Resend time.Duration
	Tries  int
	// Seed makes initial sequence numbers differ from run to run.
	Seed uint64
}

const (
	maxSlots   = 1 << 22
	maxTries   = 8
	maxRequest = 1200 // bytes: within the smallest MSS that a path through a tunnel has
	window     = 65535
)

func (c *Config) validate() error {
	slots := len(c.Sandboxes) * (int(c.LastPort) - int(c.FirstPort) + 1)
	switch {
	case len(c.Sandboxes) == 0 || len(c.Remotes) == 0:
		return fmt.Errorf("%d sandboxes and %d destinations cannot be: give one of each at least", len(c.Sandboxes), len(c.Remotes))
	case c.FirstPort == 0 || c.LastPort < c.FirstPort:
		return fmt.Errorf("local ports from %d to %d cannot be", c.FirstPort, c.LastPort)
	case slots > maxSlots:
		return fmt.Errorf("%d sandboxes with ports %d to %d make %d slots: at most %d are kept", len(c.Sandboxes), c.FirstPort, c.LastPort, slots, maxSlots)
	case len(c.Request) == 0 || len(c.Request) > maxRequest:
		return fmt.Errorf("a request of %d bytes cannot be: 1 to %d fit a segment", len(c.Request), maxRequest)
	case len(c.Answer) == 0 || len(c.Answer) > window:
		return fmt.Errorf("an answer of %d bytes cannot be: 1 to %d fit the window", len(c.Answer), window)
	case c.Resend <= 0 || c.Resend > time.Minute || c.Tries < 1 || c.Tries > maxTries:
		return fmt.Errorf("%d tries, the first for %v, cannot be: 1 to %d, of up to a minute", c.Tries, c.Resend, maxTries)
	}
	for _, a := range c.Sandboxes {
		if !a.Is4() {
			return fmt.Errorf("the sandbox %v has no IPv4 address", a)
		}
	}
	for _, r := range c.Remotes {
		if !r.Addr().Is4() || r.Port() == 0 {
			return fmt.Errorf("the destination %v has no IPv4 address with a port", r)
		}
	}
	return nil
}

// Recorder takes latencies.
type Recorder interface{ Record(time.Duration) }

// Load says how many connections begin.
type Load struct {
	// Rate is how many are due per second, whatever became of those before (open loop).
	// 0: as many as Open allows, another as soon as one has ended (closed loop).
	Rate float64
	// Open is how many there may be at a time; 0: as many as there are slots.
	Open int
	// For is how long connections are due.
	For time.Duration
	// Connect takes how long it took until a connection was there, Exchange until the answer was,
	// both from the moment when the connection was due: what waited is not left out. Nil: nobody
	// wants to know.
	Connect, Exchange Recorder
}

// Counts are those of connections and segments since the client was made. Connections that
// began are either in one of the outcomes or open.
type Counts struct {
	Begun uint64 `json:"begun"`
	// Outcomes are how connections ended, one for each.
	OK          uint64 `json:"ok"`
	Refused     uint64 `json:"refused"`     // a RST answered the SYN
	Reset       uint64 `json:"reset"`       // a RST came later
	Unreachable uint64 `json:"unreachable"` // an ICMP error answered the SYN
	TimedOut    uint64 `json:"timedOut"`    // something was not acknowledged or not answered, in all tries
	Wrong       uint64 `json:"wrong"`       // another answer came, or its end too early
	// Skipped were due and never begun: too many were open, or the client was not asked in time.
	Skipped uint64 `json:"skipped"`

	Sent     uint64 `json:"segmentsSent"`
	Resent   uint64 `json:"segmentsSentAgain"` // of those sent: SYNs, requests and FINs
	Received uint64 `json:"packetsReceived"`
	Stray    uint64 `json:"stray"`   // of those received: of no connection, or not of its window
	Damaged  uint64 `json:"damaged"` // of those received: no packets, or with wrong checksums
}

// Failed is how many connections ended otherwise than well.
func (c Counts) Failed() uint64 {
	return c.Refused + c.Reset + c.Unreachable + c.TimedOut + c.Wrong
}

// Since is what was added since an earlier reading.
func (c Counts) Since(from Counts) Counts {
	return Counts{
		Begun: c.Begun - from.Begun, OK: c.OK - from.OK, Refused: c.Refused - from.Refused, Reset: c.Reset - from.Reset,
		Unreachable: c.Unreachable - from.Unreachable, TimedOut: c.TimedOut - from.TimedOut, Wrong: c.Wrong - from.Wrong,
		Skipped: c.Skipped - from.Skipped, Sent: c.Sent - from.Sent, Resent: c.Resent - from.Resent,
		Received: c.Received - from.Received, Stray: c.Stray - from.Stray, Damaged: c.Damaged - from.Damaged,
	}
}

// Client makes connections. One caller at a time.
type Client struct {
	config Config
	places map[[4]byte]uint32 // of sandboxes in the config, by address
	slots  []slot
	free   list           // in the order in which they became free
	wait   [maxTries]list // for what was sent for the n-th time, the oldest first
	out    outbox
	pace   pace
	open   int
	counts Counts
	in     packet.Packet // the one that is looked at
}

// New makes a client that is at rest.
func New(c Config) (*Client, error) {
	if c.Resend == 0 {
		c.Resend = time.Second
	}
	if c.Tries == 0 {
		c.Tries = 5
	}
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	ports := int(c.LastPort) - int(c.FirstPort) + 1
	cl := &Client{config: c, places: make(map[[4]byte]uint32, len(c.Sandboxes)), slots: make([]slot, 1+len(c.Sandboxes)*ports)}
	for i, a := range c.Sandboxes {
		if _, twice := cl.places[a.As4()]; twice {
			return nil, fmt.Errorf("handshake: the sandbox %v is there twice", a)
		}
		cl.places[a.As4()] = uint32(i)
	}
	for i := 1; i < len(cl.slots); i++ {
		cl.free.push(cl.slots, uint32(i))
	}
	return cl, nil
}

// Start begins a load. That of before ends; its connections go on.
func (c *Client) Start(l Load, now packet.Instant) {
	if l.Open <= 0 || l.Open > len(c.slots)-1 {
		l.Open = len(c.slots) - 1
	}
	c.pace = newPace(l, now)
}

// Stop ends the load before its time. Connections that are open go on.
func (c *Client) Stop() { c.pace.runs = false }

// Abandon ends all connections that are open, without a segment, as timed out.
func (c *Client) Abandon() {
	c.Stop()
	for i := range c.slots {
		if c.slots[i].busy() {
			c.finish(uint32(i), &c.counts.TimedOut)
		}
		c.slots[i].send = 0
	}
}

// Counts returns the counts.
func (c *Client) Counts() Counts { return c.counts }

// Open is how many connections have begun and not ended.
func (c *Client) Open() int { return c.open }

// Running says whether connections may still begin. It changes in Next.
func (c *Client) Running() bool { return c.pace.runs }
