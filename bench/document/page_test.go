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
	text := Page{Title: evil, Lead: []string{evil}, Style: ".chart{color:red}\n", Parts: []Part{
		{Title: evil, Text: []string{evil}, Marks: []string{evil}, Table: [][]string{{evil, "b"}, {"c", evil}}, Pictures: []string{"<svg><title>x</title></svg>"}},
		{Title: "bare"},
	}}.HTML()
	seen := map[string]int{}
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if e, ok := token.(xml.StartElement); ok {
			seen[e.Name.Local]++
		}
	}
	for name, want := range map[string]int{"html": 1, "h2": 2, "tr": 2, "th": 2, "td": 2, "svg": 1, "script": 0, "link": 0, "img": 0} {
		if seen[name] != want {
			t.Errorf("%d elements %s, want %d\n%s", seen[name], name, want, text)
		}
	}
}
