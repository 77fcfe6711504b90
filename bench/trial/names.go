package trial

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sallyport-net/sallyport/bench/progress"
)

// renamed are names of scenarios that there were, and what has their place.
var renamed = map[string][]string{
	"udp-64-out": {"udp-out"}, "udp-64-in": {"udp-in"},
	"udp-1420-out": {"udp1420-out"}, "udp-1420-in": {"udp1420-in"},
	"latency": {"latency-idle", "latency-half"},
}

// Names are the names that the user chose by an option of the command line, each once, in the
// user's order. One that is not known is an error, which says what it is called now, or the
// known ones. what is what they name.
func Names(what, option string, chosen, known []string) (list []string, err error) {
	for _, name := range chosen {
		if !slices.Contains(known, name) {
			if now := renamed[name]; now != nil && slices.Contains(known, now[0]) {
				return nil, fmt.Errorf("the %s %q is called %s now (%s)", what, name, strings.Join(now, " and "), option)
			}
			return nil, fmt.Errorf("there is no %s %q: choose from %s (%s)", what, name, strings.Join(known, ", "), option)
		}
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list, nil
}

// Plural counts things: "1 finding", "2 findings", "3 addresses", "4 sandboxes".
func Plural[N int | uint64](n N, one string) string {
	switch {
	case n == 1:
		return "1 " + one
	case strings.HasSuffix(one, "s"), strings.HasSuffix(one, "x"):
		one += "e"
	}
	return progress.Group(float64(n)) + " " + one + "s"
}
