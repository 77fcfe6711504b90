package document

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A file is replaced, what is none stays, and a link leads nowhere.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, text := range []string{"first", "second"} {
		if err := Replace(at("file"), text); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(at("file")); err != nil || string(b) != text {
			t.Errorf("%q, %v", b, err)
		}
	}
	if err := os.Mkdir(at("folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for link, target := range map[string]string{"link": "file", "dangling": "none", "deep": "link", "to-folder": "folder"} {
		if err := os.Symlink(target, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]fs.FileMode{
		"folder": fs.ModeDir, "socket": fs.ModeSocket, "link": fs.ModeSymlink, "dangling": fs.ModeSymlink, "deep": fs.ModeSymlink,
		"to-folder": fs.ModeSymlink, "pipe": fs.ModeNamedPipe, // nobody reads it
	} {
		if err := Replace(at(name), "text"); err == nil || !strings.Contains(err.Error(), at(name)) {
			t.Errorf("%s: %v", name, err)
		}
		if info, err := os.Lstat(at(name)); err != nil || info.Mode().Type() != kind {
			t.Errorf("%s is %v now, %v", name, info, err)
		}
	}
	if b, err := os.ReadFile(at("file")); err != nil || string(b) != "second" {
		t.Errorf("by a link: %q, %v", b, err)
	}
	// A folder that is not there: the user's path is said, and no other.
	for _, err := range []error{Replace(at("nowhere/a.json"), "text"), Writable("--json", at("nowhere/a.json"))} {
		if err == nil || strings.Contains(err.Error(), ".report-") || strings.Count(err.Error(), at("nowhere")) != 1 || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without a folder: %v", err)
		}
	}
	left, err := filepath.Glob(at(".report-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// Who reads a pipe gets all of the text, more than the pipe holds, also by a link.
func TestReplaceWritesThrough(t *testing.T) {
	dir := t.TempDir()
	pipe, link := filepath.Join(dir, "pipe"), filepath.Join(dir, "link")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(pipe, link); err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", 1<<20)
	for _, path := range []string{pipe, link} {
		reader, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() {
			err := Replace(path, text)
			if err != nil {
				_ = reader.Close() // nothing more comes
			}
			wrote <- err
		}()
		got := make([]byte, len(text))
		n, err := readFull(reader, got)
		if werr := <-wrote; werr != nil || err != nil || string(got[:n]) != text {
			t.Errorf("%s: %v, %d bytes, %v", path, werr, n, err)
		}
		_ = reader.Close()
		if info, err := os.Lstat(pipe); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
			t.Errorf("%v %v", info, err)
		}
	}
}

// readFull reads on where there is no writer yet, which reads as an end.
func readFull(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := r.Read(b[n:])
		if n += m; err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
	}
	return n, nil
}
