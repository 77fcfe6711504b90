package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// TestTenant: what runs in a sandbox reaches nothing but what its network is
// for, and cannot change that.
func TestTenant(t *testing.T) { byEach(t, tenant) }

func tenant(t *testing.T, by uplinkKind) {
	w := newWorld(t, by)
	metadata := netip.MustParseAddr("169.254.169.254")
	w.worker.Address("lo", netip.PrefixFrom(metadata, 32))
	w.iad1.Address("lo", netip.PrefixFrom(metadata, 32))
	w.bait(w.worker, "0.0.0.0:8097")
	w.bait(w.iad1, "0.0.0.0:8097")
	w.up()
	b, neighbour := w.sandbox(t, acmeFunction), w.sandbox(t, acmeFunction)
	neighbour.must(t, task{Do: "listen", Target: "0.0.0.0:8097"})

	out := task{Do: "escape", Target: w.socket, Within: 25 * time.Second}
	for _, a := range []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0"), metadata, iad1Addr,
		acmePair[0], acmePair[1], globexPair[0], neighbour.inner, innerGateway,
		netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("172.16.0.1"), netip.MustParseAddr("192.168.0.1"),
		netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("10.20.255.255"),
	} {
		out.Targets = append(out.Targets, at(a, 8097))
	}
	out.Targets = append(out.Targets, adminAt, at(iad1Addr, 51820))
	for _, found := range b.must(t, out).Texts {
		t.Error("a sandbox can ", found)
	}
	// Afterwards, it works as before.
	allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
	if a := b.must(t, task{Do: "address"}); len(a.Sources) != 1 || a.Sources[0].Addr() != b.inner {
		t.Errorf("a sandbox has the addresses %v; want %v alone", a.Sources, b.inner)
	}
	if got := b.must(t, task{Do: "file", Target: "/etc/resolv.conf"}).Texts[0]; got != fmt.Sprintf("nameserver %v\n", innerGateway) {
		t.Errorf("resolv.conf is %q", got)
	}
	neighbour.end()
	if strings.Contains(neighbour.stderr.String(), "ARRIVED") {
		t.Errorf("another sandbox was reached: %s", neighbour.stderr.String())
	}
	for _, p := range w.atOrigin.Packets() {
		if p.EtherType == 0x86dd {
			t.Errorf("IPv6 on a link: %v", p)
		}
	}
}

// escapes tries what a sandbox must not be able to do, and returns what it could.
func escapes(ctx context.Context, t task) (found []string) {
	var mu sync.Mutex
	report := func(err error, format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			found = append(found, fmt.Sprintf(format, args...))
		}
	}
	var all sync.WaitGroup
	for _, target := range t.Targets {
		all.Go(func() {
			dial, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			report(connect(dial, task{Target: target}), "connect to %s", target)
			_, err := datagram(dial, target, 0)
			report(err, "ask %s by UDP", target)
		})
	}
	all.Wait()
	for _, name := range []string{"sidecar.sock", "api.sock"} {
		path := filepath.Join(filepath.Dir(t.Target), name)
		roots := []string{"", fmt.Sprintf("/proc/%d/root", os.Getppid()), "/proc/1/root"}
		for _, root := range roots {
			report(connect(ctx, task{Network: "unix", Target: root + path}), "connect to %s", root+path)
		}
	}
	report(unix.PtraceAttach(os.Getppid()), "trace the program that started it")
	for _, target := range []string{"[2001:db8::1]:80", "[fe80::1]:80", "[::ffff:169.254.169.254]:8097"} {
		report(connect(ctx, task{Network: "tcp", Target: target}), "connect to %s", target)
	}
	changeNetwork(report)
	spoof(report)
	// Opened and not written: where the sandbox leaks, these are the machine's own.
	for _, path := range []string{"/etc/resolv.conf", "/proc/sys/net/ipv4/ip_forward"} {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if report(err, "write %s", path); err == nil {
			_ = f.Close()
		}
	}
	return found
}

// changeNetwork tries to change addresses, links and routes, and to get hold of
// a socket that does not care for them.
func changeNetwork(report func(error, string, ...any)) {
	all, err := net.Interfaces()
	if err != nil || len(all) != 2 {
		report(nil, "see the interfaces %v, %v", all, err)
		return
	}
	here, err := hostnet.Here()
	if err != nil {
		report(nil, "not ask for its interfaces: %v", err)
		return
	}
	defer func() { _ = here.Close() }()
	device, other := all[1].Name, netip.MustParsePrefix("10.20.77.77/32")
	for what, plan := range map[string]hostnet.Plan{
		"add an address": {Addresses: []hostnet.Address{{Link: device, Prefix: other}}},
		"add a route":    {Routes: []hostnet.Route{{Link: device, Prefix: other}}},
		"change the MTU": {Links: []hostnet.Link{{Name: device, MTU: 9000, TxOffload: true}}},
		"make a link":    {Links: []hostnet.Link{{Name: "d0", Veth: &hostnet.VethPeer{Name: "d1"}}}},
	} {
		report(here.Apply(plan), "%s", what)
	}
	report(here.SetUp(device, false), "bring its interface down")
	for name, kind := range map[string][3]int{
		"a raw socket":              {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
		"a packet socket":           {unix.AF_PACKET, unix.SOCK_RAW, 0x0300},
		"a cooked packet socket":    {unix.AF_PACKET, unix.SOCK_DGRAM, 0x0300},
		"a raw socket of ICMP":      {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		"a raw socket beyond IPv4s": {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_UDP},
	} {
		fd, err := unix.Socket(kind[0], kind[1], kind[2])
		if report(err, "open %s", name); err == nil {
			_ = unix.Close(fd)
		}
	}
}

// spoof tries to send from addresses that are not the sandbox's. The oracle and
// the origin's sources tell if one came through that no error reports here.
func spoof(report func(error, string, ...any)) {
	to := &unix.SockaddrInet4{Port: portUDP, Addr: originAddr.As4()}
	for _, source := range []netip.Addr{
		netip.MustParseAddr("10.20.77.77"), netip.MustParseAddr("127.0.0.1"), acmePair[0], workerAddr, iad1Addr,
	} {
		for name, option := range map[string]int{"": 0, "freely bound ": unix.IP_FREEBIND, "transparent ": unix.IP_TRANSPARENT} {
			report(sendFrom(source, to, option), "send from a %ssocket with the source %v", name, source)
		}
	}
}

func sendFrom(source netip.Addr, to *unix.SockaddrInet4, option int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if option != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, option, 1); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: source.As4()}); err != nil {
		return err
	}
	if err := unix.Sendto(fd, []byte("spoofed"), 0, to); err != nil {
		return err
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 300_000})
	if _, _, err := unix.Recvfrom(fd, make([]byte, 64), 0); err != nil {
		return errors.New("it was not answered")
	}
	return nil
}
