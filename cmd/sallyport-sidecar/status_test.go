package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar"
)

var update = flag.Bool("update", false, "write the golden files")

// report reads the document that the golden files print.
func report(t *testing.T) sidecar.Report {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r sidecar.Report
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

// printed compares what is printed with a golden file.
func printed(t *testing.T, name string, r sidecar.Report, all bool) {
	t.Helper()
	var got bytes.Buffer
	if err := printReport(&got, r, all, time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s is not what -update would write:\n%s", path, &got)
	}
}

func TestStatusTables(t *testing.T) {
	printed(t, "status", report(t), false)
}

// Many sandboxes are counted, and their reasons too, however many there are.
func TestStatusCounts(t *testing.T) {
	r := report(t)
	r.Networks, r.Egress, r.Ingress = nil, nil, nil
	failed := r.Sandboxes[1]
	for i := range 60 {
		failed.ID = fmt.Sprintf("att_%d", 100+i)
		failed.Passive.Reason = fmt.Sprintf("reason %d", i%12)
		r.Sandboxes = append(r.Sandboxes, failed)
	}
	printed(t, "counts", r, false)
	var all bytes.Buffer
	if err := printReport(&all, r, true, time.Now()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(all.String(), "\natt_"); n != len(r.Sandboxes) {
		t.Errorf("--all lists %d sandboxes of %d", n, len(r.Sandboxes))
	}
}

// askStatus runs the subcommand and returns what it prints.
func askStatus(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := command()
	root.SetArgs(append([]string{"status"}, args...))
	root.SetOut(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// A sidecar whose control plane is away says so.
func TestStatusOfASidecar(t *testing.T) {
	folder := t.TempDir()
	client, err := api.NewClient(api.ClientConfig{Address: "unix://" + filepath.Join(folder, "api.sock"), Token: "0123456789abcdef"})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	socket := filepath.Join(folder, "own", "sidecar.sock")
	s, err := sidecar.New(sidecar.Config{Control: client, Region: "iad1", Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	deadline := time.After(20 * time.Second)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		out, err := askStatus(t, "--socket", socket)
		if err == nil && strings.Contains(out, "own region") && strings.Contains(out, "REGION") {
			break
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("%q, %v", out, err)
		}
	}
	out, err := askStatus(t, "--socket", socket, "--output", "json")
	var r sidecar.Report
	if err != nil || json.Unmarshal([]byte(out), &r) != nil || r.Region != "iad1" || r.PublicKey == "" || r.Sandboxes == nil || r.Control.Reachable {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := askStatus(t, "--socket", socket, "--output", "xml"); err == nil || !strings.Contains(err.Error(), "table or json") {
		t.Errorf("--output xml: %v", err)
	}
}

func TestHealthText(t *testing.T) {
	for h, want := range map[packet.Health]string{
		0: "ok", packet.HealthFull: "full", packet.HealthUplinkLost | packet.HealthDraining: "uplink lost, draining", 0x44: "full, unknown 0x40",
	} {
		if got := healthText(h); got != want {
			t.Errorf("%#x: %q, want %q", uint8(h), got, want)
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 1 << 63: "9.2 EB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
