package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	resolvConf = "/etc/resolv.conf"
	// sealed are the flags of every mount made here. What the command must not
	// change, it cannot: it has no capability in the namespace that owns the mounts,
	// and mounts that a namespace of its own inherits are locked.
	sealed = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// nameServices are sockets, or their folders, of programs of the host that
// resolve names or start processes outside of the sandbox when asked.
func nameServices() []string {
	user := "/run/user/" + strconv.Itoa(os.Getuid())
	return []string{
		"/run/systemd/resolve", "/run/nscd", "/var/run/nscd", "/run/dbus", "/var/run/dbus",
		"/run/avahi-daemon", user + "/bus", user + "/systemd",
		"/run/docker.sock", "/run/podman", user + "/docker.sock", user + "/podman",
	}
}

// makeMounts hides what leads around the sandbox and gives it its resolv.conf.
// The notes tell what could not be done and does no harm.
func makeMounts(s settings) (notes []string, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("keep the sandbox's mounts from the host: %w", err)
	}
	// Where the links lead must be known before what they lead through is hidden.
	target, err := filepath.EvalSymlinks(resolvConf)
	if err != nil {
		notes = append(notes, fmt.Sprintf("the sandbox has no name server: %v", err))
		target = ""
	}
	var hidden []string
	for _, path := range append(nameServices(), s.Hide...) {
		if at, err := filepath.EvalSymlinks(path); err == nil && slices.Contains(hidden, at) {
			continue // another name of the same
		}
		at, err := hide(path)
		if err != nil {
			return nil, err
		}
		if at != "" {
			hidden = append(hidden, at)
		}
	}
	if target != "" {
		if err := placeResolvConf(target, hidden, nameServers(s.DNS)); err != nil {
			return nil, err
		}
	}
	for _, at := range hidden {
		if err := seal(at); err != nil {
			return nil, err
		}
	}
	// Programs with capabilities of their own, as ping often is, could not be
	// started at all by someone who may have none; where these do not count, they can.
	nosuid := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &nosuid); err != nil {
		notes = append(notes, fmt.Sprintf("programs with file capabilities cannot be started: %v", err))
	}
	// A command that runs as root owns the kernel's parameters, and needs no
	// capability to write those of its network.
	if err := bindReadOnly("/proc/sys"); err != nil {
		notes = append(notes, err.Error())
	}
	return notes, nil
}

// nameServers is the text of a resolv.conf.
func nameServers(addresses []netip.Addr) string {
	var text strings.Builder
	for _, a := range addresses {
		fmt.Fprintf(&text, "nameserver %v\n", a)
	}
	return text.String()
}

// hide puts an empty folder over a folder, and nothing over a file or a socket. It returns
// the folder's real path, or "" where there is no folder.
func hide(path string) (string, error) {
	at, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil {
		var info fs.FileInfo
		if info, err = os.Lstat(at); err == nil && !info.IsDir() {
			err = unix.Mount("/dev/null", at, "", unix.MS_BIND, "")
			at = ""
		} else if err == nil {
			err = unix.Mount("tmpfs", at, "tmpfs", sealed, "mode=0755,size=64k")
		}
	}
	if errors.Is(err, fs.ErrPermission) && unix.Access(path, unix.X_OK) != nil {
		return "", nil // the command, which has fewer rights, does not get there either
	}
	if err != nil {
		return "", fmt.Errorf("hide %s from the sandbox: %w", path, err)
	}
	return at, nil
}

// seal makes the folder that was put in place read-only.
func seal(at string) error {
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|sealed, ""); err != nil {
		return fmt.Errorf("make the empty folder over %s read-only: %w", at, err)
	}
	return nil
}

// placeResolvConf makes the file at target read as text. Below a folder that was
// hidden it is simply written; elsewhere it is mounted over the host's.
func placeResolvConf(target string, hidden []string, text string) error {
	for _, at := range hidden {
		if strings.HasPrefix(target, at+"/") {
			err := os.MkdirAll(filepath.Dir(target), 0o755)
			if err == nil {
				err = os.WriteFile(target, []byte(text), 0o444)
			}
			if err != nil {
				return fmt.Errorf("write the sandbox's %s: %w", target, err)
			}
			return nil
		}
	}
	if err := mountText(target, text); err != nil {
		return fmt.Errorf("mount the sandbox's name server over %s: %w", target, err)
	}
	return nil
}

// mountText mounts a file in memory over another file. The file must come from
// a mount, so one is made for a moment over the folder of the target, which is
// held by a descriptor meanwhile.
func mountText(target, text string) (err error) {
	fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	dir := filepath.Dir(target)
	if err := unix.Mount("tmpfs", dir, "tmpfs", sealed, "mode=0755,size=64k"); err != nil {
		return err
	}
	source := filepath.Join(dir, "resolv.conf")
	if err = os.WriteFile(source, []byte(text), 0o444); err == nil {
		err = unix.Mount(source, "/proc/self/fd/"+strconv.Itoa(fd), "", unix.MS_BIND, "")
	}
	if err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)); err != nil {
		return err
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|sealed, "")
}

// bindReadOnly mounts a folder over itself, read-only.
func bindReadOnly(path string) error {
	err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "")
	if err == nil {
		err = unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|sealed, "")
	}
	if err != nil {
		return fmt.Errorf("make %s read-only in the sandbox: %w", path, err)
	}
	return nil
}
