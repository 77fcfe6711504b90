package netlab_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// failing is a test whose failures are looked at.
type failing struct {
	*testing.T
	said  string
	after []func()
}

func (f *failing) Cleanup(after func()) { f.after = append(f.after, after) }

func (f *failing) Errorf(format string, args ...any) { f.said += fmt.Sprintf(format, args...) }

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// build is what a test gets that asks for programs and ends at once, and what it says if it fails.
func build(t *testing.T, p *netlab.Programs) (dir, said string) {
	f, done := &failing{T: t}, make(chan struct{})
	go func() {
		defer close(done)
		dir = p.Build(f)
	}()
	<-done
	for _, after := range f.after {
		after()
	}
	return dir, f.said
}

// testsThat are a package's tests, made of a function.
type testsThat func() int

func (f testsThat) Run() int { return f() }

// source writes a program's source to a folder of the test and returns its path as the go
// command takes it.
func source(t *testing.T, name, text string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "main.go")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Programs are built once, all users may run them, and they go with the tests.
func TestProgramsOnce(t *testing.T) {
	p := netlab.NewPrograms(source(t, "greeter", "package main\n\nfunc main() { println(\"good day\") }\n"))
	var dir string
	code := p.Around(testsThat(func() int {
		var said string
		if dir, said = build(t, p); said != "" {
			t.Fatal(said)
		}
		program := filepath.Join(dir, "main") // go names what is built of files after the first
		out, err := exec.Command(program).CombinedOutput()
		if err != nil || string(out) != "good day\n" {
			t.Errorf("%q, %v", out, err)
		}
		for _, path := range []string{dir, program} {
			if i, err := os.Stat(path); err != nil || i.Mode()&0o005 != 0o005 {
				t.Errorf("others may not run %s: %v, %v", path, i.Mode(), err)
			}
		}
		was, err := os.Stat(program)
		if err != nil {
			t.Fatal(err)
		}
		again, said := build(t, p)
		if is, err := os.Stat(program); again != dir || said != "" || err != nil || !is.ModTime().Equal(was.ModTime()) {
			t.Errorf("the second time: %q, %q, %v", again, said, err)
		}
		return 3
	})).Run()
	if code != 3 {
		t.Errorf("the tests end with %d", code)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the programs are still there: %v", err)
	}
	if _, said := build(t, p); !strings.Contains(said, "the tests are over") {
		t.Errorf("after the end: %q", said)
	}
}

// Each test that asks says what the compiler did not like. Nobody need ask.
func TestProgramsThatCannotBeBuilt(t *testing.T) {
	p := netlab.NewPrograms(source(t, "wrong", "package main\n\nfunc main() { nonsense() }\n"))
	code := p.Around(testsThat(func() int {
		for range 2 {
			if dir, said := build(t, p); dir != "" || !strings.Contains(said, "undefined: nonsense") || !strings.Contains(said, "wrong") {
				t.Errorf("%q, %q", dir, said)
			}
		}
		return 1
	})).Run()
	if code != 1 {
		t.Errorf("the tests end with %d", code)
	}
	if code := netlab.NewPrograms("none").Around(testsThat(func() int { return 0 })).Run(); code != 0 {
		t.Errorf("tests that ask for nothing end with %d", code)
	}
}
