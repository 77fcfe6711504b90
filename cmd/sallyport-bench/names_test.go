package main

import (
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/sallyport-net/sallyport/bench/compare"
	"github.com/sallyport-net/sallyport/bench/scenario"
)

// What both commands measure has one name: run knows all names of compare, but for the
// connections to one destination, which it does not make.
func TestNames(t *testing.T) {
	const only = "connections-one"
	known := scenario.Scenarios()
	for _, name := range compare.Scenarios() {
		if slices.Contains(known, name) == (name == only) {
			t.Errorf("compare's %s is not one of run's %q", name, known)
		}
	}
	for _, c := range []struct {
		command func(io.Writer) *cobra.Command
		names   []string
	}{{runCommand, known}, {compareCommand, compare.Scenarios()}} {
		cmd, names := c.command(io.Discard), c.names
		for _, name := range names {
			if !regexp.MustCompile(`(^|[\s(])` + name + `[ ,:;)\n]`).MatchString(cmd.Long) {
				t.Errorf("the help of %s does not tell of %s", cmd.Name(), name)
			}
		}
		for name, want := range map[string]string{
			"magic":      `no scenario "magic": choose from ` + strings.Join(names, ", "),
			"udp-64-out": `"udp-64-out" is called udp-out now`, "udp-64-in": "called udp-in now",
			"udp-1420-out": "called udp1420-out now", "udp-1420-in": "called udp1420-in now",
			"latency": "called latency-idle and latency-half now",
		} {
			cmd := c.command(io.Discard)
			cmd.SetArgs([]string{"--scenarios", name})
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s of %s: %v", cmd.Name(), name, err)
			}
		}
	}
}

// Both are quiet in the same way.
func TestQuiet(t *testing.T) {
	a, b := runCommand(io.Discard).Flags().Lookup("quiet"), compareCommand(io.Discard).Flags().Lookup("quiet")
	if a == nil || b == nil || a.Usage != b.Usage {
		t.Errorf("%+v and %+v", a, b)
	}
}

// The Makefile's parts of the report have names that there are.
func TestNamesOfParts(t *testing.T) {
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{"run": scenario.Scenarios(), "compare": compare.Scenarios()}
	found := regexp.MustCompile(`(?m)^REPORT_\w+ = (run|compare) .*--scenarios (\S+)`).FindAllSubmatch(text, -1)
	for _, m := range found {
		for name := range strings.SplitSeq(string(m[2]), ",") {
			if !slices.Contains(all[string(m[1])], name) {
				t.Errorf("%s has no scenario %s", m[1], name)
			}
		}
	}
	if len(found) == 0 {
		t.Error("no part of the report has scenarios")
	}
}
