package uplink

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// descriptorCap is the answer of DescriptorLimit where the process has no limit.
const descriptorCap = 1 << 20

// DescriptorLimit returns how many sockets the process may open for sessions: its
// RLIMIT_NOFILE (which the Go runtime has raised to the hard limit) less a share for
// everything else, which is a sixteenth and at least 64.
func DescriptorLimit() int {
	n := descriptors()
	return max(n-max(n/16, 64), 1)
}

func descriptors() int {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil || r.Cur > descriptorCap {
		return descriptorCap
	}
	return int(r.Cur)
}

// reservedMost bounds the table of descriptors that is made in advance: 1 MiB of the kernel's.
const reservedMost = 1 << 17

// reserveDescriptors has the kernel make the process's table of descriptors large enough for n
// more sockets. By itself the table doubles whenever it is full, and whoever opens a socket then
// waits for an RCU grace period, which takes seconds on a busy machine; opening a socket is
// a call that Go takes for a short one, so that the packets of all sandboxes wait with it.
// Without it all works, and so it cannot fail.
func reserveDescriptors(n int) {
	last := min(n+64, descriptors(), reservedMost) - 1
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, last); err == nil {
		unix.Close(high)
	}
}

// CheckAddress says why sockets cannot be bound to a dedicated address on this host.
func CheckAddress(a netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket to try the dedicated address %v: %w", a, err)
	}
	defer unix.Close(fd)
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: a.As4()})
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("dedicated address %v is not on this host: add it, for example with `ip address add %v/32 dev lo`, or let the daemon do it (sockets.add_addresses_to): %w", a, a, err)
	}
	if err != nil {
		return fmt.Errorf("bind a socket to the dedicated address %v: %w", a, err)
	}
	return nil
}

// CheckEcho says why ICMP echo requests of sandboxes cannot leave by sockets.
func CheckEcho() error {
	if pingAllowed() {
		return nil
	}
	return fmt.Errorf("the kernel gives this user no ping sockets: echo requests of sandboxes are dropped (icmp_unavailable); have net.ipv4.ping_group_range (now %s) include a group of the daemon's, as `sysctl -w net.ipv4.ping_group_range='0 2147483647'` does", sysctl("ipv4/ping_group_range", " "))
}

// pingAllowed finds out whether the kernel gives this process ping sockets.
func pingAllowed() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// sysctl returns a setting under /proc/sys/net with its fields joined by sep, or
// "unknown".
func sysctl(name, sep string) string {
	b, err := os.ReadFile("/proc/sys/net/" + name)
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b)), sep)
}

// describe is the line of String that does not change after the start.
func describe(c SocketsConfig, ping bool) string {
	icmp := "ICMP echo by ping sockets"
	if !ping {
		icmp = fmt.Sprintf("no ICMP echo (net.ipv4.ping_group_range %s leaves this process out)", sysctl("ipv4/ping_group_range", " "))
	}
	return fmt.Sprintf("sockets on %s: at most %d sessions of %d descriptors, %d pending connects, %d per destination; %s; "+
		"ports %s are shared with the host (net.ipv4.ip_local_port_range), one that it uses is refused and chosen anew; "+
		"UDP segmentation offload (GSO) %s, receive offload (GRO) %s; UDP buffers of %d KiB, net.core.rmem_max %s and wmem_max %s",
		joinAddrs(c.Addresses), c.MaxSessions, descriptors(), c.MaxPending, c.MaxPendingPerDestination, icmp,
		sysctl("ipv4/ip_local_port_range", "-"), udpOffload(unix.UDP_SEGMENT), udpOffload(unix.UDP_GRO), socketBuffer>>10, sysctl("core/rmem_max", " "), sysctl("core/wmem_max", " "))
}

// udpOffload tries an offload of UDP sockets, the tunnels' as well as the
// uplink's, and says whether the kernel has it.
func udpOffload(option int) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "unknown"
	}
	defer unix.Close(fd)
	if unix.SetsockoptInt(fd, unix.IPPROTO_UDP, option, 1) != nil {
		return "off (the kernel has none)"
	}
	return "on"
}

func joinAddrs(addrs []netip.Addr) string {
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	return strings.Join(s, " and ")
}
