package archtest

import (
	"fmt"
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// docs/conformance.md holds one table row for each requirement:
//
//	| id | requirement | raw uplink | `sockets` uplink | proof |
//
// A cell about an uplink begins with one word of verdicts; what follows it is a note. The
// proof names tests as `package.TestName`, the package by its folder. Each of
// them has the row's id in its name or in the comment above it.

// conformanceDoc is the document's place in the module.
const conformanceDoc = "docs/conformance.md"

// families are the requirements by letter: how many are counted, and those beside the count.
var families = []struct {
	letter string
	count  int
	extra  []string
}{
	{"U", 14, []string{"U-3a", "U-5a", "U-6a"}},
	{"T", 10, nil},
	{"I", 11, nil},
	{"C", 15, nil},
	{"X", 14, nil},
	{"L", 7, nil},
	{"R", 14, nil},
	{"P", 4, nil},
	{"S", 6, nil},
	{"N", 7, nil},
	{"A", 28, nil},
}

// mayWait are the rows that another package may still have to keep.
var mayWait = regexp.MustCompile(`^(L-\d+|N-\d+|A-9|A-17|A-25|A-27|A-28)$`)

// verdicts are what can be said of an uplink. All but kept give a reason.
var verdicts = []string{"kept", "deviation", "planned"}

var (
	rowID    = regexp.MustCompile(`^[A-Z]-\d+[a-z]?$`)
	testName = regexp.MustCompile("^`([a-z0-9/]+)\\.((?:Test|Fuzz|Benchmark)[A-Za-z0-9_]+)`$")
)

// requirementIDs returns every row that the document must have.
func requirementIDs() (ids []string) {
	for _, f := range families {
		for i := range f.count {
			ids = append(ids, fmt.Sprintf("%s-%d", f.letter, i+1))
		}
		ids = append(ids, f.extra...)
	}
	return ids
}

// conformanceRow is one row of the document.
type conformanceRow struct {
	line                          int
	id, requirement, raw, sockets string
	proof                         []string
}

// conformanceRows returns the rows whose first cell is an id, and what is wrong with their form.
func conformanceRows(doc string) (rows []conformanceRow, found []string) {
	for i, line := range strings.Split(doc, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 2 || strings.TrimSpace(cells[0]) != "" {
			continue
		}
		for k := range cells {
			cells[k] = strings.TrimSpace(cells[k])
		}
		if !rowID.MatchString(cells[1]) {
			continue
		}
		if len(cells) != 7 {
			found = append(found, fmt.Sprintf("%s:%d: row %s has %d cells, want 5", conformanceDoc, i+1, cells[1], len(cells)-2))
			continue
		}
		r := conformanceRow{line: i + 1, id: cells[1], requirement: cells[2], raw: cells[3], sockets: cells[4]}
		for name := range strings.SplitSeq(cells[5], ",") {
			if name = strings.TrimSpace(name); name != "" {
				r.proof = append(r.proof, name)
			}
		}
		rows = append(rows, r)
	}
	return rows, found
}

// checkConformance returns what is wrong with the document.
func checkConformance(m *module, doc string) (found []string) {
	rows, found := conformanceRows(doc)
	want := requirementIDs()
	seen := map[string]int{}
	tests := m.tests()
	for _, r := range rows {
		if before := seen[r.id]; before != 0 {
			found = append(found, fmt.Sprintf("%s:%d: row %s stands in line %d already", conformanceDoc, r.line, r.id, before))
		}
		seen[r.id] = r.line
		if !slices.Contains(want, r.id) {
			found = append(found, fmt.Sprintf("%s:%d: there is no requirement %s", conformanceDoc, r.line, r.id))
			continue
		}
		for _, wrong := range append(r.check(), r.checkProof(tests)...) {
			found = append(found, fmt.Sprintf("%s:%d: %s: %s", conformanceDoc, r.line, r.id, wrong))
		}
	}
	for _, id := range want {
		if seen[id] == 0 {
			found = append(found, fmt.Sprintf("%s: row %s is missing", conformanceDoc, id))
		}
	}
	return found
}

// check looks at the words of a row.
func (r *conformanceRow) check() (found []string) {
	if r.requirement == "" {
		found = append(found, "does not say what is required")
	}
	for _, cell := range []string{r.raw, r.sockets} {
		verdict, note, _ := strings.Cut(cell, ":")
		switch {
		case !slices.Contains(verdicts, verdict):
			found = append(found, fmt.Sprintf("%q begins with none of %v", cell, verdicts))
		case verdict == "kept" && len(r.proof) == 0:
			found = append(found, "is kept, but no test proves it")
		case verdict == "planned" && !mayWait.MatchString(r.id):
			found = append(found, "may not wait: keep it, or say why not")
		case verdict != "kept" && strings.TrimSpace(note) == "":
			found = append(found, verdict+" without saying why, or for what it waits")
		}
	}
	return found
}

// checkProof looks for each test that a row names.
func (r *conformanceRow) checkProof(tests map[string]string) (found []string) {
	for i, name := range r.proof {
		if slices.Contains(r.proof[:i], name) {
			found = append(found, fmt.Sprintf("names %s twice", name))
			continue
		}
		parts := testName.FindStringSubmatch(name)
		if parts == nil {
			found = append(found, fmt.Sprintf("%s is no test: write `package.TestName`", name))
			continue
		}
		comment, ok := tests[parts[1]+"."+parts[2]]
		switch {
		case !ok:
			found = append(found, fmt.Sprintf("there is no %s", name))
		case !mentions(comment, r.id) && !mentions(parts[2], strings.ReplaceAll(r.id, "-", "")):
			found = append(found, fmt.Sprintf("%s says nowhere that it proves this", name))
		}
	}
	return found
}

// mentions says whether an id stands in a text, and not as the beginning of another.
func mentions(text, id string) bool {
	for rest := text; ; {
		_, after, ok := strings.Cut(rest, id)
		if !ok {
			return false
		}
		if after == "" || !strings.Contains("0123456789abcdefghijklmnopqrstuvwxyz", after[:1]) {
			return true
		}
		rest = after
	}
}

// tests returns the comment of every test of the module by folder and name.
func (m *module) tests() map[string]string {
	all := map[string]string{}
	for _, f := range m.files {
		if !f.test {
			continue
		}
		for _, d := range f.syntax.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				all[f.dir+"."+fn.Name.Name] = fn.Doc.Text()
			}
		}
	}
	return all
}

