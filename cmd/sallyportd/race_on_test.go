//go:build race

package main

// raceEnabled says whether the race detector is on, in the programs that tests start as well.
// A busy machine is then too slow for as many tunnels as without it.
const (
	raceEnabled   = true
	manyNetworks  = 5
	manySandboxes = 50
)
