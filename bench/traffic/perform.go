package traffic

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/schedule"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/tunnel"
)

const (
	// lead is how long after it was made a run begins, and for each end so much later.
	lead     = 2 * time.Millisecond
	leadEach = 20 * time.Microsecond
	// look is how often is looked for silence, settle how often for the last answers.
	look   = 50 * time.Millisecond
	settle = 2 * time.Millisecond
	// overtime is how long after its end a run may still make up for what was due.
	overtime = time.Second
	// leastForAll is how long the shortest load has that is sent whole.
	leastForAll = 10 * time.Second
)

// prepare makes a run of a load and forgets the counts of the one before. Nothing is sent
// before perform. The caller holds s.busy.
func (s *Source) prepare(l Load, kind wire.Kind) (*run, error) {
	l, err := s.complete(l)
	if err != nil {
		return nil, err
	}
	r := &run{load: l, kind: kind, template: newTemplate(l.Size), source: s, sent: make(chan struct{})}
	remotes := make([]remote, len(l.Remotes))
	for i, a := range l.Remotes {
		remotes[i] = remote{addressNumber(a.Addr()), a.Port()}
	}
	var sandboxes [][]uint32
	left := l.Sandboxes
	for _, e := range s.ends {
		n := min(left, len(e.inners))
		left -= n
		var numbers []uint32
		for _, inner := range e.inners[:n] {
			numbers = append(numbers, addressNumber(inner))
		}
		sandboxes = append(sandboxes, numbers)
	}
	r.seen = newSeen(min(l.Flows, wireFlows))
	quiets := make(map[Gateway]*quiet)
	for i, set := range spread(l.Flows, wireFlows, sandboxes, remotes) {
		e := s.ends[i]
		if quiets[e.gateway] == nil {
			quiets[e.gateway] = new(quiet)
		}
		r.lanes = append(r.lanes, &lane{run: r, end: e, set: set, quiet: quiets[e.gateway]})
	}
	return r, nil
}

// begin has the ends send.
func (s *Source) begin(r *run) {
	known := append([]uint64{r.load.Run}, *s.runs.Load()...)
	known = known[:min(len(known), remembered)]
	s.runs.Store(&known)
	from := s.now() + lead + time.Duration(len(r.lanes))*leadEach
	total, before := r.load.Rate*r.load.For.Seconds(), uint64(0)
	r.left.Store(int64(len(r.lanes)))
	for i, l := range r.lanes {
		l.mu.Lock()
		if l.set.count == 0 || r.kind == 0 {
			l.finish()
		} else {
			part := func(flows int) float64 { return float64(flows) / float64(r.load.Flows) }
			until := uint64(math.Round(total * part(l.set.first+l.set.count)))
			l.cursor = newCursor(&l.set)
			rate := r.load.Rate * part(l.set.count)
			// Ends take turns, too.
			turn := time.Duration(float64(i) / float64(len(r.lanes)) / rate * float64(time.Second))
			held := backlog
			if l.spacing = spacing; r.kind == wire.KindEcho {
				l.spacing, held = echoSpacing, echoBacklog
			}
			l.pace = schedule.Schedule{Rate: rate, From: from + turn, Total: until - before, Backlog: max(leastMadeUp, uint64(rate*held.Seconds()))}
			if r.load.All {
				l.pace.Backlog = l.pace.Total
			}
			before = until
		}
		l.mu.Unlock()
		l.end.run.Store(l)
	}
	for _, sh := range s.shards { // now that nobody counts for the load before
		sh.reset()
	}
	for _, l := range r.lanes {
		l.end.alarm.wake()
	}
}

