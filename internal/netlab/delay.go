package netlab

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// defaultQueue is the frames that wait in one direction of a line unless its
// Quality says otherwise.
const defaultQueue = 1000

// Quality is what a direction of a [Line] does to frames. The zero value passes
// them on at once.
type Quality struct {
	// Delay is how long each frame is under way. Each gets up to Jitter more, evenly
	// spread by chance. Timers make it some 0.1 ms more.
	Delay, Jitter time.Duration
	// Overtake lets frames leave in the order that jitter makes of it. Otherwise
	// none leaves before one that came earlier.
	Overtake bool
	// Loss is the part of frames that is lost by chance, 0 to 1; 1 is a cut.
	Loss float64
	// Queue bounds the frames under way; what comes on top is dropped. 0 for 1,000.
	Queue int
}

// LineStats counts frames of one direction of a line.
type LineStats struct {
	Passed     uint64
	Lost       uint64 // by Quality.Loss
	Overflowed uint64 // found Quality.Queue under way
	Refused    uint64 // could not be sent: the far end is down
}

// delayed is a frame under way.
type delayed struct {
	due   time.Time
	order uint64 // of arrival
	frame []byte
}

// delayQueue is what is under way in one direction. It decides by a seed, so that
// the same frames at the same times have the same fate. Its owner serialises.
type delayQueue struct {
	quality Quality
	chance  *rand.Rand
	waiting frameHeap
	last    time.Time // the latest due time so far
	arrived uint64
	spare   [][]byte
	stats   LineStats
}

func newDelayQueue(seed, direction uint64) *delayQueue {
	return &delayQueue{chance: rand.New(rand.NewPCG(seed, direction))}
}

// add takes a copy of a frame that arrived now, unless it is lost.
func (q *delayQueue) add(now time.Time, frame []byte) {
	// Both are drawn for each frame: what happens to one changes nothing for others.
	lost, jitter := q.chance.Float64() < q.quality.Loss, time.Duration(q.chance.Float64()*float64(q.quality.Jitter))
	limit := q.quality.Queue
	if limit == 0 {
		limit = defaultQueue
	}
	switch {
	case lost:
		q.stats.Lost++
		return
	case len(q.waiting) >= limit:
		q.stats.Overflowed++
		return
	}
	due := now.Add(q.quality.Delay + jitter)
	if !q.quality.Overtake && due.Before(q.last) {
		due = q.last
	}
	if due.After(q.last) {
		q.last = due
	}
	var b []byte
	if n := len(q.spare); n > 0 {
		b, q.spare = q.spare[n-1], q.spare[:n-1]
	}
	q.arrived++
	heap.Push(&q.waiting, delayed{due, q.arrived, append(b[:0], frame...)})
}

// next returns the first frame that is due, valid until release gives it back, or
// else when to ask again; the zero time if nothing is under way.
func (q *delayQueue) next(now time.Time) (frame []byte, again time.Time) {
	if len(q.waiting) == 0 {
		return nil, time.Time{}
	}
	if first := q.waiting[0]; first.due.After(now) {
		return nil, first.due
	}
	return heap.Pop(&q.waiting).(delayed).frame, time.Time{}
}

// release takes a frame's buffer back and counts what became of it.
func (q *delayQueue) release(frame []byte, sent bool) {
	q.spare = append(q.spare, frame)
	if sent {
		q.stats.Passed++
	} else {
		q.stats.Refused++
	}
}

// frameHeap orders by due time, then by arrival. It implements heap.Interface.
type frameHeap []delayed

func (h frameHeap) Len() int { return len(h) }

func (h frameHeap) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].order < h[j].order
	}
	return h[i].due.Before(h[j].due)
}

func (h frameHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

func (h *frameHeap) Push(x any) { *h = append(*h, x.(delayed)) }

func (h *frameHeap) Pop() any {
	old := *h
	n := len(old) - 1
	x := old[n]
	old[n] = delayed{}
	*h = old[:n]
	return x
}
