package trial

import "fmt"

// Repeats is how often what was noisy is measured again; the zero value: never.
type Repeats struct {
	// Each is how often one thing is measured again at most, All how often all of them
	// together: it falls with each time.
	Each, All int
}

// Measure measures once, and again while that says why it was noisy and repeats are left. The last
// time counts. again is told the reason before each other time. It returns how often it measured,
// and whether it would have been once more if any of All were left.
func (r *Repeats) Measure(once func() (noise string), again func(noise string)) (attempts int, spent bool) {
	for {
		noise := once()
		attempts++
		if noise == "" || attempts > r.Each {
			return attempts, false
		}
		if r.All <= 0 {
			return attempts, true
		}
		r.All--
		again(noise)
	}
}

// AllNoisy says, behind something else, how often was measured what stayed noisy; empty: once.
func AllNoisy(attempts int) string {
	if attempts <= 1 {
		return ""
	}
	return fmt.Sprintf(" (the last of %d attempts, all noisy)", attempts)
}
