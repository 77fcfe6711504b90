package netstack

import (
	"errors"
	"os"
	"testing"

	"pgregory.net/rapid"
)

// mark makes an outbound thing that can be told from others.
func mark(id, weight int) outbound {
	b := []byte{byte(id), byte(id >> 8)}
	return outbound{raw: &b, weight: weight}
}

func id(o outbound) int { return int((*o.raw)[0]) | int((*o.raw)[1])<<8 }

// TestQueueModel compares the queue with a slice.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit, reserve = 200, 20
		q := newQueue(limit, reserve)
		var model []outbound
		weight, sent, serial := 0, 0, 0
		t.Repeat(map[string]func(*rapid.T){
			"offer": func(t *rapid.T) {
				extra := rapid.SampledFrom([]int{0, reserve}).Draw(t, "extra")
				o := mark(serial, rapid.IntRange(1, 46).Draw(t, "weight"))
				want := weight < limit+extra
				if got := q.offer(o, extra); got != want {
					t.Fatalf("offer at weight %d: %v", weight, got)
				}
				if want {
					model, weight, serial = append(model, o), weight+o.weight, serial+1
				}
			},
			"put": func(t *rapid.T) {
				if weight >= limit || sent >= BatchSize {
					t.Skip("would wait")
				}
				o := mark(serial, rapid.IntRange(1, 46).Draw(t, "weight"))
				if !q.put(o) {
					t.Fatal("put refused")
				}
				o.waits = true
				model, weight, sent, serial = append(model, o), weight+o.weight, sent+o.weight, serial+1
			},
			"take": func(t *rapid.T) {
				want := rapid.IntRange(1, 128).Draw(t, "want")
				got, err := q.take(nil, want, len(model) > 0)
				if err != nil {
					t.Fatal(err)
				}
				moved := 0
				for _, o := range got {
					if moved >= want {
						t.Fatalf("took more than %d", want)
					}
					if len(model) == 0 || id(o) != id(model[0]) {
						t.Fatalf("took %d out of order", id(o))
					}
					moved += o.weight
					weight -= o.weight
					if model[0].waits {
						sent -= o.weight
					}
					model = model[1:]
				}
				if moved < want && len(model) > 0 {
					t.Fatalf("took %d of %d and left %d", moved, want, len(model))
				}
			},
			"": func(t *rapid.T) {
				if q.len() != weight || q.sent != sent || q.count != len(model) {
					t.Fatalf("weight %d, of senders %d, count %d; want %d, %d, %d", q.len(), q.sent, q.count, weight, sent, len(model))
				}
			},
		})
		if rest := q.close(); len(rest) != len(model) {
			t.Fatalf("closing returned %d of %d", len(rest), len(model))
		}
	})
}

// Senders wait where there is no room: behind their own as behind what was injected.
func TestQueueBlocks(t *testing.T) {
	t.Run("limit", func(t *testing.T) { testQueueBlocks(t, 4, 4) })
	t.Run("senders", func(t *testing.T) { testQueueBlocks(t, 1000, BatchSize) })
}

func testQueueBlocks(t *testing.T, limit, most int) {
	q := newQueue(limit, 0)
	const senders, each = 8, 200
	done := make(chan bool)
	for range senders {
		go func() {
			ok := true
			for range each {
				ok = ok && q.put(mark(0, 1))
			}
			done <- ok
		}()
	}
	taken := 0
	for taken < senders*each {
		got, err := q.take(nil, 3, true)
		if err != nil {
			t.Fatal(err)
		}
		taken += len(got)
		if n := q.len(); n > most {
			t.Fatalf("%d queued, at most %d should be", n, most)
		}
	}
	for range senders {
		if !<-done {
			t.Error("put refused")
		}
	}
}

func TestQueueCloseUnblocks(t *testing.T) {
	q := newQueue(1, 0)
	q.put(mark(0, 1))
	refused := make(chan bool)
	for range 3 {
		go func() { refused <- q.put(mark(1, 1)) }()
	}
	if rest := q.close(); len(rest) != 1 {
		t.Errorf("closing returned %d", len(rest))
	}
	for range 3 {
		if <-refused {
			t.Error("put into a closed queue")
		}
	}
	if _, err := q.take(nil, 1, true); !errors.Is(err, os.ErrClosed) {
		t.Errorf("take: %v", err)
	}
	if q.close() != nil {
		t.Error("closing twice returned something")
	}
}
