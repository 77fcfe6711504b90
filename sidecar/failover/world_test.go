package failover

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// link is what a simulated path is like just now.
type link struct {
	toGateway, back bool          // a direction works
	rtt, jitter     time.Duration // jitter is added to each direction's half at random
	loss            float64       // of packets, each way
	streak          int           // most packets in a row that are lost; 0: no limit
	health          Health
	traffic         time.Duration // other packets arrive so often; 0: none

	lostInRow int
}

// happening is something that happens in a world.
type happening struct {
	at    Instant
	order uint64 // of two at the same time the one that was planned first
	do    func(now Instant)
}

type happenings []happening

func (h happenings) Len() int { return len(h) }
func (h happenings) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].order < h[j].order
}
func (h happenings) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *happenings) Push(x any)   { *h = append(*h, x.(happening)) }
func (h *happenings) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// world is a simulated network with one worker that polls a Monitor.
type world struct {
	*checked
	chance *rand.Rand
	plan   happenings
	count  uint64
	links  map[PathID]*link

	stalledUntil Instant
	waiting      []func(now Instant) // what the worker will see when it runs again
	pollAt       uint64              // number of the poll that is planned
	lateness     time.Duration       // of polls, at random up to this
}

func newWorld(c *checked, seed uint64) *world {
	return &world{checked: c, chance: rand.New(rand.NewPCG(seed, 1)), links: map[PathID]*link{}}
}

func (w *world) after(d time.Duration, do func(now Instant)) {
	w.count++
	heap.Push(&w.plan, happening{at: w.now + Instant(d), order: w.count, do: do})
}

// run lets time pass.
func (w *world) run(until Instant) {
	for len(w.plan) > 0 && w.plan[0].at <= until {
		h := heap.Pop(&w.plan).(happening)
		w.now = h.at
		h.do(h.at)
	}
	w.now = until
}

// upto is a random duration.
func (w *world) upto(d time.Duration) time.Duration {
	return time.Duration(w.chance.Int64N(int64(d) + 1))
}

// worker lets the worker do something, when it runs.
func (w *world) worker(do func(now Instant)) {
	if w.now < w.stalledUntil {
		w.waiting = append(w.waiting, do)
		return
	}
	do(w.now)
}

// stall stops the worker. What it would have seen it sees afterwards, in any order.
func (w *world) stall(d time.Duration) {
	if w.now < w.stalledUntil {
		return
	}
	w.stalledUntil = w.now + Instant(d)
	w.after(d, func(now Instant) {
		waiting := w.waiting
		w.waiting = nil
		w.chance.Shuffle(len(waiting), func(i, j int) { waiting[i], waiting[j] = waiting[j], waiting[i] })
		for _, do := range waiting {
			do(now)
		}
	})
}

// addPath adds a path with its link.
func (w *world) addPath(l link) PathID {
	p := w.add(w.now)
	w.links[p] = &l
	w.traffic(p, &l)
	w.pollNow()
	return p
}

func (w *world) removePath(p PathID) {
	w.remove(w.now, p)
	delete(w.links, p)
}

func (w *world) setGroup(g GroupID, order ...PathID) {
	w.set(w.now, g, order...)
	w.pollNow()
}

// traffic lets other packets of a path arrive.
func (w *world) traffic(p PathID, l *link) {
	every := l.traffic
	if every == 0 {
		every = 50 * time.Millisecond
	}
	w.after(w.upto(2*every), func(Instant) {
		if w.links[p] != l {
			return
		}
		if l.traffic > 0 && l.back {
			w.worker(func(now Instant) { w.heard(now, p) })
		}
		w.traffic(p, l)
	})
}

// pollNow polls, sends the probes, and plans the next poll.
func (w *world) pollNow() {
	w.pollAt++
	sent, next := w.poll(w.now)
	for _, s := range sent {
		w.send(s)
	}
	number := w.pollAt
	w.after(time.Duration(next-w.now)+w.upto(w.lateness), func(Instant) {
		w.worker(func(Instant) {
			if w.pollAt == number {
				w.pollNow()
			}
		})
	})
}

// drop says whether chance takes a packet.
func (w *world) drop(l *link) bool {
	if w.chance.Float64() >= l.loss || l.streak > 0 && l.lostInRow >= l.streak {
		return false
	}
	l.lostInRow++
	return true
}

// send lets a probe travel to the gateway and its answer back.
func (w *world) send(s Probe) {
	l := w.links[s.Path]
	half := func() time.Duration { return l.rtt/2 + w.upto(l.jitter/2) }
	w.after(half(), func(Instant) {
		if !l.toGateway || w.drop(l) {
			return
		}
		h := l.health
		w.after(half(), func(Instant) {
			if !l.back || w.drop(l) {
				return
			}
			l.lostInRow = 0
			w.worker(func(now Instant) {
				before := len(w.events)
				w.answer(now, s.Path, s.Sequence, h)
				if len(w.events) > before {
					w.pollNow()
				}
			})
		})
	})
}
