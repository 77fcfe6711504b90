package traffic

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/bench/histogram"
	"github.com/sallyport-net/sallyport/bench/schedule"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/packet"
)

// run is a load under way.
type run struct {
	load     Load
	kind     wire.Kind // of what is sent by the schedule; 0: nothing is
	template template
	pulse    uint64 // an echo is asked for once in so many packets; 0: never
	joins    *joins // nil: none
	seen     *seen  // by number on the wire
	source   *Source
	lanes    []*lane
	left     atomic.Int64  // lanes that have not finished
	sent     chan struct{} // closed when none is left

	// Of whoever performs it.
	ended  time.Duration
	unsent uint64
	mute   *lane // of a gateway that was silent for too long; nil: none
}

// lane is an end's part of a run.
type lane struct {
	run   *run
	end   *end
	set   flowSet
	quiet *quiet

	mu     sync.Mutex
	cursor cursor
	pace   schedule.Schedule
	// spacing is how long to wait at least, so that those that are due in a short time go
	// together.
	spacing time.Duration
	pulses  uint64
	done    bool
}

// quiet is for how long a gateway that was asked has not answered.
type quiet struct {
	since atomic.Int64 // time of the first question after the last answer, in ns; 0: none
}

func (q *quiet) asked(now time.Duration) { q.since.CompareAndSwap(0, int64(now)) }

func (q *quiet) heard() {
	if q.since.Load() != 0 { // the many that write nothing do not get in each other's way
		q.since.Store(0)
	}
}

// shard holds counts of some ends.
type shard struct {
	mu       sync.Mutex
	received Received
	answered uint64
	late     uint64
	latency  *histogram.Histogram
	behind   *histogram.Histogram
}

func newShard() *shard { return &shard{latency: histogram.New(), behind: histogram.New()} }

// reset forgets all counts.
func (s *shard) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received, s.answered, s.late = Received{}, 0, 0
	s.latency.Reset()
	s.behind.Reset()
}

const (
	// shards is how many there are at most: each has two histograms.
	shards = 8
	// A source that was held up makes up for so much.
	backlog     = 5 * time.Millisecond
	echoBacklog = 100 * time.Millisecond
	leastMadeUp = 64 // packets
	// What is due within these goes together, if it is not alone.
	spacing     = 50 * time.Microsecond
	echoSpacing = 10 * time.Microsecond
)

// pulseFlag marks an echo that a Blast asked for.
const pulseFlag = 1

// fill hands out what is due, and says how long to wait if nothing is; 0: for ever.
func (l *lane) fill(bufs [][]byte, sizes []int, offset int) (n int, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done || len(bufs) < 2 {
		return 0, 0
	}
	now := l.run.source.now()
	first, n := l.pace.Take(now, len(bufs)-1) // and a pulse
	if n > 0 {
		l.end.shard.behindBy(now - l.pace.Due(first))
	} else {
		wait = max(l.pace.Next()-now, l.spacing)
	}
	size := l.run.load.Size
	for i := range n {
		v := l.cursor.next()
		if l.run.joins != nil {
			sizes[i] = l.run.joins.put(bufs[i][offset:], l, v)
			continue
		}
		l.run.template.put(bufs[i][offset:], l.set.endpoints(v.flow), wire.Head{
			Kind: l.run.kind, Flow: v.number, Run: l.run.load.Run, Sequence: v.sequence,
			Time: uint64(l.pace.Due(first + uint64(i))),
		})
		sizes[i] = size
	}
	if n > 0 && l.run.kind == wire.KindEcho {
		l.quiet.asked(now)
	}
	if p := l.run.pulse; n > 0 && p > 0 && (first+uint64(n)+l.offset())/p > (first+l.offset())/p {
		l.beat(bufs[n][offset:], now)
		sizes[n] = size
		n++
	}
	if l.pace.Finished() {
		l.finish()
	}
	return n, wait
}

// offset keeps the pulses of several ends apart.
func (l *lane) offset() uint64 {
	return l.run.pulse * uint64(l.end.number) / uint64(len(l.run.lanes))
}

// beat writes a pulse.
func (l *lane) beat(b []byte, now time.Duration) {
	wireFlow := int(l.pulses % uint64(l.set.wires))
	l.run.template.put(b, l.set.endpoints(wireFlow), wire.Head{
		Kind: wire.KindEcho, Flags: pulseFlag, Flow: uint16(l.set.wireFirst + wireFlow),
		Run: l.run.load.Run, Sequence: l.pulses, Time: uint64(now),
	})
	l.pulses++
	l.quiet.asked(now)
}

// finish ends the lane's sending. The caller holds its lock.
func (l *lane) finish() {
	if l.done {
		return
	}
	l.done = true
	if l.run.left.Add(-1) == 0 {
		close(l.run.sent)
	}
}

// stop ends all sending before its time.
func (r *run) stop() {
	for _, l := range r.lanes {
		l.mu.Lock()
		l.finish()
		l.mu.Unlock()
	}
}

// behindBy takes in by how much a batch was late.
func (s *shard) behindBy(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behind.Record(d)
}

// take takes in a packet of the run. The caller holds the shard's lock.
func (l *lane) take(p *packet.Packet, h wire.Head, s *shard, now time.Duration) bool {
	if h.Kind == wire.KindJoinAnswer && l.run.joins != nil {
		l.quiet.heard()
		l.run.joins.answer(h.Flow)
		return true
	}
	if want := wire.KindEchoAnswer; h.Kind != want && (h.Kind != wire.KindGenerated || l.run.kind != 0) {
		return false
	}
	flow, ok := l.set.find(h.Flow, h.Sequence)
	if ok && h.Flags&pulseFlag != 0 && h.Kind == wire.KindEchoAnswer {
		flow = int(h.Flow) - l.set.wireFirst
	}
	if !ok || !l.set.endpoints(flow).are(p) {
		s.received.Foreign++
		return true
	}
	l.quiet.heard()
	s.received.Packets++
	s.received.Bytes += uint64(len(p.B))
	s.received.Ranges[(l.set.first+flow)*len(s.received.Ranges)/l.run.load.Flows]++
	switch l.run.seen.take(int(h.Flow), h.Sequence) {
	case arrivalAgain:
		s.received.Duplicates++
		return true
	case arrivalStale:
		s.received.Stale++
		return true
	case arrivalLate:
		s.received.Reordered++
	}
	if h.Kind == wire.KindGenerated {
		return true
	}
	if took := now - time.Duration(h.Time); took > l.run.load.Patience {
		s.late++
	} else {
		s.answered++
		s.latency.Record(took)
	}
	return true
}

// are says whether a packet came back to these endpoints.
func (e endpoints) are(p *packet.Packet) bool {
	return p.DstPort == e.port && p.SrcPort == e.to.port &&
		addressNumber(p.Dst) == e.inner && addressNumber(p.Src) == e.to.addr
}
