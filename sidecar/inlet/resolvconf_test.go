package inlet

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var servers = []netip.Addr{netip.MustParseAddr("10.20.0.1"), netip.MustParseAddr("10.20.0.2")}

const wanted = "nameserver 10.20.0.1\nnameserver 10.20.0.2\n"

func TestWriteResolvConf(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	for _, before := range []string{"", "nameserver 192.0.2.1\n" + strings.Repeat("# a long file\n", 100)} {
		if before != "" {
			if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		old, err := os.Open(path)
		if before != "" && err != nil {
			t.Fatal(err)
		}
		if err := WriteResolvConf(path, servers); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		info, _ := os.Stat(path)
		if err != nil || string(text) != wanted || info.Mode().Perm() != 0o644 {
			t.Errorf("%q, %v, mode %v", text, err, info.Mode())
		}
		if old != nil { // whoever has the old file open goes on reading that one
			b := make([]byte, len(before))
			if n, _ := old.Read(b); string(b[:n]) != before {
				t.Errorf("a reader of the old file sees %q", b[:n])
			}
			_ = old.Close()
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

func TestResolvConfRefusals(t *testing.T) {
	dir := t.TempDir()
	file, elsewhere := filepath.Join(dir, "file"), filepath.Join(dir, "elsewhere")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": file, "folder": dir} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		"resolv.conf":                            "not a plain path",
		dir + "/elsewhere/../resolv.conf":        "not a plain path",
		filepath.Join(dir, "link"):               "symbolic link",
		filepath.Join(dir, "folder/resolv.conf"): "symbolic link",
		filepath.Join(dir, "none/resolv.conf"):   "does not exist; make it",
		elsewhere:                                "no file",
		filepath.Join(file, "resolv.conf"):       "folder",
	} {
		err := WriteResolvConf(path, servers)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want %q", path, err, says)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "kept" {
		t.Errorf("the file behind a link holds %q, %v", text, err)
	}
	// The machine's own, under whatever name. It is looked at, not written.
	if err := CheckResolvConf("/etc/resolv.conf"); err == nil {
		t.Error("this machine's own resolv.conf would be written")
	}
}
