package scenario

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Failover alone builds no gateway for others; what the program says goes into the result.
func TestFailoverAlone(t *testing.T) {
	dir := t.TempDir()
	answer := `{"faults": [{"fault": "SIGKILL", "first": {"p50": 2000000}}], "all": {"first": {"p50": 3000000, "p99": 4000000, "max": 5000000}}, "problems": ["a flow was kept"]}`
	script := "#!/bin/sh\ncat <<'END'\n" + answer + "\nEND\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, failoverProgram), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	c := valid()
	var out bytes.Buffer
	c.Scenarios, c.Bin, c.Out = []string{"failover"}, dir, &out
	err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "a flow was kept") {
		t.Errorf("%v", err)
	}
	if text := out.String(); !strings.Contains(text, "SIGKILL") || !strings.Contains(text, "WRONG") {
		t.Errorf("it says\n%s", text)
	}
}

// What the user ended says so, and which scenarios were not begun.
func TestLeave(t *testing.T) {
	c := valid()
	c.Scenarios = []string{"tcp-out", "latency-idle", "mixed"}
	r := newRunner(&c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.leave(ctx, "tcp-out")
	if len(r.result.Problems) != 1 || !strings.HasPrefix(r.result.Problems[0], "interrupted") {
		t.Errorf("problems %q", r.result.Problems)
	}
	var left []string
	for _, o := range r.result.Scenarios {
		if o.NotRun != "" {
			left = append(left, o.Name)
		}
	}
	if strings.Join(left, " ") != "latency-idle mixed" {
		t.Errorf("not begun: %q", left)
	}
	if r.result.faults() == 0 {
		t.Error("nothing is held against the run")
	}
}

// Facts that were measured besides do not keep a scenario from being good, as marks do.
func TestBesideIsGood(t *testing.T) {
	s := &step{Name: "half", At: time.Second.Seconds()}
	o := &outcome{Name: "latency-half", Steps: []*step{s}}
	s.also("%d more", 5)
	if verdict, why := o.verdict(); verdict != "good" || len(why) != 0 || len(o.notes()) != 1 {
		t.Errorf("%s, %q, %q", verdict, why, o.notes())
	}
	s.mark("NOISY")
	if verdict, why := o.verdict(); verdict == "good" || len(why) != 1 {
		t.Errorf("%s, %q", verdict, why)
	}
}
