package netlab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

const tunnelConfig = `[Interface]
PrivateKey = %s
ListenPort = 51820
[Peer]
PublicKey = %s
Endpoint = %v:51820
AllowedIPs = %v
`

func TestWireGuardEnds(t *testing.T) {
	netlab.RequireWireGuard(t)
	lab, ends := pair(t)
	lab.Connect(ends[0], ends[1])
	inner := [2]netip.Prefix{netip.MustParsePrefix("10.9.0.1/32"), netip.MustParsePrefix("10.9.0.2/32")}
	var private, public [2]string
	var devices [2]*netlab.WireGuard
	for i := range ends {
		var err error
		if private[i], public[i], err = netlab.NewWireGuardKey(); err != nil {
			t.Fatal(err)
		}
		if devices[i], err = ends[i].Namespace.WireGuard(t.Context(), netlab.WireGuardConfig{}); err != nil {
			t.Fatal(err)
		}
	}
	for i, d := range devices {
		o := 1 - i
		if err := d.Configure(fmt.Sprintf(tunnelConfig, private[i], public[o], ends[o].Address.Addr(), inner[o])); err != nil {
			t.Fatal(err)
		}
		if err := d.Up(1420, inner[i:i+1], inner[o:o+1]); err != nil {
			t.Fatal(err)
		}
	}
	echo(t, ends[1].Namespace, "10.9.0.2:7")
	if err := ask(t, ends[0].Namespace, "10.9.0.2:7", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	// Another key is another peer, whom the far end does not know.
	if err := devices[0].SetPrivateKey(private[1]); err != nil {
		t.Error(err)
	}
	if err := devices[1].Running(); err != nil {
		t.Error(err)
	}
	if err := devices[0].Configure("[Nonsense]\n"); err == nil || !strings.Contains(err.Error(), "Nonsense") {
		t.Errorf("took nonsense for a configuration: %v", err)
	}
	for range 2 {
		if err := devices[1].Stop(); err != nil {
			t.Error(err)
		}
	}
	if err := devices[1].Running(); err == nil {
		t.Error("it runs after its end")
	}
	if _, err := os.Stat(socketOf(devices[1].Device())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is still there: %v", err)
	}
	if _, err := ends[0].Namespace.WireGuard(t.Context(), netlab.WireGuardConfig{Program: "/bin/false"}); err == nil {
		t.Error("a program that ends at once is a device")
	}
}

func socketOf(device string) string { return filepath.Join("/var/run/wireguard", device+".sock") }

// crashVariable makes TestHelperCrash act as a program that is killed.
const crashVariable = "SALLYPORT_TEST_CRASH"

// TestCrashLeavesNothing kills a process with a lab that has links, a line, a
// process and a WireGuard device. One of its links ends in this test's lab: when
// the kernel ends the namespaces that nobody holds, that end goes, too.
func TestCrashLeavesNothing(t *testing.T) {
	netlab.RequireWireGuard(t)
	lab := netlab.Test(t)
	mine := lab.Namespace("the survivor's")
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperCrash$")
	cmd.Env = append(os.Environ(), crashVariable+"=1")
	cmd.ExtraFiles = []*os.File{mine.Net().File()}
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var device string
	var pids []int
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name == "device" {
			device = value
		}
		if name == "pid" {
			pid, err := strconv.Atoi(value)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
		if name == "ready" {
			break
		}
	}
	if device == "" || len(pids) != 2 {
		_ = cmd.Process.Kill()
		t.Fatalf("the helper made the device %q and the processes %v: %v", device, pids, cmd.Wait())
	}
	if _, err := mine.Host().HardwareAddr("survivor"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for _, pid := range pids {
		until(t, fmt.Sprintf("the process %d is gone", pid), func() bool { return gone(pid) })
	}
	until(t, "the kernel has ended the namespaces", func() bool {
		_, err := mine.Host().HardwareAddr("survivor")
		return err != nil
	})
	if _, err := os.Stat(socketOf(device)); err != nil {
		t.Fatalf("nothing is left to sweep: %v", err)
	}
	foreign := socketOf("sweepnot" + strconv.Itoa(os.Getpid())) // a dead socket that is no lab's
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: foreign})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	defer os.Remove(foreign)
	// The next lab's device sweeps.
	w, err := mine.WireGuard(t.Context(), netlab.WireGuardConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(socketOf(device)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of the killed lab: %v", err)
	}
	for _, path := range []string{foreign, socketOf(w.Device())} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("swept away what is not stale: %v", err)
		}
	}
	if err := w.Stop(); err != nil {
		t.Error(err)
	}
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// gone says whether a process has ended, be it that nobody has waited for it yet.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z")
}

// TestHelperCrash is no test: it is the program that TestCrashLeavesNothing kills.
func TestHelperCrash(t *testing.T) {
	if os.Getenv(crashVariable) == "" {
		t.Skip("runs for TestCrashLeavesNothing only")
	}
	lab, ends := pair(t)
	lab.ConnectLine(ends[0], ends[1], 1)
	survivor, err := hostnet.OpenNamespace("/proc/self/fd/3")
	if err != nil {
		t.Fatal(err)
	}
	if err := hostnet.VethPair(
		hostnet.VethEnd{Namespace: ends[0].Namespace.Net(), Name: "mine"},
		hostnet.VethEnd{Namespace: survivor, Name: "survivor"}); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "1000")
	if err := ends[0].Namespace.Start(sleeper); err != nil {
		t.Fatal(err)
	}
	w, err := ends[1].Namespace.WireGuard(t.Context(), netlab.WireGuardConfig{})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("device %s\npid %d\npid %d\nready\n", w.Device(), sleeper.Process.Pid, w.PID())
	<-t.Context().Done()
	_ = sleeper.Process.Signal(syscall.SIGTERM)
}
