// Package chart draws figures as SVG: lines over time, quantiles of latency, cost by
// scale. A picture holds no script and loads nothing; its colours are those of [Style],
// which a page has once.
package chart

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Scale says how an axis spreads its values.
type Scale int

// The scales that there are.
const (
	// Linear begins at 0, unless values are below.
	Linear Scale = iota
	// Log has equal room for equal factors. Values of 0 and less are left out.
	Log
	// Quantile is for parts from 0 to 1: equal room for 0 to 0.9, to 0.99, to 0.999.
	// Values of 1 are drawn at the end.
	Quantile
)

// Axis is one side of a chart. Label holds the unit, too.
type Axis struct {
	Label string
	Scale Scale
}

// Point is a value at a place. Such as are no finite numbers are left out.
type Point struct{ X, Y float64 }

// Series is what one line shows, in the order in which it is drawn. Dots shows each
// point, which suits few that were measured apart.
type Series struct {
	Name   string
	Points []Point
	Dots   bool
}

// Chart is a picture with lines. Colours repeat after [Colours] series.
type Chart struct {
	Title  string
	X, Y   Axis
	Series []Series
}

// Colours is how many series are told apart.
const Colours = 6

// The picture's size and the room beside the lines, in units of the picture.
const (
	width, height            = 720.0, 320.0
	left, right, top, bottom = 68.0, 18.0, 54.0, 46.0
	plotRight, plotBottom    = width - right, height - bottom
	tickLength, textRoom     = 4.0, 15.0
	narrow, broad, bold      = 4.6, 7.7, 1.12 // letters, and how much more of bold ones
	legendLeft               = left + 100     // beside the name of the axis
	labelDown                = textRoom + 20  // below the title
)

// Style is the style sheet of all charts on a page, for light and dark.
const Style = `.chart{max-width:100%;height:auto;font:12px system-ui,sans-serif}
.chart text{fill:var(--ink-soft,#52514e)}.chart .title{fill:var(--ink,#0b0b0b);font-weight:600}
.chart .grid{stroke:var(--line,#e1e0d9);stroke-width:1}
.chart .axis{stroke:var(--ink-soft,#52514e);stroke-width:1}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .s0{stroke:#2a78d6;fill:#2a78d6}.chart .s1{stroke:#d9640f;fill:#d9640f}.chart .s2{stroke:#12805c;fill:#12805c}
.chart .s3{stroke:#a33ea1;fill:#a33ea1}.chart .s4{stroke:#8a6d00;fill:#8a6d00}.chart .s5{stroke:#c2325a;fill:#c2325a}
.chart .line{fill:none}.chart .outline{fill:none;stroke:var(--page,#fcfcfb);stroke-width:4}
.chart .limit{stroke:var(--mark,#9a3412);stroke-width:2;stroke-dasharray:3 2}.chart .spread{stroke:var(--ink,#0b0b0b);stroke-width:1.5}
@media screen and (prefers-color-scheme:dark){.chart .s0{stroke:#6cacf5;fill:#6cacf5}.chart .s1{stroke:#f79a58;fill:#f79a58}
.chart .s2{stroke:#4cc79b;fill:#4cc79b}.chart .s3{stroke:#d98ad7;fill:#d98ad7}.chart .s4{stroke:#d6b93f;fill:#d6b93f}
.chart .s5{stroke:#f2819f;fill:#f2819f}.chart .line{fill:none}}
`

// nothing is what an empty picture says.
const nothing = "nothing was measured"

// SVG is the picture, as an element to stand in a page. One without a point says so.
func (c Chart) SVG() string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="chart" viewBox="0 0 %.0f %.0f" role="img" xmlns="http://www.w3.org/2000/svg">`+"\n", width, height)
	fmt.Fprintf(&b, "<title>%s</title>\n", escape(c.Title))
	x, y := c.frame()
	fmt.Fprintf(&b, "<desc>%s</desc>\n", escape(c.words(x, y)))
	if x.empty() || y.empty() {
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" text-anchor="middle">%s</text>`+"\n</svg>\n", width/2, height/2, nothing)
		return b.String()
	}
	drawTitle(&b, c.Title)
	c.drawAxes(&b, x, y)
	for i, s := range c.Series {
		drawSeries(&b, s, i%Colours, x, y)
	}
	c.drawLegend(&b)
	b.WriteString("</svg>\n")
	return b.String()
}

// words are the picture for who does not see it: its axes, and each line from its first to
// its last point.
func (c Chart) words(x, y ruler) string {
	if x.empty() || y.empty() {
		return nothing
	}
	text := c.Y.Label + " over " + c.X.Label
	for _, s := range c.Series {
		shown := slices.DeleteFunc(slices.Clone(s.Points), func(p Point) bool { return !x.takes(p.X) || !y.takes(p.Y) })
		if len(shown) == 0 {
			continue
		}
		first, last := shown[0], shown[len(shown)-1]
		text += fmt.Sprintf("; %s: %s at %s to %s at %s", s.Name, y.name(first.Y), x.name(first.X), y.name(last.Y), x.name(last.X))
	}
	return text
}

