package trial

// Repeats is how often what was noisy is measured again; the zero value: never.
type Repeats struct {
	// Each is how often one thing is measured again at most, All how often all of them
	// together: it falls with each time.
	Each, All int
}

// Measure measures once, and again while that says why it was noisy and repeats are left. The last
// time counts. again is told the reason before each other time. It returns how often it measured.
func (r *Repeats) Measure(once func() (noise string), again func(noise string)) (attempts int) {
	for {
		noise := once()
		attempts++
		if noise == "" || attempts > r.Each || r.All <= 0 {
			return attempts
		}
		r.All--
		again(noise)
	}
}
