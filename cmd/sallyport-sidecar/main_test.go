package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/config"
)

// asProgram makes a process of the test binary the program itself.
const asProgram = "SALLYPORT_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program runs the program and returns its exit code and standard error.
func program(t *testing.T, args ...string) (int, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

func TestExitCodes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("regoin: iad1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "none.sock")
	who := []string{"exec", "--socket", socket, "--project", "p", "--environment", "production", "--runtime", "go"}
	for name, c := range map[string]struct {
		args []string
		code int
		word string
	}{
		"help":           {[]string{"--help"}, 0, ""},
		"no config":      {[]string{"run"}, 1, "config"},
		"no such file":   {[]string{"run", "--config", "/nowhere.yaml"}, 1, "/nowhere.yaml"},
		"bad config":     {[]string{"run", "--config", bad}, 1, "regoin"},
		"no sidecar":     {append(who, "--", "true"), 125, "sallyport-sidecar run --config FILE"},
		"status, none":   {[]string{"status", "--socket", socket}, 1, "no sidecar serves at " + socket},
		"no separator":   {append(who, "true", "--verbose", "--nonsense"), 125, "sallyport-sidecar run --config FILE"},
		"no project":     {[]string{"exec", "--", "true"}, 125, "project"},
		"no command":     {who, 125, "at least 1 arg"},
		"unknown flag":   {append(who, "--nonsense", "--", "true"), 125, "nonsense"},
		"no subcommand":  {[]string{"walk"}, 1, "walk"},
		"enter, no fork": {[]string{"enter-sandbox", "--", "true"}, 125, ""},
	} {
		code, said := program(t, c.args...)
		if code != c.code || !strings.Contains(said, c.word) {
			t.Errorf("%s: code %d, said %q; want %d and %q", name, code, said, c.code, c.word)
		}
	}
}

// The default of --socket is where a sidecar with the default settings serves.
func TestDefaultSocket(t *testing.T) {
	c, err := config.ReadSidecar("x.yaml", strings.NewReader("region: iad1\ntoken_file: token\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Socket != defaultSocket {
		t.Errorf("exec asks at %s, and a sidecar serves at %s", defaultSocket, c.Socket)
	}
}

func TestKeepMemory(t *testing.T) {
	defer func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }()
	if err := keepMemory(); err != nil {
		t.Fatal(err)
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); dumpable != 0 || err != nil {
		t.Errorf("dumpable is %d, %v", dumpable, err)
	}
}
