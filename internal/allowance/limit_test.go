package allowance

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// The runtime's limit is the process's own: this test puts it back.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	limited := Allowance{Cgroup: Cgroup{Memory: Limit[int64]{Value: 10 << 30}}}
	limited.LimitMemory("1GiB")()
	if got := debug.SetMemoryLimit(-1); got != before {
		t.Errorf("against the operator's word: %d", got)
	}
	Allowance{}.LimitMemory("")()
	if got := debug.SetMemoryLimit(-1); got != before {
		t.Errorf("without a limit: %d", got)
	}
	limited.LimitMemory("")()
	if got := debug.SetMemoryLimit(-1); got < 9<<30 || got > 9<<30+1<<28 {
		t.Errorf("got %d, want 90 %% of 10 GiB and what a small test has not touched", got)
	}
}

// The runtime and the kernel count the same memory, once it is touched.
func TestMemoryNow(t *testing.T) {
	const size, slack = 128 << 20, 32 << 20
	measure := func() (counted, resident int64) {
		counted, resident, ok := memoryNow()
		if !ok {
			t.Fatal("the kernel does not say how much memory this process has")
		}
		return counted, resident
	}
	debug.FreeOSMemory()
	counted, resident := measure()
	b := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		b[i] = 1
	}
	more, there := measure()
	runtime.KeepAlive(b)
	if more -= counted; more < size-slack || more > size+slack {
		t.Errorf("of %d bytes the runtime counts %d", size, more)
	}
	// The race detector has up to three bytes of its own for each of ours.
	if there -= resident; there < size-slack || there > 4*size+slack {
		t.Errorf("of %d bytes the kernel counts %d", size, there)
	}
}

func TestRaised(t *testing.T) {
	for _, c := range []struct{ limit, counted, resident, want int64 }{
		{900, 0, 0, 900},
		{900, 1000, 100, 1800}, // 800 may come
		{900, 1000, 900, 1000}, // nothing more may come
		{900, 100, 150, 900},   // the kernel counts what the runtime does not
	} {
		if got := raised(c.limit, c.counted, c.resident); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
	}
}

func TestParseResident(t *testing.T) {
	for status, want := range map[string]int64{
		"VmRSS:\t  900 kB\nRssAnon:\t     100 kB\nVmSwap:\t       4 kB\n": 104 << 10,
		"RssAnon:\t1 kB\n":           1 << 10,
		"VmRSS:\t1 kB\n":             -1, // before Linux 4.5
		"RssAnon:\tx kB\n":           -1,
		"VmSwap:\t1 kB\nVmRSS: 1 kB": -1,
		"":                           -1,
	} {
		if got, ok := parseResident(status); ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %d, %t", status, got, ok)
		}
	}
}
