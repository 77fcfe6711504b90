package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// withoutNamespaces holds, as JSON, a command for which this program gives itself
// up, so that it may not make user namespaces.
const withoutNamespaces = "SALLYPORT_TEST_WITHOUT_NAMESPACES"

// confined runs `sallyport-sidecar exec` on the worker, in a process that may not
// make user namespaces, and returns its exit code and what both streams hold.
func (g *ground) confined(t *testing.T, flags []string, command ...string) (code int, stdout, stderr string) {
	t.Helper()
	args := append([]string{filepath.Join(g.bin, "sallyport-sidecar"), "exec", "--socket", g.socket,
		"--project", acmeFunction.project, "--environment", acmeFunction.environment, "--runtime", acmeFunction.runtime}, flags...)
	text, err := json.Marshal(append(append(args, "--"), command...))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestProxy$")
	cmd.Env = append(os.Environ(), withoutNamespaces+"="+string(text))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := g.worker.Start(cmd); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "forbid user namespaces") {
		netlab.NotRun(t, out.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// TestProxy: where user namespaces are forbidden, a program that knows proxies
// leaves from the pair, by HTTP and by SOCKS5, and asks the network for names. No
// packet of it leaves from the worker.
func TestProxy(t *testing.T) {
	if text := os.Getenv(withoutNamespaces); text != "" {
		var args []string
		if err := json.Unmarshal([]byte(text), &args); err != nil {
			t.Fatal(err)
		}
		fmt.Println(netlab.ExecWithoutNamespaces(args))
		os.Exit(1)
	}
	curl := netlab.Program(t, "curl")
	w := newWorld(t, bySockets)
	w.up()
	code, _, stderr := w.confined(t, nil, "true")
	if code != 125 || !strings.Contains(stderr, "user, network and mount namespaces") || !strings.Contains(stderr, "--proxy") {
		t.Errorf("without namespaces, and without proxies: exit code %d and %q", code, stderr)
	}
	proxy := []string{"--proxy"}
	for what, c := range map[string][]string{
		"HTTP":          {curl, "-sS", "http://192.0.2.80/"},
		"HTTP, by name": {curl, "-sS", "http://www.origin.example/"},
		"CONNECT":       {curl, "-sS", "-p", "http://www.origin.example/"},
		"SOCKS5":        {"sh", "-c", `unset http_proxy HTTP_PROXY; exec "$0" "$@"`, curl, "-sS", "http://192.0.2.80/"},
		"SOCKS5, by name": {"sh", "-c", `unset http_proxy HTTP_PROXY; exec "$0" "$@"`, curl, "-sS",
			"http://www.origin.example/"},
	} {
		began := time.Now()
		code, stdout, stderr := w.confined(t, proxy, c...)
		from, err := netip.ParseAddrPort(stdout)
		if code != 0 || err != nil || strings.Count(stderr, "not enforced") != 1 {
			t.Errorf("%s: exit code %d, %q, %q", what, code, stdout, stderr)
			continue
		}
		allFrom(t, []netip.AddrPort{from}, 1, acmePair)
		t.Logf("%s: %v in %v, start and end of curl included", what, from, time.Since(began).Round(time.Millisecond))
	}
	for _, q := range w.origin.asked.of("www.origin.example.") {
		allFrom(t, []netip.AddrPort{q.from}, 1, acmePair)
	}
	for what, c := range map[string]struct {
		target string
		code   int // of curl
		word   string
	}{
		"a closed port": {at(originAddr, portClosed), 22, "502"},
		"unreachable":   {at(refusedByHub, 80), 22, "502"},
		"no such name":  {"nothing.example", 22, "502"},
	} {
		began := time.Now()
		code, stdout, stderr := w.confined(t, proxy, curl, "-sSf", "http://"+c.target+"/")
		if took := time.Since(began); code != c.code || !strings.Contains(stderr, c.word) || took > 5*time.Second {
			t.Errorf("%s: exit code %d after %v, %q, %q; want %d and %q", what, code, took, stdout, stderr, c.code, c.word)
		}
	}
	status, err := w.api.Status(t.Context())
	if err != nil || status.Attachments != 0 {
		t.Errorf("%d sandboxes are left, %v", status.Attachments, err)
	}
}
