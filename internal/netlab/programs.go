package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Programs are programs that the tests of a package start as users do. They are built from
// their source once, when the first test asks for them, and all users may run them.
//
// Where the race detector looks at the tests it looks at the programs as well: what it says of
// one fails the test during which it says so.
//
//	var programs = netlab.NewPrograms("github.com/sallyport-net/sallyport/cmd/sallyportd")
//
//	func TestMain(m *testing.M) { os.Exit(netlab.Enter(programs.Around(m))) }
//
//	bin := programs.Build(t)
type Programs struct {
	packages []string
	race     bool

	mu    sync.Mutex
	dir   string // empty: it is not made
	built bool   // or could not be
	err   error  // of the build, for all who ask
	// said is where the race detector writes, and told how many bytes of each file there are
	// known. Empty: nobody listens here. was is the detector's setting before.
	said, was string
	told      map[string]int
}

// raceVariable holds the settings of the race detector.
const raceVariable = "GORACE"

// NewPrograms names the packages of programs, each by its import path. Nothing is built yet.
func NewPrograms(packages ...string) *Programs {
	return &Programs{packages: packages, race: raceEnabled, told: map[string]int{}}
}

// NewPlainPrograms is [NewPrograms] for programs that are never built with the race detector:
// those of others, and those that other tests of ours run with it.
func NewPlainPrograms(packages ...string) *Programs { return &Programs{packages: packages} }

// Build returns the folder of the programs, whose names are the last elements of their
// packages' paths. If they cannot be built the test ends, and says what the compiler did.
func (p *Programs) Build(t TB) (dir string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.built {
		p.err, p.built = p.build(), true
	}
	if p.err != nil {
		t.Fatalf("%v", p.err)
	}
	t.Cleanup(func() {
		if found := p.races(); found != "" {
			t.Errorf("%s", found)
		}
	})
	return p.dir
}

func (p *Programs) build() error {
	if err := p.folder(); err != nil {
		return err
	}
	args := []string{"build", "-buildvcs=false", "-o", p.dir + "/"}
	if p.race {
		args = append(args, "-race")
	}
	args = append(args, p.packages...)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("netlab: go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// folder makes the folder, if it is not there.
func (p *Programs) folder() (err error) {
	if p.dir != "" {
		return nil
	}
	if p.dir, err = os.MkdirTemp("", "sallyport-programs-"); err == nil {
		err = os.Chmod(p.dir, 0o755)
	}
	if err != nil {
		return fmt.Errorf("netlab: make a folder for programs: %w", err)
	}
	return nil
}

// listen makes the race detector of all programs that this process starts, copies of itself
// among them, write to files of the folder. By itself it would hold up each end for a second.
// Whoever started this process and said where to write, as tests that start a copy of themselves
// do, listens himself.
func (p *Programs) listen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.was = os.Getenv(raceVariable); strings.Contains(p.was, "log_path=") {
		return nil
	}
	if err := p.folder(); err != nil {
		return err
	}
	said := filepath.Join(p.dir, "races")
	err := os.Mkdir(said, 0o700)
	if err == nil {
		err = os.Chmod(said, 0o777|os.ModeSticky) // programs may run as other users
	}
	if err == nil {
		err = os.Setenv(raceVariable, strings.TrimSpace(p.was+" atexit_sleep_ms=0 log_path="+filepath.Join(said, "process")))
	}
	if err != nil {
		return fmt.Errorf("netlab: make room for what the race detector says: %w", err)
	}
	p.said = said
	return nil
}

// races is what the race detector has said since the last call; empty: nothing.
func (p *Programs) races() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said == "" {
		return ""
	}
	files, err := os.ReadDir(p.said)
	var text strings.Builder
	for _, f := range files {
		b, failed := os.ReadFile(filepath.Join(p.said, f.Name()))
		err = errors.Join(err, failed)
		if n := p.told[f.Name()]; len(b) > n {
			fmt.Fprintf(&text, "DATA RACE: %s:\n%s", f.Name(), b[n:])
			p.told[f.Name()] = len(b)
		}
	}
	if err != nil {
		fmt.Fprintf(&text, "netlab: read what the race detector says: %v\n", err)
	}
	return text.String()
}

// Around makes a package's tests remove the programs when they have run, and fail for what the
// race detector says when no test that asked for them is left.
func (p *Programs) Around(m interface{ Run() int }) interface{ Run() int } { return around{p, m} }

type around struct {
	programs *Programs
	tests    interface{ Run() int }
}

// Run runs the tests. What cannot be removed fails them.
func (a around) Run() int {
	if a.programs.race {
		if err := a.programs.listen(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code := a.tests.Run()
	if found := a.programs.races(); found != "" {
		fmt.Fprint(os.Stderr, found)
		code = max(code, 1)
	}
	if err := a.programs.remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// remove removes the programs. They cannot be had again.
func (p *Programs) remove() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dir == "" {
		return nil
	}
	if p.said != "" {
		if err := os.Setenv(raceVariable, p.was); err != nil {
			return fmt.Errorf("netlab: set the race detector as it was: %w", err)
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("netlab: remove what was built: %w", err)
	}
	p.dir, p.said = "", ""
	p.built, p.err = true, errors.New("netlab: the programs are removed, as the tests are over")
	return nil
}
