package tundev

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"
)

// TestWake: a Read that waits returns nothing when it is woken, a Wake before it counts,
// and neither keeps what is there from being read, or a later Read from waiting.
func TestWake(t *testing.T) {
	media(t, func(t *testing.T, b *bench) {
		bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
		read := func() (int, error) { return b.dev.Read(bufs, sizes, 0) }
		b.dev.Wake()
		if n, err := read(); n != 0 || err != nil {
			t.Fatalf("Read after Wake = %d, %v", n, err)
		}
		got := make(chan int)
		go func() {
			for {
				n, err := read()
				if errors.Is(err, os.ErrClosed) {
					close(got)
					return
				}
				if err != nil {
					t.Error(err)
				}
				got <- n
			}
		}()
		for range 100 {
			b.dev.Wake()
			select {
			case n := <-got:
				if n != 0 {
					t.Fatalf("woken, but %d packets", n)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("a Wake was lost")
			}
		}
		if err := b.dev.Close(); err != nil {
			t.Fatal(err)
		}
		for range got {
		}
	})
}

// TestWakeIsNeverLost: whatever is said before Wake is seen by the reader after the
// Read that it ends, however many wake at once.
func TestWakeIsNeverLost(t *testing.T) {
	b := newTUNBench(t)
	const wakers, rounds = 4, 2000
	var mu sync.Mutex
	said := 0
	var all sync.WaitGroup
	for range wakers {
		all.Go(func() {
			for range rounds {
				mu.Lock()
				said++
				mu.Unlock()
				b.dev.Wake()
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
		for {
			mu.Lock()
			heard := said
			mu.Unlock()
			if heard == wakers*rounds {
				return
			}
			if _, err := b.dev.Read(bufs, sizes, 0); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Error("the reader waits although it was woken")
		b.dev.Close()
	}
	all.Wait()
	<-done
}
