package demo

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"syscall"
)

// machine is where processes run and sockets are. A [netlab.Namespace] is one.
type machine interface {
	// Start starts a command that dies with this process.
	Start(cmd *exec.Cmd) error
	Listen(network, address string) (net.Listener, error)
	ListenPacket(network, address string) (net.PacketConn, error)
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// Do runs f on a thread that is there.
	Do(f func() error) error
}

// local is the machine itself, with all that runs on it.
type local struct {
	jobs chan func() // for the thread that starts processes
	done chan struct{}
}

// newLocal starts the thread. Linux sends a child its parent-death signal when the
// thread ends that made it, so it must live as long as the demo.
func newLocal() *local {
	l := &local{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(l.done)
		for job := range l.jobs {
			job()
		}
	}()
	return l
}

// close ends the thread, and with it what was started and still runs.
func (l *local) close() {
	close(l.jobs)
	<-l.done
}

// Start implements machine.
func (l *local) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error, 1)
	l.jobs <- func() { result <- cmd.Start() }
	if err := <-result; err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return nil
}

// Listen implements machine.
func (*local) Listen(network, address string) (net.Listener, error) {
	return net.Listen(network, address)
}

// ListenPacket implements machine.
func (*local) ListenPacket(network, address string) (net.PacketConn, error) {
	return net.ListenPacket(network, address)
}

// Dial implements machine.
func (*local) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

// Do implements machine.
func (*local) Do(f func() error) error { return f() }
