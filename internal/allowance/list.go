package allowance

import (
	"strconv"
	"strings"
)

// parseList counts a list of cores such as 0-3,8; 0 if it is none.
func parseList(text string) (n int) {
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := strconv.Atoi(first)
		if err != nil {
			return 0
		}
		b := a
		if ranged {
			if b, err = strconv.Atoi(last); err != nil || b < a {
				return 0
			}
		}
		n += b - a + 1
	}
	return n
}
