package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// The environment by which a process and the ones above it understand each other.
const (
	insideVariable = "SALLYPORT_NETLAB" // "inside": Reexec started this process
	notRunVariable = "SALLYPORT_NOTRUN" // a file that collects what was not run
	soakVariable   = "SALLYPORT_SOAK"   // how long tests go on that ask Soak
)

// TB is the part of testing.TB that this package needs; commands that use the
// package need not link package testing.
type TB interface {
	Helper()
	Name() string
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Enter runs a package's tests where namespaces can be made: here, if they can;
// otherwise in a copy of this process inside a user namespace of its own. Where
// neither is allowed it runs them here, and those that call Require are skipped.
//
//	func TestMain(m *testing.M) { os.Exit(netlab.Enter(m)) }
func Enter(m interface{ Run() int }) int {
	if Inside() {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "netlab: the tests have no loopback:", err)
		}
	} else if Usable() != nil {
		if code, err := Reexec(os.Args); err == nil {
			return code
		}
	}
	return m.Run()
}

// Inside says whether Reexec started this process.
func Inside() bool { return os.Getenv(insideVariable) == "inside" }

// Usable says whether this process can build labs, or why not.
func Usable() error {
	lab := New()
	lab.Connect(End{Namespace: lab.Namespace("probe a"), Link: "a"}, End{Namespace: lab.Namespace("probe b"), Link: "b"})
	return errors.Join(lab.Err(), lab.Close())
}

// Reexec runs this program with the arguments args (the first being its name)
// in new user, network and mount namespaces, in which the user is root, and
// waits for it. It returns the exit code, or an error if the program could not be started
// there, as where user namespaces are forbidden. The copy dies with this process.
func Reexec(args []string) (int, error) {
	// The parent-death signal comes when this thread ends; a locked one does not
	// before the goroutine does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = args
	cmd.Env = append(os.Environ(), insideVariable+"=inside")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	// Whoever wants this process to end, or (go test's deadline) to tell where
	// it hangs, means the copy.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("netlab: start in a user namespace (see /proc/sys/user/max_user_namespaces and the machine's security policy): %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // it may have ended meanwhile
		case <-ended:
			return exitCode(cmd.ProcessState), nil
		}
	}
}

// exitCode is the code that a shell would give.
func exitCode(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}

// Require skips a test, loudly, where labs cannot be built. The package needs
// Enter in its TestMain.
func Require(t TB) {
	t.Helper()
	if err := Usable(); err != nil {
		NotRun(t, err.Error())
	}
}

// NotRun skips a test and says so where it will be read: on standard error,
// which go test shows with -v, and in the file named by SALLYPORT_NOTRUN.
func NotRun(t TB, why string) {
	t.Helper()
	line := fmt.Sprintf("NOT RUN: %s: %s\n", t.Name(), why)
	_, _ = os.Stderr.WriteString(line)
	if path := os.Getenv(notRunVariable); path != "" {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
		if err == nil {
			_, err = f.WriteString(line)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Errorf("note what was not run: %v", err)
		}
	}
	t.Skipf("NOT RUN: %s", why)
}

// Soak returns how long a test goes on that could go on for ever: short, unless
// `make soak` gives it longer. Such a test's name begins with TestSoak.
func Soak(t TB, short time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(soakVariable)
	if text == "" {
		return short
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("%s=%q is no time like 10m", soakVariable, text)
	}
	return d
}

// Program returns the path of a program, or skips the test, loudly, where it is
// not installed.
func Program(t TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		NotRun(t, fmt.Sprintf("the program %s is not installed (make deps)", name))
	}
	return path
}

// Test returns a lab that ends with the test. Where labs cannot be built the
// test is skipped, loudly; a failure to build ends it.
func Test(t TB) *Lab {
	t.Helper()
	Require(t)
	lab := New()
	lab.t = t
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return lab
}

// loopbackUp brings up the loopback of the process's own namespace, which
// Reexec leaves down.
func loopbackUp() error {
	host, err := hostnet.Here()
	if err != nil {
		return err
	}
	return errors.Join(host.Apply(hostnet.Plan{Links: []hostnet.Link{{Name: "lo"}}}), host.Close())
}
