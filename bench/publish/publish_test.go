package publish

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is in the repository is what its parts say.
func TestRepositoryIsCurrent(t *testing.T) {
	cfg := Config{Parts: "../../docs/benchmarks", Document: "../../docs/benchmarks.md"}
	list, err := cfg.files()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range list {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is not what its parts say (%v): run sallyport-bench report", path, err)
		}
	}
}

// Benchmarks become a part, the part becomes documents, and what fails changes nothing.
func TestRecordAndRun(t *testing.T) {
	dir := t.TempDir()
	doc := filepath.Join(dir, "doc.md")
	var said bytes.Buffer
	cfg := Config{Parts: dir, Document: doc, Out: &said}
	if err := Run(cfg); err == nil || !strings.Contains(err.Error(), "there is no part") {
		t.Errorf("without a part: %v", err)
	}
	var out bytes.Buffer
	record := RecordConfig{Command: []string{"echo", "BenchmarkEgressEstablished/1k-2 100 75.00 ns/packet"}, JSON: filepath.Join(dir, "translator.json"), Title: "The translator", Out: &out}
	if err := Record(t.Context(), record); err != nil || !strings.Contains(out.String(), "75.00") {
		t.Fatalf("%v, %s", err, out.String())
	}
	if err := Run(cfg); err == nil {
		t.Error("without a document")
	}
	if err := os.WriteFile(doc, []byte("by hand\n<!-- written by make bench-report; changes up to the end mark are lost -->\n<!-- end of what make bench-report writes -->\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tcp.partial.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Run(cfg); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), "tcp.partial.json is left out") {
		t.Errorf("said %q", said.String())
	}
	for name, want := range map[string]string{"doc.md": "| <= 100 ns | 75.0 ns/packet |", "measured.md": "## The translator", "measured.html": "The translator", "ratios.svg": "<svg"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
	for want, command := range map[string][]string{"exit status 1": {"false"}, "there is none": {"echo", "PASS"}, "needed": nil} {
		record.Command = command
		if err := Record(t.Context(), record); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", command, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "other.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Run(cfg); err == nil || !strings.Contains(err.Error(), "other.json") {
		t.Errorf("a broken part: %v", err)
	}
}

// The page of what is in the repository is well-formed, loads nothing, begins with how the
// gateway stands to its targets, says what the columns mean, and tells in words what pictures
// show.
func TestPage(t *testing.T) {
	cfg := Config{Parts: "../../docs/benchmarks", Document: "../../docs/benchmarks.md"}
	list, err := cfg.files()
	if err != nil {
		t.Fatal(err)
	}
	text := list[filepath.Join(cfg.Parts, "measured.html")]
	seen := map[string]int{}
	ids, refs := map[string]bool{}, []string{}
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		seen[e.Name.Local]++
		for _, a := range e.Attr {
			switch a.Name.Local {
			case "id":
				ids[a.Value] = true
			case "href", "aria-labelledby":
				refs = append(refs, strings.TrimPrefix(a.Value, "#"))
			case "src":
				t.Errorf("the page loads %s", a.Value)
			}
		}
	}
	for _, r := range refs {
		if !ids[r] {
			t.Errorf("nothing on the page is called %s", r)
		}
	}
	if seen["svg"] == 0 || seen["desc"] != seen["svg"] || seen["main"] != 1 || seen["table"] != 2 || seen["dt"] != len(terms()) || seen["script"] != 0 {
		t.Errorf("elements: %v", seen)
	}
	at := 0
	for _, want := range []string{"<title>What was measured</title>", "prefers-color-scheme:dark", "Targets: ", ">Summary</h2>", "What the words mean", ">Targets</h2>", "<svg"} {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("%q is not on the page, or too early", want)
		}
		at += i
	}
}
