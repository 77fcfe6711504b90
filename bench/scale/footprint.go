package scale

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
)

// footprint is what a process holds.
type footprint struct {
	Resident uint64 // bytes
	// Live is what of the Go heap can be reached, in bytes, whether the kernel has given
	// memory for it or not: buffers that were never used have none.
	Live       uint64
	Goroutines int
	Files      int // descriptors
}

const (
	// still is within what part of each other two readings of resident memory are the same.
	still = 0.01
	// stillFor is how often in a row they must be, a lookAgain apart.
	stillFor  = 4
	lookAgain = 500 * time.Millisecond
	stillMost = 30 * time.Second
	// collectWithin bounds how long collections of garbage are waited for. A process with
	// a large heap and little to do begins none for two minutes: then what is there counts.
	collectWithin = 20 * time.Second
)

// settle waits until the resident memory of a process stands still and its garbage was
// collected, and reads what it holds. The client reaches its metrics.
func settle(ctx context.Context, pid int, client *http.Client) (footprint, error) {
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	last, same := 0.0, 0
	for began := time.Now(); same < stillFor && time.Since(began) < stillMost; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return footprint{}, context.Cause(ctx)
		}
		n, err := status(pid, "VmRSS")
		if err != nil {
			return footprint{}, err
		}
		now := float64(n)
		if same++; now > last*(1+still) || now < last*(1-still) {
			same = 0
		}
		last = now
	}
	resident, err := status(pid, "VmRSS")
	if err != nil {
		return footprint{}, err
	}
	f, err := collected(ctx, client)
	f.Resident = resident
	return f, err
}

// collections is how often garbage is collected before what is left is taken for live:
// what pools keep goes at the second time.
const collections = 2

// collected reads the metrics of a process that has collected its garbage. To ask for
// metrics makes some: it is asked until that has set collections off. Of the readings
// after them the least counts, as dead objects are swept away bit by bit.
func collected(ctx context.Context, client *http.Client) (f footprint, err error) {
	const looks = 8
	first, began := -1.0, time.Now()
	for after := 0; after < looks; {
		text, err := daemon.Get(ctx, client, "http://"+adminAddress+"/metrics")
		if err != nil {
			return f, fmt.Errorf("read metrics, until garbage was collected: %w", err)
		}
		m := metrics(string(text))
		runs := m["go_gc_duration_seconds_count"]
		if first < 0 {
			first = runs
		}
		if runs < first+collections && time.Since(began) < collectWithin {
			continue
		}
		live := uint64(m["go_memstats_heap_alloc_bytes"])
		if after++; after == 1 || live < f.Live {
			f.Live = live
		}
		f.Goroutines, f.Files = int(m["go_goroutines"]), int(m["process_open_fds"])
	}
	return f, nil
}

// metrics reads the samples without labels of an exposition in Prometheus' text format.
func metrics(text string) map[string]float64 {
	values := make(map[string]float64)
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(name, "#") || strings.Contains(name, "{") {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	return values
}

// status reads a size in /proc/PID/status, in bytes.
func status(pid int, field string) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of a process: %w", err)
	}
	return parseStatus(string(b), field)
}

func parseStatus(text, field string) (uint64, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == field+":" && f[2] == "kB" {
			n, err := strconv.ParseUint(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("read the memory of a process: its status has no %s", field)
}
