package config

import (
	"errors"
	"strings"
	"testing"
)

// Files that nest deeper than any of ours are refused by their tokens: the parser would take
// memory by the square of the depth, or all of its stack.
func TestDepthIsBounded(t *testing.T) {
	const deep = 200_000
	var indented strings.Builder
	for i := range maxDepth + 1 {
		indented.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	for name, text := range map[string]string{
		"lists in brackets":   strings.Repeat("[", deep) + strings.Repeat("]", deep),
		"mappings in braces":  strings.Repeat("{a: ", deep) + strings.Repeat("}", deep),
		"over several lines":  strings.Repeat("[\n", deep),
		"lists with dashes":   strings.Repeat("- ", deep) + "a",
		"mappings with marks": strings.Repeat("? ", deep) + "a",
		"mappings in lines":   indented.String(),
	} {
		_, err := readDocument("x.yaml", strings.NewReader(text))
		var problems Problems
		if !errors.As(err, &problems) || len(problems) != 1 || !strings.Contains(err.Error(), "in one another") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"as deep as allowed": strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth),
		"side by side":       "[" + strings.Repeat("[], {}, ", 1000) + "]",
		"in quotes":          `a: "` + strings.Repeat("[", deep) + `"`,
		"in a comment":       "a: b # " + strings.Repeat("{", deep),
		"many lines":         strings.Repeat("- a: {b: [c]}\n", 1000),
	} {
		if _, err := readDocument("x.yaml", strings.NewReader(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := readDocument("x.yaml", strings.NewReader(strings.Repeat("#\n", maxFile/2+1))); err == nil || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("a file that is too large: %v", err)
	}
}

// A zero stands for the host's value, so that nobody may write it for "none".
func TestZerosAreRefused(t *testing.T) {
	_, err := ReadState("w.yaml", strings.NewReader("networks:\n- limits: {portsPerIP: 0, portsPerSandbox:}\n  timers: {udp: 0s}\n"))
	if err == nil {
		t.Fatal("they passed")
	}
	for _, want := range []string{"w.yaml:2:24: networks[0].limits.portsPerIP: 0 cannot be; leave it out", "networks[0].timers.udp: 0 cannot be"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "portsPerSandbox") {
		t.Errorf("a key without a value is one that is not there: %v", err)
	}
}
