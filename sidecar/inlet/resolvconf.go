package inlet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// WriteResolvConf makes the file at path name a sandbox's name servers, at once: whoever
// reads it sees the old one or the new one. A container that has the old file mounted
// keeps that; write it before. A file that is itself a mount point cannot be
// replaced, and is written over.
//
// The path may hold no symbolic link, because a tenant might have laid it, and must not be
// this machine's own resolv.conf.
func WriteResolvConf(path string, servers []netip.Addr) error {
	err := CheckResolvConf(path)
	if err == nil {
		err = writeResolvConf(path, NameServers(servers))
	}
	if err != nil {
		return fmt.Errorf("write the sandbox's resolv.conf %s: %w", path, err)
	}
	return nil
}

// NameServers is the text of a resolv.conf.
func NameServers(servers []netip.Addr) string {
	var text strings.Builder
	for _, a := range servers {
		fmt.Fprintf(&text, "nameserver %v\n", a)
	}
	return text.String()
}

// CheckResolvConf says, without changing anything, what keeps the file from being written.
func CheckResolvConf(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("%q is not a plain path from / on", path)
	}
	dir, err := openFolder(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	var s unix.Stat_t
	err = unix.Fstatat(dir, filepath.Base(path), &s, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case s.Mode&unix.S_IFMT == unix.S_IFLNK:
		return errors.New("it is a symbolic link; give the path of the file itself")
	case s.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("it is no file")
	}
	var own unix.Stat_t
	if unix.Stat("/etc/resolv.conf", &own) == nil && own.Dev == s.Dev && own.Ino == s.Ino {
		return errors.New("it is this machine's own; give the path of the sandbox's, such as /etc/netns/NAME/resolv.conf")
	}
	return nil
}

// openFolder opens a folder by a path without symbolic links.
func openFolder(path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	switch {
	case errors.Is(err, unix.ELOOP):
		return -1, fmt.Errorf("the path goes by a symbolic link; give the one that it leads to: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return -1, fmt.Errorf("its folder %s does not exist; make it: %w", path, err)
	case err != nil:
		return -1, fmt.Errorf("open its folder %s: %w", path, err)
	}
	return fd, nil
}

func writeResolvConf(path, text string) error {
	dir, err := openFolder(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dir) }()
	name := filepath.Base(path)
	fresh := fmt.Sprintf(".%s.%d", name, os.Getpid())
	_ = unix.Unlinkat(dir, fresh, 0) // of a sidecar that was killed
	if err := create(dir, fresh, text); err != nil {
		_ = unix.Unlinkat(dir, fresh, 0)
		return err
	}
	err = unix.Renameat(dir, fresh, dir, name)
	if err == nil {
		return nil
	}
	_ = unix.Unlinkat(dir, fresh, 0)
	if errors.Is(err, unix.EBUSY) { // a mount point
		return overwrite(dir, name, text)
	}
	return err
}

// create writes a file that does not exist.
func create(dir int, name, text string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(text)
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

// overwrite writes over a file, whose longer rest is cut off afterwards.
func overwrite(dir int, name, text string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(text)
	return errors.Join(err, f.Truncate(int64(len(text))), f.Close())
}
