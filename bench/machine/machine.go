// Package machine says where something is measured, and how busy its cores and
// processes are.
package machine

import (
	"fmt"
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
	// Virtual says that a hypervisor is below.
	Virtual bool `json:"virtual"`
	// Line is all but the settings in a line.
	Line string `json:"line"`
	// Settings are of the kernel, by the names that sysctl knows.
	Settings map[string]string `json:"settings,omitempty"`
}

// String is the machine in a line.
func (f Facts) String() string {
	virtual := ""
	if f.Virtual {
		virtual = ", virtual"
	}
	return fmt.Sprintf("%s%s, %d cores, %.1f GiB; Linux %s; %s", f.CPU, virtual, f.Cores, float64(f.Memory)/1024, f.Kernel, f.Go)
}

// settings are those that bear on speed: how much sockets may hold, and how TCP behaves.
func settings() []string {
	return []string{"net.core.rmem_max", "net.core.wmem_max", "net.ipv4.tcp_congestion_control"}
}

// Here reads the facts. What cannot be read is unknown.
func Here() Facts {
	m := Facts{CPU: "unknown CPU", Cores: runtime.NumCPU(), Kernel: "unknown", Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if name := cpuName(string(b)); name != "" {
			m.CPU = name
		}
		m.Virtual = strings.Contains(string(b), " hypervisor ")
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var i unix.Sysinfo_t
	if unix.Sysinfo(&i) == nil {
		m.Memory = i.Totalram * uint64(i.Unit) >> 20
	}
	for _, name := range settings() {
		b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			continue
		}
		if m.Settings == nil {
			m.Settings = map[string]string{}
		}
		m.Settings[name] = strings.TrimSpace(string(b))
	}
	m.Line = m.String()
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
