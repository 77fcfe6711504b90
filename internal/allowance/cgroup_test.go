package allowance

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

// machine is a file system with the process in a group, what is mounted, and limits.
func machine(group, mounts string, files map[string]string) fstest.MapFS {
	m := fstest.MapFS{
		"proc/self/cgroup":    {Data: []byte(group)},
		"proc/self/mountinfo": {Data: []byte(mounts)},
	}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text + "\n")}
	}
	return m
}

const (
	unified = "24 1 8:1 / / rw - ext4 /dev/vda rw\n35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	legacy  = "40 35 0:32 / /sys/fs/cgroup/memory rw shared:15 - cgroup cgroup rw,memory\n41 35 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
	service = "0::/system.slice/sallyportd.service\n"
)

func TestReadCgroup(t *testing.T) {
	const base = "sys/fs/cgroup/"
	for _, c := range []struct {
		name          string
		group, mounts string
		files         map[string]string
		memory        Limit[int64]
		cpu           Limit[float64]
	}{
		{"nothing limits", service, unified, map[string]string{
			base + "system.slice/sallyportd.service/memory.max": "max",
			base + "system.slice/sallyportd.service/cpu.max":    "max 100000",
		}, Limit[int64]{}, Limit[float64]{}},
		{"its own limit", service, unified, map[string]string{
			base + "system.slice/sallyportd.service/memory.max":  "1073741824",
			base + "system.slice/sallyportd.service/memory.high": "max",
			base + "system.slice/sallyportd.service/cpu.max":     "150000 100000",
		}, Limit[int64]{1 << 30, "/" + base + "system.slice/sallyportd.service/memory.max"},
			Limit[float64]{1.5, "/" + base + "system.slice/sallyportd.service/cpu.max"}},
		{"high is less than max", service, unified, map[string]string{
			base + "system.slice/sallyportd.service/memory.max":  "1073741824",
			base + "system.slice/sallyportd.service/memory.high": "536870912",
		}, Limit[int64]{512 << 20, "/" + base + "system.slice/sallyportd.service/memory.high"}, Limit[float64]{}},
		{"an ancestor has less", service, unified, map[string]string{
			base + "system.slice/sallyportd.service/memory.max": "1073741824",
			base + "system.slice/memory.max":                    "268435456",
			base + "system.slice/cpu.max":                       "400000 100000",
			base + "system.slice/sallyportd.service/cpu.max":    "800000 100000",
		}, Limit[int64]{256 << 20, "/" + base + "system.slice/memory.max"}, Limit[float64]{4, "/" + base + "system.slice/cpu.max"}},
		{"the top of a container's namespace", "0::/\n", unified, map[string]string{base + "memory.max": "1048576"},
			Limit[int64]{1 << 20, "/" + base + "memory.max"}, Limit[float64]{}},
		{"a group outside of the namespace", "0::/../other\n", unified, map[string]string{base + "memory.max": "1048576", base + "other/memory.max": "4096"},
			Limit[int64]{1 << 20, "/" + base + "memory.max"}, Limit[float64]{}},
		{"v1", "9:cpu,cpuacct:/a\n8:memory:/a/b\n1:name=systemd:/a\n0::/\n", legacy, map[string]string{
			base + "memory/a/b/memory.limit_in_bytes":   "9223372036854771712",
			base + "memory/a/memory.limit_in_bytes":     "2147483648",
			base + "memory/memory.limit_in_bytes":       "9223372036854771712",
			base + "cpu,cpuacct/a/cpu.cfs_quota_us":     "50000",
			base + "cpu,cpuacct/a/cpu.cfs_period_us":    "100000",
			base + "cpu,cpuacct/cpu.cfs_quota_us":       "-1",
			base + "cpu,cpuacct/cpu.cfs_period_us":      "100000",
			base + "cpu,cpuacct/a/b/cpu.cfs_quota_us":   "1",
			base + "memory/other/memory.limit_in_bytes": "1",
		}, Limit[int64]{2 << 30, "/" + base + "memory/a/memory.limit_in_bytes"}, Limit[float64]{.5, "/" + base + "cpu,cpuacct/a/cpu.cfs_quota_us"}},
		{"v1 in a container that sees its own part", "8:memory:/docker/abc\n",
			"40 35 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", map[string]string{
				base + "memory/memory.limit_in_bytes":            "1048576",
				base + "memory/docker/abc/memory.limit_in_bytes": "1",
			}, Limit[int64]{1 << 20, "/" + base + "memory/memory.limit_in_bytes"}, Limit[float64]{}},
		{"a mount of another part", "8:memory:/docker/abcdef\n",
			"40 35 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", map[string]string{
				base + "memory/memory.limit_in_bytes": "1048576",
			}, Limit[int64]{1 << 20, "/" + base + "memory/memory.limit_in_bytes"}, Limit[float64]{}},
		{"a mount with a blank", "0::/a b\n", "35 24 0:30 / /my\\040cgroups rw - cgroup2 none rw\n", map[string]string{"my cgroups/a b/memory.max": "4096"},
			Limit[int64]{4096, "/my cgroups/a b/memory.max"}, Limit[float64]{}},
		{"nonsense", "0\n::\n7:memory\n8:memory:relative\n0::/x\n", "1 2\n - cgroup2\n35 24 0:30 / /sys/fs/cgroup rw - cgroup2 none rw\n35 24 0:30 / \\0 rw - cgroup\n", map[string]string{
			base + "x/memory.max": "12 34", base + "x/cpu.max": "1 0", base + "x/memory.high": "-7", base + "memory.max": "", base + "cpu.max": "max",
		}, Limit[int64]{}, Limit[float64]{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ReadCgroup(machine(c.group, c.mounts, c.files))
			if want := (Cgroup{c.memory, c.cpu}); err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
	if _, err := ReadCgroup(fstest.MapFS{}); err == nil {
		t.Error("a machine without /proc is no error")
	}
	if _, err := ReadCgroup(os.DirFS("/")); err != nil {
		t.Errorf("of this process: %v", err)
	}
}

func TestCores(t *testing.T) {
	for text, want := range map[string]int{"0\n": 1, "0-3\n": 4, "0-1,4,8-9": 5, "": 0, "x": 0, "3-1": 0, "0-": 0} {
		if got := parseList(text); got != want {
			t.Errorf("%q has %d cores, want %d", text, got, want)
		}
	}
	if a := Here(); a.Cores < 1 || a.Online < a.Cores || a.Kernel == "unknown" {
		t.Errorf("here: %+v", a)
	}
}

func TestTell(t *testing.T) {
	limited := Allowance{Cgroup: Cgroup{Memory: Limit[int64]{1 << 30, "/m/memory.max"}, CPU: Limit[float64]{1.5, "/m/cpu.max"}}}
	for _, c := range []struct {
		a        Allowance
		operator string
		want     []string
	}{
		{limited, "", []string{`limit="921 MiB"`, `"90 % of 1024 MiB in /m/memory.max"`, `cpu_quota="1.5 in /m/cpu.max"`}},
		{limited, "2GiB", []string{"limit=2GiB by=GOMEMLIMIT"}},
		{Allowance{}, "", []string{"limit=none", "no control group", "cpu_quota=none"}},
	} {
		var out bytes.Buffer
		c.a.Tell(slog.New(slog.NewTextHandler(&out, nil)), c.operator)
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("got %q, want %q in it", out.String(), want)
			}
		}
	}
}