// frame finds what the two axes reach over.
func (c Chart) frame() (x, y ruler) {
	x, y = newRuler(c.X.Scale, left, plotRight), newRuler(c.Y.Scale, plotBottom, c.head())
	for _, s := range c.Series {
		for _, p := range s.Points {
			if x.takes(p.X) && y.takes(p.Y) {
				x.include(p.X)
				y.include(p.Y)
			}
		}
	}
	return x.settled(false), y.settled(true)
}

func (c Chart) drawAxes(b *strings.Builder, x, y ruler) {
	for _, t := range y.ticks() {
		at := y.at(t)
		fmt.Fprintf(b, `<path class="grid" d="M%.1f %.1fH%.1f"/>`, left, at, plotRight)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n", left-2*tickLength, at+tickLength, y.name(t))
	}
	for _, t := range x.ticks() {
		at := x.at(t)
		fmt.Fprintf(b, `<path class="axis" d="M%.1f %.1fv%.1f"/>`, at, plotBottom, tickLength)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n", at, plotBottom+tickLength+textRoom, x.name(t))
	}
	fmt.Fprintf(b, `<path class="axis" d="M%.1f %.1fH%.1f"/>`+"\n", left, plotBottom, plotRight)
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n", plotRight, height-tickLength, escape(c.X.Label))
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", tickLength, labelDown, escape(c.Y.Label))
}

// drawSeries draws a line, and dots that say what they are.
func drawSeries(b *strings.Builder, s Series, colour int, x, y ruler) {
	var path strings.Builder
	var dots strings.Builder
	step := "M"
	for _, p := range s.Points {
		if !x.takes(p.X) || !y.takes(p.Y) {
			step = "M" // a gap
			continue
		}
		fmt.Fprintf(&path, "%s%.1f %.1f", step, x.at(p.X), y.at(p.Y))
		step = "L"
		if s.Dots {
			fmt.Fprintf(&dots, `<circle class="s%d" cx="%.1f" cy="%.1f" r="4"><title>%s: %s at %s</title></circle>`+"\n",
				colour, x.at(p.X), y.at(p.Y), escape(s.Name), y.name(p.Y), x.name(p.X))
		}
	}
	if path.Len() == 0 {
		return
	}
	fmt.Fprintf(b, `<path class="line s%d" d="%s"><title>%s</title></path>`+"\n", colour, path.String(), escape(s.Name))
	b.WriteString(dots.String())
}

// drawLegend names the series, in rows as wide as the plot; one alone is named by the title.
func (c Chart) drawLegend(b *strings.Builder) {
	if len(c.Series) < 2 {
		return
	}
	at, line := legendLeft, labelDown
	for i, s := range c.Series {
		wide := legendWidth(s)
		if at > legendLeft && at+wide > plotRight {
			at, line = legendLeft, line+textRoom
		}
		fmt.Fprintf(b, `<circle class="s%d" cx="%.1f" cy="%.1f" r="4"/>`, i%Colours, at+4, line-4)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", at+12, line, escape(s.Name))
		at += wide
	}
}

// drawTitle writes what a picture shows above it.
func drawTitle(b *strings.Builder, title string) {
	fmt.Fprintf(b, `<text class="title" x="%.1f" y="%.1f"%s>%s</text>`+"\n", tickLength, textRoom, squeezed(title, bold, width-2*tickLength), escape(title))
}

// textWidth is about the room that a text takes, in a wide font.
func textWidth(text string) (wide float64) {
	for _, r := range text {
		switch {
		case strings.ContainsRune(" .,:;'()/-|fijlrt", r):
			wide += narrow
		default:
			wide += broad
		}
	}
	return wide
}

// squeezed has a text, whose letters are some times as wide as usual, keep within a room that is too
// small for it. Room that was made for the text is not: sums of its letters' widths are not exact.
func squeezed(text string, times, room float64) string {
	if times*textWidth(text) < room+0.1 {
		return ""
	}
	return fmt.Sprintf(` textLength="%.1f" lengthAdjust="spacingAndGlyphs"`, room)
}

// legendWidth is the room that a series takes in the legend.
func legendWidth(s Series) float64 { return 28 + textWidth(s.Name) }

// head is where the plot begins, below the legend's rows.
func (c Chart) head() float64 {
	at, rows := legendLeft, 0.0
	for _, s := range c.Series {
		wide := legendWidth(s)
		if at > legendLeft && at+wide > plotRight {
			at, rows = legendLeft, rows+1
		}
		at += wide
	}
	return top + rows*textRoom
}

// escape makes a text safe within XML, which allows no control characters.
func escape(s string) string {
	return html.EscapeString(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0xfffe || r == 0xffff {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?")))
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
