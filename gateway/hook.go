package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// hook is an operator's program that announces dedicated addresses where ARP does not
// reach. The zero value does nothing.
type hook struct {
	program string
	timeout time.Duration
}

// What a hook is told to do.
const (
	hookAdd    = "add"
	hookDelete = "del"
)

// hookOutput is how much of what a hook says goes into the error, in bytes from the end.
const hookOutput = 512

// each runs the hook for all addresses, at once.
func (h hook) each(action, network string, addresses []netip.Addr) error {
	if h.program == "" {
		return nil
	}
	failed := make(chan error, len(addresses))
	for _, a := range addresses {
		go func() { failed <- h.run(action, network, a) }()
	}
	var errs []error
	for range addresses {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// run runs the hook and waits for its end. When its time is over, it is killed with
// all that it started.
func (h hook) run(action, network string, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), h.timeout)
	defer cancel()
	var said tail
	cmd := exec.CommandContext(ctx, h.program)
	cmd.Env = append(os.Environ(), "SALLYPORT_ACTION="+action, "SALLYPORT_ADDRESS="+a.String(), "SALLYPORT_NETWORK="+network)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well, and left somebody behind who could say more
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("it took longer than tun.hook_timeout, %v, and was killed", h.timeout)
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("run tun.hook %s with SALLYPORT_ACTION=%s for %v: %w; it said: %q", h.program, action, a, err, bytes.TrimSpace(said))
}

// tail keeps the end of what is written: a hook may say more than there is memory for.
type tail []byte

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	*t = append(*t, b[max(0, len(b)-hookOutput):]...)
	*t = append((*t)[:0], (*t)[max(0, len(*t)-hookOutput):]...)
	return len(b), nil
}
