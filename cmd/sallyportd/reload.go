package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// hangups delivers each SIGHUP until stop is called. From this call on the signal
// does not end the program.
func hangups() (signals <-chan os.Signal, stop func()) {
	c := make(chan os.Signal, 1) // one that waits stands for all that came meanwhile
	signal.Notify(c, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

// reload puts the desired state's file in force anew at each signal, until ctx
// ends. A file that is wrong, or that the store refuses, changes nothing.
func (c *controlPlane) reload(ctx context.Context, signals <-chan os.Signal, s settings, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		if err := c.replace(s); err != nil {
			log.Error("desired state not changed; correct it and send SIGHUP again", "error", err)
			continue
		}
		log.Info("desired state read anew", "file", s.daemon.DesiredState)
	}
}

// replace reads the desired state and gives it to the store.
func (c *controlPlane) replace(s settings) error {
	var err error
	if s.state, err = readState(s.daemon.DesiredState); err != nil {
		return err
	}
	if err := s.fits(); err != nil {
		return err
	}
	return c.store.Replace(s.state)
}
