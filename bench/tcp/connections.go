package tcp

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// Waker has Fill called soon, as a *traffic.Attachment does.
type Waker interface{ Wake() }

// Connections makes short connections for sandboxes of a traffic source: a traffic.Client,
// which is to be attached to that source's end. Its methods may be called by anyone.
type Connections struct {
	began time.Time // of the clock that the client goes by

	mu     sync.Mutex
	client *handshake.Client
	waker  Waker
}

// NewConnections makes a client that is at rest.
func NewConnections(c handshake.Config) (*Connections, error) {
	client, err := handshake.New(c)
	if err != nil {
		return nil, err
	}
	return &Connections{began: time.Now(), client: client}, nil
}

func (c *Connections) now() packet.Instant { return packet.Instant(time.Since(c.began)) }

// Deliver takes packets for the sandboxes.
func (c *Connections) Deliver(packets [][]byte) {
	now := c.now()
	c.mu.Lock()
	for _, p := range packets {
		c.client.Deliver(p, now)
	}
	waker, wait := c.waker, c.client.Wait(now)
	c.mu.Unlock()
	if waker != nil && wait == 0 {
		waker.Wake()
	}
}

// Fill writes segments that are due into bufs, from offset on, and their lengths into sizes. It
// returns how many, and in what time it is to be called again; 0: when something has come.
func (c *Connections) Fill(bufs [][]byte, sizes []int, offset int) (n int, again time.Duration) {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; n < len(bufs); n++ {
		if sizes[n] = c.client.Next(bufs[n][offset:], now); sizes[n] == 0 {
			break
		}
	}
	if again = c.client.Wait(now); again < 0 {
		return n, 0
	}
	return n, max(again, time.Nanosecond)
}

// Load is what connections are made: see handshake.Load.
type Load struct {
	Rate float64       // due per second; 0: as many as Open allows
	Open int           // at a time; 0: as many as there are local ports
	For  time.Duration // how long they are due
	// Lag is how long after the end of that one may still be under way without being late.
	Lag time.Duration
}

// Made is what came of a load.
type Made struct {
	handshake.Counts
	// Late had not ended Lag after the load had.
	Late uint64
	// Sent is how long connections began, Took how long it was until the last had ended.
	Sent, Took time.Duration
	// Connect and Exchange are latencies until a connection was there and until its answer was,
	// from when it was due.
	Connect, Exchange *histogram.Histogram
}

// look is how often a run is looked at.
const look = time.Millisecond

// Run makes connections and waits until the last has ended. At most one run at a time. What was
// made is returned with an error, too: of a context that ended, where connections were given up.
func (c *Connections) Run(ctx context.Context, w Waker, l Load) (Made, error) {
	m := Made{Connect: histogram.New(), Exchange: histogram.New()}
	began := c.now()
	c.mu.Lock()
	before := c.client.Counts()
	c.waker = w
	c.client.Start(handshake.Load{Rate: l.Rate, Open: l.Open, For: l.For, Connect: m.Connect, Exchange: m.Exchange}, began)
	c.mu.Unlock()
	w.Wake()
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for measured := false; ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			c.mu.Lock()
			defer c.mu.Unlock()
			c.client.Abandon()
			m.Counts, m.Took = c.client.Counts().Since(before), time.Duration(c.now()-began)
			return m, fmt.Errorf("connections were given up: %w", context.Cause(ctx))
		}
		c.mu.Lock()
		running, open, counts, now := c.client.Running(), c.client.Open(), c.client.Counts(), c.now()
		c.mu.Unlock()
		if running {
			continue
		}
		if m.Sent == 0 {
			m.Sent = time.Duration(now - began)
		}
		if !measured && (open == 0 || now-began >= packet.Instant(l.For+l.Lag)) {
			m.Late, measured = uint64(open), true
		}
		if open == 0 {
			m.Counts, m.Took = counts.Since(before), time.Duration(now-began)
			return m, nil
		}
	}
}
