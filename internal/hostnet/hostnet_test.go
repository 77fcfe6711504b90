package hostnet_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Enter(m)) }

var inner = netip.MustParsePrefix("10.7.0.1/24")

// worlds runs one test body against the fake and against a real namespace.
func worlds(t *testing.T, body func(t *testing.T, host hostnet.Host)) {
	t.Run("fake", func(t *testing.T) { body(t, hostnet.NewFake()) })
	t.Run("kernel", func(t *testing.T) {
		netlab.Require(t)
		host, err := newNamespace(t).Host()
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := host.Close(); err != nil {
				t.Error(err)
			}
		}()
		body(t, host)
	})
}

func newNamespace(t *testing.T) *hostnet.Namespace {
	t.Helper()
	netlab.Require(t)
	ns, err := hostnet.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// sandbox is a plan with something of everything.
func sandbox() hostnet.Plan {
	return hostnet.Plan{
		Links: []hostnet.Link{
			{Name: "lo"},
			{Name: "eth0", MTU: 1420, NoARP: true, Veth: &hostnet.VethPeer{Name: "far"}},
			{Name: "far"},
		},
		Addresses: []hostnet.Address{
			{Link: "eth0", Prefix: inner},
			{Link: "lo", Prefix: netip.MustParsePrefix("192.0.2.1/32")},
			{Link: "lo", Prefix: netip.MustParsePrefix("192.0.2.2/32")},
		},
		Routes: []hostnet.Route{
			{Link: "eth0", Prefix: hostnet.DefaultIPv4, Via: netip.MustParseAddr("10.7.0.254")},
			{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("10.7.0.9")},
			{Link: "eth0", Prefix: netip.MustParsePrefix("203.0.113.0/24"), Metric: 7},
			{Prefix: hostnet.DefaultIPv4, Kind: hostnet.Unreachable, Metric: 9999},
			{Prefix: hostnet.DefaultIPv6, Kind: hostnet.Unreachable},
		},
		Drops: []hostnet.Drop{
			{From: "eth0"},
			{To: netip.MustParsePrefix("192.0.2.0/24")},
			{From: "far", To: netip.MustParsePrefix("192.0.2.1/32")},
			{From: "far", Local: true},
		},
		Sysctls: []hostnet.Sysctl{
			{Name: "net.ipv4.ping_group_range", Value: "0 0"},
			{Name: "net/ipv4/ip_forward", Value: "1"},
		},
	}
}

func addresses(t *testing.T, host hostnet.Host) []string {
	t.Helper()
	list, err := host.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, p := range list {
		if p.Addr().Is4() && p.Addr() != netip.MustParseAddr("127.0.0.1") {
			text = append(text, p.String())
		}
	}
	slices.Sort(text)
	return text
}

func TestApplyAndUndoAreIdempotent(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		want := []string{"10.7.0.1/24", "192.0.2.1/32", "192.0.2.2/32"}
		for range 3 {
			for range 2 {
				if err := host.Apply(sandbox()); err != nil {
					t.Fatal(err)
				}
				if got := addresses(t, host); !slices.Equal(got, want) {
					t.Fatalf("after Apply: %v, want %v", got, want)
				}
			}
			for range 2 {
				if err := host.Undo(sandbox()); err != nil {
					t.Fatal(err)
				}
				if got := addresses(t, host); len(got) != 0 {
					t.Fatalf("after Undo: %v", got)
				}
			}
		}
	})
}

func TestApplyStopsAndUndoCleansUp(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		p := sandbox()
		p.Addresses = append(p.Addresses, hostnet.Address{Link: "absent0", Prefix: inner})
		err := host.Apply(p)
		if err == nil || !strings.Contains(err.Error(), "absent0") || !strings.Contains(err.Error(), "no such link") {
			t.Fatalf("address on an absent link: %v", err)
		}
		if len(addresses(t, host)) != 3 {
			t.Error("what came before the error is gone")
		}
		if err := host.Undo(p); err != nil {
			t.Fatalf("Undo of a half-applied plan: %v", err)
		}
		if got := addresses(t, host); len(got) != 0 {
			t.Errorf("after Undo: %v", got)
		}
	})
}

