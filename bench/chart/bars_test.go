package chart

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
)

// A name that is longer than the room for it is squeezed into that, others stand beside their bars
// as they are, and no bar runs into the text behind it.
func TestBarsRoom(t *testing.T) {
	long := strings.Repeat("long ", 30)
	for name, want := range map[string]string{"tun": "", strings.Repeat("x", 58): "", "bytes out, sockets": "", long: ` textLength="448.0" lengthAdjust="spacingAndGlyphs"`} {
		svg := Bars{Title: "a title", Bars: []Bar{{Name: name, Value: 1, Text: "1.00x, at most"}}}.SVG()
		from := min(barMost, max(barLeast, textWidth(name)+3*tickLength))
		if tag := fmt.Sprintf(`<text x="%.1f" y="44.0" text-anchor="end"%s>`, from-2*tickLength, want); !strings.Contains(svg, tag) {
			t.Errorf("%s is not %s in\n%s", name, tag, svg)
		}
		if end := fmt.Sprintf(`x="%.1f" y="34.0" width="%.1f"`, from, 720-textWidth("1.00x, at most")-12-from); !strings.Contains(svg, end) {
			t.Errorf("%s: the bar is not %s in\n%s", name, end, svg)
		}
	}
}

// A file of its own brings its colours along, for light and dark; in a page they are the page's.
func TestBarsFile(t *testing.T) {
	b := Bars{Title: "a title", Bars: []Bar{{Name: "a", Value: 1}}}
	file, element := b.File(), b.SVG()
	for _, want := range []string{"<style>", "prefers-color-scheme:dark", "background:var(--page)", "--mark:", "<title>a title</title>", "<desc>a: </desc>"} {
		if !strings.Contains(file, want) {
			t.Errorf("no %s in\n%s", want, file)
		}
	}
	if strings.Contains(element, "<style") || !strings.Contains(element, `<text class="title"`) {
		t.Errorf("the element is\n%s", element)
	}
}

// Bars are well-formed, and as long as their values are to the longest.
func TestBars(t *testing.T) {
	svg := Bars{Title: "a < b", Bars: []Bar{
		{Name: "half", Value: 1, Least: 0.5, Most: 1.5, Limit: 2, Text: "1.00"},
		{Name: "whole & more", Value: 2, Colour: 7},
		{Name: "nothing", Value: math.NaN()},
	}}.SVG()
	for _, want := range []string{`width="280.1"`, `width="560.3"`, "whole &amp; more", `class="limit" d="M680.3`, "a &lt; b", `class="s1"`} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
	if empty := (Bars{Title: "none"}).SVG(); strings.Count(empty, ">nothing was measured<") != 2 {
		t.Errorf("without a bar:\n%s", empty)
	}
	for _, text := range []string{svg, Bars{}.SVG(), Bars{Title: "&"}.File()} {
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
