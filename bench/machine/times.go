package machine

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of /proc/stat and /proc/PID/stat: USER_HZ is 100 wherever Go runs.
const tick = 10 * time.Millisecond

// CPU is how long a core, or all of them, did what, since the machine started.
type CPU struct{ Total, Idle, Stolen time.Duration }

// Busy is the time of not idling. What was stolen counts, as there was work for it.
func (c CPU) Busy() time.Duration { return c.Total - c.Idle }

// Since is what was added since an earlier reading.
func (c CPU) Since(from CPU) CPU {
	return CPU{c.Total - from.Total, c.Idle - from.Idle, c.Stolen - from.Stolen}
}

// Shares are parts of the time between two readings, 0 to 1.
func (c CPU) Shares(from CPU) (busy, stolen float64) {
	d := c.Since(from)
	if d.Total == 0 {
		return 0, 0
	}
	return 1 - float64(d.Idle)/float64(d.Total), float64(d.Stolen) / float64(d.Total)
}

// AllCores stands for the sum of all cores.
const AllCores = -1

// ReadCPU reads how busy a core was, by its number, or [AllCores].
func ReadCPU(core int) (CPU, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPU{}, fmt.Errorf("read how busy the cores are: %w", err)
	}
	return parseCPU(string(b), core)
}

// parseCPU reads a line of /proc/stat: user, nice, system, idle, iowait, irq,
// softirq, steal. Guests' time, which follows, is in user's already.
func parseCPU(text string, core int) (c CPU, err error) {
	name := "cpu"
	if core != AllCores {
		name += strconv.Itoa(core)
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != name {
			continue
		}
		for i, s := range f[1:9] {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				return c, fmt.Errorf("read how busy the cores are: %w", err)
			}
			d := time.Duration(n) * tick
			c.Total += d
			switch i {
			case 3, 4:
				c.Idle += d
			case 7:
				c.Stolen += d
			}
		}
		return c, nil
	}
	return c, fmt.Errorf("read how busy the cores are: /proc/stat has no line %s", name)
}

// Cores are the numbers of the cores that this machine has.
func Cores() ([]int, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, fmt.Errorf("ask for the cores: %w", err)
	}
	return parseCores(string(b)), nil
}

// parseCores reads the names of /proc/stat's lines.
func parseCores(text string) (list []int) {
	for line := range strings.Lines(text) {
		if number, ok := strings.CutPrefix(line, "cpu"); ok {
			number, _, _ = strings.Cut(number, " ")
			if n, err := strconv.Atoi(number); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// ListCores names cores, which are in order, for people: "core 0", "cores 0-3, 6".
func ListCores(cores []int) string {
	var parts []string
	for i := 0; i < len(cores); i++ {
		first := i
		for i+1 < len(cores) && cores[i+1] == cores[i]+1 {
			i++
		}
		text := strconv.Itoa(cores[first])
		if i > first {
			text += "-" + strconv.Itoa(cores[i])
		}
		parts = append(parts, text)
	}
	what := "cores "
	if len(cores) == 1 {
		what = "core "
	}
	return what + strings.Join(parts, ", ")
}

// ReadProcess reads how long a process has run, all its threads together, in user
// and kernel mode.
func ReadProcess(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read how long a process has run: %w", err)
	}
	return parseProcess(string(b))
}

// ProcessName is what the kernel calls a process: its program's name, up to 15 bytes, unless
// it gave itself another. An error: there is none.
func ProcessName(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "", fmt.Errorf("there is no such process here: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// parseProcess reads fields 14 and 15 of /proc/PID/stat. The second is the
// program's name in brackets, which may hold anything.
func parseProcess(text string) (time.Duration, error) {
	const utime, stime = 14 - 3, 15 - 3 // counted from the third on
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) <= stime {
		return 0, fmt.Errorf("read how long a process has run: /proc/PID/stat says %q", text)
	}
	var sum time.Duration
	for _, s := range []string{f[utime], f[stime]} {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read how long a process has run: %w", err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