func TestApplyRefuses(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		via := netip.MustParseAddr("10.99.0.1")
		for _, c := range []struct {
			name string
			plan hostnet.Plan
			want string
		}{
			{"absent link", hostnet.Plan{Links: []hostnet.Link{{Name: "absent0"}}}, "no such link"},
			{"veth over another type", hostnet.Plan{Links: []hostnet.Link{{Name: "lo", Veth: &hostnet.VethPeer{Name: "x"}}}}, "exists"},
			{"route on an absent link", hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "absent0"}}}, "no such link"},
			{"route over a link that is down", hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "lo"}}}, "down"},
			{"next hop out of reach", hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Via: via}}}, "unreachable"},
			{"unknown sysctl", hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: "net.ipv4.no_such_thing", Value: "1"}}}, "no such file"},
			{"sysctl outside", hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: "net/../../../etc/passwd", Value: "1"}}}, "not a name under"},
			{"empty sysctl", hostnet.Plan{Sysctls: []hostnet.Sysctl{{Value: "1"}}}, "not a name under"},
			{"long name", hostnet.Plan{Links: []hostnet.Link{{Name: "a234567890123456"}}}, "not a name of an interface"},
			{"name of a path", hostnet.Plan{Addresses: []hostnet.Address{{Link: "../x", Prefix: inner}}}, "not a name of an interface"},
			{"bad peer name", hostnet.Plan{Links: []hostnet.Link{{Name: "a", Veth: &hostnet.VethPeer{}}}}, "peer of"},
			{"twins", hostnet.Plan{Links: []hostnet.Link{{Name: "a", Veth: &hostnet.VethPeer{Name: "a"}}}}, "one name"},
			{"MTU", hostnet.Plan{Links: []hostnet.Link{{Name: "lo", MTU: 65536}}}, "MTU"},
			{"no prefix", hostnet.Plan{Addresses: []hostnet.Address{{Link: "lo"}}}, "invalid prefix"},
			{"route without prefix", hostnet.Plan{Routes: []hostnet.Route{{Link: "lo"}}}, "invalid prefix"},
			{"route to a host in a prefix", hostnet.Plan{Routes: []hostnet.Route{{Link: "lo", Prefix: inner}}}, "host bits: write 10.7.0.0/24"},
			{"route to nowhere", hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4}}}, "needs a link or a next hop"},
			{"unreachable somewhere", hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv4, Link: "lo", Kind: hostnet.Unreachable}}}, "neither"},
			{"two families", hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv6, Via: via}}}, "families"},
			{"drop of everything", hostnet.Plan{Drops: []hostnet.Drop{{}}}, "everything would be dropped"},
			{"drop to a host in a prefix", hostnet.Plan{Drops: []hostnet.Drop{{To: inner}}}, "without host bits"},
			{"drop of IPv6", hostnet.Plan{Drops: []hostnet.Drop{{To: hostnet.DefaultIPv6}}}, "IPv4"},
			{"drop from a path", hostnet.Plan{Drops: []hostnet.Drop{{From: "a/b"}}}, "not a name of an interface"},
			{"metric", hostnet.Plan{Routes: []hostnet.Route{{Prefix: hostnet.DefaultIPv6, Link: "lo", Metric: -1}}}, "negative"},
		} {
			if err := host.Apply(c.plan); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want %q", c.name, err, c.want)
			}
		}
		if err := host.Undo(hostnet.Plan{Links: []hostnet.Link{{}}}); err == nil {
			t.Error("Undo took an invalid plan")
		}
	})
}

func TestLinkTakesEverythingWithIt(t *testing.T) {
	worlds(t, func(t *testing.T, host hostnet.Host) {
		p := sandbox()
		if err := host.Apply(p); err != nil {
			t.Fatal(err)
		}
		if err := host.Undo(hostnet.Plan{Links: p.Links[1:2]}); err != nil {
			t.Fatal(err)
		}
		if got, want := addresses(t, host), []string{"192.0.2.1/32", "192.0.2.2/32"}; !slices.Equal(got, want) {
			t.Errorf("addresses left: %v, want %v", got, want)
		}
		if err := host.Apply(hostnet.Plan{Links: []hostnet.Link{{Name: "far"}}}); err == nil {
			t.Error("the peer outlived the link")
		}
		if err := host.Undo(p); err != nil {
			t.Error(err)
		}
	})
}

// inside runs f in the namespace and fails the test on an error.
func inside(t *testing.T, ns *hostnet.Namespace, f func() error) {
	t.Helper()
	if err := ns.Do(f); err != nil {
		t.Fatal(err)
	}
}

