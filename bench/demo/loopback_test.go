package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// programs are those of the demo. Its user owns none of them. The race detector would keep them
// from what the demo expects within a time.
var programs = netlab.NewPlainPrograms(
	"github.com/sallyport-net/sallyport/cmd/sallyportd",
	"github.com/sallyport-net/sallyport/cmd/sallyport-sidecar",
	"github.com/sallyport-net/sallyport/cmd/sallyport-bench",
)

// forbidVariable makes a copy of this test's process forbid user namespaces, and
// run the command that it names as a user without powers.
const forbidVariable = "SALLYPORT_DEMO_FORBID"

// notOnLoopback are the expectations that nobody can look at without namespaces.
var notOnLoopback = []string{
	"ICMP echo", "they do not see each other",
	"packets of gw-a", "packets of gw-b", "packets of gw-c", "packets of the worker",
}

// TestForbidden runs the demo as a user without powers who may not make user
// namespaces.
func TestForbidden(t *testing.T) {
	netlab.Require(t)
	bin := programs.Build(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestForbiddenInside$")
	cmd.Env = append(os.Environ(), forbidVariable+"="+filepath.Join(bin, "sallyport-bench"), "SALLYPORT_NETLAB=inside")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("the demo: %v\n%s\n%s", err, stdout.Bytes(), stderr.Bytes())
	}
	var r report
	if err := json.NewDecoder(&stdout).Decode(&r); err != nil {
		t.Fatalf("the demo writes no JSON: %v\n%s", err, stderr.Bytes())
	}
	if r.World != worldLoopback || r.Why == "" || !r.Held {
		t.Errorf("it ran in %s because of %q, held: %v", r.World, r.Why, r.Held)
	}
	for i, c := range expectations(testPlan) {
		want := held
		for _, name := range notOnLoopback {
			if name == c.name {
				want = impossible
			}
		}
		if x := r.Results[i]; x.Name != c.name || x.Status != want {
			t.Errorf("%q: %v: %s, want %v", x.Name, x.Status, x.Seen, want)
		}
	}
}

// TestForbiddenInside runs the demo for TestForbidden, in namespaces of its own
// whose loopback is up. One user namespace is left, in which the demo is nobody.
func TestForbiddenInside(t *testing.T) {
	program := os.Getenv(forbidVariable)
	if program == "" {
		return
	}
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("1\n"), 0); err != nil {
		t.Fatalf("forbid user namespaces: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), program, "demo", "--json")
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "SALLYPORT_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	const nobody = 1000
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}},
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true},
		Pdeathsig:   syscall.SIGKILL,
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(fmt.Errorf("run the demo: %w", err))
	}
}
