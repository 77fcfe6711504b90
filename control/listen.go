package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// probeTimeout bounds the look whether somebody listens on a socket.
const probeTimeout = time.Second

// Listen opens what the control API is served on: network "unix" and a path, or
// "tcp" and an address on the loopback interface; the token goes over it as it is.
//
// The socket is only its owner's (mode 0600) from the moment it exists. One that a
// dead process left is replaced; one on which somebody listens is not.
func Listen(ctx context.Context, network, address string) (net.Listener, error) {
	switch network {
	case "unix":
		return listenUnix(ctx, address)
	case "tcp":
		a, err := netip.ParseAddrPort(address)
		if err != nil || !a.Addr().IsLoopback() {
			return nil, fmt.Errorf("listen for the control API at %q: not a loopback address and a port, and the token would cross a network in the clear; use 127.0.0.1:port or a unix socket", address)
		}
		l, err := new(net.ListenConfig).Listen(ctx, network, address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listen for the control API at %s: another process does; stop it or choose another port (api.listen): %w", address, err)
		}
		if err != nil {
			return nil, fmt.Errorf("listen for the control API at %s: %w", address, err)
		}
		return l, nil
	}
	return nil, fmt.Errorf("listen for the control API: network %q is neither unix nor tcp", network)
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the control API's socket: %w", err)
	}
	if err := clearSocket(ctx, path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The mode that a socket has when it is bound becomes that of its file
		// (unix(7)), so that there is no moment at which others can connect.
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the control API at unix://%s (does the folder belong to this user?): %w", path, err)
	}
	return l, nil
}

// clearSocket removes a socket on which nobody listens.
func clearSocket(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the control API's socket: %w", err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is not a socket; remove it, or choose another path for the control API (api.listen)", path)
	}
	dialer := net.Dialer{Timeout: probeTimeout}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another process serves the control API at %s; stop it, or choose another path (api.listen)", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot tell whether somebody listens at %s; stop the process that does, or remove the socket: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket that a former process left: %w", err)
	}
	return nil
}
