package config

import (
	"io"

	"github.com/sallyport-net/sallyport/control/spec"
)

// ReadState reads a desired state and holds it against all of its rules; see
// [ReadDaemon]. Keys are those of [spec.State]'s JSON; where a prefix is wanted,
// an address alone is one too.
func ReadState(name string, r io.Reader) (spec.State, error) {
	d, err := readDocument(name, r)
	if err != nil {
		return spec.State{}, err
	}
	var s spec.State
	d.decode(&s)
	// What could not be read is not judged: its field is empty, and a second
	// complaint about that would only confuse.
	if err := d.problems.err(); err != nil {
		return spec.State{}, err
	}
	for _, p := range s.Validate() {
		d.wrong(p.Path, p.Message, p.Remedy)
	}
	if err := d.problems.err(); err != nil {
		return spec.State{}, err
	}
	return s, nil
}
