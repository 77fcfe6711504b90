package netlab

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// departure is a frame that left a queue.
type departure struct {
	frame byte          // its number
	after time.Duration // since its arrival
}

// fate runs frames through a queue, one each millisecond, and returns them in the
// order in which they left.
func fate(seed uint64, q Quality, frames int) ([]departure, LineStats) {
	queue := newDelayQueue(seed, 0)
	queue.quality = q
	start := time.Unix(1000, 0)
	var left []departure
	take := func(now time.Time) {
		for {
			frame, _ := queue.next(now)
			if frame == nil {
				return
			}
			left = append(left, departure{frame[0], now.Sub(start.Add(time.Duration(frame[0]) * time.Millisecond))})
			queue.release(frame, true)
		}
	}
	now := start
	for i := range frames {
		for at := start.Add(time.Duration(i) * time.Millisecond); now.Before(at); now = now.Add(100 * time.Microsecond) {
			take(now)
		}
		queue.add(now, []byte{byte(i), 1, 2, 3})
	}
	for ; len(queue.waiting) > 0; now = now.Add(100 * time.Microsecond) {
		take(now)
	}
	return left, queue.stats
}

func TestDelayQueue(t *testing.T) {
	const frames = 200
	for _, c := range []struct {
		name    string
		q       Quality
		check   func(departure) bool
		ordered bool
		lost    [2]uint64 // least and most
	}{
		{"at once", Quality{}, func(d departure) bool { return d.after < time.Millisecond }, true, [2]uint64{0, 0}},
		{"delay", Quality{Delay: 5 * time.Millisecond}, func(d departure) bool {
			return d.after >= 5*time.Millisecond && d.after < 6*time.Millisecond
		}, true, [2]uint64{0, 0}},
		{"jitter in order", Quality{Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond}, func(d departure) bool {
			return d.after >= 5*time.Millisecond && d.after < 11*time.Millisecond
		}, true, [2]uint64{0, 0}},
		{"jitter that overtakes", Quality{Jitter: 5 * time.Millisecond, Overtake: true}, func(d departure) bool {
			return d.after < 6*time.Millisecond
		}, false, [2]uint64{0, 0}},
		{"loss", Quality{Loss: 0.25}, func(departure) bool { return true }, true, [2]uint64{30, 70}},
		{"cut", Quality{Loss: 1}, func(departure) bool { return false }, true, [2]uint64{frames, frames}},
	} {
		t.Run(c.name, func(t *testing.T) {
			left, stats := fate(1, c.q, frames)
			if stats.Lost < c.lost[0] || stats.Lost > c.lost[1] || stats.Passed+stats.Lost != frames || stats.Overflowed != 0 {
				t.Errorf("stats %+v", stats)
			}
			for _, d := range left {
				if !c.check(d) {
					t.Errorf("frame %d left after %v", d.frame, d.after)
				}
			}
			sorted := slices.IsSortedFunc(left, func(a, b departure) int { return int(a.frame) - int(b.frame) })
			if sorted != c.ordered {
				t.Errorf("they left in order: %t, want %t", sorted, c.ordered)
			}
			again, _ := fate(1, c.q, frames)
			if !slices.Equal(left, again) {
				t.Error("the same seed makes another fate")
			}
			other, _ := fate(2, c.q, frames)
			random := c.q.Jitter != 0 || c.q.Loss > 0 && c.q.Loss < 1
			if slices.Equal(left, other) == random {
				t.Errorf("another seed makes another fate: %t", !random)
			}
		})
	}
}

// TestDelayQueueIsBounded fills it, empties it, and sees that buffers are reused
// and that no frame is another's.
func TestDelayQueueIsBounded(t *testing.T) {
	q := newDelayQueue(1, 1)
	q.quality = Quality{Delay: time.Second, Queue: 3}
	now := time.Unix(0, 0)
	chance := rand.New(rand.NewPCG(1, 1))
	for round := range 4 {
		var sent [][]byte
		for range 5 {
			b := make([]byte, 1+chance.IntN(100))
			b[0] = byte(round)
			sent = append(sent, b)
			q.add(now, b)
		}
		if _, again := q.next(now); !again.Equal(now.Add(time.Second)) {
			t.Fatalf("the next is due at %v", again)
		}
		now = now.Add(time.Second)
		for i := range 3 {
			frame, _ := q.next(now)
			if !bytes.Equal(frame, sent[i]) {
				t.Fatalf("round %d: frame %d is %v", round, i, frame)
			}
			q.release(frame, i != 0)
		}
		if frame, again := q.next(now); frame != nil || !again.IsZero() {
			t.Fatal("there is a fourth")
		}
		if len(q.spare) > 3 {
			t.Errorf("%d buffers", len(q.spare))
		}
	}
	if want := (LineStats{Passed: 8, Overflowed: 8, Refused: 4}); q.stats != want {
		t.Errorf("stats %+v, want %+v", q.stats, want)
	}
}

func TestDeviceOwner(t *testing.T) {
	device := newDevice()
	if pid, ok := deviceOwner(device); !ok || pid <= 0 || len(device) > 15 {
		t.Errorf("%s is of %d, %t", device, pid, ok)
	}
	for _, name := range []string{"wg0", "slab", "slabx", "slab-1xabc", "slabzzxabc", "slab12"} {
		if pid, ok := deviceOwner(name); ok {
			t.Errorf("%s is of %d", name, pid)
		}
	}
}
