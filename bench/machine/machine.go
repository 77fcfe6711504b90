// Package machine says where something is measured, and how busy its cores and
// processes are.
package machine

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts say where something was measured.
type Facts struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory uint64 `json:"memoryMiB"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

// Here reads the facts. What cannot be read is unknown.
func Here() Facts {
	m := Facts{CPU: "unknown CPU", Cores: runtime.NumCPU(), Kernel: "unknown", Go: runtime.Version()}
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

// LoadAverage is that of the last minute; 0 if it cannot be read.
func LoadAverage() float64 {
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
