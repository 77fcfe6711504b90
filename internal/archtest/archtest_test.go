package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// moduleRoot is the module's root as seen from this folder.
const moduleRoot = "../.."

func TestModule(t *testing.T) {
	m, err := load(os.DirFS(moduleRoot))
	if err != nil {
		t.Fatal(err)
	}
	if len(m.files) < 10 {
		t.Fatalf("only %d files found: is %s the module's root?", len(m.files), moduleRoot)
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			for _, finding := range c.run(m) {
				t.Error(finding)
			}
		})
	}
}

// TestLinks asks the go command what each program would link, by way of other
// modules, too.
func TestLinks(t *testing.T) {
	for program, forbidden := range neverLinked {
		if _, err := os.Stat(filepath.Join(moduleRoot, program)); err != nil {
			t.Logf("%s is not built yet", program)
			continue
		}
		cmd := exec.Command("go", "list", "-deps", "./"+program)
		cmd.Dir = moduleRoot
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list -deps ./%s: %v", program, err)
		}
		for _, pkg := range strings.Fields(string(out)) {
			for _, prefix := range forbidden {
				if under(pkg, prefix) {
					t.Errorf("%s links %s: keep the operator's CLI small; go mod why %s says by which way", program, pkg, pkg)
				}
			}
		}
	}
}

func TestPlanIsSound(t *testing.T) {
	for i, r := range plan {
		if r.why == "" {
			t.Errorf("%s: no reason", r.path)
		}
		for _, other := range plan[i+1:] {
			if other.path == r.path {
				t.Errorf("%s: two rows", r.path)
			}
		}
		for _, target := range r.may {
			target = strings.TrimSuffix(target, "/*")
			if target != "*" && !slices.ContainsFunc(plan, func(o room) bool { return o.path == target }) {
				t.Errorf("%s may import %s, which is no room", r.path, target)
			}
		}
	}
	// No room reaches itself by way of others.
	for _, r := range plan {
		if slices.Contains(r.may, "*") {
			continue // a program, which nobody imports
		}
		seen := map[string]bool{}
		var visit func(room)
		visit = func(from room) {
			for _, to := range plan {
				if to.path == from.path || seen[to.path] || !from.allows(to.path) {
					continue
				}
				if seen[to.path] = true; to.path == r.path {
					t.Errorf("%s may reach itself by way of %s", r.path, from.path)
				}
				visit(to)
			}
		}
		visit(r)
	}
}

