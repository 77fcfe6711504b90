package sidecar

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

// The number of packets that a sandbox reads at once. The buffers of a batch
// are held while the sandbox is idle, so it begins small and grows with traffic.
const (
	minBatch = 4
	maxBatch = 64
)

// route is a sandbox's way to one gateway.
type route struct {
	id    failover.PathID
	path  *path
	share *share // the sandbox's part of the path's queue
	// there is how the sandbox's addresses differ in the path's network; nil: not at all.
	there *packet.Renumbering
}

// sandbox is the switch between one sandbox's device and the paths of its
// networks. One goroutine reads the device; what it shares with those that bring
// packets back, and with the sweeps of lost flows, is behind a lock of the
// sandbox's own, which nobody holds while waiting.
type sandbox struct {
	inner [4]byte
	dev   tun.Device
	clock clock
	pool  *bufferPool
	count *counters
	log   *slog.Logger

	group  atomic.Pointer[group]    // whose choice new flows take
	routes atomic.Pointer[[]*route] // there are few; never changed in place

	mu       sync.Mutex // guards flows and what follows
	flows    *flowTable
	sweeps   []sweep // that wait
	sweeping bool    // a goroutine works on them
	stopped  bool
	tasks    sync.WaitGroup

	// What follows belongs to the reader.
	window int                       // packets to ask for next
	bufs   [maxBatch]*buffer         // those below window hold a buffer
	views  [maxBatch][]byte          // their bytes
	sizes  [maxBatch]int             // what a read filled in
	taken  [maxBatch]failover.PathID // the route of each; 0: it goes nowhere
	lost   [maxBatch]bool            // it is answered by a reset
	run    [maxBatch]*buffer         // consecutive packets of one route
	reset  [][]byte                  // one buffer for a reset
	about  packet.Packet
	ended  chan struct{} // closed when the reader has ended

	egress, ingress traffic  // passed, from this sandbox and to it
	dropped         [2]drops // by direction: egress, ingress
}

// sandboxConfig is what a switch is made of.
type sandboxConfig struct {
	inner [4]byte
	dev   tun.Device
	clock clock
	pool  *bufferPool
	count *counters
	log   *slog.Logger
}

// deviceOffset is the room that devices want before a packet.
const deviceOffset = 16

// newSandbox makes a switch without routes. It works from start on.
func newSandbox(cfg sandboxConfig) *sandbox {
	s := &sandbox{
		inner: cfg.inner, dev: cfg.dev, clock: cfg.clock,
		pool: cfg.pool, count: cfg.count, log: cfg.log,
		flows: newFlowTable(cfg.clock.now()),
		reset: [][]byte{make([]byte, deviceOffset+resetSize)},
		ended: make(chan struct{}),
	}
	s.routes.Store(&[]*route{})
	s.resize(minBatch)
	return s
}

// start begins to read the device.
func (s *sandbox) start() { go s.pump() }

// stop ends switching, closes the device and returns when nothing uses it any
// more. No path may find the sandbox by then.
func (s *sandbox) stop() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	for _, r := range *s.routes.Load() {
		r.path.queue.leave(r.share)
	}
	_ = s.dev.Close()
	<-s.ended
	s.tasks.Wait()
}

// setRoutes replaces the routes by the given ones, of which those that were there
// go on as they are. Only one goroutine may do so at a time.
func (s *sandbox) setRoutes(wanted []route) {
	old := *s.routes.Load()
	routes := make([]*route, 0, len(wanted))
	for _, w := range wanted {
		i := slices.IndexFunc(old, func(r *route) bool { return r.id == w.id && r.path == w.path && r.there == w.there })
		if i >= 0 {
			routes = append(routes, old[i])
			continue
		}
		w.share = &share{}
		routes = append(routes, &w)
	}
	s.routes.Store(&routes)
	for _, r := range old {
		if !slices.Contains(routes, r) {
			r.path.queue.leave(r.share)
		}
	}
}

// find returns the route with an id, or nil.
func (s *sandbox) find(id failover.PathID) *route {
	for _, r := range *s.routes.Load() {
		if r.id == id {
			return r
		}
	}
	return nil
}

// choose is the route for new flows; 0 while there is none.
func (s *sandbox) choose() failover.PathID {
	if g := s.group.Load(); g != nil {
		return failover.PathID(g.choice.Load())
	}
	return 0
}

// pump reads the device until it is closed or gone.
func (s *sandbox) pump() {
	defer close(s.ended)
	defer s.resize(0)
	for {
		n, err := s.dev.Read(s.views[:s.window], s.sizes[:s.window], 0)
		if n > 0 {
			s.forward(n)
		}
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				s.log.Debug("a sandbox's interface is gone", "error", err)
			}
			return
		}
		s.adapt(n)
	}
}

// forward checks the first n packets and queues them to their routes, those of
// one route that follow each other at once.
func (s *sandbox) forward(n int) {
	s.classify(n)
	current, length := failover.PathID(0), 0
	for i := range n {
		if s.lost[i] {
			s.refuse(s.views[i][:s.sizes[i]])
			continue
		}
		if s.taken[i] == 0 {
			continue
		}
		if s.taken[i] != current && length > 0 {
			s.flush(current, length)
			length = 0
		}
		current = s.taken[i]
		b := s.bufs[i]
		b.n = s.sizes[i]
		s.run[length] = b
		length++
		s.replace(i)
	}
	if length > 0 {
		s.flush(current, length)
	}
}

