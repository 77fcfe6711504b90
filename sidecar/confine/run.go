package confine

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Run runs the command in a sandbox and returns its exit code, which is 128
// plus the signal's number for one that a signal ended. SIGINT, SIGTERM, SIGHUP,
// SIGQUIT, SIGUSR1 and SIGUSR2 are passed on. The command is killed when this
// process ends. An error is a [*Failure]: the command never ran.
func Run(cfg Config) (int, error) {
	if err := cfg.validate(); err != nil {
		return ExitFailed, fail("run a command in a sandbox: %w", err)
	}
	pipes, err := openPipes()
	if err != nil {
		return ExitFailed, err
	}
	defer pipes.close()
	sidecar, err := cfg.Sidecar.File()
	if err != nil {
		return ExitFailed, fail("pass the connection to the sidecar on: %w", err)
	}
	defer sidecar.Close()

	cmd := exec.Command("/proc/self/exe", append([]string{Subcommand, "--"}, cfg.Command...)...)
	cmd.Args[0] = os.Args[0]
	attach(cmd, cfg)
	cmd.ExtraFiles = []*os.File{sidecar, pipes.settingsOut, pipes.reportIn}
	cmd.SysProcAttr = namespaces()

	// The kernel sends the parent's death signal when the thread that started the
	// child ends, and Go ends threads as it likes, but not this one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	relay := newRelay()
	defer relay.stop()
	if err := cmd.Start(); err != nil {
		return ExitFailed, explainStart(err)
	}
	relay.to(cmd.Process)
	pipes.closeChild()
	if err := unblock(cfg); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return ExitFailed, err
	}
	s := settings{Parent: os.Getpid(), Inner: cfg.Inner, DNS: cfg.DNS, MTU: cfg.MTU, Hide: cfg.Hide, Interface: cfg.Interface}
	if err := pipes.tell(s); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return ExitFailed, err
	}
	failure := follow(pipes.reportOut, cfg)
	code, err := wait(cmd)
	if failure != nil {
		return failure.Code, failure
	}
	return code, err
}

// RunBare runs a command that bypasses, or has proxies: in the caller's own namespaces, with
// the same signals and exit codes as Run.
func RunBare(cfg Config) (int, error) {
	if len(cfg.Command) == 0 || cfg.Command[0] == "" {
		return ExitFailed, fail("run a command: no command was given; write it behind --")
	}
	path, failure := look(cfg.Command[0])
	if failure != nil {
		return failure.Code, failure
	}
	cmd := exec.Command(path, cfg.Command[1:]...)
	cmd.Args[0] = cfg.Command[0]
	cmd.Env = cfg.Environment
	attach(cmd, cfg)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	relay := newRelay()
	defer relay.stop()
	if err := cmd.Start(); err != nil {
		failure := unrunnable(cfg.Command[0], err)
		return failure.Code, failure
	}
	relay.to(cmd.Process)
	if cfg.Started != nil {
		close(cfg.Started)
	}
	return wait(cmd)
}

// attach gives a command its streams.
func attach(cmd *exec.Cmd, cfg Config) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if cfg.Stdin != nil {
		cmd.Stdin = cfg.Stdin
	}
	if cfg.Stdout != nil {
		cmd.Stdout = cfg.Stdout
	}
	if cfg.Stderr != nil {
		cmd.Stderr = cfg.Stderr
	}
}

// unblock undoes what passing a connection on does to it: both ends of the
// duplicate share one mode, and exec wants it to block.
func unblock(cfg Config) error {
	raw, err := cfg.Sidecar.SyscallConn()
	if err != nil {
		return fail("keep the connection to the sidecar: %w", err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = unix.SetNonblock(int(fd), true) })
	if err = errors.Join(err, inner); err != nil {
		return fail("keep the connection to the sidecar: %w", err)
	}
	return nil
}

// pipes lead to the process in the namespaces and back.
type pipes struct{ settingsIn, settingsOut, reportIn, reportOut *os.File }

