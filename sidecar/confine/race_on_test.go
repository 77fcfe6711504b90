//go:build race

package confine

// raceDetector says whether the race detector is on. It makes every start of a process slow.
const raceDetector = true
