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
	"github.com/sallyport-net/sallyport/bench/trial"
	"github.com/sallyport-net/sallyport/internal/console"
)

// meter reads what a gateway spends, and describes itself.
type meter interface {
	trial.Meter
	// says describes it for the report.
	says() string
	// memory is what is resident of the process, in bytes; 0: not seen.
	memory() uint64
	// idle says how busy the gateway's core, or the machine, is without a load.
	idle(ctx context.Context) (noise, error)
}

// local reads a process, and a core, of this machine.
type local struct{ trial.Local }

func (l local) says() string {
	process, core := l.Seen()
	text := []string{}
	if process {
		text = append(text, l.process())
	}
	if core {
		text = append(text, fmt.Sprintf("core %d", l.Core))
	}
	switch {
	case process && !core:
		text[0] += ", without the kernel's part for what arrives"
	case !process && !core:
		return "none"
	}
	return strings.Join(text, " and ")
}

// process is the process as people know it.
func (l local) process() string {
	name, err := machine.ProcessName(l.PID)
	if err != nil {
		name = "its name is unknown"
	}
	return fmt.Sprintf("process %d (%s)", l.PID, console.Clean(name))
}

// gatewayProcess refuses what is plainly not the gateway's process.
func gatewayProcess(pid int) error {
	if pid == 0 {
		return nil // nobody said which
	}
	name, err := machine.ProcessName(pid)
	switch {
	case err != nil:
	case pid == os.Getpid():
		err = errors.New("that is the harness itself")
	case pid == 1 && (name == "systemd" || name == "init"):
		err = fmt.Errorf("process 1 is %s, which starts gateways and is none", name)
	}
	if err != nil {
		return fmt.Errorf("--pid %d: %w; give the number of the gateway's process on this machine (pgrep sallyportd)", pid, err)
	}
	return nil
}

func (l local) memory() uint64 {
	if l.PID == 0 {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.PID))
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

// idle implements meter.
func (l local) idle(ctx context.Context) (noise, error) { return disturbance(ctx, l.Core) }

// disturbance is how busy a core is, or all are ([testbed.AnyCore]).
func disturbance(ctx context.Context, core int) (noise, error) {
	if core == testbed.AnyCore {
		core = machine.AllCores
	}
	busy, err := machine.Disturbed(ctx, core)
	return noise{Core: core, Disturbed: busy}, err
}

// scraped reads the metrics of a gateway elsewhere.
type scraped struct {
	client *http.Client
	url    string
}

func newScraped(admin string) scraped {
	return scraped{&http.Client{Timeout: 5 * time.Second}, strings.TrimSuffix(admin, "/") + "/metrics"}
}

// Seen implements [trial.Meter].
func (scraped) Seen() (process, core bool) { return true, false }

func (scraped) says() string { return "process by its metrics, without the kernel's part" }

func (scraped) memory() uint64 { return 0 }

// idle implements meter.
func (scraped) idle(ctx context.Context) (noise, error) { return disturbance(ctx, testbed.AnyCore) }

// Read implements [trial.Meter].
func (s scraped) Read(ctx context.Context) (u trial.Usage, err error) {
	if u.Process, err = s.process(ctx); err != nil {
		return u, err
	}
	u.All, err = machine.ReadCPU(machine.AllCores)
	return u, err
}

func (s scraped) process(ctx context.Context) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return 0, fmt.Errorf("ask %s for the gateway's CPU time: %w", s.url, err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("ask %s for the gateway's CPU time (--admin): %w", s.url, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("ask %s for the gateway's CPU time (--admin): %s", s.url, resp.Status)
	}
	const name, most = "process_cpu_seconds_total ", 64 << 20
	lines := bufio.NewScanner(http.MaxBytesReader(nil, resp.Body, most))
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), name); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				return 0, fmt.Errorf("read %s of %s: %w", name, s.url, err)
			}
			return time.Duration(v * float64(time.Second)), nil
		}
	}
	return 0, errors.Join(fmt.Errorf("%s has no %s: is it sallyportd's admin listener? (--admin)", s.url, name), lines.Err())
}

// forgetCosts drops what a step cost, where the gateway's process is gone: nobody knows what it
// spent since it was last seen.
func (s *step) forgetCosts() {
	for _, name := range []string{figureProcess, figureCore, figureProcessGB, figureCoreGB, figureBusy} {
		delete(s.Figures, name)
	}
}

// costs fills in what a number of packets, connections or the like cost, in microseconds each.
func (r *runner) costs(s *step, spent trial.Cost, n uint64) {
	if n == 0 {
		return
	}
	ofProcess, ofCore := spent.Each(n)
	process, core := r.meter.Seen()
	if process {
		s.Figures[figureProcess] = ofProcess
	}
	if core {
		s.Figures[figureCore] = ofCore
	}
}

// busyOfAll explains a core that is in use for more than the requests that a step is about.
const busyOfAll = "core busy counts all kinds of load together, and what else ran on the gateway's core"

// minReached is the part of the rate that the source was to keep.
const minReached = 0.97

// noise is how far others had a part in a measurement.
type noise struct {
	// Stolen is the part of all cores' time that the hypervisor gave to others meanwhile.
	Stolen float64 `json:"stolen"`
	// Disturbed is the part of the gateway's core, Core (of all, where that is not known: -1),
	// in use before, while there was no load.
	Core      int     `json:"core"`
	Disturbed float64 `json:"disturbed"`
	// Reached is the part of the offered rate that the source kept; 0: it had none to keep.
	Reached float64 `json:"reached,omitempty"`
	// Dropped is the part of what was sent that was lost by full sockets of the far side or of
	// this process: not by the gateway.
	Dropped float64 `json:"dropped,omitempty"`
	// Why says what of these makes the step noisy, and for which figures are thrown away.
	Why []string `json:"why,omitempty"`
}

// machine is the part of others.
func (n noise) machine() machine.Noise {
	return machine.Noise{Core: n.Core, Disturbed: n.Disturbed, Stolen: n.Stolen}
}

// why says what is noisy.
func (n noise) why() (list []string) {
	list = n.machine().Why()
	if n.Reached > 0 && n.Reached < minReached {
		list = append(list, fmt.Sprintf("the source kept %.0f %% of its rate", 100*n.Reached))
	}
	if n.Dropped > lowLoss {
		list = append(list, fmt.Sprintf("%.1f %% of the packets were lost by sockets of the harness or the far side, not by the gateway", 100*n.Dropped))
	}
	return list
}
