package demo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sallyport-net/sallyport/bench/daemon"
)

const (
	readyPatience = 15 * time.Second
	// endPatience is how long a daemon may take to end before it is killed.
	endPatience = 3 * time.Second
)

// newDaemon describes a daemon. Its settings and its log are named after it.
func (s *stage) newDaemon(at machine, name, program string, ready daemon.Probe) (*daemon.Daemon, error) {
	d, err := daemon.New(daemon.Config{
		Name: name, Machine: at, Program: s.program(program), Args: []string{"run", "--config", filepath.Join(s.dir, name+".yaml")},
		Log: filepath.Join(s.logs, name+".log"), Ready: ready, GiveUp: s.giveUp, ReadyWithin: readyPatience, EndWithin: endPatience,
	})
	if err != nil {
		return nil, err
	}
	s.daemons = append(s.daemons, d)
	return d, nil
}

// startAll starts daemons at once and waits until all of them serve.
func startAll(ctx context.Context, all ...*daemon.Daemon) error {
	for _, d := range all {
		if err := d.Start(); err != nil {
			return err
		}
	}
	for _, d := range all {
		if err := d.Await(ctx); err != nil {
			return err
		}
	}
	return nil
}

// kill ends daemons by SIGKILL and returns the time just before, by [monotonic].
func kill(ctx context.Context, all ...*daemon.Daemon) (at time.Duration, err error) {
	at = monotonic()
	for _, d := range all {
		err = errors.Join(err, d.Signal(syscall.SIGKILL))
	}
	for _, d := range all {
		err = errors.Join(err, d.Gone(ctx))
	}
	if err != nil {
		return 0, fmt.Errorf("kill daemons: %w", err)
	}
	return at, nil
}

// stopAll asks daemons to end, all at once, and waits.
func stopAll(all []*daemon.Daemon) error {
	errs := make([]error, len(all))
	var stopping sync.WaitGroup
	for i, d := range all {
		if d != nil {
			stopping.Go(func() { errs[i] = d.Stop() })
		}
	}
	stopping.Wait()
	return errors.Join(errs...)
}

// until waits until look succeeds.
func until(ctx context.Context, what string, look func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	return daemon.Until(ctx, what, look)
}
