package chart

import (
	"fmt"
	"strings"
)

// Bar is a value with its spread. Least and Most are left out where they are the same.
type Bar struct {
	Name               string
	Value, Least, Most float64
	// Limit is what the value is held to; 0: nothing.
	Limit float64
	// Colour is one of [Colours], by number.
	Colour int
	// Text is what stands behind the bar.
	Text string
}

// Bars is a picture with a horizontal bar for each value, all by one scale from 0 on. It
// brings its style along, so that it may be a file of its own.
type Bars struct {
	Title string
	Bars  []Bar
}

// Measures of bars, in units of the picture.
const (
	barRow, barHeight   = 24.0, 12.0
	barLeft, barRight   = 300.0, 590.0
	barTop, barTextDown = 34.0, 10.0
)

// SVG is the picture, as a file or as an element to stand in a page.
func (c Bars) SVG() string {
	var b strings.Builder
	high := barTop + barRow*float64(len(c.Bars)) + barTextDown
	fmt.Fprintf(&b, `<svg class="chart" viewBox="0 0 %.0f %.0f" role="img" xmlns="http://www.w3.org/2000/svg">`+"\n", width, high)
	fmt.Fprintf(&b, "<title>%s</title>\n<desc>%s</desc>\n<style>%s.chart .limit{stroke:#c2325a;stroke-width:2;stroke-dasharray:3 2}\n.chart .spread{stroke:var(--ink-soft,#52514e);stroke-width:1.5}\n</style>\n", escape(c.Title), escape(c.words()), Style)
	fmt.Fprintf(&b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", tickLength, textRoom, escape(c.Title))
	top := 0.0
	for _, bar := range c.Bars {
		for _, v := range []float64{bar.Value, bar.Most, bar.Limit} {
			if finite(v) {
				top = max(top, v)
			}
		}
	}
	if top == 0 {
		top = 1
	}
	for i, bar := range c.Bars {
		bar.draw(&b, barTop+barRow*float64(i), top)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// words are the picture for who does not see it.
func (c Bars) words() string {
	list := make([]string, len(c.Bars))
	for i, bar := range c.Bars {
		list[i] = bar.Name + ": " + bar.Text
	}
	return strings.Join(list, "; ")
}

func (bar Bar) draw(b *strings.Builder, y, top float64) {
	at := func(v float64) float64 { return barLeft + max(0, min(v, top))/top*(barRight-barLeft) }
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end">%s</text>`+"\n", barLeft-2*tickLength, y+barTextDown, escape(bar.Name))
	if !finite(bar.Value) {
		return
	}
	fmt.Fprintf(b, `<rect class="s%d" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, bar.Colour%Colours, barLeft, y, at(bar.Value)-barLeft, barHeight)
	if bar.Most > bar.Least {
		fmt.Fprintf(b, `<path class="spread" d="M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6"/>`, at(bar.Least), y+barHeight/2, at(bar.Most), at(bar.Least), y+3, at(bar.Most), y+3)
	}
	if bar.Limit > 0 {
		fmt.Fprintf(b, `<path class="limit" d="M%.1f %.1fv%.1f"/>`, at(bar.Limit), y-3, barHeight+6)
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", barRight+2*tickLength, y+barTextDown, escape(bar.Text))
}
