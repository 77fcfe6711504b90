package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ExecWithoutNamespaces gives this process to a program that, with all that it
// starts, may not make user namespaces, as in a container with the usual seccomp
// profile: unshare and clone answer EPERM when they are asked for one, clone3
// ENOSYS. It returns only an error.
func ExecWithoutNamespaces(args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("find the program to run without namespaces: %w", err)
	}
	filter, err := namespaceFilter()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the filter is the thread's, and the program gets this one
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return fmt.Errorf("forbid user namespaces: %w", err)
	}
	runtime.KeepAlive(filter)
	return syscall.Exec(path, args, os.Environ())
}

// The offsets in struct seccomp_data (seccomp(2)) of what the filter looks at.
const (
	offsetCall     = 0
	offsetArch     = 4
	offsetArgument = 16 // the lower half of the first, on little-endian machines
)

// namespaceFilter is the filter of ExecWithoutNamespaces.
func namespaceFilter() ([]unix.SockFilter, error) {
	var arch uint32
	switch runtime.GOARCH {
	case "amd64":
		arch = unix.AUDIT_ARCH_X86_64
	case "arm64":
		arch = unix.AUDIT_ARCH_AARCH64
	default:
		return nil, errors.New("forbid user namespaces: known for amd64 and arm64 only, not for " + runtime.GOARCH)
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	jump := func(test uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	end := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	return []unix.SockFilter{
		load(offsetArch),
		jump(unix.BPF_JEQ, arch, 0, 6), // of another architecture: allowed
		load(offsetCall),
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 6, 0),
		jump(unix.BPF_JEQ, unix.SYS_UNSHARE, 1, 0),
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 2),
		load(offsetArgument),
		jump(unix.BPF_JSET, unix.CLONE_NEWUSER, 1, 0),
		end(unix.SECCOMP_RET_ALLOW),
		end(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)),
		end(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)),
	}, nil
}
