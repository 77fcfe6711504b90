package uplink

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The kernel has room for the descriptors of all sessions before the first one begins: none
// waits for a larger table.
func TestRoomForDescriptors(t *testing.T) {
	const most = 20_000
	newSandbox(t, SocketsConfig{MaxSessions: most})
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "FDSize:"); ok {
			if _, err := fmt.Sscan(rest, &size); err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := min(most, descriptors()); size < want {
		t.Errorf("the table has %d descriptors, want %d", size, want)
	}
}
