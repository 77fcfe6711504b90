//go:build race

package netlab_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

const racing = `package main

import "sync"

func main() {
	n, both := 0, sync.WaitGroup{}
	for range 2 {
		both.Go(func() { n++ })
	}
	both.Wait()
	println(n)
}
`

// What the race detector says of a program fails the test that asked for it, once; what it says
// when no test is left fails the package.
func TestProgramsRace(t *testing.T) {
	t.Setenv("GORACE", "history_size=2")
	p := netlab.NewPrograms(source(t, "racing", racing))
	var dir string
	race := func() {
		if err := exec.Command(filepath.Join(dir, "main")).Run(); err == nil || !strings.Contains(err.Error(), "66") {
			t.Errorf("a program with a race ends with %v", err)
		}
	}
	code := p.Around(testsThat(func() int {
		var said string
		if dir, said = build(t, p); said != "" {
			t.Fatal(said)
		}
		race()
		if _, said = build(t, p); strings.Count(said, "WARNING: DATA RACE") != 1 {
			t.Errorf("the test during which it raced says %q", said)
		}
		if _, said = build(t, p); said != "" {
			t.Errorf("the test after it says %q", said)
		}
		return 0
	})).Run()
	if code != 0 {
		t.Errorf("what a test said is said again: %d", code)
	}
	p = netlab.NewPrograms(source(t, "racing", racing))
	code = p.Around(testsThat(func() int {
		dir, _ = build(t, p)
		race()
		return 0
	})).Run()
	if code != 1 {
		t.Errorf("tests after which something raced end with %d", code)
	}
	if is := os.Getenv("GORACE"); is != "history_size=2" {
		t.Errorf("the race detector is set to %q afterwards", is)
	}
}

// A copy of the tests leaves it to those that started it to listen, and makes no folder, as it
// may become another program before its end.
func TestProgramsRaceInCopies(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	set := "log_path=" + filepath.Join(dir, "said")
	t.Setenv("GORACE", set)
	netlab.NewPrograms("none").Around(testsThat(func() int {
		if is := os.Getenv("GORACE"); is != set {
			t.Errorf("the race detector is set to %q", is)
		}
		if made, err := os.ReadDir(dir); len(made) != 0 || err != nil {
			t.Errorf("there are %v, %v", made, err)
		}
		return 0
	})).Run()
}
