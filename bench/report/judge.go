package report

import (
	"cmp"
	"fmt"
	"strings"
)

// measure is what of a value is held to a limit.
type measure uint8

const (
	byMedian measure = iota // its median
	byRatio                 // its ratio to the comparator's
	byMore                  // what it is above the comparator's
	byFirst                 // its ratio to another value of the same part
)

// target is one row of what the gateway is held to.
type target struct {
	what, want string
	// part, figure and variant name the value.
	part, figure, variant string
	by                    measure
	// first is the figure, and firstVariant the variant, to which the value is compared by
	// byFirst; empty: the same.
	first, firstVariant string
	// limit is the most that meets the target, or with least set the least. With open set
	// there is none: the row is there to be read.
	limit       float64
	least, open bool
}

// Verdict says how a value stands to its target.
type verdict uint8

const (
	unknown verdict = iota // not measured
	met
	missed
	told // there is no limit
)

func (v verdict) String() string {
	return [...]string{"not measured", "met", "**missed**", ""}[v]
}

// row is a target with what was measured.
type row struct {
	target
	part   *Part // nil: not measured
	figure *Figure
	value  *Value
	judged Spread // what is held to the limit
	verdict
}

// judge finds the value of a target.
func (t target) judge(parts map[string]*Part) row {
	r := row{target: t, part: parts[t.part]}
	if r.part == nil {
		return r
	}
	if r.figure, r.value = r.part.find(t.figure, t.variant); r.value == nil {
		return r
	}
	switch t.by {
	case byMedian:
		r.judged = r.value.Spread
	case byRatio:
		if r.value.Ratio == nil {
			return r
		}
		r.judged = *r.value.Ratio
	case byMore:
		if r.value.More == nil {
			return r
		}
		r.judged = *r.value.More
	case byFirst:
		_, first := r.part.find(cmp.Or(t.first, t.figure), cmp.Or(t.firstVariant, t.variant))
		if first == nil || first.Median == 0 {
			return r
		}
		v := r.value.Median / first.Median
		r.judged = Spread{1, v, v, v}
	}
	switch {
	case t.open:
		r.verdict = told
	case t.least && r.judged.Median >= t.limit, !t.least && r.judged.Median <= t.limit:
		r.verdict = met
	default:
		r.verdict = missed
	}
	return r
}

// cells are the row of a table, in Markdown.
func (r *row) cells() []string {
	return []string{r.what, r.want, r.ours(), r.others(), r.compared(), r.verdict.String(), r.target.part}
}

// ours is the gateway's own figure.
func (r *row) ours() string {
	if r.value == nil {
		return ""
	}
	return r.figure.cell(r.value) + " " + r.figure.Unit
}

// others are the figures of what it is measured beside.
func (r *row) others() (text string) {
	if r.value == nil {
		return ""
	}
	for i := range r.figure.Values {
		v := &r.figure.Values[i]
		if !isYardstick(v.Variant) {
			continue
		}
		if text != "" {
			text += "; "
		}
		text += v.Variant + " " + r.figure.cell(v)
	}
	return text
}

// isYardstick tells what the gateway is measured beside from its own variants.
func isYardstick(variant string) bool {
	switch variant {
	case "direct", "wireguard-go", "gvisor", "kernel":
		return true
	}
	return false
}

// compared is the ratio or the difference that is held to the limit.
func (r *row) compared() string {
	switch {
	case r.value == nil:
		return ""
	case r.by == byFirst:
		return fmt.Sprintf("%.2fx", r.judged.Median)
	}
	return r.figure.against(r.value)
}

// strays sums up, over all parts, what came from or to an address that it should not, by
// our variants.
func strays(parts map[string]*Part) row {
	r := row{target: target{what: "packets with a wrong source, in any scenario", want: "0", part: "all"}}
	sum, scenarios := 0.0, 0
	for _, p := range parts {
		for i := range p.Figures {
			f := &p.Figures[i]
			if !strings.HasSuffix(f.ID, "/wrongPackets") && !strings.HasSuffix(f.ID, "/wrongSources") {
				continue
			}
			for _, v := range f.Values {
				if !isYardstick(v.Variant) {
					sum += v.Most
					scenarios++
				}
			}
		}
	}
	if scenarios == 0 {
		return r
	}
	r.figure = &Figure{Unit: fmt.Sprintf("in %d scenarios and variants", scenarios)}
	r.value = &Value{Spread: Spread{1, sum, sum, sum}}
	r.verdict = met
	if sum > 0 {
		r.verdict = missed
	}
	return r
}
