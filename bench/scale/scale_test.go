package scale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/config"
)

// What is written for the daemons is what they take, for one network and for hundreds.
func TestFiles(t *testing.T) {
	for _, p := range []plan{
		{Networks: 1, Hosts: hosts(1), Uplink: "sockets"},
		{Networks: 1, Hosts: hosts(1), Uplink: "tun"},
		{Networks: 300, Hosts: hosts(3), Passive: true, Uplink: "sockets"},
	} {
		p.Admin, p.Origin, p.Least = adminAddress, originLink.Addr(), firstPort
		dir := t.TempDir()
		if _, err := p.writeFiles(dir); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "state.yaml")
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		state, err := config.ReadState(name, bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%d networks: %v", p.Networks, err)
		}
		want := p.Networks
		if p.Passive {
			want *= 2
		}
		if len(state.Networks) != want {
			t.Errorf("%d networks, want %d", len(state.Networks), want)
		}
		for _, h := range p.Hosts {
			name := filepath.Join(dir, h.Name+".yaml")
			if text, err = os.ReadFile(name); err != nil {
				t.Fatal(err)
			}
			d, err := config.ReadDaemon(name, bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if d.Host != h.Name || d.Uplink != p.Uplink || d.Roles.Control != h.Control {
				t.Errorf("%s: read %+v", h.Name, d)
			}
		}
		name = filepath.Join(dir, "sidecar.yaml")
		if text, err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
		if _, err := config.ReadSidecar(name, bytes.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMetrics(t *testing.T) {
	got := metrics("# HELP go_goroutines Number.\n# TYPE go_goroutines gauge\ngo_goroutines 42\nx{a=\"b\"} 7\nlarge 1.5e+06\n\nbroken\nworse text\n")
	if len(got) != 2 || got["go_goroutines"] != 42 || got["large"] != 1.5e6 {
		t.Errorf("read %v", got)
	}
}

func TestStatus(t *testing.T) {
	text := "Name:\tsallyportd\nVmPeak:\t  900 kB\nVmRSS:\t  20480 kB\nThreads:\t8\n"
	if n, err := parseStatus(text, "VmRSS"); err != nil || n != 20<<20 {
		t.Errorf("%d, %v; want 20 MiB", n, err)
	}
	for _, field := range []string{"VmSwap", "Threads", "Name"} {
		if n, err := parseStatus(text, field); err == nil {
			t.Errorf("%s is %d bytes", field, n)
		}
	}
	if _, err := status(os.Getpid(), "VmRSS"); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	good := func() Config {
		return Config{Parts: Parts(), Uplink: "tun", Networks: 1, Sandboxes: 1, Paths: 1}
	}
	if c := good(); c.validate() != nil {
		t.Fatal(c.validate())
	}
	for want, spoil := range map[string]func(*Config){
		"--parts":            func(c *Config) { c.Parts = []string{"everything"} },
		"nothing":            func(c *Config) { c.Parts = nil },
		"--uplink":           func(c *Config) { c.Uplink = "raw" },
		"--networks":         func(c *Config) { c.Networks = 0 },
		"--sandboxes":        func(c *Config) { c.Sandboxes = 1 << 20 },
		"--sidecar-networks": func(c *Config) { c.Paths = -1 },
		"--core":             func(c *Config) { c.Core = -1 },
		"--json":             func(c *Config) { c.JSON = "/nowhere/x.json" },
	} {
		c := good()
		spoil(&c)
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want one that names %s", err, want)
		}
	}
}

// A part that cannot be measured keeps what others have, and fails the run.
func TestReportKeeps(t *testing.T) {
	var out bytes.Buffer
	file := filepath.Join(t.TempDir(), "scale.json")
	b := newBench(&Config{Out: &out, JSON: file, Command: "sallyport-bench scale", Uplink: "tun", Version: "v0"})
	b.note(figure{id: "a", what: "sandboxes: memory", unit: "B", value: 1234.5})
	b.missing("paths", fmt.Errorf("no room\nat all"))
	if err := b.report(); err == nil || !strings.Contains(err.Error(), "1 of the parts") {
		t.Errorf("the run ended with %v", err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"id": "a"`, "1234.5", "paths: no room; at all", `"name": "scale"`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the file has no %s:\n%s", want, text)
		}
	}
	if !strings.Contains(out.String(), "NOTE: paths: no room; at all") {
		t.Errorf("printed:\n%s", out.String())
	}
	if err := os.WriteFile(file, []byte("whole"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.cfg.Whole = true
	if err := b.report(); err == nil || !strings.Contains(err.Error(), "1 of the parts") || !strings.Contains(err.Error(), "scale.partial.json") {
		t.Errorf("the run that was to be whole ended with %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "whole" {
		t.Errorf("the file has %s, %v", text, err)
	}
}

// A run that is ended says of each part that it was not measured.
func TestInterrupted(t *testing.T) {
	ctx, end := context.WithCancelCause(t.Context())
	end(errors.New("enough"))
	var out bytes.Buffer
	b := newBench(&Config{Out: &out, Parts: Parts(), Uplink: "tun"})
	if err := b.measure(ctx); err == nil || !strings.Contains(err.Error(), "3 of the parts") || !strings.Contains(out.String(), "paths: enough") {
		t.Errorf("%v, and printed:\n%s", err, out.String())
	}
}
