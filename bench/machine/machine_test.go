package machine

import (
	"os"
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
