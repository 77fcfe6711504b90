package hostnet

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// claimLink is the interface by which a tag is claimed. Nothing leads to it, and it is
// never up.
func claimLink(tag Tag) string { return fmt.Sprintf("sallyclaim%d", tag) }

// Claim makes this process the only one in the namespace that changes what carries the
// tag, until Release, Close or its end. It is called before the Kernel is shared, or by one
// goroutine. The error satisfies errors.Is(err, [os.ErrExist]) where another one has the
// claim.
//
// The claim is a TUN interface: only who may change the namespace's network can make one,
// its name belongs to the namespace, whatever container looks at it, and no crash leaves
// it behind. Where there is no /dev/net/tun, or this process may change nothing anyhow, it
// is the name of an abstract unix socket (unix(7)), which any user could take.
func (k *Kernel) Claim(tag Tag) error {
	fd := -1
	err := k.ns.Do(func() (err error) {
		fd, err = claimTUN(claimLink(tag))
		return err
	})
	if err != nil {
		// It may have let go since: then the error alone tells.
		if _, none := k.Link(claimLink(tag)); none == nil || errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("another process has (`grep -l %s /proc/[0-9]*/fdinfo/*` names it): %w", claimLink(tag), os.ErrExist)
		} else if errors.As(err, new(noClaim)) {
			err = k.ns.Do(func() (err error) {
				fd, err = claimSocket(tag)
				return err
			})
		}
	}
	if err != nil {
		return fmt.Errorf("hostnet: claim what carries tag %d in this network namespace: %w", tag, err)
	}
	k.claims[tag] = fd
	return nil
}

// Release gives a claim back. One that was not made is nothing.
func (k *Kernel) Release(tag Tag) error {
	fd, ok := k.claims[tag]
	if !ok {
		return nil
	}
	delete(k.claims, tag)
	return unix.Close(fd)
}

// noClaim is why no TUN can be made here.
type noClaim struct{ error }

// claimTUN makes a TUN interface in the calling thread's namespace.
func claimTUN(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, noClaim{err}
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EPERM) {
			err = noClaim{err}
		}
		return -1, err
	}
	return fd, nil
}

// claimSocket takes a name for an abstract socket in the calling thread's namespace.
func claimSocket(tag Tag) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	name := fmt.Sprintf("@sallyport-hostnet-%d", tag)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("another process has (`ss -xap | grep %s` names it): %w", name[1:], os.ErrExist)
		}
		return -1, err
	}
	return fd, nil
}
