package sidecar

import (
	"errors"
	"log/slog"
	"os"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// The number of packets that a sandbox reads at once. The buffers of a batch
// are held while the sandbox is idle, so it begins small and grows with traffic.
const (
	minBatch = 4
	maxBatch = 64
)

// sandbox is the switch between one sandbox's device and the paths of its
// network. One goroutine reads the device; everything it needs is its own, but
// for the queues.
type sandbox struct {
	inner  [4]byte
	dev    tun.Device
	paths  []*path  // in order of preference; there is at least one
	shares []*share // its part of each path's queue
	clock  clock
	pool   *bufferPool
	count  *counters
	log    *slog.Logger

	flows           *flowTable
	window          int               // packets to ask for next
	bufs            [maxBatch]*buffer // those below window hold a buffer
	views           [maxBatch][]byte  // their bytes
	sizes           [maxBatch]int     // what a read filled in
	run             [maxBatch]*buffer // consecutive packets of one path
	ended           chan struct{}     // closed when the reader has ended
	egress, ingress traffic           // passed, from this sandbox and to it
	dropped         [2]drops          // by direction: egress, ingress
}

// sandboxConfig is what a switch is made of.
type sandboxConfig struct {
	inner [4]byte
	dev   tun.Device
	paths []*path
	clock clock
	pool  *bufferPool
	count *counters
	log   *slog.Logger
}

// newSandbox makes a switch. It works from start on.
func newSandbox(cfg sandboxConfig) *sandbox {
	s := &sandbox{
		inner: cfg.inner, dev: cfg.dev, paths: cfg.paths, clock: cfg.clock,
		pool: cfg.pool, count: cfg.count, log: cfg.log,
		flows: newFlowTable(cfg.clock.now()),
		ended: make(chan struct{}),
	}
	for range s.paths {
		s.shares = append(s.shares, &share{})
	}
	s.resize(minBatch)
	return s
}

// start begins to switch in both directions.
func (s *sandbox) start() {
	for _, p := range s.paths {
		p.sandboxes.add(s)
	}
	go s.pump()
}

// stop ends switching, closes the device and returns when nothing uses it any more.
func (s *sandbox) stop() {
	for i, p := range s.paths {
		p.sandboxes.remove(s)
		p.queue.leave(s.shares[i])
	}
	_ = s.dev.Close()
	<-s.ended
}

// pump reads the device until it is closed or gone.
func (s *sandbox) pump() {
	defer close(s.ended)
	defer s.resize(0)
	for {
		n, err := s.dev.Read(s.views[:s.window], s.sizes[:s.window], 0)
		if n > 0 && !s.forward(n) {
			return
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

// forward checks the first n packets and queues them to their paths, those of
// one path that follow each other at once. It returns false when switching has ended.
func (s *sandbox) forward(n int) bool {
	now := s.clock.now()
	var last flowKey // a run of one flow is looked up once
	current, length, bytes := uint8(0), 0, 0
	for i := range n {
		key, outcome := inspect(s.views[i][:s.sizes[i]], s.inner)
		if outcome != packet.Pass {
			s.drop(0, outcome, 1)
			continue
		}
		if length == 0 || key != last {
			p := s.flows.path(key, s.choose(), now)
			if p != current && length > 0 {
				if !s.flush(current, length, bytes) {
					return false
				}
				length, bytes = 0, 0
			}
			current, last = p, key
		}
		b := s.bufs[i]
		b.n = s.sizes[i]
		s.run[length] = b
		length++
		bytes += b.n
		s.replace(i)
	}
	return length == 0 || s.flush(current, length, bytes)
}

// choose is the path for new flows: the first in order of preference.
func (s *sandbox) choose() uint8 { return 0 }

// flush queues the run to a path and waits for room there.
func (s *sandbox) flush(p uint8, length, bytes int) bool {
	if s.paths[p].queue.put(s.shares[p], s.run[:length]) {
		s.egress.add(length, bytes)
		return true
	}
	for _, b := range s.run[:length] {
		s.pool.put(b)
	}
	s.drop(0, packet.Closed, length)
	return false
}

// deliver writes packets from a path to the sandbox. All are addressed to it.
func (s *sandbox) deliver(bufs [][]byte, offset int) {
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
		s.pool.put(s.bufs[i])
		s.bufs[i], s.views[i] = nil, nil
	}
	s.window = window
}

// replace puts a fresh buffer in place of one that was given away.
func (s *sandbox) replace(i int) {
	s.bufs[i] = s.pool.get()
	s.views[i] = s.bufs[i].b
}
