package console

import (
	"strings"
	"testing"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain":         "plain",
		"a\x1b[2Jb":     "a�[2Jb",
		"bell\a\r\x7f":  "bell���",
		"\u009b31m":     "�31m",
		"\u202etxt.exe": "�txt.exe",
		"two\nlines":    "two\nlines",
		"Zürich 東京":     "Zürich 東京",
		"not\xffUTF-8":  "not�UTF-8",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	var tb Table
	tb.Row("a\nb", "", 7)
	if got := strings.Join(tb.rows[0], "|"); got != "a�b|-|7" {
		t.Errorf("got %q", got)
	}
}

// Tables are parted by a blank line; those after the first that have but a title are left out.
func TestPrintAll(t *testing.T) {
	var head, none, some Table
	head.Row("REGION", "iad1")
	none.Row("HOST", "STATE")
	some.Row("NETWORK", "CIDR")
	some.Row("net", "10.0.0.0/16")
	var b strings.Builder
	if err := PrintAll(&b, &head, &none, &some); err != nil {
		t.Fatal(err)
	}
	if want := "REGION  iad1\n\nNETWORK  CIDR\nnet      10.0.0.0/16\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}
