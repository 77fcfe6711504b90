package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/bench/testbed"
	"github.com/sallyport-net/sallyport/bench/wire"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// The far side of a world, and its further addresses (RFC 2544).
const (
	farAddress = "192.0.2.80:9000"
	farPrefix  = "198.18.0.0/28"
)

// world is a sandbox, a gateway and a far side in a row, in which sallyport-bench serves and
// runs as users start it.
type world struct {
	t       *testing.T
	dir     string
	bed     *testbed.Testbed
	gateway *testbed.Sallyport // nil: it is another program
	keyFile string
	fixed   []string // arguments of each run
}

func newWorld(t *testing.T) *world {
	t.Helper()
	netlab.Require(t)
	netlab.Program(t, "ip")
	w := &world{t: t, dir: t.TempDir(), keyFile: keyFile(t, bytes.Repeat([]byte{7}, wire.KeySize), 0o600)}
	w.fixed = []string{
		"run", "--quiet", "--again", "0", "--far", farAddress, "--far-prefix", farPrefix,
		"--rate", "4000", "--for", "200ms", "--try", "50ms", "--sandboxes", "1,16",
	}
	var err error
	w.bed, err = testbed.New(testbed.Config{Core: testbed.AnyCore, Remotes: netip.MustParsePrefix(farPrefix)})
	t.Cleanup(func() {
		if err := w.bed.Close(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	w.serve()
	return w
}

// program is sallyport-bench with arguments.
func (w *world) program(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{asProgram}, args...)...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	return cmd
}

// serve starts the far side and waits until it listens.
func (w *world) serve() {
	w.t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { read.Close() })
	cmd := w.program("serve", "--listen", farAddress, "--prefix", farPrefix, "--key-file", w.keyFile)
	cmd.Stdout, cmd.Stderr = write, write
	err = w.bed.Server.Start(cmd)
	write.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill() // its summary is for another test
		_ = cmd.Wait()
	})
	b := make([]byte, 4096)
	if n, err := read.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "Listening on ") {
		w.t.Fatalf("the far side says %q, %v", b[:n], err)
	}
	go func() { _, _ = io.Copy(io.Discard, read) }()
}

// operated starts sallyportd on the gateway, with further settings.
func (w *world) operated(settings string) {
	w.t.Helper()
	program := filepath.Join(programs.Build(w.t), "sallyportd")
	var err error
	w.gateway, err = w.bed.StartSallyport(w.t.Context(), testbed.SallyportConfig{
		Uplink: "sockets", Program: program, Dir: filepath.Join(w.dir, "gateway"), Log: filepath.Join(w.dir, "sallyportd.log"),
		Settings: settings, GiveUp: func(why error) {
			if why != nil {
				w.t.Error(why)
			}
		},
	})
	w.t.Cleanup(func() {
		if err := w.gateway.Stop(); err != nil {
			w.t.Error(err)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// file is the path of one of the gateway's files.
func (w *world) file(name string) string { return filepath.Join(w.dir, "gateway", name) }

// write writes a file for the user and returns its path.
func (w *world) write(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// byAPI are arguments that name our gateway, changed by pairs of an option and its value.
func (w *world) byAPI(changes ...string) []string {
	args := []string{
		"--api", "unix://" + w.file("api.sock"), "--token-file", w.file("token"), "--key-file", w.keyFile,
		"--project", testbed.Project, "--environment", testbed.Environment, "--region", testbed.Region,
	}
	return append(args, changes...) // of an option that is there twice the later counts
}

// told is what a run says of itself.
type told struct {
	code           int
	stdout, stderr string
	Gateway        struct {
		Kind string
		Pair []netip.Addr
	}
	Scenarios []struct {
		Name, NotRun string
		Steps        []measured
		Problems     []string
	}
	Problems []string
}

// measured is one step of it.
type measured struct {
	Name    string
	Figures map[string]float64
	Latency *struct{ Count uint64 }
	Sources *struct {
		Seen    []netip.Addr
		Wrong   uint64
		Checked bool
	}
	Broken       bool
	Marks, Wrong []string
}

// started is a run under way.
type started struct {
	cmd    *exec.Cmd
	json   string
	out    bytes.Buffer
	errors *os.File
}

// start starts a run in the sandbox's namespace; changes come after all other arguments.
func (w *world) start(t *testing.T, args ...string) *started {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s := &started{json: filepath.Join(dir, "result.json"), errors: f}
	s.cmd = w.program(append(append(append([]string(nil), w.fixed...), args...), "--json", s.json)...)
	s.cmd.Stdout, s.cmd.Stderr = &s.out, f
	if err := w.bed.Sandbox.Start(s.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // of a test that ended before it
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	return s
}

// end waits for a run and reads what it says.
func (s *started) end(t *testing.T) (r told) {
	t.Helper()
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.json)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the result: %v", err)
	}
	said, err := os.ReadFile(s.errors.Name())
	if err != nil {
		t.Error(err)
	}
	r.code, r.stdout, r.stderr = s.cmd.ProcessState.ExitCode(), s.out.String(), string(said)
	return r
}

func (w *world) run(t *testing.T, args ...string) told {
	t.Helper()
	return w.start(t, args...).end(t)
}

// arrived is how many packets the far side's link has taken in.
func (w *world) arrived() (n uint64, err error) {
	err = w.bed.Server.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(b), testbed.LinkSide+":")
		var bytes uint64
		_, err = fmt.Sscan(rest, &bytes, &n)
		return err
	})
	return n, err
}
