package tundev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// CreateTUN makes a TUN interface in the calling thread's network namespace and
// returns its descriptor, for the caller to give to [FromTUN]. An empty name
// lets the kernel choose. The interface is down and has neither address nor
// route; it disappears when the last descriptor is closed. With offload its packets have
// vnet headers in front, which FromTUN finds out, and nobody else can do without knowing.
//
// The error satisfies errors.Is(err, fs.ErrNotExist) where the machine has no
// /dev/net/tun, and errors.Is(err, fs.ErrPermission) where it may not be opened
// or the caller lacks CAP_NET_ADMIN in the namespace. In both cases a veth pair
// with [OpenPacket] may still be possible. Where an interface of the name is there
// already, also a TUN that nobody has, it satisfies errors.Is(err, fs.ErrExist).
func CreateTUN(name string, offload bool) (*os.File, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, tunError("open "+tunPath, err)
	}
	if err := attachTUN(fd, name, offload); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	// Only now may the descriptor enter the poller: one that is no interface
	// yet answers it with an error for good.
	return os.NewFile(uintptr(fd), tunPath), nil
}

// CheckTUN says why [CreateTUN] cannot make any interface, but for the privilege, which
// the kernel does not ask for before.
func CheckTUN() error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return tunError("open "+tunPath, err)
	}
	return unix.Close(fd)
}

func attachTUN(fd int, name string, offload bool) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("tundev: interface name %q is longer than %d bytes: %w", name, unix.IFNAMSIZ-1, err)
	}
	// A persistent TUN that somebody has left there would outlive us.
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if offload {
		flags |= unix.IFF_VNET_HDR
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return tunError(fmt.Sprintf("create TUN %q", name), err)
	}
	return nil
}

// tunError adds to an error what to do about it.
func tunError(tried string, err error) error {
	remedy := ""
	switch {
	case errors.Is(err, fs.ErrNotExist), err == unix.ENODEV, err == unix.ENXIO:
		// A device node without a driver behind it is no better than none.
		return fmt.Errorf("tundev: %s: the kernel has no TUN driver or the container no device node: load the module tun, or pass the device in: %w",
			tried, notExist{err})
	case errors.Is(err, fs.ErrPermission):
		remedy = ": allow the user to open " + tunPath + " and give CAP_NET_ADMIN in the network namespace"
	case err == unix.EBUSY:
		remedy = ": an interface of this name is there already; remove it, end the process that holds it, or choose another name"
		err = exists{err}
	case err == unix.EINVAL:
		remedy = ": the name is taken by an interface that is no TUN, or is not a valid name"
	}
	return fmt.Errorf("tundev: %s%s: %w", tried, remedy, err)
}

// notExist is an error that also answers to fs.ErrNotExist.
type notExist struct{ error }

func (e notExist) Is(target error) bool { return target == fs.ErrNotExist }
func (e notExist) Unwrap() error        { return e.error }

// exists is an error that also answers to fs.ErrExist.
type exists struct{ error }

func (e exists) Is(target error) bool { return target == fs.ErrExist }
func (e exists) Unwrap() error        { return e.error }

// FromTUN makes a Device on a descriptor that CreateTUN returned, here or in
// another process. The device owns f from now on, if the error is nil.
func FromTUN(f *os.File, c Config) (*Device, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	m := tunMedium{&counters{}}
	var o Offload
	err := control(f, func(fd int) (err error) {
		o, err = adopt(fd, c.Offload)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("tundev: use %s, which is not an attached TUN: %w", f.Name(), err)
	}
	return newDevice(f, maker{Config: c, medium: m, offloads: o, count: m.count})
}

// tunMedium carries bare IP packets (IFF_NO_PI).
type tunMedium struct{ count *counters }

func (m tunMedium) receive(fd int, b []byte) (int, error) {
	n, err := rawRead(fd, b)
	if err != nil {
		return 0, err
	}
	if !isIPv4(b[:n]) {
		m.count.notIPv4.Add(1)
		return 0, nil
	}
	if n == len(b) && int(b[2])<<8|int(b[3]) > n {
		m.count.tooBig.Add(1) // the kernel cut it off at the buffer's end
		return 0, nil
	}
	return n, nil
}

func (m tunMedium) send(fd int, b []byte) error {
	_, err := unix.Write(fd, b)
	return err
}

// survives: a TUN's read fails only when the interface is gone (EBADFD).
func (m tunMedium) survives(int, error) bool { return false }

func (m tunMedium) name(fd int) (string, error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return "", err
	}
	return req.Name(), nil
}