// classify checks the first n packets and finds their routes. Of segments of one
// connection that follow each other, and neither begin nor end it, the table sees
// the first and the last.
func (s *sandbox) classify(n int) {
	var last flowKey
	var unseen segment // the last segment that the table has not seen
	id, running := failover.PathID(0), false
	s.mu.Lock()
	defer s.mu.Unlock()
	// Under the lock: a choice that was read before a whole sweep would put new flows
	// on the route that was swept.
	now, chosen := s.clock.now(), s.choose()
	for i := range n {
		b := s.views[i][:s.sizes[i]]
		key, seg, outcome := inspect(b, s.inner)
		s.taken[i], s.lost[i] = 0, false
		if outcome != packet.Pass {
			s.drop(0, outcome, 1)
			continue
		}
		plain := seg.flags&(packet.SYN|packet.FIN|packet.RST) == 0
		if running && plain && key == last {
			s.taken[i], unseen = id, seg
			if id == 0 {
				s.drop(0, packet.Closed, 1)
			}
			continue
		}
		if unseen.ok {
			s.flows.egress(last, unseen, nil, chosen, now)
			unseen.ok = false
		}
		var alive bool
		id, alive = s.flows.egress(key, seg, b, chosen, now)
		if alive && id == 0 {
			s.drop(0, packet.Closed, 1)
		}
		if s.lost[i] = !alive; alive {
			s.taken[i] = id
		}
		last, running = key, alive && plain
	}
	if unseen.ok {
		s.flows.egress(last, unseen, nil, chosen, now)
	}
}

// refuse answers a segment of a connection that was lost by a reset.
func (s *sandbox) refuse(b []byte) {
	s.drop(0, packet.NoSession, 1)
	if packet.Parse(&s.about, b) != packet.Pass {
		return
	}
	whole := s.reset[0]
	if n := packet.BuildRST(whole[deviceOffset:cap(whole)], &s.about); n > 0 {
		s.reset[0] = whole[:deviceOffset+n]
		s.write(s.reset, deviceOffset)
	}
}

// flush queues the run to a route and waits for room there.
func (s *sandbox) flush(id failover.PathID, length int) {
	run := s.run[:length]
	if r := s.find(id); r != nil {
		bytes := 0
		for _, b := range run {
			bytes += b.n
			if r.there != nil {
				r.there.Egress(b.b[:b.n]) // inspect let it pass, so it is sound
			}
		}
		if r.path.queue.put(r.share, run) {
			s.egress.add(length, bytes)
			return
		}
	}
	for _, b := range run {
		b.free()
	}
	s.drop(0, packet.Closed, length)
}

// deliver writes packets that came by a path to the sandbox, with the addresses
// that it knows. All are addressed to it there.
func (s *sandbox) deliver(p *path, there *packet.Renumbering, bufs [][]byte, offset int) {
	from := 0
	for i, b := range bufs {
		why := packet.Pass
		if there != nil {
			why = there.Ingress(b[offset:])
		}
		if key, seg, ok := turning(b[offset:]); why == packet.Pass && ok && !s.turn(p, key, seg) {
			why = packet.NoSession
		}
		if why != packet.Pass {
			s.write(bufs[from:i], offset)
			s.drop(1, why, 1)
			from = i + 1
		}
	}
	s.write(bufs[from:], offset)
}

// turn tells the table of the begin or the end of a connection, and says whether the
// sandbox may have the segment.
func (s *sandbox) turn(p *path, key flowKey, seg segment) bool {
	for _, r := range *s.routes.Load() {
		if r.path == p {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.flows.ingress(key, seg, r.id)
		}
	}
	return true
}

// write hands packets to the sandbox's device.
func (s *sandbox) write(bufs [][]byte, offset int) {
	if len(bufs) == 0 {
		return
	}
	n, err := s.dev.Write(bufs, offset)
	bytes := 0
	for _, b := range bufs[:n] {
		bytes += len(b) - offset
	}
	s.ingress.add(n, bytes)
	if lost := len(bufs) - n; err != nil && lost > 0 {
		s.drop(1, packet.Closed, lost)
	}
}

// drop counts n packets that do not go on. Direction 0 is egress, 1 ingress.
func (s *sandbox) drop(direction int, why packet.Outcome, n int) {
	s.dropped[direction].add(why, n)
	if direction == 0 {
		s.count.egress.add(why, n)
	} else {
		s.count.ingress.add(why, n)
	}
}

// adapt sets how many packets the next read asks for, by how many this one brought.
func (s *sandbox) adapt(n int) {
	switch {
	case n == s.window && n < maxBatch:
		s.resize(min(s.window*4, maxBatch))
	case n*4 < s.window && s.window > minBatch:
		s.resize(max(s.window/4, minBatch))
	}
}

// resize holds as many buffers as given.
func (s *sandbox) resize(window int) {
	for i := s.window; i < window; i++ {
		s.replace(i)
	}
	for i := window; i < s.window; i++ {
		s.bufs[i].free()
		s.bufs[i], s.views[i] = nil, nil
	}
	s.window = window
}

// replace puts a fresh buffer in place of one that was given away.
func (s *sandbox) replace(i int) {
	s.bufs[i] = s.pool.get()
	s.views[i] = s.bufs[i].b
}