// perform sends a run, and waits for answers until all have come or Load.Patience is over.
func (s *Source) perform(ctx context.Context, r *run) error {
	unsent := s.unsent()
	s.begin(r)
	defer r.stop()
	defer func() { r.unsent = s.unsent() - unsent }()
	err := s.attend(ctx, r)
	r.stop()
	r.ended = s.now()
	if r.mute != nil {
		return s.diagnose(ctx, r.mute)
	}
	if err != nil {
		return err
	}
	tick := time.NewTicker(settle)
	defer tick.Stop()
	for until := r.ended + r.load.Patience; s.now() < until; {
		if r.settled() {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if q := r.silent(s.now()); q != nil {
		return s.diagnose(ctx, q)
	}
	return nil
}

// attend waits until all is sent, or a gateway is mute.
func (s *Source) attend(ctx context.Context, r *run) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	limit := r.load.For
	if r.load.All {
		limit = max(10*limit, leastForAll)
	}
	over := time.NewTimer(lead + time.Duration(len(r.lanes))*leadEach + limit + overtime)
	defer over.Stop()
	for {
		select {
		case <-r.sent:
			return nil
		case <-over.C:
			return nil // the source is held up; Reached says so
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if r.mute = r.silent(s.now()); r.mute != nil {
			return nil
		}
		for _, e := range s.ends {
			select {
			case <-e.tunnel.Done():
				return fmt.Errorf("the WireGuard device of end %d has ended: %w", e.number, tunnel.ErrClosed)
			default:
			}
		}
	}
}

// silent returns the lane of a gateway that was asked and has not answered for too long.
func (r *run) silent(now time.Duration) *lane {
	for _, l := range r.lanes {
		if since := l.quiet.since.Load(); since != 0 && now-time.Duration(since) > r.load.Patience {
			return l
		}
	}
	return nil
}

// settled says whether all answers have come.
func (r *run) settled() bool {
	if r.joins != nil {
		return r.joins.left() == 0
	}
	return r.source.answered() >= r.asked()
}

// asked is how many answers are due.
func (r *run) asked() (n uint64) {
	for _, l := range r.lanes {
		l.mu.Lock()
		n += l.pulses
		if r.kind == wire.KindEcho {
			n += l.pace.Taken()
		}
		l.mu.Unlock()
	}
	return n
}

// answered is how many came in time or late.
func (s *Source) answered() (n uint64) {
	for _, sh := range s.shards {
		sh.mu.Lock()
		n += sh.answered + sh.late
		sh.mu.Unlock()
	}
	return n
}

// unsent is how many datagrams the kernel did not take, ever.
func (s *Source) unsent() (n uint64) {
	for _, e := range s.ends {
		for _, lost := range e.tunnel.SocketStats().Lost {
			n += lost
		}
	}
	return n
}

// result is what was sent, when it has ended.
func (r *run) result() Sent {
	t := Sent{Asked: r.asked(), Unsent: r.unsent, Behind: histogram.New(), Latency: histogram.New()}
	var began time.Duration
	for _, l := range r.lanes {
		l.mu.Lock()
		t.Packets += l.pace.Taken()
		if l.set.count > 0 {
			t.Due += l.pace.Passed(r.ended)
			if began == 0 || l.pace.From < began {
				began = l.pace.From
			}
		}
		l.mu.Unlock()
	}
	t.Bytes = t.Packets * uint64(r.load.Size)
	t.Took = max(0, r.ended-began)
	if t.Due > 0 {
		t.Reached = float64(t.Packets) / float64(t.Due)
	}
	for _, sh := range r.source.shards {
		sh.mu.Lock()
		t.Answered += sh.answered
		t.Latency.Merge(sh.latency)
		t.Behind.Merge(sh.behind)
		sh.mu.Unlock()
	}
	return t
}

// Times of handshakes.
const (
	// handshake is how long one may take with a gateway that was there before.
	handshake = 3 * time.Second
	// greeting is how long one with a new gateway may take, in which it is tried several
	// times; together how many are under way at once: a gateway that gets more answers
	// with cookies first.
	greeting = 6 * time.Second
	again    = time.Second
	together = 32
	glance   = 5 * time.Millisecond
	// keepalive keeps the way open through NATs.
	keepalive = 25 * time.Second
)

// Connect shakes hands with the gateway on every end and waits for the last. An error
// names the first that did not in 6 s.
func (s *Source) Connect(ctx context.Context) error {
	for some := range slices.Chunk(s.ends, together) {
		began := time.Now()
		for _, e := range some {
			err := e.tunnel.SetPeer(tunnel.Peer{
				PublicKey: e.key, Endpoint: e.gateway.Endpoint, AllowedIPs: everything(), Keepalive: keepalive,
			})
			if err != nil {
				return fmt.Errorf("connect end %d with %v: %w", e.number, e.gateway.Endpoint, err)
			}
		}
		if err := s.shaken(ctx, some, began, greeting); err != nil {
			return err
		}
	}
	return nil
}

// everything is what is sent to a gateway.
func everything() []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)} }

// shaken waits until ends have shaken hands, for each again and again.
func (s *Source) shaken(ctx context.Context, ends []*end, since time.Time, patience time.Duration) error {
	tick := time.NewTicker(glance)
	defer tick.Stop()
	left, tried := slices.Clone(ends), since
	for {
		for len(left) > 0 {
			peers, err := left[0].tunnel.Peers()
			if err != nil {
				return err
			}
			if len(peers) == 0 || !peers[0].LastHandshake.After(since) {
				break
			}
			left = left[1:]
		}
		if len(left) == 0 {
			return nil
		}
		e := left[0]
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("shake hands with %v: %w", e.gateway.Endpoint, context.Cause(ctx))
		}
		if waited := time.Since(since); waited > patience {
			return fmt.Errorf("shake hands with %v: %w in %v; look whether a gateway listens there, has the public key %s, and lets the peer %s in", e.gateway.Endpoint, ErrDead, patience, e.gateway.PublicKey, e.tunnel.PublicKey())
		}
		if time.Since(tried) < again {
			continue
		}
		tried = time.Now()
		for _, e := range left {
			if err := e.tunnel.Rehandshake(e.key); err != nil {
				return err
			}
		}
	}
}
