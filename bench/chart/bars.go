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

// Bars is a picture with a horizontal bar for each value, all by one scale from 0 on.
type Bars struct {
	Title string
	Bars  []Bar
}

// Measures of bars, in units of the picture.
const (
	barRow, barHeight   = 24.0, 12.0
	barTop, barTextDown = 34.0, 10.0
	barLeast, barMost   = 120.0, 460.0 // room for names
)

// alone is the style sheet of a picture that stands in no page, whose variables it would have.
const alone = `.chart{--ink:#0b0b0b;--ink-soft:#52514e;--line:#e1e0d9;--page:#fcfcfb;--mark:#9a3412;background:var(--page)}
@media screen and (prefers-color-scheme:dark){.chart{--ink:#fff;--ink-soft:#c3c2b7;--line:#383835;--page:#1a1a19;--mark:#fdba74}}
`

// SVG is the picture, as an element to stand in a page, which has [Style].
func (c Bars) SVG() string { return c.draw("") }

// File is the picture as a file of its own.
func (c Bars) File() string { return c.draw("<style>" + Style + alone + "</style>\n") }

func (c Bars) draw(style string) string {
	var b strings.Builder
	high := barTop + barRow*float64(max(1, len(c.Bars))) + barTextDown
	fmt.Fprintf(&b, `<svg class="chart" viewBox="0 0 %.0f %.0f" role="img" xmlns="http://www.w3.org/2000/svg">`+"\n", width, high)
	fmt.Fprintf(&b, "<title>%s</title>\n<desc>%s</desc>\n%s", escape(c.Title), escape(c.words()), style)
	drawTitle(&b, c.Title)
	if len(c.Bars) == 0 {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", tickLength, barTop+barTextDown, nothing)
	}
	from, to := barLeast, width
	top := 0.0
	for _, bar := range c.Bars {
		from = max(from, min(barMost, textWidth(bar.Name)+3*tickLength))
		to = min(to, width-textWidth(bar.Text)-3*tickLength)
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
		bar.draw(&b, barTop+barRow*float64(i), from, to, top)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// words are the picture for who does not see it.
func (c Bars) words() string {
	if len(c.Bars) == 0 {
		return nothing
	}
	list := make([]string, len(c.Bars))
	for i, bar := range c.Bars {
		list[i] = bar.Name + ": " + bar.Text
	}
	return strings.Join(list, "; ")
}

// draw draws a bar between two places, which top reaches.
func (bar Bar) draw(b *strings.Builder, y, from, to, top float64) {
	at := func(v float64) float64 { return from + max(0, min(v, top))/top*(to-from) }
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="end"%s>%s</text>`+"\n", from-2*tickLength, y+barTextDown, squeezed(bar.Name, 1, from-3*tickLength), escape(bar.Name))
	if !finite(bar.Value) {
		return
	}
	fmt.Fprintf(b, `<rect class="s%d" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, bar.Colour%Colours, from, y, at(bar.Value)-from, barHeight)
	if bar.Most > bar.Least {
		outlined(b, "spread", fmt.Sprintf("M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6", at(bar.Least), y+barHeight/2, at(bar.Most), at(bar.Least), y+3, at(bar.Most), y+3))
	}
	if bar.Limit > 0 {
		outlined(b, "limit", fmt.Sprintf("M%.1f %.1fv%.1f", at(bar.Limit), y-3, barHeight+6))
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`+"\n", to+2*tickLength, y+barTextDown, escape(bar.Text))
}

// outlined draws a line that is seen on bars, too.
func outlined(b *strings.Builder, class, path string) {
	fmt.Fprintf(b, `<path class="outline" d="%s"/><path class="%s" d="%s"/>`, path, class, path)
}
