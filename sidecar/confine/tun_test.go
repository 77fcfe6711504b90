package confine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// withoutTUN says that this process is one of TestNoTUN's, in a mount namespace of its own.
const withoutTUN = "SALLYPORT_TEST_WITHOUT_TUN"

// Where the machine has no /dev/net/tun, that is what is said, and not that
// namespaces are forbidden; and a veth pair does without.
func TestNoTUN(t *testing.T) {
	if os.Getenv(withoutTUN) != "" {
		noTUN(t)
		return
	}
	cmd := exec.Command(self(t)[0], "-test.v", "-test.run=^TestNoTUN$")
	cmd.Env = append(os.Environ(), withoutTUN+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || bytes.Contains(out, []byte("cannot hide /dev/net")) {
		netlab.NotRun(t, fmt.Sprintf("%v: %s", err, out))
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestNoTUN")) {
		t.Errorf("%v:\n%s", err, out)
	}
}

func noTUN(t *testing.T) {
	if err := unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err != nil && err != unix.ENOENT {
		t.Fatalf("cannot hide /dev/net: %v", err)
	}
	_, near := newFar(t, "")
	code, err := Run(Config{Command: []string{"true"}, Sidecar: near, Inner: inner, DNS: dns, MTU: 1420, Interface: TUN})
	_ = near.Close()
	if code != ExitFailed || err == nil || !strings.Contains(err.Error(), "/dev/net/tun") || strings.Contains(err.Error(), "user namespaces") {
		t.Errorf("with a TUN only: %d, %v; want 125 and /dev/net/tun, which is missing", code, err)
	}
	if r, _ := sandbox(t, Config{Command: []string{"true"}}); r.code != 0 || r.err != nil {
		t.Errorf("with any interface: %+v", r)
	}
}

// What the machine forbids is told apart: a TUN, or the use of namespaces.
func TestForbidden(t *testing.T) {
	missing := fail("make an interface: %w", fmt.Errorf("%w: open /dev/net/tun: %w", errNoTUN, unix.EACCES))
	if err := forbidden(missing); err != error(missing) {
		t.Errorf("a TUN that may not be opened is told as %v", err)
	}
	if err := forbidden(unix.EPERM); !strings.Contains(err.Error(), "seccomp") || !strings.Contains(err.Error(), "--proxy") {
		t.Errorf("a mount that is not permitted is told as %v", err)
	}
	if err := forbidden(unix.EIO); err != unix.EIO {
		t.Errorf("another error is told as %v", err)
	}
}
