package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// said is what sallyport-bench wrote when it was run in a folder.
func said(t *testing.T, dir string, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{asProgram}, args...)...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errs
	if err := cmd.Run(); err == nil {
		t.Errorf("%q: no error", args)
	}
	return out.String(), errs.String()
}

// A value that an option does not take is said with those that it takes.
func TestWrongValues(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"run --sandboxes abc", `--sandboxes "abc" is no list of whole numbers, such as 1,100; it is: how many sandboxes, N,..., each 1 to 20000`},
		{"run --sessions 1,x", `--sessions "1,x" is no list of whole numbers, such as 1,100 ("x" is none); it is: how many sessions, N,..., each 1 to 1048576`},
		{"run --core x", `--core "x" is no whole number; it is: the gateway's core, N; -1: `},
		{"run --for x", `--for "x" is no time, such as 500ms, 10s or 2m; it is: how long`},
		{"compare --rounds 1.5", `--rounds "1.5" is no whole number; it is: `},
		{"run --chain --core 70000", "there is no core 70000 for the gateway: this process may use core"},
		{"run --quick=x", `--quick "x" is neither true nor false; it is: `},
		{"run --none", "unknown flag: --none"},
	} {
		if _, got := said(t, t.TempDir(), strings.Fields(c.args)...); !strings.Contains(got, c.want) || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: %s", c.args, got)
		}
	}
}

// A document on standard output has it to itself.
func TestStandardOutput(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "wg.conf")
	if err := os.WriteFile(file, []byte("none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := keyFile(t, bytes.Repeat([]byte{7}, 32), 0o600)
	args := []string{"run", "--quiet", "--wireguard", file, "--far", farAddress, "--key-file", key}
	stdout, stderr := said(t, dir, append(args, "--json", "-", "--html", "a.html")...)
	var r told
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || len(r.Problems) != 1 || !strings.Contains(stderr, "Verdict: ") {
		t.Errorf("the document: %v\n%s\nthe rest:\n%s", err, stdout, stderr)
	}
	stdout, stderr = said(t, dir, append(args, "--html", "-")...)
	if !strings.HasPrefix(stdout, "<!DOCTYPE html>") || strings.Contains(stdout, "\nVerdict: ") || !strings.Contains(stderr, "\nVerdict: ") {
		t.Errorf("the page:\n%s\nthe rest:\n%s", stdout, stderr)
	}
	if stdout, stderr = said(t, dir, append(args, "--json", "-", "--html", "-")...); stdout != "" || !strings.Contains(stderr, "cannot be both files") {
		t.Errorf("both: %s%s", stdout, stderr)
	}
	if _, stderr = said(t, dir, "record", "--json", "-", "true"); !strings.Contains(stderr, `"-" stands for standard output`) {
		t.Errorf("a part without a name: %s", stderr)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("there are %v, %v; want the tunnel's file and the page", left, err)
	}
}
