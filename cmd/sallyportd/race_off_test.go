//go:build !race

package main

const (
	raceEnabled   = false
	manyNetworks  = 20
	manySandboxes = 200
)
