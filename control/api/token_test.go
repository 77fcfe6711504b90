package api

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadTokenFile(t *testing.T) {
	const good = "0123456789abcdef"
	name := filepath.Join(t.TempDir(), "token")
	for text, says := range map[string]string{
		good: "", " " + good + "\r\n": "", strings.Repeat("x", maxToken): "",
		"":                              "is empty",
		" \n":                           "is empty",
		good[1:]:                        "15 characters; write at least 16",
		good + "\n" + good:              "without line breaks",
		good + "\x00":                   "not printable",
		strings.Repeat("x", maxToken+1): "more than 4096 bytes",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadTokenFile(name)
		if says == "" {
			if err != nil || got != strings.TrimSpace(text) {
				t.Errorf("%.20q: got %.20q, %v", text, got, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), good) {
			t.Errorf("%.20q: got %v, want %q and the file's name", text, err, says)
		}
	}
	if _, err := ReadTokenFile(name + "-none"); err == nil || !strings.Contains(err.Error(), name+"-none") {
		t.Errorf("no file: %v", err)
	}
}
