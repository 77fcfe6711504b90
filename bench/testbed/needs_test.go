package testbed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// Arguments with which this program is the one that is tried in a user namespace.
const (
	endsAtOnce = "ends-at-once"
	failsThere = "fails-there"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == endsAtOnce {
		return
	} else if len(os.Args) == 2 && os.Args[1] == failsThere {
		os.Exit(3)
	}
	os.Exit(netlab.Enter(m))
}

// Sandboxes are tried, by a program in a user namespace of its own.
func TestNeedsSandboxes(t *testing.T) {
	netlab.Require(t)
	if err := (Needs{Core: AnyCore, Sandboxes: endsAtOnce}).Check(); err != nil {
		netlab.NotRun(t, err.Error())
	}
	err := Needs{Core: AnyCore, Sandboxes: failsThere}.Check()
	if err == nil || !strings.Contains(err.Error(), "for a sandbox") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a program that cannot run there: %v", err)
	}
}

// All that is missing is said at once, and each with what to do.
func TestNeeds(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n := Needs{
		Programs: []string{"sh", "no-such-program"}, Built: []string{"there", "text", "gone"}, Bin: dir, Make: "make build",
		Core: 1023, Alone: true, Shared: " -1 shares",
	}
	err := n.Check()
	if err == nil {
		t.Fatal("nothing is missing")
	}
	for _, want := range []string{"no-such-program is not installed (make deps)", "/text (make build; --bin)", "/gone (make build", "there is no core 1023 for the gateway: this process may use core"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in:\n%v", want, err)
		}
	}
	for _, not := range []string{"program sh ", "/there"} {
		if strings.Contains(err.Error(), not) {
			t.Errorf("%q is in:\n%v", not, err)
		}
	}
	n.Alone = false
	if err := n.Check(); err == nil || !strings.Contains(err.Error(), "no core 1023") {
		t.Errorf("a core that is not there: %v", err)
	}
	for _, core := range []int{-2, 1 << 20} {
		if err := CoreUsable(core, ", or none"); err == nil || !strings.Contains(err.Error(), "choose one, or none (--core)") {
			t.Errorf("core %d: %v", core, err)
		}
	}
	cores, err := usableCores()
	if err != nil || len(cores) == 0 || CoreUsable(cores[len(cores)-1], "") != nil {
		t.Errorf("the cores %v, %v", cores, err)
	}
	root := Needs{Root: "run it as root", Core: AnyCore}
	if err, mere := root.Check(), os.Geteuid() != 0 || netlab.Inside(); mere && (err == nil || !strings.Contains(err.Error(), "as root")) {
		t.Errorf("without root: %v", err)
	} else if !mere && netlab.Usable() == nil && err != nil {
		t.Errorf("as root: %v", err)
	}
}