func kernelOf(t *testing.T, ns *hostnet.Namespace) *hostnet.Kernel {
	t.Helper()
	k, err := ns.Host()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func TestKernelHoldsWhatWasApplied(t *testing.T) {
	ns := newNamespace(t)
	k := kernelOf(t, ns)
	if err := k.Apply(sandbox()); err != nil {
		t.Fatal(err)
	}
	inside(t, ns, func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		if link.MTU != 1420 || link.Flags&net.FlagUp == 0 {
			return fmt.Errorf("eth0: MTU %d, flags %v", link.MTU, link.Flags)
		}
		for path, want := range map[string]string{
			"/proc/sys/net/ipv4/ip_forward":       "1\n",
			"/proc/sys/net/ipv4/ping_group_range": "0\t0\n",
		} {
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				return fmt.Errorf("%s holds %q, %v", path, got, err)
			}
		}
		return nil
	})
	mac, err := k.HardwareAddr("eth0")
	if err != nil || len(mac) != 6 {
		t.Errorf("address of eth0: %v, %v", mac, err)
	}
	if _, err := k.HardwareAddr("absent0"); err == nil || !strings.Contains(err.Error(), "no such link") {
		t.Errorf("address of an absent link: %v", err)
	}
}

func TestUnreachableRoutesFailAtOnce(t *testing.T) {
	ns := newNamespace(t)
	k := kernelOf(t, ns)
	p := hostnet.Plan{
		Links: []hostnet.Link{{Name: "lo"}, {Name: "eth0", Veth: &hostnet.VethPeer{Name: "far"}}, {Name: "far"}},
		Addresses: []hostnet.Address{
			{Link: "eth0", Prefix: inner},
			{Link: "eth0", Prefix: netip.MustParsePrefix("2001:db8::1/64")},
		},
		Routes: []hostnet.Route{
			{Prefix: hostnet.DefaultIPv4, Kind: hostnet.Unreachable},
			{Prefix: hostnet.DefaultIPv6, Kind: hostnet.Unreachable},
		},
	}
	if err := k.Apply(p); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"198.51.100.1:9", "[2001:db8:1::1]:9"} {
		err := ns.Do(func() error {
			c, err := net.Dial("udp", to)
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		if !errors.Is(err, syscall.EHOSTUNREACH) { // without a route it would be ENETUNREACH
			t.Errorf("dial %s: %v, want unreachable", to, err)
		}
	}
	// With IPv6 switched off the route is still no error, and may be undone.
	p.Sysctls = []hostnet.Sysctl{{Name: "net.ipv6.conf.all.disable_ipv6", Value: "1"}}
	p.Addresses = p.Addresses[:1]
	for range 2 {
		if err := k.Apply(p); err != nil {
			t.Error(err)
		}
	}
	if err := k.Undo(p); err != nil {
		t.Error(err)
	}
}

func TestVethPairBetweenNamespaces(t *testing.T) {
	a, b := newNamespace(t), newNamespace(t)
	macA, macB := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	ends := []hostnet.VethEnd{{Namespace: a, Name: "eth0", MAC: macA}, {Namespace: b, Name: "eth0", MAC: macB}}
	if err := hostnet.VethPair(ends[0], ends[1]); err != nil {
		t.Fatal(err)
	}
	if err := hostnet.VethPair(ends[0], ends[1]); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second pair of that name: %v", err)
	}
	if err := hostnet.VethPair(hostnet.VethEnd{Namespace: a}, ends[1]); err == nil {
		t.Error("a pair without a name")
	}
	ka, kb := kernelOf(t, a), kernelOf(t, b)
	for _, c := range []struct {
		k    *hostnet.Kernel
		want net.HardwareAddr
	}{{ka, macA}, {kb, macB}} {
		if mac, err := c.k.HardwareAddr("eth0"); err != nil || mac.String() != c.want.String() {
			t.Errorf("got %v, %v, want %v", mac, err, c.want)
		}
	}
	if err := ka.Delete("eth0"); err != nil {
		t.Error(err)
	}
	if err := ka.Delete("eth0"); err != nil {
		t.Errorf("second delete: %v", err)
	}
	if _, err := kb.HardwareAddr("eth0"); err == nil {
		t.Error("the other end outlived the pair")
	}
}

