// Package report says how the gateway stands against its targets: parts, each what one
// command measured, go in, and the document's rows and charts come out.
//
// A part is a file of JSON (docs/benchmarks/NAME.json). Whoever measures writes it as a
// whole; what else it keeps in it, like single measurements, is passed over here. So a part
// that is not measured again keeps its figures, with their date.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Part is what one command measured.
type Part struct {
	// Name is that of the file, without .json.
	Name string `json:"name"`
	// Title says what it is, for a heading.
	Title string `json:"title"`
	// Command is the command line, as one could repeat it.
	Command string `json:"command"`
	// Date is the day in UTC, as YYYY-MM-DD.
	Date string `json:"date"`
	// Machine is the machine in a line: its CPU, cores, kernel and Go.
	Machine string `json:"machineLine"`
	// Conditions are versions, settings, load and noise, each in some words.
	Conditions []string `json:"conditions,omitempty"`
	// Variants says what the variants of the figures are, by name.
	Variants map[string]string `json:"variants,omitempty"`
	Figures  []Figure          `json:"figures"`
	// Missing says what could not be measured, and why.
	Missing []string `json:"missing,omitempty"`
}

// Figure is one kind of figure: a row of a table, whose columns are variants.
type Figure struct {
	// ID is what targets name it by; in one part no other has it.
	ID string `json:"id"`
	// What says what it is, for people.
	What string `json:"what"`
	Unit string `json:"unit"`
	// Digits is how many to print after the decimal point.
	Digits int     `json:"digits"`
	Values []Value `json:"values"`
}

// Value is a figure of one variant.
type Value struct {
	// Variant is what was measured, like "tun"; empty where there is one only.
	Variant string `json:"variant,omitempty"`
	Spread
	// Ratio sums up the ratios to the comparator of the same rounds; nil where there are none.
	Ratio *Spread `json:"ratio,omitempty"`
	// More sums up what it is above the comparator in the same rounds, in the figure's
	// unit; nil where a ratio says nothing, or there is no comparator.
	More *Spread `json:"more,omitempty"`
	// Noisy says that noisy rounds had to be taken, as too few were not.
	Noisy bool `json:"noisy,omitempty"`
	// Bound says that the gateway was not at its limit: the harness could do no more.
	Bound bool `json:"sourceBound,omitempty"`
}

// Spread sums the values of rounds up.
type Spread struct {
	Count  int     `json:"count"`
	Median float64 `json:"median"`
	Least  float64 `json:"least"`
	Most   float64 `json:"most"`
}

// SpreadOf sums values up, in any order. That of none is zero.
func SpreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return Spread{n, (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1]}
}

// Read reads a part by the name of its file, without .json. What `sallyport-bench run` wrote
// becomes a part, too. It passes over fields that it does not know.
func Read(name string, r io.Reader) (*Part, error) {
	var both struct {
		Part
		Scenarios json.RawMessage `json:"scenarios"`
	}
	text, err := io.ReadAll(r)
	if err == nil {
		err = json.Unmarshal(text, &both)
	}
	p := &both.Part
	if err == nil && both.Scenarios != nil {
		var run scenarioRun
		err = json.Unmarshal(text, &run)
		p = run.part(name)
	}
	if err == nil {
		err = p.validate(name)
	}
	if err != nil {
		return nil, fmt.Errorf("read a part of the report: %w", err)
	}
	return p, nil
}

func (p *Part) validate(name string) error {
	switch {
	case p.Name != name:
		return fmt.Errorf("it is called %q, and its file %q", p.Name, name)
	case p.Command == "" || p.Machine == "":
		return errors.New("it has no command or no machine")
	}
	if _, err := time.Parse(time.DateOnly, p.Date); err != nil {
		return fmt.Errorf("%s: its date is not like 2026-01-31: %w", p.Name, err)
	}
	known := map[string]bool{}
	for _, f := range p.Figures {
		if f.ID == "" || known[f.ID] {
			return fmt.Errorf("%s: the figure %q has no name of its own", p.Name, f.ID)
		}
		known[f.ID] = true
	}
	return nil
}

// anyVariant stands for the only one.
const anyVariant = "*"

// find returns a value; nil: it was not measured.
func (p *Part) find(figure, variant string) (*Figure, *Value) {
	for i := range p.Figures {
		f := &p.Figures[i]
		if f.ID != figure {
			continue
		}
		for k := range f.Values {
			if f.Values[k].Variant == variant || variant == anyVariant {
				return f, &f.Values[k]
			}
		}
		return f, nil
	}
	return nil, nil
}
