package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// loadEvery is how often the load begins a request: it bounds how exactly the
	// time of an outage is known.
	loadEvery = 10 * time.Millisecond
	// loadPatience is when one request of the load is given up, and loadAtOnce how
	// many may be under way.
	loadPatience = 5 * time.Second
	loadAtOnce   = 512
	// maxAnswers bounds what the load remembers.
	maxAnswers = 1 << 14
)

// monotonic is a clock that all processes of a machine share and that nobody sets.
func monotonic() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // every Linux has it
	return time.Duration(t.Nano())
}

// load makes requests, each on a connection of its own.
type load struct {
	stop  context.CancelFunc
	tasks sync.WaitGroup

	mu       sync.Mutex
	answers  []loadAnswer  // in the order in which they came
	changed  chan struct{} // closed and replaced when an answer came
	requests int
	failed   int
	lost     int // answers beyond the bound
}

// loadAnswer is an answer to one request.
type loadAnswer struct {
	at     time.Duration
	source netip.AddrPort
}

// startLoad begins the load and returns when the first answer came.
func (p *program) startLoad(ctx context.Context, target string) error {
	if p.load != nil {
		return errors.New("there is a load already")
	}
	began := monotonic()
	ctx, stop := context.WithCancel(ctx)
	l := &load{stop: stop, changed: make(chan struct{})}
	p.load = l
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: p.dialer.dial}}
	l.tasks.Go(func() { l.begin(ctx, client, target) })
	waiting, cancel := context.WithTimeout(ctx, taskPatience)
	defer cancel()
	_, err := l.first(waiting, nil, began)
	return err
}

// begin begins requests until ctx ends.
func (l *load) begin(ctx context.Context, client *http.Client, target string) {
	places := make(chan struct{}, loadAtOnce)
	ticker := time.NewTicker(loadEvery)
	defer ticker.Stop()
	for {
		select {
		case places <- struct{}{}:
			l.tasks.Go(func() {
				l.request(ctx, client, target)
				<-places
			})
		default: // all wait
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// request makes one, and notes what came of it.
func (l *load) request(ctx context.Context, client *http.Client, target string) {
	inTime, cancel := context.WithTimeout(ctx, loadPatience)
	defer cancel()
	source, err := request(inTime, client, target)
	at := monotonic()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return // the load ends
	case err != nil:
		l.failed++
	case len(l.answers) >= maxAnswers:
		l.lost++
	default:
		l.answers = append(l.answers, loadAnswer{at, source})
		close(l.changed)
		l.changed = make(chan struct{})
	}
	l.requests++
}

// first waits for the first answer since a time from one of some sources (nil: any).
func (l *load) first(ctx context.Context, sources []netip.Addr, since time.Duration) (loadAnswer, error) {
	for {
		l.mu.Lock()
		i := slices.IndexFunc(l.answers, func(a loadAnswer) bool {
			return a.at >= since && (len(sources) == 0 || slices.Contains(sources, a.source.Addr()))
		})
		var found loadAnswer
		if i >= 0 {
			found = l.answers[i]
		}
		changed := l.changed
		l.mu.Unlock()
		if i >= 0 {
			return found, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return loadAnswer{}, fmt.Errorf("no answer from %s within %v", words(sources), (monotonic() - since).Round(time.Millisecond))
		}
	}
}

// end ends the load.
func (l *load) end() {
	l.stop()
	l.tasks.Wait()
}

// onLoad does a task that is about the load.
func (p *program) onLoad(ctx context.Context, t task, a *answer) error {
	l := p.load
	if l == nil {
		return errors.New("there is no load")
	}
	if t.Do == doFirst {
		found, err := l.first(ctx, t.Sources, t.Since)
		if err == nil {
			a.At, a.Addresses = found.at, []netip.AddrPort{found.source}
		}
		return err
	}
	l.end()
	p.load = nil
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := make(map[netip.Addr]bool)
	for _, x := range l.answers {
		if !seen[x.source.Addr()] {
			seen[x.source.Addr()] = true
			a.Addresses = append(a.Addresses, x.source)
		}
	}
	a.Requests, a.Failed = l.requests, l.failed
	if l.lost > 0 {
		return fmt.Errorf("the sources of %d answers were not kept", l.lost)
	}
	return nil
}

// heldConn is a connection that stays open, and idle.
type heldConn struct {
	conn  net.Conn
	lines chan string   // what the other side said; never more than one waits
	ended chan struct{} // closed when it has
	at    time.Duration // of the end
	err   error         // why it ended; both are valid then
}

// hold opens a connection to a [holder] and returns the source that it tells.
func (p *program) hold(ctx context.Context, target string) ([]netip.AddrPort, error) {
	c, err := p.dialer.dial(ctx, "tcp4", target)
	if err != nil {
		return nil, err
	}
	h := &heldConn{conn: c, lines: make(chan string, 1), ended: make(chan struct{})}
	p.held = append(p.held, h)
	go h.read()
	line, err := h.line(ctx)
	if err != nil {
		return nil, err
	}
	a, err := netip.ParseAddrPort(line)
	return []netip.AddrPort{a}, err
}

// read reads, as a program does that waits for something to happen, until the
// connection ends.
func (h *heldConn) read() {
	defer close(h.ended)
	lines := bufio.NewScanner(h.conn)
	for lines.Scan() {
		select {
		case h.lines <- lines.Text():
		default: // nobody asked
		}
	}
	h.at, h.err = monotonic(), lines.Err()
	if h.err == nil {
		h.err = errors.New("end of file")
	}
}

// line waits for what the other side says.
func (h *heldConn) line(ctx context.Context) (string, error) {
	select {
	case s := <-h.lines:
		return s, nil
	case <-h.ended:
		return "", h.err
	case <-ctx.Done():
		return "", fmt.Errorf("wait for a line: %w", ctx.Err())
	}
}

// onHeld does a task that is about a connection that stays.
func (p *program) onHeld(ctx context.Context, t task, a *answer) error {
	if t.Count < 0 || t.Count >= len(p.held) {
		return fmt.Errorf("there is no connection %d", t.Count)
	}
	h := p.held[t.Count]
	if t.Do == doTalk {
		if _, err := fmt.Fprintln(h.conn, "still there?"); err != nil {
			return err
		}
		_, err := h.line(ctx)
		return err
	}
	select {
	case <-h.ended:
		a.At, a.Failure = h.at, h.err.Error()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the connection is still open: %w", ctx.Err())
	}
}
