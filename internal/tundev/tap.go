package tundev

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// AddTAP makes a TAP in the calling thread's network namespace for somebody else, such
// as the monitor of a virtual machine, who opens it by its name. It stays until it is
// deleted or its namespace ends. The user with the ID owner may open it besides root;
// a negative owner is nobody. It is down. Its errors are those of [CreateTUN].
func AddTAP(name string, owner int) error {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return tunError("open "+tunPath, err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("tundev: interface name %q is longer than %d bytes: %w", name, unix.IFNAMSIZ-1, err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return tunError(fmt.Sprintf("create TAP %q", name), err)
	}
	if owner >= 0 {
		if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, owner); err != nil {
			return tunError(fmt.Sprintf("give TAP %q to user %d", name, owner), err)
		}
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return tunError(fmt.Sprintf("make TAP %q stay", name), err)
	}
	return nil
}
