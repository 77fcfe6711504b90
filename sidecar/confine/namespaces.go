package confine

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces says how the process is started: in new namespaces, as the same
// user, with the capabilities that the set-up needs and as a child that does not
// outlive this process.
func namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		// Without these, a user other than 0 would lose all capabilities at execve.
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_ADMIN, unix.CAP_SETPCAP},
		Pdeathsig:   syscall.SIGKILL,
	}
	if mayMapOthers() {
		uids, gids := identity("/proc/self/uid_map"), identity("/proc/self/gid_map")
		if len(uids) > 0 && len(gids) > 0 {
			attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = uids, gids, mayEnableSetgroups()
			return attr
		}
	}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	return attr
}

// mayMapOthers says whether this process may map users other than its own. One
// that may, maps all: otherwise the files of all other users would seem to be nobody's.
func mayMapOthers() bool {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	const wanted = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return data[0].Effective&wanted == wanted
}

// mayEnableSetgroups says whether a user namespace made here may have setgroups(2):
// not where this one, perhaps itself made by an unprivileged user, has not.
func mayEnableSetgroups() bool {
	text, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(text)) == "allow"
}

// identity reads which ids exist in this user namespace, from its uid_map or
// gid_map, and maps each to itself.
func identity(path string) []syscall.SysProcIDMap {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var out []syscall.SysProcIDMap
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil
		}
		first, err1 := strconv.Atoi(f[0])
		size, err2 := strconv.Atoi(f[2])
		if err1 != nil || err2 != nil {
			return nil
		}
		out = append(out, syscall.SysProcIDMap{ContainerID: first, HostID: first, Size: size})
	}
	return out
}
