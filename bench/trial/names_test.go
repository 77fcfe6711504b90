package trial

import (
	"slices"
	"strings"
	"testing"
)

// A name that is said twice counts once, one that has changed is said with the new one, and one
// that never was with those that there are.
func TestNames(t *testing.T) {
	known := []string{"tcp-out", "udp-out", "latency-idle", "latency-half"}
	for _, c := range []struct {
		chosen, want []string
		wrong        string
	}{
		{chosen: nil, want: nil},
		{chosen: []string{"udp-out", "tcp-out", "udp-out", "udp-out"}, want: []string{"udp-out", "tcp-out"}},
		{chosen: []string{"udp-64-out"}, wrong: `the scenario "udp-64-out" is called udp-out now (--scenarios)`},
		{chosen: []string{"tcp-out", "latency"}, wrong: `the scenario "latency" is called latency-idle and latency-half now (--scenarios)`},
		{chosen: []string{"udp-1420-in"}, wrong: `there is no scenario "udp-1420-in": choose from tcp-out, udp-out, latency-idle, latency-half (--scenarios)`},
		{chosen: []string{""}, wrong: `there is no scenario ""`},
	} {
		got, err := Names("scenario", "--scenarios", c.chosen, known)
		if !slices.Equal(got, c.want) || (c.wrong == "") != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), c.wrong) {
			t.Errorf("%q: %q, %v", c.chosen, got, err)
		}
	}
}

func TestPlural(t *testing.T) {
	for n, want := range map[int]string{0: "0 findings", 1: "1 finding", 2: "2 findings", 1200: "1,200 findings"} {
		if got := Plural(n, "finding"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if one, two := Plural(uint64(1), "address"), Plural(uint64(2), "address"); one != "1 address" || two != "2 addresses" {
		t.Errorf("%q, %q", one, two)
	}
	if many := Plural(10_000, "sandbox"); many != "10,000 sandboxes" {
		t.Errorf("%q", many)
	}
}
