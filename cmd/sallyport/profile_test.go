package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A profile is asked for with the token and saved; a refusal is told, and leaves no file.
func TestProfile(t *testing.T) {
	const token = "0123456789abcdef"
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token || r.URL.RequestURI() != "/debug/pprof/profile?seconds=2" {
			http.Error(w, "no such thing: "+r.URL.RequestURI(), http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte("a profile"))
	}))
	t.Cleanup(daemon.Close)
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(out string, args ...string) (string, error) {
		var said bytes.Buffer
		cmd := command()
		cmd.SetOut(&said)
		cmd.SetArgs(append([]string{"profile", "--out", filepath.Join(dir, out), "--admin", strings.TrimPrefix(daemon.URL, "http://"), "--admin-token-file", file}, args...))
		err := cmd.Execute()
		return said.String(), err
	}
	said, err := run("cpu", "cpu", "--seconds", "2")
	if b, _ := os.ReadFile(filepath.Join(dir, "cpu")); err != nil || string(b) != "a profile" || !strings.Contains(said, "9 bytes") {
		t.Errorf("%v, %q, %q", err, said, b)
	}
	if _, err := run("cpu", "cpu", "--seconds", "2"); err == nil || !strings.Contains(err.Error(), "--out") {
		t.Errorf("over a file that is there: %v", err)
	}
	if _, err := run("heap", "heap"); err == nil || !strings.Contains(err.Error(), "no such thing: /debug/pprof/heap") {
		t.Errorf("refused: %v", err)
	}
	if _, err := run("heap", "heap", "--admin-token-file", filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "read the admin token") || strings.Contains(err.Error(), "API") {
		t.Errorf("without the file: %v", err)
	}
	for _, kind := range []string{"../../metrics", "profile", ""} {
		if _, err := run("heap", kind); err == nil || !strings.Contains(err.Error(), "take one of cpu, heap,") {
			t.Errorf("kind %q: %v", kind, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "heap")); err == nil {
		t.Error("a refusal left a file")
	}
}