func openPipes() (*pipes, error) {
	p := &pipes{}
	var err1, err2 error
	p.settingsOut, p.settingsIn, err1 = os.Pipe()
	p.reportOut, p.reportIn, err2 = os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		p.close()
		return nil, fail("make pipes to a sandbox: %w", err)
	}
	return p, nil
}

// tell sends the settings.
func (p *pipes) tell(s settings) error {
	err := json.NewEncoder(p.settingsIn).Encode(s)
	if err = errors.Join(err, p.settingsIn.Close()); err != nil {
		return fail("tell a sandbox its settings: %w", err)
	}
	return nil
}

// closeChild closes the ends that are the child's, so that its end is seen.
func (p *pipes) closeChild() {
	_ = p.settingsOut.Close()
	_ = p.reportIn.Close()
}

func (p *pipes) close() {
	for _, f := range []*os.File{p.settingsIn, p.settingsOut, p.reportIn, p.reportOut} {
		_ = f.Close() // nil and closed files answer with an error, and nothing happens
	}
}

// follow reads what the process in the namespaces reports until the command
// takes over, and returns nil then, or until it failed.
func follow(r io.Reader, cfg Config) *Failure {
	lines := json.NewDecoder(r)
	running := false
	for {
		var line report
		err := lines.Decode(&line)
		switch {
		case err != nil && running:
			if cfg.Started != nil {
				close(cfg.Started)
			}
			return nil
		case err != nil:
			return fail("the process that makes the sandbox ended before the command could run")
		case line.Code != 0:
			return &Failure{Code: line.Code, err: errors.New(line.Message)}
		case line.Note != "" && cfg.Notes != nil:
			select {
			case cfg.Notes <- line.Note:
			default:
			}
		}
		running = running || line.Exec
	}
}

// wait waits for the command and returns its exit code.
func wait(cmd *exec.Cmd) (int, error) {
	err := cmd.Wait()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok {
		return ExitFailed, fail("wait for the command: %w", err)
	}
	if status.Signaled() {
		return exitSignal + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// relay passes signals on to the command.
type relay struct {
	signals chan os.Signal
	ended   chan struct{}
}

// newRelay catches signals from now on. Those that this process was started to
// ignore stay ignored, as the command's are then, too.
func newRelay() *relay {
	r := &relay{signals: make(chan os.Signal, 16), ended: make(chan struct{})}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		if !signal.Ignored(s) {
			signal.Notify(r.signals, s)
		}
	}
	return r
}

// to begins to pass signals on to a process.
func (r *relay) to(p *os.Process) {
	go func() {
		for {
			select {
			case s := <-r.signals:
				if (s == unix.SIGINT || s == unix.SIGQUIT) && inForeground() {
					continue // a key was pressed: the terminal told the command, too
				}
				_ = p.Signal(s)
			case <-r.ended:
				return
			}
		}
	}()
}

func (r *relay) stop() {
	signal.Stop(r.signals)
	close(r.ended)
}

// inForeground says whether this process belongs to the foreground of a
// terminal, whose keys signal the command without our help.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// explainStart says why a process in new namespaces could not be started.
func explainStart(err error) *Failure {
	const tried = "make user, network and mount namespaces"
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fail("%s: the machine's limit is reached or 0; raise user.max_user_namespaces, user.max_net_namespaces and user.max_mnt_namespaces, %s: %w", tried, withoutNamespaces, err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fail("%s: this machine forbids it; %s: %w", tried, userNamespaceRemedy, err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return fail("%s: this kernel has no user namespaces (CONFIG_USER_NS); take one that has, %s: %w", tried, withoutNamespaces, err)
	}
	return fail("%s: %w", tried, err)
}

// userNamespaceRemedy names the usual guards of user namespaces.
const userNamespaceRemedy = "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), or in a container choose a seccomp profile that permits unshare and mount, " + withoutNamespaces

// withoutNamespaces is what is left where there are none.
const withoutNamespaces = "or run the command with `exec --proxy`, which confines nothing"