// TestTxOffload sends a datagram through a veth pair and looks at its checksum
// where an AF_PACKET reader at the other end sees it.
func TestTxOffload(t *testing.T) {
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprint(offload), func(t *testing.T) {
			ns := newNamespace(t)
			k := kernelOf(t, ns)
			err := k.Apply(hostnet.Plan{
				Links: []hostnet.Link{
					{Name: "eth0", NoARP: true, TxOffload: offload, Veth: &hostnet.VethPeer{Name: "far"}},
					{Name: "far"},
				},
				Addresses: []hostnet.Address{{Link: "eth0", Prefix: inner}},
				Sysctls:   []hostnet.Sysctl{{Name: "net.ipv6.conf.all.disable_ipv6", Value: "1"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			frame := make([]byte, 2048)
			inside(t, ns, func() error { return sendAndRead(frame) })
			if got := udpChecksumRight(frame); got == offload {
				t.Errorf("checksum complete: %t with offload %t", got, offload)
			}
		})
	}
}

// sendAndRead sends a datagram on eth0 and reads the frame from far.
func sendAndRead(frame []byte) error {
	far, err := net.InterfaceByName("far")
	if err != nil {
		return err
	}
	const ipv4 = unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv4, Ifindex: far.Index}); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	c, err := net.Dial("udp4", "10.7.0.2:9")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("a datagram whose checksum matters")); err != nil {
		return err
	}
	_, err = unix.Read(fd, frame)
	return err
}

// udpChecksumRight verifies the UDP checksum of an Ethernet frame.
func udpChecksumRight(frame []byte) bool {
	ip := frame[14:]
	total := int(binary.BigEndian.Uint16(ip[2:]))
	sum := uint32(17 + total - 20)
	for i := 12; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	udp := append(slices.Clone(ip[20:total]), 0)
	for i := 0; i+1 < len(udp); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(udp[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum == 0xffff
}

func TestDoStaysInsideAndComesBack(t *testing.T) {
	ns := newNamespace(t)
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		var seen string
		inside(t, ns, func() (err error) {
			if main, err := os.Readlink("/proc/self/ns/net"); err != nil || main != own {
				return fmt.Errorf("the process's first thread is in %s: %w", main, err)
			}
			seen, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if seen == own {
			t.Fatal("f ran outside")
		}
	}
	failure := errors.New("from f")
	if err := ns.Do(func() error { return failure }); err != failure {
		t.Errorf("got %v", err)
	}
	err = ns.Do(func() error { (&testing.T{}).SkipNow(); return nil })
	if err == nil || !strings.Contains(err.Error(), "Goexit") {
		t.Errorf("a function that never returned: %v", err)
	}
	// Neither left a thread of the pool in the wrong namespace.
	results := make(chan string)
	for range 64 {
		go func() {
			at, _ := os.Readlink("/proc/thread-self/ns/net")
			results <- at
		}()
	}
	for range 64 {
		if at := <-results; at != own {
			t.Errorf("a goroutine is in %s, want %s", at, own)
		}
	}
	// Inside one, another is entered and left.
	other := newNamespace(t)
	inside(t, ns, func() error {
		before, _ := os.Readlink("/proc/thread-self/ns/net")
		if err := other.Do(func() error { return nil }); err != nil {
			return err
		}
		if after, _ := os.Readlink("/proc/thread-self/ns/net"); after != before {
			return fmt.Errorf("the caller's thread moved from %s to %s", before, after)
		}
		return nil
	})
}

func TestOpenNamespace(t *testing.T) {
	ns := newNamespace(t)
	var path string
	cmd := exec.Command("/bin/sleep", "1000")
	inside(t, ns, func() error { return cmd.Start() })
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	path = fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	again, err := hostnet.OpenNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	a, errA := ns.File().Stat()
	b, errB := again.File().Stat()
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Errorf("another namespace: %v, %v", errA, errB)
	}
	if _, err := hostnet.OpenNamespace("/proc/self/ns/mnt"); err == nil || !strings.Contains(err.Error(), "not a network namespace") {
		t.Errorf("a mount namespace: %v", err)
	}
	if _, err := hostnet.OpenNamespace(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

func TestHere(t *testing.T) {
	k, err := hostnet.Here()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	list, err := k.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	system, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, a := range system {
		want = append(want, a.String())
	}
	var got []string
	for _, p := range list {
		got = append(got, p.String())
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestKernelNeedsNoPrivilegeToLook runs for every user: what is right already
// is not written.
func TestKernelNeedsNoPrivilegeToLook(t *testing.T) {
	k, err := hostnet.Here()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	have, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Apply(hostnet.Plan{Sysctls: []hostnet.Sysctl{{Name: "net.ipv4.ip_forward", Value: strings.TrimSpace(string(have))}}}); err != nil {
		t.Error(err)
	}
}
