package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// Bars are well-formed, and as long as their values are to the longest.
func TestBars(t *testing.T) {
	svg := Bars{Title: "a < b", Bars: []Bar{
		{Name: "half", Value: 1, Least: 0.5, Most: 1.5, Limit: 2, Text: "1.00"},
		{Name: "whole & more", Value: 2, Colour: 7},
		{Name: "nothing", Value: math.NaN()},
	}}.SVG()
	for _, want := range []string{`width="145.0"`, `width="290.0"`, "whole &amp; more", `class="limit" d="M590.0`, "a &lt; b", `class="s1"`} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
	for _, text := range []string{svg, Bars{}.SVG()} {
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