// TestChecksFind breaks each rule once, and once keeps it narrowly.
func TestChecksFind(t *testing.T) {
	const us = `"` + modulePath + "/"
	for _, c := range []struct {
		name, file, text string
		want             string // part of the only finding; "" for none
	}{
		{"unknown folder", "elsewhere/a.go", "// Package x.\npackage x\n", "change the plan in internal/archtest and docs/architecture.md together"},
		{"folder below a room", "gateway/uplink/deep/a.go", "// Package x.\npackage x\n", ""},
		{"forbidden arrow", "nat/a.go", "// Package x.\npackage x\n\nimport _ " + us + "policy\"\n", "nat/a.go imports policy, which nat may not: the state of one"},
		{"forbidden arrow to a subfolder", "sidecar/a.go", "// Package x.\npackage x\n\nimport _ " + us + "gateway/uplink\"\n", "sidecar may not"},
		{"arrow up", "gateway/uplink/a.go", "// Package x.\npackage x\n\nimport _ " + us + "gateway\"\n", "gateway/uplink may not"},
		{"allowed arrow", "gateway/a.go", "// Package x.\npackage x\n\nimport _ " + us + "gateway/uplink\"\n", ""},
		{"arrow within a room", "bench/a.go", "// Package x.\npackage x\n\nimport _ " + us + "bench/demo\"\n", ""},
		{"program wires all", "cmd/sallyportd/a.go", "// Package x.\npackage x\n\nimport _ " + us + "gateway\"\n", ""},
		{"CLI wires little", "cmd/sallyport/a.go", "// Package x.\npackage x\n\nimport _ " + us + "gateway\"\n", "small and portable"},
		{"test sees what it exercises", "nat/a_test.go", "package x\n\nimport _ " + us + "internal/simnet\"\n", ""},
		{"gVisor elsewhere", "gateway/uplink/a.go", "// Package x.\npackage x\n\nimport _ \"gvisor.dev/gvisor/pkg/tcpip\"\n", "one room takes the blow"},
		{"gVisor in a test", "gateway/uplink/a_test.go", "package x\n\nimport _ \"gvisor.dev/gvisor/pkg/tcpip\"\n", "one room takes the blow"},
		{"gVisor at home", "internal/netstack/a.go", "// Package x.\npackage x\n\nimport _ \"gvisor.dev/gvisor/pkg/tcpip\"\n", ""},
		{"gVisor by the back door", "internal/netstack/a.go", "// Package x.\npackage x\n\nimport _ \"golang.zx2c4.com/wireguard/tun/netstack\"\n", "back door"},
		{"netlink elsewhere", "sidecar/a.go", "// Package x.\npackage x\n\nimport _ \"github.com/vishvananda/netlink/nl\"\n", "undone and faked"},
		{"pure with sockets", "policy/a.go", "// Package x.\npackage x\n\nimport _ \"net\"\n", "policy is pure: sockets"},
		{"pure with http", "policy/a.go", "// Package x.\npackage x\n\nimport _ \"net/http\"\n", "policy is pure: sockets"},
		{"pure with atomics", "policy/a.go", "// Package x.\npackage x\n\nimport _ \"sync/atomic\"\n", "the caller serialises"},
		{"pure with addresses", "policy/a.go", "// Package x.\npackage x\n\nimport _ \"net/netip\"\n", ""},
		{"impure with sockets", "tunnel/a.go", "// Package x.\npackage x\n\nimport _ \"net\"\n", ""},
		{"pure test with sockets", "policy/a_test.go", "package x\n\nimport _ \"net\"\n", ""},
		{"pure with a clock", "nat/a.go", "// Package x.\npackage x\n\nimport clock \"time\"\n\nfunc f() clock.Time { return clock.Now() }\n", "nat/a.go:6 uses time.Now"},
		{"pure with durations", "nat/a.go", "// Package x.\npackage x\n\nimport \"time\"\n\nconst d = time.Second\n", ""},
		{"pure with chance", "nat/a.go", "// Package x.\npackage x\n\nimport \"math/rand/v2\"\n\nfunc f() int { return rand.IntN(2) }\n", "rand.IntN, but nat is pure"},
		{"pure with a seed", "nat/a.go", "// Package x.\npackage x\n\nimport \"math/rand/v2\"\n\nfunc f() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }\n", ""},
		{"pure with a goroutine", "nat/a.go", "// Package x.\npackage x\n\nfunc f() { go f() }\n", "starts a goroutine"},
		{"no package comment", "nat/a.go", "package x\n", "0 files have a package comment"},
		{"tests need no comment", "nat/a_test.go", "package x\n", ""},
		{"not formatted", "nat/a.go", "// Package x.\npackage x\nvar  y = 1\n", "gofmt"},
		{"long file", "nat/a.go", "// Package x.\npackage x\n" + strings.Repeat("\n// line\n", 300), "602 lines are more than 600"},
		{"long test", "nat/a_test.go", "package x\n" + strings.Repeat("\n// line\n", 300), ""},
		{"empty name", "gateway/utils/a.go", "// Package x.\npackage x\n", "does not say what is inside"},
		{"init", "nat/a.go", "// Package x.\npackage x\n\nfunc init() {}\n", "init runs before"},
		{"method init", "nat/a.go", "// Package x.\npackage x\n\ntype y int\n\nfunc (y) init() {}\n", ""},
		{"variable without value", "nat/a.go", "// Package x.\npackage x\n\nvar y map[string]int\n", "y has no value"},
		{"variable that is a lock", "tunnel/a.go", "// Package x.\npackage x\n\nimport \"sync\"\n\nvar y = &sync.Mutex{}\n", "made for changing"},
		{"assigned variable", "nat/a.go", "// Package x.\npackage x\n\nvar y = 1\n\nfunc f() { y = 2 }\n", "nat/a.go:6: y is package state"},
		{"changed table", "nat/a.go", "// Package x.\npackage x\n\nvar y = map[int][]int{}\n\nfunc f() { y[1][2]++ }\n", "y is package state"},
		{"emptied table", "nat/a.go", "// Package x.\npackage x\n\nvar y = map[int]int{}\n\nfunc f() { delete(y, 1) }\n", "y is package state"},
		{"lent variable", "nat/a.go", "// Package x.\npackage x\n\nvar y = 1\n\nfunc f() *int { return &y }\n", "y is package state"},
		{"constant table", "nat/a.go", "// Package x.\npackage x\n\nvar y = [...]string{\"a\"}\n\nfunc f(i int) string { return y[i] }\n", ""},
		{"shadowed variable", "nat/a.go", "// Package x.\npackage x\n\nvar y = 1\n\nfunc f() int {\n\ty := y\n\ty++\n\treturn y\n}\n", ""},
		{"interface check", "nat/a.go", "// Package x.\npackage x\n\nvar _ any = 1\n", ""},
		{"version of a program", "cmd/sallyport/main.go", "// Command x.\npackage main\n\nvar version string\n", ""},
		{"constructor", "nat/a.go", "// Package x.\npackage x\n\nfunc NewY(a, b, c int, d, e string) {}\n", "takes 5 arguments"},
		{"leftover", "nat/a.go", "// Package x.\npackage x\n\n// TO" + "DO: think\n", "do it now"},
		{"sleeping test", "nat/a_test.go", "package x\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n", "nat/a_test.go:5: a test that sleeps"},
		{"sleeping program", "tunnel/a.go", "// Package x.\npackage x\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n", ""},
		{"build output", "bin/a.go", "package x\n", ""},
		{"cache", ".cache/mod/a.go", "package x\n", ""},
		{"test data", "nat/testdata/a.go", "not even Go", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := load(fstest.MapFS{c.file: &fstest.MapFile{Data: []byte(c.text)}})
			if err != nil {
				t.Fatal(err)
			}
			var found []string
			for _, check := range checks {
				found = append(found, check.run(m)...)
			}
			switch {
			case c.want == "" && len(found) == 0:
			case c.want != "" && len(found) == 1 && strings.Contains(found[0], c.want):
			default:
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}
