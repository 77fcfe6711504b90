package allowance

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
)

// memoryTick is how often the limit follows what of the memory is really there.
const memoryTick = time.Second

// LimitMemory has the garbage collector keep the process below 90 % of the memory that the
// control groups allow, so that it works harder before the kernel kills or throttles the
// process. Where they allow everything, or the operator has said otherwise (GOMEMLIMIT),
// nothing is done. The caller calls stop once, which waits for its goroutine.
//
// Go counts what it has reserved, the kernel what was touched. The buffers that each
// WireGuard tunnel waits with are tens of MiB of which next to nothing is ever touched. A
// limit that took them for used would be passed by some tunnels alone, and the collector
// would run without end. So what is not there is added to the limit, time and again.
func (a Allowance) LimitMemory(operator string) (stop func()) {
	limit := a.memoryLimit()
	if operator != "" || limit == 0 {
		return func() {}
	}
	follow := func() {
		if counted, resident, ok := memoryNow(); ok {
			debug.SetMemoryLimit(raised(limit, counted, resident))
			return
		}
		debug.SetMemoryLimit(limit)
	}
	follow()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		timer := time.NewTicker(memoryTick)
		defer timer.Stop()
		for {
			select {
			case <-end:
				return
			case <-timer.C:
				follow()
			}
		}
	}()
	return func() { close(end); <-ended }
}

// memoryLimit is 90 % of what the control groups allow, in bytes; 0: no limit. The rest is
// for what the runtime does not count: stacks of the kernel, sockets' buffers.
func (a Allowance) memoryLimit() int64 { return a.Cgroup.Memory.Value / 10 * 9 }

// raised is a limit of the kernel's as one of the runtime's, all in bytes: counted is what
// the runtime holds against its limit, of which only resident is there.
func raised(limit, counted, resident int64) int64 { return limit + max(0, counted-resident) }

// memoryNow is what the runtime counts of this process, and what of that is in memory or
// swapped out; false: the kernel does not say.
func memoryNow() (counted, resident int64, ok bool) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0, false
	}
	if resident, ok = parseResident(string(status)); !ok {
		return 0, 0, false
	}
	// What counts is said at debug.SetMemoryLimit.
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64()), resident, true
}

// parseResident reads of /proc/PID/status how many bytes of memory that is backed by no
// file the process has, in memory or in swap.
func parseResident(status string) (bytes int64, ok bool) {
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if name != "RssAnon" && name != "VmSwap" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, false
		}
		bytes += kib << 10
		ok = ok || name == "RssAnon"
	}
	return bytes, ok
}
