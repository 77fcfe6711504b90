package confine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tenant is what runs inside the sandbox: it looks around, tries what it must
// not be able to do, and complains on standard error.
func tenant(what string, args []string) int {
	var err error
	switch what {
	case "interfaces":
		err = seeInterfaces()
	case "routes":
		err = seeRoutes()
	case "capabilities":
		err = seeCapabilities(args[1])
	case "resolv":
		err = seeResolv()
	case "traffic":
		err = sendAndReceive("192.0.2.1:9")
	case "ipv6":
		err = tryIPv6()
	case "readonly":
		err = tryWriting()
	case "escape":
		err = tryEscaping(args[0])
	case "closed":
		err = waitClosed()
	case "descriptors":
		err = seeDescriptors()
	case "signal":
		return waitSignal()
	case "parent":
		return beParent()
	case "ready":
		fmt.Print("ready")
		select {}
	default:
		err = fmt.Errorf("no such test %q", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func seeInterfaces() error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	if len(all) != 2 || all[0].Name != "lo" || all[1].Name != tunName && all[1].Name != nearName {
		return fmt.Errorf("interfaces %v; want lo and one more", all)
	}
	addrs, err := all[1].Addrs()
	if err != nil {
		return err
	}
	if len(addrs) != 1 || addrs[0].String() != inner.String()+"/32" {
		return fmt.Errorf("addresses %v; want %v/32 alone", addrs, inner)
	}
	if all[1].MTU != 1420 {
		return fmt.Errorf("MTU %d; want 1420", all[1].MTU)
	}
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP); err != nil {
		return fmt.Errorf("open a ping socket: %w", err)
	} else {
		_ = unix.Close(fd)
	}
	c, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		return fmt.Errorf("listen on loopback: %w", err)
	}
	return c.Close()
}

func seeRoutes() error {
	text, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return err
	}
	defaults := 0
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[1:] {
		f := strings.Fields(line)
		if f[1] == "00000000" && f[7] == "00000000" {
			defaults++
		}
	}
	if defaults != 2 {
		return fmt.Errorf("%d default routes, want the interface's and the one that refuses:\n%s", defaults, text)
	}
	return nil
}

func seeCapabilities(uid string) error {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			found++
			if n, err := strconv.ParseUint(value, 16, 64); err != nil || n != 0 {
				return fmt.Errorf("%s is %s; want none", name, value)
			}
		case "NoNewPrivs":
			found++
			if value != "1" {
				return errors.New("no_new_privs is not set")
			}
		case "Uid":
			found++
			if f := strings.Fields(value); f[0] != uid || f[1] != uid {
				return fmt.Errorf("the user is %s; want the caller's, %s", value, uid)
			}
		}
	}
	if found != 7 {
		return fmt.Errorf("%d of 7 lines in /proc/self/status", found)
	}
	return nil
}

func seeResolv() error {
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return err
	}
	if string(text) != "nameserver 10.1.0.1\nnameserver 10.1.0.2\n" {
		return fmt.Errorf("resolv.conf reads %q", text)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		return fmt.Errorf("the rest of /etc is gone: %w", err)
	}
	return nil
}

// sendAndReceive exchanges a datagram with the far side.
func sendAndReceive(to string) error {
	c, err := net.Dial("udp4", to)
	if err != nil {
		return err
	}
	defer c.Close()
	if from := netip.MustParseAddrPort(c.LocalAddr().String()).Addr(); from != inner {
		return fmt.Errorf("the source is %v; want %v", from, inner)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	big := make([]byte, 1420-28)
	copy(big, "hello")
	b := make([]byte, 2000)
	for _, payload := range [][]byte{[]byte("hello"), big} {
		if _, err := c.Write(payload); err != nil {
			return err
		}
		n, err := c.Read(b)
		if err != nil || string(b[:n]) != string(payload) {
			return fmt.Errorf("%d of %d bytes came back, %v", n, len(payload), err)
		}
	}
	return nil
}

func tryIPv6() error {
	c, err := net.DialTimeout("tcp6", "[2001:db8::1]:80", time.Second)
	if err == nil {
		_ = c.Close()
		return errors.New("an IPv6 connection was made")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("IPv6 is not refused at once: %w", err)
	}
	return nil
}

func tryWriting() error {
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/disable_ipv6", "/etc/resolv.conf"} {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_ = f.Close()
			return fmt.Errorf("%s can be opened for writing", path)
		}
	}
	return nil
}

// tryEscaping tries the ways out that a command of the same user knows.
func tryEscaping(secret string) error {
	if entries, err := os.ReadDir(secret); err == nil && len(entries) > 0 {
		return fmt.Errorf("the hidden folder shows %v", entries)
	}
	if err := os.WriteFile(filepath.Join(secret, "x"), nil, 0o600); err == nil {
		return errors.New("the hidden folder can be written")
	}
	if err := unix.Unmount(secret, unix.MNT_DETACH); err == nil {
		return errors.New("the mount that hides can be taken away")
	}
	parent := strconv.Itoa(os.Getppid())
	for _, name := range []string{"ns/net", "root", "mem"} {
		if f, err := os.Open(filepath.Join("/proc", parent, name)); err == nil {
			_ = f.Close()
			return fmt.Errorf("/proc/%s/%s of the parent can be opened", parent, name)
		}
	}
	if err := unix.Kill(os.Getppid(), unix.SIGURG); err == nil && landlockScopes() {
		return errors.New("the parent can be signalled")
	}
	if fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err == nil {
		_ = unix.Close(fd)
		return errors.New("a packet socket can be opened")
	}
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP); err == nil {
		_ = unix.Close(fd)
		return errors.New("a raw socket can be opened")
	}
	return nil
}

// landlockScopes says whether the kernel can keep signals inside (ABI 6).
func landlockScopes() bool {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return errno == 0 && abi >= 6
}

// waitClosed waits until the interface is gone and then looks for another way.
func waitClosed() error {
	deadline := time.After(10 * time.Second)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		all, err := net.Interfaces()
		if err != nil {
			return err
		}
		if len(all) == 1 {
			break
		}
		select {
		case <-again.C:
		case <-deadline:
			return fmt.Errorf("interfaces %v are still there after 10 s", all)
		}
	}
	c, err := net.DialTimeout("tcp4", "192.0.2.1:80", time.Second)
	if err == nil {
		_ = c.Close()
		return errors.New("a connection was made without an interface")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("programs wait instead of failing at once: %w", err)
	}
	return nil
}

func seeDescriptors() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && fd > 2 && flags&unix.FD_CLOEXEC == 0 {
			return fmt.Errorf("descriptor %d was inherited", fd)
		}
	}
	return nil
}

func waitSignal() int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	if _, err := os.Stdin.Write([]byte{1}); err != nil {
		return 1
	}
	select {
	case <-signals:
		return 42
	case <-time.After(10 * time.Second):
		return 1
	}
}

// beParent runs a sandbox that never ends, for a test that kills this process.
func beParent() int {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 1
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		c, err := net.FileConn(os.NewFile(uintptr(fd), "pair"))
		if err != nil {
			return 1
		}
		conns[i] = c.(*net.UnixConn)
	}
	f := &far{conn: conns[0], done: make(chan error, 1)}
	go func() { f.done <- f.serve() }()
	exe, err := os.Executable()
	if err != nil {
		return 1
	}
	_, err = Run(Config{Command: []string{exe, inside, "ready"}, Sidecar: conns[1], Inner: inner, DNS: dns, MTU: 1420, Interface: Veth})
	fmt.Fprintln(os.Stderr, err)
	return 77
}
