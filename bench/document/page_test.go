package document

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// A page is well-formed whatever it is told, and what it is told stays text.
func TestPage(t *testing.T) {
	evil := "</style></p><script>alert('1')</script>\x00\x1b\xff & \"x\""
	text := Page{Title: evil, Verdict: evil, Lead: []string{evil}, Marks: []string{evil}, Terms: [][2]string{{evil, evil}}, Style: ".chart{color:red}\n", Parts: []Part{
		{Title: evil, Verdict: evil, Why: []string{evil, evil}, Text: []string{evil}, Marks: []string{evil}, Notes: []string{evil}, Table: [][]string{{evil, "b"}, {"c", evil}}, Pictures: []string{"<svg><title>x</title></svg>"}},
		{Title: "bare"},
	}}.HTML()
	seen := map[string]int{}
	ids, refs := map[string]bool{}, []string{}
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		seen[e.Name.Local]++
		for _, a := range e.Attr {
			switch a.Name.Local {
			case "id":
				if ids[a.Value] {
					t.Errorf("two elements are called %s", a.Value)
				}
				ids[a.Value] = true
			case "href":
				target, within := strings.CutPrefix(a.Value, "#")
				if !within {
					t.Errorf("the page leads to %s", a.Value)
				}
				refs = append(refs, target)
			case "aria-labelledby":
				refs = append(refs, a.Value)
			case "scope":
				seen[a.Value]++
			case "src":
				t.Errorf("the page loads %s", a.Value)
			}
		}
	}
	for _, r := range refs {
		if !ids[r] {
			t.Errorf("nothing is called %s", r)
		}
	}
	for name, want := range map[string]int{
		"html": 1, "main": 1, "h1": 1, "h2": 3, "table": 2, "thead": 2, "tbody": 2, "tr": 4, "th": 7, "col": 5, "row": 2, "td": 3,
		"li": 2, "a": 1, "details": 1, "dt": 1, "dd": 1, "svg": 1, "script": 0, "link": 0, "img": 0,
	} {
		if seen[name] != want {
			t.Errorf("%d elements %s, want %d\n%s", seen[name], name, want, text)
		}
	}
	if !strings.Contains(text, "prefers-color-scheme:dark") || !strings.Contains(text, `lang="en"`) {
		t.Error("it has no dark colours, or no language")
	}
}

// Numbers stand below each other at their right, what is marked stands out, and what is a fact does
// not look like a warning.
func TestPageStyles(t *testing.T) {
	text := Page{Marks: []string{"it ended"}, Parts: []Part{{
		Title: "a", Marks: []string{"with care"}, Notes: []string{"a fact, 5 % of all"}, Marked: "missed",
		Table: [][]string{{"step", "rate", "ours", "verdict"}, {"1", "20,000", "1.5 (1-2) s", "met"}, {"2", "-", "7", "missed"}, {"3", "", "", ""}},
	}}}.HTML()
	for _, want := range []string{
		`<p class="mark">it ended</p>`, `<p class="mark">with care</p>`, "<p>a fact, 5\u00a0% of all</p>",
		`<th scope="col">step</th><th scope="col" class="number">rate</th><th scope="col">ours</th><th scope="col">verdict</th>`,
		"<th scope=\"row\">1</th><td class=\"number\">20,000</td><td>1.5 (1\u2060-\u20602) s</td><td>met</td>",
		`<th scope="row">2</th><td class="number">-</td><td>7</td><td class="mark">missed</td>`,
		"@media print", "@media screen and (prefers-color-scheme:dark)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}
