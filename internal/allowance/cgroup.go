package allowance

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// Limit is the least of all limits of one kind that hold for this process.
type Limit[T int64 | float64] struct {
	// Value is in bytes of memory, or in cores; 0: nothing limits.
	Value T
	// File is where it stands.
	File string
}

// lower takes in another limit.
func (l *Limit[T]) lower(value T, file string) {
	if value > 0 && (l.Value == 0 || value < l.Value) {
		*l = Limit[T]{value, file}
	}
}

// Cgroup is what the control groups of this process allow (cgroups(7)).
type Cgroup struct {
	// Memory is the least of memory.max and memory.high of the group and those that it is
	// in; of cgroup v1, of memory.limit_in_bytes.
	Memory Limit[int64]
	// CPU is the least quota, in cores.
	CPU Limit[float64]
}

// hierarchy is one tree of control groups: that of v2, or one of v1.
type hierarchy struct {
	controllers []string // of v1; v2 has none here
	group       string   // the process's
}

// mount is where a tree is seen.
type mount struct {
	root, point string // what of the tree is seen, and where
	v2          bool
	options     []string // of v1: the controllers
}

// unlimited is what cgroup v1 writes where nothing limits, or less: no machine has it.
const unlimited = 1 << 60

// ReadCgroup reads the limits from a file system whose root is the machine's. Limits of
// groups that cannot be seen from here, as from within a container, are not known.
func ReadCgroup(root fs.FS) (Cgroup, error) {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return Cgroup{}, fmt.Errorf("read the control groups of this process: %w", err)
	}
	mounts, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return Cgroup{}, fmt.Errorf("read where control groups are mounted: %w", err)
	}
	var c Cgroup
	hierarchies, seen := parseGroups(string(groups)), parseMounts(string(mounts))
	for _, h := range hierarchies {
		for _, m := range seen {
			if m.shows(h) {
				c.walk(root, h, m)
				break
			}
		}
	}
	return c, nil
}

// parseGroups reads /proc/PID/cgroup.
func parseGroups(text string) (list []hierarchy) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) < 3 {
			continue
		}
		h := hierarchy{group: f[2]}
		if f[1] != "" {
			h.controllers = strings.Split(f[1], ",")
		}
		list = append(list, h)
	}
	return list
}

// parseMounts reads of /proc/PID/mountinfo (proc(5)) where control groups are.
func parseMounts(text string) (list []mount) {
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		f, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(kind) < 3 {
			continue
		}
		switch m := (mount{root: unescape(f[3]), point: unescape(f[4])}); kind[0] {
		case "cgroup2":
			m.v2 = true
			list = append(list, m)
		case "cgroup":
			m.options = strings.Split(kind[2], ",")
			list = append(list, m)
		}
	}
	return list
}

// unescape reads the octal form in which the kernel writes blanks in paths.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// shows says whether the mount shows the tree.
func (m mount) shows(h hierarchy) bool {
	if len(h.controllers) == 0 {
		return m.v2
	}
	for _, option := range m.options {
		if option == h.controllers[0] {
			return true
		}
	}
	return false
}

// below is the group's path below the mount. A group of which the mount shows nothing is
// looked for at its top, which is where a container sees its own.
func (m mount) below(group string) string {
	if strings.HasPrefix(group, "/..") {
		return "."
	}
	if m.root == "/" {
		return strings.Trim(path.Clean(group), "/")
	}
	if rest, ok := strings.CutPrefix(path.Clean(group), strings.TrimSuffix(m.root, "/")); ok && (rest == "" || rest[0] == '/') {
		return strings.Trim(rest, "/")
	}
	return "."
}

// walk takes in the limits of the group and all above it, as far as they are seen.
func (c *Cgroup) walk(root fs.FS, h hierarchy, m mount) {
	top := strings.TrimPrefix(path.Clean(m.point), "/")
	for at := path.Join(top, m.below(h.group)); ; at = path.Dir(at) {
		c.read(root, at, m.v2)
		if len(at) <= len(top) {
			return
		}
	}
}

// read takes in the limits of one group. Files that are not there limit nothing.
func (c *Cgroup) read(root fs.FS, at string, v2 bool) {
	memory, cpu := []string{"memory.limit_in_bytes"}, func() float64 {
		return quota(number(root, at+"/cpu.cfs_quota_us"), number(root, at+"/cpu.cfs_period_us"))
	}
	cpuFile := "cpu.cfs_quota_us"
	if v2 {
		memory, cpuFile = []string{"memory.max", "memory.high"}, "cpu.max"
		cpu = func() float64 { return parseQuota(text(root, at+"/cpu.max")) }
	}
	for _, name := range memory {
		if v := number(root, at+"/"+name); v < unlimited {
			c.Memory.lower(v, "/"+at+"/"+name)
		}
	}
	c.CPU.lower(cpu(), "/"+at+"/"+cpuFile)
}

// parseQuota reads cpu.max of cgroup v2: a quota, or max, and a period.
func parseQuota(s string) float64 {
	f := strings.Fields(s)
	if len(f) != 2 {
		return 0
	}
	q, err := strconv.ParseInt(f[0], 10, 64)
	period, err2 := strconv.ParseInt(f[1], 10, 64)
	if errors.Join(err, err2) != nil {
		return 0
	}
	return quota(q, period)
}

// quota is in cores; 0 is none.
func quota(q, period int64) float64 {
	if q <= 0 || period <= 0 {
		return 0
	}
	return float64(q) / float64(period)
}

// number reads a file that holds one; 0 where it is not there or holds none, as "max".
func number(root fs.FS, name string) int64 {
	v, err := strconv.ParseUint(strings.TrimSpace(text(root, name)), 10, 64)
	if err != nil {
		return 0
	}
	return int64(min(v, math.MaxInt64))
}

func text(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return string(b)
}
