package chart

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func update() bool { f := flag.Lookup("update"); return f != nil && f.Value.String() == "true" }

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files anew")
	flag.Parse()
	os.Exit(m.Run())
}

// examples are a picture of each kind, and hard ones.
func examples() map[string]Chart {
	over := Chart{Title: "Throughput", X: Axis{Label: "s"}, Y: Axis{Label: "packets/s"}}
	out, in := Series{Name: "sent"}, Series{Name: "arrived"}
	for i := range 20 {
		t := float64(i) / 4
		out.Points = append(out.Points, Point{t, 50_000})
		in.Points = append(in.Points, Point{t, 49_900 - 1000*math.Mod(float64(i), 3)})
	}
	over.Series = []Series{out, in}
	quantile := Chart{Title: "Latency", X: Axis{"of the answers", Quantile}, Y: Axis{"us", Log}, Series: []Series{
		{Name: "idle", Points: []Point{{0, 120}, {0.5, 190}, {0.9, 240}, {0.99, 400}, {0.999, 900}, {1, 1400}}},
		{Name: "half load", Points: []Point{{0, 130}, {0.5, 300}, {0.9, 600}, {0.99, 2000}, {0.999, 4100}, {1, 9000}}},
	}}
	scale := Chart{Title: "Cost by scale", X: Axis{"sandboxes", Log}, Y: Axis{Label: "us/packet"}, Series: []Series{
		{Name: "process", Dots: true, Points: []Point{{1, 5.1}, {100, 5.4}, {1000, 5.9}, {10000, 6.6}}},
	}}
	strange := Chart{Title: "</title><script>alert(1)</script>\x00\xff", X: Axis{Label: "<&>"}, Y: Axis{Label: "\"'", Scale: Log}, Series: []Series{
		{Name: "<b>\x1b[2J", Dots: true, Points: []Point{{0, 1}, {math.NaN(), 2}, {1, math.Inf(1)}, {2, 0}, {3, -1}, {4, 7}}},
		{Name: "empty"},
	}}
	one := Chart{Title: "One point", Series: []Series{{Name: "a", Points: []Point{{0, 0}}}}}
	return map[string]Chart{"over": over, "quantile": quantile, "scale": scale, "strange": strange, "one": one, "none": {Title: "None"}}
}

// TestGolden holds pictures against files, as XML, and without anything that acts or loads.
func TestGolden(t *testing.T) {
	for name, c := range examples() {
		got := c.SVG()
		path := filepath.Join("testdata", name+".svg")
		if update() {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s has changed; look at it and run go test ./bench/chart -update:\n%s", name, got)
		}
		for d := xml.NewDecoder(strings.NewReader(got)); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s is no XML: %v\n%s", name, err, got)
			}
			if e, ok := token.(xml.StartElement); ok && !slices.Contains([]string{"svg", "title", "desc", "path", "text", "circle"}, e.Name.Local) {
				t.Errorf("%s holds an element %s", name, e.Name.Local)
			}
		}
		for _, bad := range []string{"NaN", "Inf", "href"} {
			if strings.Contains(got, bad) {
				t.Errorf("%s holds %s:\n%s", name, bad, got)
			}
		}
	}
}

// All points are within the frame, and more is further along.
func TestPlaces(t *testing.T) {
	for name, c := range examples() {
		x, y := c.frame()
		for _, s := range c.Series {
			for _, p := range s.Points {
				if !x.takes(p.X) || !y.takes(p.Y) {
					continue
				}
				if at := x.at(p.X); at < left-0.01 || at > plotRight+0.01 {
					t.Errorf("%s: %v is at %.1f of the width", name, p, at)
				}
				if at := y.at(p.Y); at < top-0.01 || at > plotBottom+0.01 {
					t.Errorf("%s: %v is at %.1f of the height", name, p, at)
				}
			}
		}
		if x.empty() {
			continue
		}
		for _, r := range []ruler{x, y} {
			ticks := r.ticks()
			if len(ticks) < 2 || len(ticks) > 12 || !slices.IsSorted(ticks) {
				t.Errorf("%s: ticks %v", name, ticks)
			}
		}
	}
}

// The greatest of all stands one step beyond the last part that is known, however few values there
// were, and all ticks have room.
func TestQuantiles(t *testing.T) {
	for last, end := range map[float64]float64{0.9: 2, 0.99: 3, 0.995: 3, 0.999: 4, 0.99999: 6} {
		c := Chart{X: Axis{Scale: Quantile}, Series: []Series{{Points: []Point{{0, 1}, {0.5, 2}, {last, 3}, {1, 4}}}}}
		x, _ := c.frame()
		if x.measure(1) != end || x.at(1) != plotRight || x.at(last) >= plotRight || x.at(0) != left {
			t.Errorf("%v: 1 is at %v, which is place %.1f", last, x.measure(1), x.at(1))
		}
		ticks := x.ticks()
		for i := 1; i < len(ticks); i++ {
			if gap := x.at(ticks[i]) - x.at(ticks[i-1]); gap < textWidth(x.name(ticks[i])) {
				t.Errorf("%v: %v and %v are %.0f apart", last, ticks[i-1], ticks[i], gap)
			}
		}
		if ticks[len(ticks)-1] != 1 {
			t.Errorf("%v: ticks %v", last, ticks)
		}
	}
	c := Chart{X: Axis{Scale: Quantile}, Series: []Series{{Points: []Point{{0.5, 2}, {0.9, 3}}}}}
	if x, _ := c.frame(); x.at(0.9) != plotRight || slices.Contains(x.ticks(), 1) {
		t.Errorf("without the greatest: %v, %v", x.at(0.9), x.ticks())
	}
	c.Series[0].Points = []Point{{1, 5}}
	if x, y := c.frame(); x.empty() || y.empty() || x.at(1) != plotRight {
		t.Errorf("the greatest alone: %+v", x)
	}
}

func TestNames(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.25: "0.25", 999: "999", 1000: "1k", 12_345: "12.3k", 2e6: "2M", 3e9: "3G", -1500: "-1.5k", 0.000001: "0.000001"} {
		if got := (ruler{}).name(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
	for v, want := range map[float64]string{0.5: "50 %", 0.999: "99.9 %", 0.99999: "99.999 %", 1: "max"} {
		if got := (ruler{scale: Quantile}).name(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}
