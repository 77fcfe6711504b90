package deploy_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// Whoever sees a packet dropped finds its reason in the handbook.
func TestReasonsAreDocumented(t *testing.T) {
	text := read(t, filepath.Join(root, "docs", "operations.md"))
	for o := range packet.Outcomes() {
		if !strings.Contains(text, "`"+o.String()+"`") {
			t.Errorf("docs/operations.md does not tell of %v", o)
		}
	}
}
