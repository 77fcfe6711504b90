package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/bench/testbed"
)

// usage is how much time was spent, up to some moment.
type usage struct {
	process, core time.Duration // of the gateway, as far as it is seen
	all           machine.CPU   // of this machine
}

// meter reads what a gateway spends.
type meter interface {
	// seen says whether the process and its core can be read.
	seen() (process, core bool)
	// says describes it for the report.
	says() string
	read(ctx context.Context) (process, core time.Duration, err error)
	// memory is what is resident of the process, in bytes; 0: not seen.
	memory() uint64
}

// local reads a process, and a core, of this machine.
type local struct {
	pid, core int // 0 and [testbed.AnyCore]: not known
}

func (l local) seen() (process, core bool) { return l.pid != 0, l.core != testbed.AnyCore }

func (l local) says() string {
	switch process, core := l.seen(); {
	case process && core:
		return "process and core"
	case process:
		return "process, without the kernel's part for what arrives"
	case core:
		return "core"
	}
	return "none"
}

func (l local) read(context.Context) (process, core time.Duration, err error) {
	if l.pid != 0 {
		if process, err = machine.ReadProcess(l.pid); err != nil {
			return 0, 0, err
		}
	}
	if l.core != testbed.AnyCore {
		var c machine.CPU
		if c, err = machine.ReadCPU(l.core); err != nil {
			return 0, 0, err
		}
		core = c.Busy()
	}
	return process, core, nil
}

func (l local) memory() uint64 {
	if l.pid == 0 {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	f := strings.Fields(rest)
	if len(f) == 0 {
		return 0
	}
	kib, _ := strconv.ParseUint(f[0], 10, 64)
	return kib << 10
}

// scraped reads the metrics of a gateway elsewhere.
type scraped struct {
	client *http.Client
	url    string
}

func newScraped(admin string) scraped {
	return scraped{&http.Client{Timeout: 5 * time.Second}, strings.TrimSuffix(admin, "/") + "/metrics"}
}

func (scraped) seen() (process, core bool) { return true, false }

func (scraped) says() string { return "process by its metrics, without the kernel's part" }

func (scraped) memory() uint64 { return 0 }

func (s scraped) read(ctx context.Context) (process, core time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return 0, 0, fmt.Errorf("ask %s for the gateway's CPU time: %w", s.url, err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, 0, fmt.Errorf("ask %s for the gateway's CPU time (--admin): %w", s.url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, 0, fmt.Errorf("ask %s for the gateway's CPU time (--admin): %s", s.url, resp.Status)
	}
	const name, most = "process_cpu_seconds_total ", 64 << 20
	lines := bufio.NewScanner(http.MaxBytesReader(nil, resp.Body, most))
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), name); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				return 0, 0, fmt.Errorf("read %s of %s: %w", name, s.url, err)
			}
			return time.Duration(v * float64(time.Second)), 0, nil
		}
	}
	return 0, 0, errors.Join(fmt.Errorf("%s has no %s: is it sallyportd's admin listener? (--admin)", s.url, name), lines.Err())
}

// spent reads all there is.
func (r *runner) spent(ctx context.Context) (u usage, err error) {
	if u.process, u.core, err = r.meter.read(ctx); err != nil {
		return u, err
	}
	u.all, err = machine.ReadCPU(machine.AllCores)
	return u, err
}

// costs fills in what a number of packets, connections or the like cost, in microseconds each.
func (r *runner) costs(s *step, from, to usage, n float64) {
	if n <= 0 {
		return
	}
	process, core := r.meter.seen()
	if process {
		s.Figures[figureProcess] = micros(to.process-from.process) / n
	}
	if core {
		s.Figures[figureCore] = micros(to.core-from.core) / n
	}
}

const (
	minReached = 0.97 // of the rate that the source was to keep
	look       = 150 * time.Millisecond
)

// noise is how far others had a part in a measurement.
type noise struct {
	// Stolen is the part of all cores' time that the hypervisor gave to others meanwhile.
	Stolen float64 `json:"stolen"`
	// Disturbed is the part of the gateway's core (of all, where that is not known) in use
	// before, while there was no load.
	Disturbed float64 `json:"disturbed"`
	// Reached is the part of the offered rate that the source kept; 0: it had none to keep.
	Reached float64 `json:"reached,omitempty"`
}

// why says what is noisy.
func (n noise) why() (list []string) {
	if n.Stolen > machine.MaxStolen {
		list = append(list, fmt.Sprintf("the hypervisor gave %.1f %% of the time to others", 100*n.Stolen))
	}
	if n.Disturbed > machine.MaxDisturbed {
		list = append(list, fmt.Sprintf("%.0f %% of the core was in use before the load", 100*n.Disturbed))
	}
	if n.Reached > 0 && n.Reached < minReached {
		list = append(list, fmt.Sprintf("the source kept %.0f %% of its rate", 100*n.Reached))
	}
	return list
}

// disturbance is how busy the machine is without a load.
func (r *runner) disturbance(ctx context.Context) (float64, error) {
	core := machine.AllCores
	if l, ok := r.meter.(local); ok && l.core != testbed.AnyCore {
		core = l.core
	}
	busy, _, err := machine.Watch(ctx, core, look)
	return busy, err
}

// pause waits, or returns why not.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
