package machine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const statBefore = "cpu  100 0 50 800 50 0 0 0 7 7\ncpu0 10 0 0 90 0 0 0 0 0 0\ncpu1 1 1 1 1 1 1 1 1\n"

func TestCPU(t *testing.T) {
	before, err := parseCPU(statBefore, AllCores)
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseCPU("cpu  150 5 70 810 50 2 3 10 9 9\n", AllCores)
	if err != nil {
		t.Fatal(err)
	}
	if busy, stolen := after.Shares(before); busy != 0.9 || stolen != 0.1 {
		t.Errorf("busy %v, stolen %v, want 0.9 and 0.1", busy, stolen)
	}
	if busy, stolen := after.Shares(after); busy != 0 || stolen != 0 {
		t.Errorf("of no time: %v, %v", busy, stolen)
	}
	if d := after.Since(before); d.Busy() != 900*time.Millisecond {
		t.Errorf("busy for %v, want 0.9 s", d.Busy())
	}
	if c, err := parseCPU(statBefore, 0); err != nil || c.Busy() != 100*time.Millisecond {
		t.Errorf("core 0: %+v, %v", c, err)
	}
	for _, text := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 3 x 5 6 7 8"} {
		if _, err := parseCPU(text, AllCores); err == nil {
			t.Errorf("%q passed", text)
		}
	}
	if _, err := parseCPU(statBefore, 7); err == nil {
		t.Error("there is a core 7")
	}
	if got := cpuName("processor\t: 0\nmodel name\t: AMD EPYC: 9000\nmodel name\t: other\n"); got != "AMD EPYC: 9000" {
		t.Errorf("CPU %q", got)
	}
}

// Cores are those of /proc/stat, and said by their numbers.
func TestCores(t *testing.T) {
	if got := parseCores(statBefore + "intr 1 2\ncpu7 1\ncpus 1\n"); !slices.Equal(got, []int{0, 1, 7}) {
		t.Errorf("%v", got)
	}
	for want, cores := range map[string][]int{"core 3": {3}, "cores 0-1": {0, 1}, "cores 0-2, 4, 6-7": {0, 1, 2, 4, 6, 7}} {
		if got := ListCores(cores); got != want {
			t.Errorf("%v are %q, want %q", cores, got, want)
		}
	}
	if cores, err := Cores(); err != nil || len(cores) == 0 {
		t.Errorf("%v, %v", cores, err)
	}
}

func TestProcess(t *testing.T) {
	got, err := parseProcess("12 (a name) of ) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1 0 100\n")
	if err != nil || got != 1750*time.Millisecond {
		t.Errorf("%v, %v; want 1.75 s", got, err)
	}
	for _, text := range []string{"", "12 (a) S 1 2", "12 (a) S 1 2 3 4 5 6 7 8 9 10 x 25 0"} {
		if _, err := parseProcess(text); err == nil {
			t.Errorf("%q passed", text)
		}
	}
	if _, err := ReadProcess(os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, err := ReadCPU(AllCores); err != nil {
		t.Error(err)
	}
}

// What makes a measurement noisy is said with the core and how much it was.
func TestNoise(t *testing.T) {
	if why := (Noise{Core: 1, Disturbed: MaxDisturbed, Stolen: MaxStolen}).Why(); len(why) != 0 {
		t.Errorf("at the limits: %q", why)
	}
	want := []string{"the hypervisor gave 2.5 % of all cores' time to others, more than 1 %", "core 1 was 12.3 % in use before the load, more than 5 %"}
	if why := (Noise{Core: 1, Disturbed: 0.123, Stolen: 0.025}).Why(); !slices.Equal(why, want) {
		t.Errorf("%q, want %q", why, want)
	}
	if why := (Noise{Core: AllCores, Disturbed: 0.5}).Why(); len(why) != 1 || !strings.HasPrefix(why[0], "all cores together were 50.0 %") {
		t.Errorf("%q", why)
	}
}

// One tick of the clock is no noise, however short the look was in which it came; a core that is in
// use is looked at for longer, and one that is not is not.
func TestDisturbed(t *testing.T) {
	for name, c := range map[string]struct {
		first, then time.Duration // in use while it is glanced at, and after that
		looks       int
		noisy       bool
	}{
		"idle":              {0, 0, 1, false},
		"one tick":          {tick, 0, 2, false},
		"two ticks":         {tick, tick, 2, false},
		"three ticks":       {tick, 2 * tick, 2, true},
		"in use":            {glance / 2, stare / 4, 2, true},
		"later, not looked": {0, stare / 4, 1, false},
	} {
		looks := -1
		var now CPU
		busy, err := disturbed(func(d time.Duration) (CPU, error) {
			used := []time.Duration{0, c.first, c.then}[looks+1]
			looks++
			now.Total += d
			now.Idle += d - used
			return now, nil
		})
		if noisy := len(Noise{Disturbed: busy}.Why()) > 0; err != nil || noisy != c.noisy || looks != c.looks {
			t.Errorf("%s: %.3f in %d looks, %v; want noise: %t in %d", name, busy, looks, err, c.noisy, c.looks)
		}
	}
	if busy, err := Disturbed(t.Context(), AllCores); err != nil || busy < 0 || busy > 1 {
		t.Errorf("this machine: %v, %v", busy, err)
	}
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if _, err := Disturbed(ctx, AllCores); !errors.Is(err, enough) {
		t.Errorf("after its end: %v", err)
	}
}

func TestProcessName(t *testing.T) {
	const most = 15 // bytes that the kernel keeps
	self := filepath.Base(os.Args[0])
	if name, err := ProcessName(os.Getpid()); err != nil || name != self[:min(len(self), most)] {
		t.Errorf("this is %q, %v", name, err)
	}
	if _, err := ProcessName(-1); err == nil {
		t.Error("there is a process -1")
	}
}

// A machine that is watched has shares from 0 to 1, and a core that is not there none.
func TestWatch(t *testing.T) {
	busy, stolen, err := Watch(t.Context(), AllCores, 20*time.Millisecond)
	if err != nil || busy < 0 || busy > 1 || stolen < 0 || stolen > 1 {
		t.Errorf("%v, %v, %v", busy, stolen, err)
	}
	if _, _, err := Watch(t.Context(), 1<<20, time.Hour); err == nil {
		t.Error("a core that is not there")
	}
}
