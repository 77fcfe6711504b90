package chart

import (
	"math"
	"strconv"
	"strings"
)

// ruler turns values into places along one axis.
type ruler struct {
	scale     Scale
	from, to  float64 // places of least and most
	low, high float64 // least and most, as the scale measures them
	whole     bool    // 1 is among quantiles, and drawn beyond the others
	end       float64 // where that is, as the scale measures it
}

func newRuler(s Scale, from, to float64) ruler {
	return ruler{scale: s, from: from, to: to, low: math.Inf(1), high: math.Inf(-1)}
}

// takes says whether the axis can show a value.
func (r ruler) takes(v float64) bool {
	switch r.scale {
	case Log:
		return finite(v) && v > 0
	case Quantile:
		return v >= 0 && v <= 1
	default:
		return finite(v)
	}
}

// measure is a value as the scale has it.
func (r ruler) measure(v float64) float64 {
	switch r.scale {
	case Log:
		return math.Log10(v)
	case Quantile:
		if v == 1 {
			return r.end
		}
		return -math.Log10(1 - v)
	default:
		return v
	}
}

func (r *ruler) include(v float64) {
	if r.scale == Quantile && v == 1 {
		r.whole = true
		return
	}
	m := r.measure(v)
	r.low, r.high = min(r.low, m), max(r.high, m)
}

func (r ruler) empty() bool { return r.low > r.high && !r.whole }

// settled rounds the ends, so that lines do not touch the frame. roomy leaves space
// beyond the highest value.
func (r ruler) settled(roomy bool) ruler {
	if r.empty() {
		return r
	}
	switch r.scale {
	case Quantile:
		if r.low, r.high = 0, max(0, r.high); r.whole {
			r.end = math.Floor(r.high+1e-9) + 1
			r.high = r.end
		}
	case Log:
		if r.low = math.Floor(r.low); roomy {
			r.high = max(math.Ceil(r.high), r.low+1)
		}
	default:
		if r.low = min(r.low, 0); roomy {
			step := stepOf(r.high - r.low)
			r.high = math.Ceil(r.high/step) * step
		}
	}
	if r.high == r.low {
		r.high++
	}
	return r
}

// at is the place of a value.
func (r ruler) at(v float64) float64 {
	return r.from + (r.to-r.from)*(r.measure(v)-r.low)/(r.high-r.low)
}

// stepOf is a round number, of which about five make a range.
func stepOf(span float64) float64 {
	if span <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(span/5)))
	for _, f := range []float64{1, 2, 5} {
		if span/(f*unit) <= 6 {
			return f * unit
		}
	}
	return 10 * unit
}

// ticks are round values along the axis.
func (r ruler) ticks() (list []float64) {
	switch r.scale {
	case Log:
		within := []float64{1}
		if r.high-r.low < 3 {
			within = []float64{1, 2, 5}
		}
		for e := math.Floor(r.low); e <= r.high; e++ {
			for _, f := range within {
				if v := f * math.Pow(10, e); r.measure(v) <= r.high+1e-9 {
					list = append(list, v)
				}
			}
		}
	case Quantile:
		for _, v := range []float64{0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999} {
			if m := r.measure(v); m <= r.high+1e-9 && (!r.whole || m < r.end-1e-9) {
				list = append(list, v)
			}
		}
		if r.whole {
			list = append(list, 1)
		}
	default:
		step := stepOf(r.high - r.low)
		for n := math.Ceil(r.low / step); n*step <= r.high+step/1e6; n++ {
			list = append(list, n*step)
		}
	}
	return list
}

// name is a value as people read it, three digits and a letter for thousands.
func (r ruler) name(v float64) string {
	if r.scale == Quantile {
		if v == 1 {
			return "max"
		}
		return strconv.FormatFloat(math.Round(100e6*v)/1e6, 'f', -1, 64) + " %"
	}
	unit := ""
	for _, u := range []struct {
		name string
		of   float64
	}{{"G", 1e9}, {"M", 1e6}, {"k", 1e3}} {
		if math.Abs(v) >= u.of {
			v, unit = v/u.of, u.name
			break
		}
	}
	text := strconv.FormatFloat(v, 'g', 3, 64)
	if strings.Contains(text, "e") {
		text = strconv.FormatFloat(v, 'f', -1, 64)
	}
	return text + unit
}
