package allowance

import (
	"runtime/debug"
	"testing"
)

// The runtime's limit is the process's own: this test puts it back.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	limited := Allowance{Cgroup: Cgroup{Memory: Limit[int64]{Value: 10 << 30}}}
	limited.LimitMemory("1GiB")
	if got := debug.SetMemoryLimit(-1); got != before {
		t.Errorf("against the operator's word: %d", got)
	}
	Allowance{}.LimitMemory("")
	if got := debug.SetMemoryLimit(-1); got != before {
		t.Errorf("without a limit: %d", got)
	}
	limited.LimitMemory("")
	if got := debug.SetMemoryLimit(-1); got != 9<<30 {
		t.Errorf("got %d, want 90 %% of 10 GiB", got)
	}
}
