package config

import (
	"fmt"
	"io"
	"reflect"

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
	for i, n := range s.Networks {
		d.noZeros(fmt.Sprintf("networks[%d].timers", i), reflect.ValueOf(n.Timers))
		d.noZeros(fmt.Sprintf("networks[%d].limits", i), reflect.ValueOf(n.Limits))
	}
	for _, p := range s.Validate() {
		d.wrong(p.Path, p.Message, p.Remedy)
	}
	if err := d.problems.err(); err != nil {
		return spec.State{}, err
	}
	return s, nil
}

// noZeros refuses zeros that were written: one stands for the host's value, and whoever
// writes it means something else.
func (d *document) noZeros(key string, v reflect.Value) {
	for i := range v.NumField() {
		field := join(key, fileName(v.Type().Field(i)))
		if _, there := d.at[field]; there && !d.empty[field] && v.Field(i).IsZero() {
			d.wrong(field, "0 cannot be", "leave it out for what the host's settings say")
		}
	}
}
