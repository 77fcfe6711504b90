package traffic

import (
	"testing"
	"time"
)

func TestAlarm(t *testing.T) {
	a, err := newAlarm()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	a.clear()
	if err := a.wait(20 * time.Millisecond); err != nil || time.Since(began) < 20*time.Millisecond {
		t.Errorf("waited %v of 20 ms (%v)", time.Since(began), err)
	}
	a.clear()
	a.wake()
	if err := a.wait(0); err != nil {
		t.Errorf("woken before: %v", err)
	}
	// However the two meet, no call of wake is lost.
	const rounds = 2000
	turn := make(chan struct{})
	go func() {
		for range rounds {
			<-turn
			a.wake()
		}
	}()
	for range rounds {
		a.clear()
		turn <- struct{}{}
		if err := a.wait(0); err != nil {
			t.Fatal(err)
		}
	}
	failed := make(chan error)
	a.clear()
	go func() { failed <- a.wait(0) }()
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("a closed alarm was waited for without an error")
	}
	a.wake()
}
