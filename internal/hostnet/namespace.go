package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNamespace is the network namespace of the thread that opens it.
const threadNamespace = "/proc/thread-self/ns/net"

// Namespace is a network namespace held by a descriptor. Without a name in the
// file system and without a process inside, it ends when the descriptor is closed.
type Namespace struct{ file *os.File }

// NewNamespace makes an empty network namespace: a loopback interface that is
// down. It needs CAP_SYS_ADMIN in the process's user namespace.
func NewNamespace() (*Namespace, error) {
	var ns *Namespace
	err := aside(func(home *Namespace) (restore bool, err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("hostnet: make a network namespace%s: %w", remedy(err), err)
		}
		ns, err = CurrentNamespace()
		return home.enter() == nil, err
	})
	return ns, err
}

// CurrentNamespace returns the network namespace of the calling thread. A
// caller that has not locked itself to its thread gets the process's.
func CurrentNamespace() (*Namespace, error) { return OpenNamespace(threadNamespace) }

// OpenNamespace opens a namespace by a path like /proc/PID/ns/net or a name
// under /run/netns.
func OpenNamespace(path string) (*Namespace, error) {
	// At first a descriptor that nothing can be done with: to open a pipe waits, and to
	// open a device does things.
	probe, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		err = &fs.PathError{Op: "open", Path: path, Err: err}
		return nil, fmt.Errorf("hostnet: open network namespace%s: %w", remedy(err), err)
	}
	defer func() { _ = unix.Close(probe) }()
	var at unix.Statfs_t
	if err := unix.Fstatfs(probe, &at); err != nil || at.Type != unix.NSFS_MAGIC {
		return nil, notNamespace(path)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", probe), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hostnet: open network namespace %s%s: %w", path, remedy(err), err)
	}
	f := os.NewFile(uintptr(fd), path)
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = f.Close()
		return nil, notNamespace(path)
	}
	return &Namespace{file: f}, nil
}

func notNamespace(path string) error {
	return fmt.Errorf("hostnet: %s is not a network namespace: give a path like /proc/PID/ns/net or /run/netns/NAME", path)
}

// NamespaceID tells namespaces apart that exist at the same time.
type NamespaceID struct{ device, inode uint64 }

// ID returns the namespace's.
func (n *Namespace) ID() (NamespaceID, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(n.file.Fd()), &s); err != nil {
		return NamespaceID{}, fmt.Errorf("hostnet: look at network namespace %s: %w", n.file.Name(), err)
	}
	return NamespaceID{s.Dev, s.Ino}, nil
}

// File returns the descriptor, which the namespace still owns. It may be passed
// to other processes.
func (n *Namespace) File() *os.File { return n.file }

// Close gives the descriptor back. The kernel ends the namespace when no
// process, socket or other descriptor keeps it.
//
// Do fails afterwards; it may be called at the same time.
func (n *Namespace) Close() error { return n.file.Close() }

// enter moves the calling thread, which must be locked, into the namespace.
func (n *Namespace) enter() error {
	c, err := n.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("hostnet: enter network namespace: %w", err)
	}
	var refused error
	err = c.Control(func(fd uintptr) { refused = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	if err = errors.Join(err, refused); err != nil {
		return fmt.Errorf("hostnet: enter network namespace%s: %w", remedy(err), err)
	}
	return nil
}

// same says whether two handles mean one namespace.
func (n *Namespace) same(o *Namespace) (bool, error) {
	a, err := n.file.Stat()
	if err != nil {
		return false, err
	}
	b, err := o.file.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}

// Do runs f on a thread inside the namespace and waits for it. Sockets, TUNs
// and processes that f makes belong to the namespace; goroutines that f starts
// do not. It needs CAP_SYS_ADMIN, unless the process is in the namespace already.
// The caller's own thread never leaves its namespace; a thread that cannot
// return to it is ended and not used again.
func (n *Namespace) Do(f func() error) error {
	return aside(func(home *Namespace) (bool, error) {
		if same, err := n.same(home); err != nil || same {
			if err != nil {
				return true, fmt.Errorf("hostnet: compare network namespaces: %w", err)
			}
			return true, f()
		}
		if err := n.enter(); err != nil {
			return true, err
		}
		err := f()
		return home.enter() == nil, err
	})
}

// aside runs f on a locked thread of its own goroutine and tells it the
// thread's namespace. f says whether the thread is back in it; if not, or if f
// never returned, the goroutine ends locked, and its thread with it.
func aside(f func(home *Namespace) (restored bool, err error)) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread stands for the process: /proc/self and
			// /proc/PID would show the world its namespace. While this
			// goroutine holds it, the next one gets another.
			result <- aside(f)
			runtime.UnlockOSThread()
			return
		}
		err := errors.New("hostnet: the function ended its goroutine (runtime.Goexit, as testing's FailNow does) instead of returning")
		defer func() { result <- err }()
		home, openErr := CurrentNamespace()
		if openErr != nil {
			runtime.UnlockOSThread()
			err = openErr
			return
		}
		defer func() { _ = home.Close() }()
		restored, ferr := f(home)
		if restored {
			runtime.UnlockOSThread()
		}
		err = ferr
	}()
	return <-result
}

// remedy says what to do about a refusal, in words that fit behind what was tried.
func remedy(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return " (not allowed: run as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN, or inside a user namespace)"
	case errors.Is(err, fs.ErrNotExist):
		return " (no such namespace, or /proc is not mounted)"
	case errors.Is(err, unix.ENOSPC):
		return " (the limit /proc/sys/user/max_net_namespaces is reached)"
	}
	return ""
}
