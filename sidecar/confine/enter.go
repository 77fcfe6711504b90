package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/sidecar/handover"
)

// readyTimeout is how long the sidecar may take to prove the tunnel; a little
// more than it gives itself.
const readyTimeout = 10 * time.Second

// Enter makes the sandbox around this process, which [Run] started in new
// namespaces, and gives the process to the command. It returns only when that
// failed; the parent knows why, and the caller should exit with the returned code.
func Enter(command []string) int {
	// Capabilities belong to threads, and the command gets this thread's.
	runtime.LockOSThread()
	// Whatever the caller's caller left open would be a way around the sandbox.
	err := unix.CloseRange(fdSidecar, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	out := os.NewFile(fdReport, "report to the parent")
	if err != nil {
		err = closeOnExec(err)
	}
	var failure *Failure
	if err == nil {
		err = enter(command, json.NewEncoder(out))
	}
	if !errors.As(err, &failure) {
		failure = fail("make a sandbox: %w", err)
	}
	_ = json.NewEncoder(out).Encode(report{Code: failure.Code, Message: failure.Error()})
	return failure.Code
}

// closeOnExec does by hand what kernels before 5.11 do not do at once.
func closeOnExec(cause error) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("keep descriptors from the command: %w", errors.Join(cause, err))
	}
	for _, e := range entries {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err == nil && fd >= fdSidecar {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// enter does the work of Enter, in the order that the package describes.
func enter(command []string, out *json.Encoder) error {
	var s settings
	in := os.NewFile(fdSettings, "settings of the sandbox")
	if err := json.NewDecoder(in).Decode(&s); err != nil {
		return fmt.Errorf("read the sandbox's settings: %w", err)
	}
	_ = in.Close()
	sidecar, err := inherited()
	if err != nil {
		return err
	}
	wire, err := makeNetwork(s)
	if err != nil {
		return forbidden(err)
	}
	notes := append(wire.notes, quiet()...)
	more, err := makeMounts(s)
	if err != nil {
		return forbidden(err)
	}
	for _, note := range append(notes, more...) {
		_ = out.Encode(report{Note: note})
	}
	err = handover.Send(sidecar, wire.message, wire.file)
	_ = wire.file.Close()
	if err != nil {
		return err
	}
	_ = sidecar.SetReadDeadline(time.Now().Add(readyTimeout))
	if err := handover.Await(sidecar); err != nil {
		return err
	}
	_ = sidecar.Close()
	return takeOver(command, s, out)
}

// inherited is the connection to the sidecar that the parent passed on.
func inherited() (*net.UnixConn, error) {
	f := os.NewFile(fdSidecar, "connection to the sidecar")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use the connection to the sidecar: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, errors.New("the connection to the sidecar is no Unix socket")
	}
	return u, nil
}

// takeOver gives up all privilege and becomes the command.
func takeOver(command []string, s settings, out *json.Encoder) error {
	path, failure := look(command[0])
	if failure != nil {
		return failure
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	// Set last, as changes of credentials clear it. A parent that ended before
	// now would never send it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("bind the command's life to this program's: %w", err)
	}
	if os.Getppid() != s.Parent {
		return errors.New("the parent ended before the command could run")
	}
	_ = out.Encode(report{Exec: true})
	return unrunnable(command[0], syscall.Exec(path, command, os.Environ()))
}

// look finds a command the way a shell does.
func look(name string) (string, *Failure) {
	path, err := exec.LookPath(name)
	if err == nil || errors.Is(err, exec.ErrDot) {
		return path, nil
	}
	return "", unrunnable(name, err)
}

// unrunnable makes a failure of an error that a command's start ended with.
func unrunnable(name string, err error) *Failure {
	f := &Failure{Code: ExitNotExecutable, err: fmt.Errorf("run %q: %w", name, err)}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		f.Code = ExitNotFound
	}
	return f
}

// forbidden adds what to do where a namespace was given and its use was not,
// unless the error says so itself.
func forbidden(err error) error {
	var said *Failure
	if errors.Is(err, fs.ErrPermission) && !errors.As(err, &said) {
		return fmt.Errorf("this machine gives user namespaces without their capabilities; %s: %w", userNamespaceRemedy, err)
	}
	return err
}
