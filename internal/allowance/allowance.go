// Package allowance says what the machine and the control groups of this process let it
// have: the kernel, cores, memory. It is told to the log once, and the Go runtime is kept
// within the memory.
package allowance

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Allowance is what this process may have.
type Allowance struct {
	// Kernel is its release.
	Kernel string
	// Cores is on how many the process may run (sched_getaffinity(2)); Online is how many
	// the machine has.
	Cores, Online int
	// Cgroup is what control groups allow; zero values where that cannot be read, or where
	// nothing limits.
	Cgroup Cgroup
	// Unread is why the control groups could not be read; nil: they were.
	Unread error
}

// Here looks at this process.
func Here() Allowance {
	a := Allowance{Kernel: "unknown", Cores: runtime.NumCPU(), Online: online()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		a.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	a.Cgroup, a.Unread = ReadCgroup(os.DirFS("/"))
	return a
}

// online is how many cores the machine has that run; those of this process where that
// cannot be read.
func online() int {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if n := parseList(string(b)); err == nil && n > 0 {
		return n
	}
	return runtime.NumCPU()
}

// Tell logs what there is, a line each. The operator's is what GOMEMLIMIT says.
func (a Allowance) Tell(log *slog.Logger, operator string) {
	log.Info("machine", "kernel", a.Kernel, "go", runtime.Version(), "cores_online", a.Online, "cores_allowed", a.Cores,
		"cpu_quota", a.quota(), "gomaxprocs", runtime.GOMAXPROCS(0))
	// Go sets GOMAXPROCS to the quota by itself, rounded up and no less than 2.
	if procs := runtime.GOMAXPROCS(0); a.Cgroup.CPU.Value > 0 && float64(procs) > max(2, math.Ceil(a.Cgroup.CPU.Value)) {
		log.Warn("more threads run than the CPU quota has cores for: the kernel stops all of them for the rest of each period, and packets wait",
			"gomaxprocs", procs, "cpu_quota", a.Cgroup.CPU.Value, "file", a.Cgroup.CPU.File, "mend", "unset GOMAXPROCS: Go follows the quota; or raise the quota")
	}
	switch {
	case operator != "":
		log.Info("memory", "limit", operator, "by", "GOMEMLIMIT")
	case a.Unread != nil:
		log.Info("memory", "limit", "none", "why", a.Unread.Error())
	case a.memoryLimit() == 0:
		log.Info("memory", "limit", "none", "why", "no control group of this process limits it")
	default:
		log.Info("memory", "limit", mebibytes(a.memoryLimit()), "by", "90 % of "+mebibytes(a.Cgroup.Memory.Value)+" in "+a.Cgroup.Memory.File)
	}
}

func (a Allowance) quota() string {
	if a.Cgroup.CPU.Value == 0 {
		return "none"
	}
	return fmt.Sprintf("%g in %s", a.Cgroup.CPU.Value, a.Cgroup.CPU.File)
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }
