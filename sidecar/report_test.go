package sidecar

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// What Ask returns is what the sidecar knows, however many sandboxes there are.
func TestAsk(t *testing.T) {
	p := newPlane(t)
	p.passive = &api.PassiveRegion{Region: "cle1", Network: "net_p"}
	r := serve(t, p)
	box := open(t, r.Sidecar, "p")
	alive(t, r.Sidecar)
	const edges = 300
	for range edges {
		if _, err := r.attach(t.Context(), edge()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Ask(t.Context(), r.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := json.Marshal(got); err != nil || len(b) <= maxRequest {
		t.Errorf("%d bytes, %v; the answer is too small to prove anything", len(b), err)
	}
	if got.Attached != 1 || got.Bypassed[spec.BypassEdge] != edges || len(got.Sandboxes) != edges+1 || got.Region != "iad1" || len(got.Networks) != 1 {
		t.Fatalf("%d attached, %v, %d sandboxes, %d networks of %q", got.Attached, got.Bypassed, len(got.Sandboxes), len(got.Networks), got.Region)
	}
	i := slices.IndexFunc(got.Sandboxes, func(b SandboxStatus) bool { return b.ID == box.id })
	if b := got.Sandboxes[max(i, 0)]; b.Inner != box.inner || b.State != "running" || b.Passive.State != passiveFailed || b.Passive.Network != "net_p" || b.Passive.Reason == "" {
		t.Errorf("the sandbox is %+v", b)
	}
	n := got.Networks[0]
	if len(n.Paths) != 1 || !n.Paths[0].Alive || n.Paths[0].RTTMicros == 0 || n.Paths[0].Handshake.IsZero() {
		t.Errorf("paths %+v", n.Paths)
	}
	if len(n.Groups) != 1 || n.Groups[0].Choice.String() != "gw1 in iad1" || n.Groups[0].Since.IsZero() || time.Since(n.Groups[0].Since) > patience {
		t.Errorf("groups %+v", n.Groups)
	}
}

func TestAskNobody(t *testing.T) {
	_, err := Ask(t.Context(), filepath.Join(t.TempDir(), "none.sock"))
	mustContain(t, err, "no sidecar serves at", "sallyport-sidecar run --config FILE")
}
