package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenPrivately makes a Unix socket to which nobody but this user may connect.
// A socket that a sidecar left behind is replaced, one that is in use is not.
func listenPrivately(ctx context.Context, path string) (net.Listener, error) {
	if err := ownFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := clearSocket(ctx, path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The file gets the mode that the socket has when it is bound (unix(7)), so
		// that at no moment others can connect.
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("make the socket (does the folder belong to this user?): %w", err)
	}
	return l, nil
}

// ownFolder makes the folder of the socket, or checks that it is not one of those
// that everybody writes to: sandboxes see it empty.
func ownFolder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSticky != 0 || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("the folder %s is open to others; choose one that is the sidecar's alone, such as %s", path, filepath.Join(path, "sallyport"))
	}
	return nil
}

// clearSocket removes a socket on which nobody listens.
func clearSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file that is no socket; remove it, or give the sidecar another socket")
	}
	dialer := net.Dialer{}
	c, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return errors.New("another sidecar serves there; end it, or give this one another socket")
	}
	// Anything else, such as a full backlog, does not say that nobody listens.
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot tell whether a sidecar serves there; end it, or remove the socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket that a former sidecar left: %w", err)
	}
	return nil
}
