//go:build race

package netlab

// raceEnabled says whether the race detector looks at the tests, and so at programs built for them.
const raceEnabled = true
