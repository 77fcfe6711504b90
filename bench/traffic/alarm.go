package traffic

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// alarm lets one goroutine wait for a time or for others. Go's own timers come up to a
// millisecond late in a process that has nothing else to do, because they wait in
// epoll_wait; a timerfd (timerfd_create(2)) wakes that when it should.
type alarm struct {
	file   *os.File
	raw    syscall.RawConn // of file
	woken  atomic.Bool
	asleep atomic.Bool
	buffer [8]byte
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	a := &alarm{file: os.NewFile(uintptr(fd), "timerfd")}
	if a.raw, err = a.file.SyscallConn(); err != nil {
		_ = a.file.Close()
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	return a, nil
}

// clear forgets calls of wake. The goroutine that waits calls it before it looks for
// work; if it finds none, it waits.
func (a *alarm) clear() { a.woken.Store(false) }

// wait returns after d, or after a call of wake since clear; d of 0 waits for wake only.
// It fails once the alarm is closed.
func (a *alarm) wait(d time.Duration) error {
	if err := a.set(d); err != nil {
		return err
	}
	a.asleep.Store(true)
	defer a.asleep.Store(false)
	if a.woken.Load() {
		return nil
	}
	_, err := a.file.Read(a.buffer[:])
	return err
}

// wake ends the wait under way, or the next one.
func (a *alarm) wake() {
	if !a.woken.Swap(true) && a.asleep.Load() {
		_ = a.set(1) // only a closed one fails, and nobody waits for that
	}
}

// set makes the timer go off once after d; never, for 0.
func (a *alarm) set(d time.Duration) error {
	var failed error
	err := a.raw.Control(func(fd uintptr) {
		failed = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
	})
	if err != nil {
		return err
	}
	return failed
}

// close makes all waits fail, those under way too.
func (a *alarm) close() error { return a.file.Close() }
