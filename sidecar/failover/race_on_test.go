//go:build race

package failover

// raceEnabled says whether the race detector is on. It makes simulations slow.
const raceEnabled = true
