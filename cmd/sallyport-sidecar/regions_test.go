package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/config"
)

func TestRegions(t *testing.T) {
	folder := t.TempDir()
	token := filepath.Join(folder, "cle1.token")
	if err := os.WriteFile(token, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := config.Sidecar{
		API: "unix:///run/iad1.sock", TokenFile: "/etc/iad1.token",
		Regions: map[string]config.ControlPlane{"cle1": {API: "unix:///run/cle1.sock", TokenFile: token}},
	}
	r, err := newRegions(c, "fedcba9876543210")
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	settled, err := r.Control("cle1", "unix:///run/other.sock")
	if err != nil {
		t.Fatal(err)
	}
	named, err := r.Control("sfo1", "unix:///run/sfo1.sock")
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Control("sfo1", "unix:///run/sfo1.sock")
	if err != nil || again != named || named == settled {
		t.Errorf("the same address has two clients, or two have one: %v", err)
	}
	for what, address := range map[string]string{"neither": "", "another machine's": "http://192.0.2.1:80"} {
		if _, err := r.Control("fra1", address); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	got := secrets(c)
	for _, want := range []string{"/run/iad1.sock", "/etc/iad1.token", "/run/cle1.sock", token} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not hidden: %v", want, got)
		}
	}
	c.Regions["cle1"] = config.ControlPlane{API: "unix:///run/cle1.sock", TokenFile: filepath.Join(folder, "none")}
	if _, err := newRegions(c, "x"); err == nil || !strings.Contains(err.Error(), "regions[cle1].token_file") {
		t.Errorf("without the token: %v", err)
	}
}

// The defaults of the configuration are those that the decision is made with.
func TestFailoverSettings(t *testing.T) {
	c, err := config.ReadSidecar("x.yaml", strings.NewReader("region: iad1\ntoken_file: token\n"))
	if err != nil {
		t.Fatal(err)
	}
	f := failoverSettings(c.Failover)
	if err := f.Validate(); err != nil || f.InUse != c.Failover.Probe || f.Hold != c.Failover.Hold || f.Misses != 3 || f.Failbacks != 2 {
		t.Errorf("%+v, %v", f, err)
	}
}
