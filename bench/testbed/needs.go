package testbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/bench/machine"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// Needs are what a measurement takes of this machine.
type Needs struct {
	// Root says why only root may run it, and what else there is; empty: it takes no root.
	// A user namespace's root is none.
	Root string
	// Programs are found by PATH.
	Programs []string
	// Built are programs of ours in the folder Bin, and Make is what builds them.
	Built     []string
	Bin, Make string
	// Core is the gateway's, by its number; [AnyCore]: whichever. With Alone set there must
	// be another one for all else; Shared says what to do where there is none, if anything.
	Core   int
	Alone  bool
	Shared string
	// WireGuard says that netlab's WireGuard is used.
	WireGuard bool
	// Sandboxes says that there are sandboxes, each in a user namespace of its own, which a
	// machine may forbid to root as well. It is an argument with which this program ends at
	// once, to be tried in one; empty: there are no sandboxes.
	Sandboxes string
}

// Check says all that is missing; nil: nothing is.
func (n Needs) Check() error {
	var errs []error
	if n.Root != "" && (os.Geteuid() != 0 || netlab.Inside()) {
		errs = append(errs, errors.New(n.Root))
	}
	for _, name := range n.Programs {
		if _, err := exec.LookPath(name); err != nil {
			errs = append(errs, fmt.Errorf("the program %s is not installed (make deps)", name))
		}
	}
	for _, name := range n.Built {
		path := filepath.Join(n.Bin, name)
		if err := unix.Access(path, unix.X_OK); err != nil {
			errs = append(errs, fmt.Errorf("there is no program %s (%s; --bin): %w", path, n.Make, err))
		}
	}
	if n.WireGuard {
		errs = append(errs, netlab.WireGuardUsable())
	}
	errs = append(errs, n.cores())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := netlab.Usable(); err != nil {
		return err
	}
	return n.sandboxes()
}

// sandboxes says whether this process can start others in user namespaces of their own.
func (n Needs) sandboxes() error {
	if n.Sandboxes == "" {
		return nil
	}
	cmd := exec.Command("/proc/self/exe", n.Sandboxes)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("no user namespace can be made for a sandbox (see /proc/sys/user/max_user_namespaces and the machine's security policy): %w", err)
	}
	return nil
}

// cores says whether the gateway can have its core.
func (n Needs) cores() error {
	if n.Core == AnyCore {
		return nil
	}
	if err := CoreUsable(n.Core, ""); err != nil {
		return err
	}
	cores, err := usableCores()
	if err == nil && n.Alone && len(cores) < 2 {
		return fmt.Errorf("the gateway needs core %d to itself and all else another one; this process may use no other (--core%s)", n.Core, n.Shared)
	}
	return err
}

// CoreUsable says why this process cannot give the gateway a core, by its number, and which there
// are; otherwise is what else may be chosen, and how to put it behind those.
func CoreUsable(core int, otherwise string) error {
	cores, err := usableCores()
	if err != nil || slices.Contains(cores, core) {
		return err
	}
	return fmt.Errorf("there is no core %d for the gateway: this process may use %s; choose one%s (--core)", core, machine.ListCores(cores), otherwise)
}

// usableCores are the numbers of those that this process may use.
func usableCores() (list []int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("ask for the cores: %w", err)
	}
	for core := 0; len(list) < set.Count(); core++ {
		if set.IsSet(core) {
			list = append(list, core)
		}
	}
	return list, nil
}
