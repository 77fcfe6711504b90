//go:build race

package sidecar

// raceDetector says whether the race detector is on; pools forget at random then.
const raceDetector = true
