package document

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// What a run kept that did not measure everything is in the user's file, or beside it where
// that is to stay whole.
func TestOutput(t *testing.T) {
	for _, c := range []struct {
		name                 string
		keep, whole          bool
		wantFile, wantBeside string
	}{
		{"not everything", false, false, `"new"`, `"older"`},
		{"everything", false, true, `"new"`, `"older"`},
		{"not everything, file to stay whole", true, false, `"old"`, `"new"`},
		{"everything, file to stay whole", true, true, `"new"`, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Output{Path: filepath.Join(t.TempDir(), "tcp.json"), Whole: c.keep}
			if filepath.Base(o.Partial()) != "tcp.partial.json" || !IsPartial(o.Partial()) || IsPartial(o.Path) {
				t.Errorf("beside it: %s", o.Partial())
			}
			for path, text := range map[string]string{o.Path: `"old"`, o.Partial(): `"older"`} {
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := o.Check("--json"); err != nil {
				t.Error(err)
			}
			err := o.Write("new", c.whole)
			if lost := c.keep && !c.whole; lost != (err != nil) || lost && (!strings.Contains(err.Error(), o.Partial()) || !strings.Contains(err.Error(), o.Path+" stays")) {
				t.Errorf("the error is %v", err)
			}
			if file, beside := content(t, o.Path), content(t, o.Partial()); file != c.wantFile || beside != c.wantBeside {
				t.Errorf("the file has %s, what is beside it %s; want %s and %s", file, beside, c.wantFile, c.wantBeside)
			}
		})
	}
	if err := (Output{Whole: true}).Write("text", false); err != nil {
		t.Errorf("without a path: %v", err)
	}
	if (Output{Path: "/a/b"}).Partial() != "/a/b.partial" {
		t.Error("a name without .json")
	}
}

// Whatever cannot be written is refused before the load, also the file beside it; a pipe has
// nothing to keep.
func TestOutputCheck(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(at("x.partial.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    Output
		want string // in the error; empty: none
	}{
		{Output{}, ""}, {Output{Whole: true}, "--whole could keep"},
		{Output{Path: at("x.json")}, ""}, {Output{Path: at("x.json"), Whole: true}, "x.partial.json"},
		{Output{Path: dir}, "--json: the report " + dir}, {Output{Path: at("none/x.json")}, "none"},
		{Output{Path: os.DevNull, Whole: true}, ""}, {Output{Path: at("pipe"), Whole: true}, ""},
	} {
		if err := c.o.Check("--json"); (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
	if err := (Output{Path: os.DevNull, Whole: true}).Write("text", false); err != nil {
		t.Errorf("to a device: %v", err)
	}
	if left, err := filepath.Glob(at(".report-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A report goes to standard output where somebody has that, and to no file of that name.
func TestStandard(t *testing.T) {
	t.Chdir(t.TempDir())
	var out strings.Builder
	o := Output{Path: Standard, To: &out, Whole: true}
	if err := o.Check("--json"); err != nil {
		t.Error(err)
	}
	if err := o.Write("new", false); err != nil || out.String() != "\"new\"\n" || o.Name("other") != "other" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := o.WriteText("page"); err != nil || !strings.HasSuffix(out.String(), "\npage") {
		t.Errorf("%q, %v", out.String(), err)
	}
	o.To = nil
	for _, err := range []error{o.Check("--json"), Writable("--json", Standard), Replace(Standard, "text")} {
		if err == nil || !strings.Contains(err.Error(), `"-" stands for standard output, which this report does not go to; ./- is a file`) {
			t.Errorf("%v", err)
		}
	}
	if err := o.Write("new", true); err == nil {
		t.Error("it was written to nobody")
	}
	if left, err := os.ReadDir("."); err != nil || len(left) != 0 {
		t.Errorf("there are files: %v, %v", left, err)
	}
	if err := Replace("./-", "text"); err != nil || content(t, "./-") != "text" {
		t.Errorf("a file of that name: %v", err)
	}
	if (Output{Path: "a/tcp.json"}).Name("other") != "tcp" || (Output{}).Name("other") != "other" {
		t.Error("names of parts")
	}
}
