package gateway

import (
	"bytes"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

// testMemory is what a host with one network and two sandboxes knows.
func testMemory() memory {
	n := testNetwork("net_a", 1)
	key := tunnel.Key(bytes.Repeat([]byte{9}, tunnel.KeySize))
	return memory{
		Region: "iad1", Host: "gw-a", Cursor: spec.Cursor{Store: "one", Revision: 7}, State: testState(n),
		Attachments: []spec.Attachment{
			{ID: "a", Network: n.ID, PublicKey: key.String(), Inner: netip.MustParseAddr("10.20.0.2"), Worker: netip.MustParseAddr("10.20.0.3"), Created: time.Unix(1, 0).UTC()},
			{ID: "b", Network: n.ID, PublicKey: key.String(), Inner: netip.MustParseAddr("10.20.0.4"), Kind: spec.KindBuild, Project: "<&>"},
		},
		Orphans: []string{"b"},
		Ports:   map[string]uint16{n.ID: 23815},
		Peers:   map[string]contacts{n.ID: {key: netip.MustParseAddrPort("192.0.2.9:51820")}},
	}
}

func encoded(t *testing.T, m memory) []byte {
	t.Helper()
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMemoryRoundTrip(t *testing.T) {
	want := testMemory()
	b := encoded(t, want)
	got, err := decodeMemory(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, %v, want\n%+v", got, err, want)
	}
	if !bytes.Equal(b, encoded(t, got)) {
		t.Error("the same memory has two encodings")
	}
}

// A file that was cut off, or of which a byte is another, is refused, or says what
// it said before (a key in other letters).
func TestMemoryIsWholeOrRefused(t *testing.T) {
	want := testMemory()
	b := encoded(t, want)
	for n := range b {
		if _, err := decodeMemory(b[:n]); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Fatalf("cut off after %d of %d bytes: %v", n, len(b), err)
		}
	}
	for i := range b {
		for _, flip := range []byte{1, 0x20, 0x80} {
			bad := bytes.Clone(b)
			bad[i] ^= flip
			if got, err := decodeMemory(bad); err == nil && !reflect.DeepEqual(got, want) {
				t.Fatalf("byte %d is %q instead of %q, and it is taken for\n%+v", i, bad[i], b[i], got)
			}
		}
	}
}

func TestMemoryRefuses(t *testing.T) {
	change := func(f func(*memory)) []byte {
		m := testMemory()
		f(&m)
		return encoded(t, m)
	}
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"another version": {bytes.Replace(encoded(t, testMemory()), []byte(`"version":1`), []byte(`"version":2`), 1), "of version 2, and this program reads version 1"},
		"nothing":         {nil, "cut off"},
		"another file":    {[]byte(`{"teams":[]}`), "of version 0"},
		"no cursor":       {change(func(m *memory) { m.Cursor = spec.Cursor{} }), "how far"},
		"a state that is not valid": {change(func(m *memory) {
			m.State.Networks[0].CIDR = netip.MustParsePrefix("8.8.0.0/16")
		}), "RFC 1918"},
		"an attachment without a key": {change(func(m *memory) { m.Attachments[1].PublicKey = "" }), `"b"`},
		"an attachment nowhere":       {change(func(m *memory) { m.Attachments[0].Inner = netip.Addr{} }), `"a"`},
	} {
		if _, err := decodeMemory(c.file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
	m := testMemory()
	for _, of := range [][2]string{{"iad1", "gw-b"}, {"fra1", "gw-a"}} {
		if err := m.belongs(of[0], of[1]); err == nil || !strings.Contains(err.Error(), of[1]) || !strings.Contains(err.Error(), of[0]) {
			t.Errorf("host %s of region %s: %v", of[1], of[0], err)
		}
	}
	if err := m.belongs("iad1", "gw-a"); err != nil {
		t.Error(err)
	}
}

// However far a process came with the new file before it was killed, the old one is
// read afterwards, and the next write succeeds.
func TestStateFileIsOldOrNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder", "state.json")
	old := encoded(t, testMemory())
	if err := writeStateFile(path, old); err != nil {
		t.Fatal(err)
	}
	m := testMemory()
	m.Cursor.Revision++
	next := encoded(t, m)
	for n := 0; n <= len(next); n += 97 {
		if err := os.WriteFile(path+".new", next[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := readStateFile(path); err != nil || !bytes.Equal(b, old) {
			t.Fatalf("after %d bytes of the new file: %v", n, err)
		}
	}
	if err := writeStateFile(path, next); err != nil {
		t.Fatal(err)
	}
	if b, err := readStateFile(path); err != nil || !bytes.Equal(b, next) {
		t.Errorf("the new file is not there: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder's mode is %v (%v), want 0700", info.Mode(), err)
	}
	if left, _ := filepath.Glob(path + "?*"); left != nil {
		t.Errorf("left over: %v", left)
	}
}

// Where a step fails, the old file stays and the error says which step.
func TestStateFileFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	if err := writeStateFile(filepath.Join(dir, "state.json", "x"), nil); err != nil {
		t.Fatal(err)
	}
	// The folder is in the file's place: all goes well but the rename.
	if err := writeStateFile(path, []byte("new")); err == nil || !strings.Contains(err.Error(), "rename") {
		t.Errorf("rename: %v", err)
	}
	if left, _ := filepath.Glob(path + ".*"); left != nil {
		t.Errorf("left over: %v", left)
	}
	if err := writeStateFile(filepath.Join(path, "x", "y"), nil); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file for a folder: %v", err)
	}
	if err := os.Mkdir(filepath.Join(path, "x.new"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "x.new", "full"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeStateFile(filepath.Join(path, "x"), []byte("new")); err == nil {
		t.Error("the new file's place is taken, and nothing is said")
	}
	if b, err := os.ReadFile(filepath.Join(path, "x")); err != nil || len(b) != 0 {
		t.Errorf("the old file is %q, %v", b, err)
	}
}

func TestReadStateFileRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	if _, err := readStateFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := readStateFile(dir); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a folder: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o620); err != nil {
		t.Fatal(err)
	}
	if _, err := readStateFile(path); err == nil || !strings.Contains(err.Error(), "0620") {
		t.Errorf("a file that others write: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxStateFile+1); err != nil { // sparse
		t.Fatal(err)
	}
	if _, err := readStateFile(path); err == nil || !strings.Contains(err.Error(), "256 MiB") {
		t.Errorf("a file that is too large: %v", err)
	}
}

func FuzzDecodeMemory(f *testing.F) {
	b, err := testMemory().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"sha256":"","memory":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMemory(b); err == nil {
			if _, err := m.encode(); err != nil {
				t.Error(err)
			}
		}
	})
}
