package scenario

import (
	"bytes"
	"context"
	"errors"
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
	c.Scenarios, c.Bin, c.Out, c.JSON = []string{"failover"}, dir, &out, filepath.Join(dir, "a.json")
	err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "a flow was kept") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(c.JSON); err != nil || strings.Count(string(b), `"attempts": 1`) != 2 {
		t.Errorf("the run and its one fault are not measured once each: %v\n%s", err, b)
	}
	if text := out.String(); !strings.Contains(text, "SIGKILL") || !strings.Contains(text, "WRONG") {
		t.Errorf("it says\n%s", text)
	}
}

// What the user ended says so once, counts once, and says which scenarios were not begun.
func TestLeave(t *testing.T) {
	for _, told := range []bool{false, true} {
		testLeave(t, told)
	}
}

// testLeave ends a run behind a scenario, or within one, which has told it.
func testLeave(t *testing.T, told bool) {
	c := valid()
	var said bytes.Buffer
	c.Progress = &said
	c.Scenarios = []string{"tcp-out", "latency-idle", "mixed"}
	r := newRunner(&c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if told {
		r.result.Scenarios = []*outcome{{Name: "tcp-out", Problems: []string{oneLine(r.explain(ctx, errors.New("it broke")))}}}
	}
	r.leave(ctx, "tcp-out", told)
	if len(r.result.Problems) != 1 || !strings.HasPrefix(r.result.Problems[0], "interrupted") || r.result.faults() != 1 {
		t.Errorf("told %t: %d findings, problems %q", told, r.result.faults(), r.result.Problems)
	}
	if verdict := r.result.verdict(); !strings.Contains(verdict, ", 1 finding makes the run fail; it ended by: interrupted") {
		t.Errorf("told %t: %s", told, verdict)
	}
	if again := strings.Contains(said.String(), "interrupted"); again == told {
		t.Errorf("told %t, and then %q", told, said.String())
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
