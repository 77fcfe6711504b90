package failover

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machineFacts says where something was measured.
type machineFacts struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory uint64 `json:"memoryMiB"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

// thisMachine reads the facts. What cannot be read is unknown.
func thisMachine() machineFacts {
	m := machineFacts{CPU: "unknown CPU", Cores: runtime.NumCPU(), Kernel: "unknown", Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if name := cpuName(string(b)); name != "" {
			m.CPU = name
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var i unix.Sysinfo_t
	if unix.Sysinfo(&i) == nil {
		m.Memory = i.Totalram * uint64(i.Unit) >> 20
	}
	return m
}

// cpuName finds the first model name in /proc/cpuinfo.
func cpuName(text string) string {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// loadAverage is that of the last minute; 0 if it cannot be read.
func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return v
}

// cpuTime is a reading of /proc/stat, in ticks of all cores.
type cpuTime struct{ total, idle, stolen uint64 }

// readCPU reads it.
func readCPU() (cpuTime, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTime{}, fmt.Errorf("read how busy the cores are: %w", err)
	}
	return parseCPU(string(b))
}

// parseCPU reads the first line of /proc/stat: user, nice, system, idle, iowait,
// irq, softirq, steal. Guests' time, which follows, is in user's already.
func parseCPU(text string) (t cpuTime, err error) {
	line, _, _ := strings.Cut(text, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return t, fmt.Errorf("read how busy the cores are: /proc/stat begins with %q", line)
	}
	for i, s := range f[1:9] {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return t, fmt.Errorf("read how busy the cores are: %w", err)
		}
		t.total += n
		switch i {
		case 3, 4:
			t.idle += n
		case 7:
			t.stolen += n
		}
	}
	return t, nil
}

// shares are parts of the time between two readings, 0 to 1.
func (t cpuTime) shares(from cpuTime) (busy, stolen float64) {
	total := float64(t.total - from.total)
	if total == 0 {
		return 0, 0
	}
	return 1 - float64(t.idle-from.idle)/total, float64(t.stolen-from.stolen) / total
}