// TestConformance holds docs/conformance.md against the tests that there are.
func TestConformance(t *testing.T) {
	m, err := load(os.DirFS(moduleRoot))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(moduleRoot, conformanceDoc))
	if err != nil {
		t.Fatal(err)
	}
	for _, finding := range checkConformance(m, string(doc)) {
		t.Error(finding)
	}
}

// TestConformanceFinds breaks each rule of the document once.
func TestConformanceFinds(t *testing.T) {
	m, err := load(fstest.MapFS{
		"nat/a_test.go": &fstest.MapFile{Data: []byte("package nat\n\n// All of it: " +
			strings.Join(requirementIDs(), " ") + ".\nfunc TestAll(t *T) {}\n\nfunc TestU1Named(t *T) {}\n\n" +
			"// U-14.\nfunc TestOther(t *T) {}\n\nfunc (t T) TestMethod() {}\n")},
		"nat/a.go": &fstest.MapFile{Data: []byte("// Package nat.\npackage nat\n\n// U-1.\nfunc TestInCode() {}\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	var sound strings.Builder
	sound.WriteString("| id | requirement | raw | sockets | proof |\n| --- | --- | --- | --- | --- |\n")
	for _, id := range requirementIDs() {
		fmt.Fprintf(&sound, "| %s | something | kept | kept | `nat.TestAll` |\n", id)
	}
	row := func(id, rest string) string { return "| " + id + " | " + rest + " |\n" }
	good := func(id string) string { return row(id, "something | kept | kept | `nat.TestAll`") }
	for _, c := range []struct {
		name, from, to string
		want           string // part of the only finding; "" for none
	}{
		{"sound", "", "", ""},
		{"two tests", good("U-1"), row("U-1", "x | kept | kept: so | `nat.TestAll`, `nat.TestU1Named`"), ""},
		{"deviation without a test", good("U-1"), row("U-1", "x | deviation: since | deviation: as well | "), ""},
		{"planned", good("L-4"), row("L-4", "x | planned: gateway/natlog | planned: gateway/natlog | "), ""},
		{"missing", good("U-3a"), "", "row U-3a is missing"},
		{"twice", good("A-28"), good("A-28") + good("A-28"), "row A-28 stands in line"},
		{"unknown", good("A-28"), good("A-28") + good("A-29"), "there is no requirement A-29"},
		{"too few cells", good("T-1"), row("T-1", "x | kept | `nat.TestAll`") + good("T-1"), "row T-1 has 4 cells"},
		{"no words", good("T-1"), row("T-1", " | kept | kept | `nat.TestAll`"), "does not say what is required"},
		{"verdict", good("T-1"), row("T-1", "x | fine | kept | `nat.TestAll`"), `"fine" begins with none of`},
		{"verdict of sockets", good("T-1"), row("T-1", "x | kept | | `nat.TestAll`"), `"" begins with none of`},
		{"no reason", good("T-1"), row("T-1", "x | deviation | kept | `nat.TestAll`"), "deviation without saying why"},
		{"must not wait", good("A-8"), row("A-8", "x | planned: gateway/natlog | kept | `nat.TestAll`"), "may not wait"},
		{"planned for nothing", good("A-9"), row("A-9", "x | planned: | kept | `nat.TestAll`"), "planned without saying"},
		{"unproven", good("T-1"), row("T-1", "x | kept | deviation: since | "), "no test proves it"},
		{"no such test", good("T-1"), row("T-1", "x | kept | kept | `nat.TestGone`"), "there is no `nat.TestGone`"},
		{"no such package", good("T-1"), row("T-1", "x | kept | kept | `gone.TestAll`"), "there is no `gone.TestAll`"},
		{"method", good("T-1"), row("T-1", "x | kept | kept | `nat.TestMethod`"), "there is no `nat.TestMethod`"},
		{"outside a test file", good("U-1"), row("U-1", "x | kept | kept | `nat.TestInCode`"), "there is no `nat.TestInCode`"},
		{"a test twice", good("T-1"), row("T-1", "x | kept | kept | `nat.TestAll`, `nat.TestAll`"), "names `nat.TestAll` twice"},
		{"not a test's name", good("T-1"), row("T-1", "x | kept | kept | by hand"), "by hand is no test"},
		{"another row's test", good("U-2"), row("U-2", "x | kept | kept | `nat.TestU1Named`"), "says nowhere"},
		{"a longer id's test", good("U-1"), row("U-1", "x | kept | kept | `nat.TestOther`"), "says nowhere"},
	} {
		t.Run(c.name, func(t *testing.T) {
			doc := sound.String()
			if !strings.Contains(doc, c.from) {
				t.Fatalf("the document has no %q", c.from)
			}
			found := checkConformance(m, strings.Replace(doc, c.from, c.to, 1))
			switch {
			case c.want == "" && len(found) == 0:
			case c.want != "" && len(found) == 1 && strings.Contains(found[0], c.want):
			default:
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}
