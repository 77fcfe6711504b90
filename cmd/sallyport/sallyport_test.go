package main

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/control"
	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "a-token-of-the-tests"

var hostKey = base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))

type fixedClock struct{}

func (fixedClock) Now() time.Time { return time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC) }

// world is a control plane with a gateway that follows it.
type world struct {
	t      *testing.T
	store  *control.Store
	api    string // address
	token  string // file
	report spec.HostReport
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, func(*spec.State, *spec.HostReport) {})
}

// newWorldWith makes a world after a change of the desired state and of what its
// gateway reports.
func newWorldWith(t *testing.T, change func(*spec.State, *spec.HostReport)) *world {
	t.Helper()
	addr := netip.MustParseAddr
	state := spec.State{
		Teams:    []spec.Team{{ID: "team_a"}},
		Regions:  []spec.Region{{Name: "iad1", Pool: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")}, Hosts: []spec.Host{{Name: "gw-a", Endpoint: addr("192.0.2.1")}}}, {Name: "fra1", Pool: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/28")}, Hosts: []spec.Host{{Name: "gw-b", Endpoint: addr("192.0.2.2")}}}},
		Networks: []spec.Network{{ID: "net_1", Name: "main", Team: "team_a", Region: "iad1", CIDR: netip.MustParsePrefix("10.20.0.0/16"), Pair: [2]netip.Addr{addr("203.0.113.1"), addr("203.0.113.2")}}},
		Projects: []spec.Project{{ID: "prj_1", Team: "team_a", Environments: []spec.Environment{{Name: "production", Active: []string{"net_1"}}}}},
	}
	report := spec.HostReport{Host: "gw-a", Region: "iad1", Networks: []spec.NetworkReport{{
		ID: "net_1", PublicKey: hostKey, Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Peers: 2, Sessions: [2]int{11, 12}, Draining: [2]bool{false, true},
		Drops: map[string]uint64{"malformed": 5, "rate_limit": 0, "wrong\x1b[31mreason": 1}, WrongSource: 0, Egress: spec.Traffic{Packets: 777},
	}}}
	change(&state, &report)
	store, err := control.NewStore(control.StoreConfig{Region: "iad1", Clock: fixedClock{}, AcknowledgeTimeout: time.Minute, State: state})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: store, report: report, token: filepath.Join(t.TempDir(), "token")}
	if err := os.WriteFile(w.token, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "api.sock")
	w.api = "unix://" + path
	l, err := control.Listen(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	w.run(l)
	return w
}

func (w *world) run(l net.Listener) {
	srv := &http.Server{Handler: control.NewServer(w.store, control.ServerConfig{Token: token})}
	ctx, cancel := context.WithCancel(context.Background())
	served, followed := make(chan error, 1), make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	go func() { followed <- w.follow(ctx) }()
	w.t.Cleanup(func() {
		srv.Close()
		cancel()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			w.t.Errorf("server: %v", err)
		}
		if err := <-followed; !errors.Is(err, context.Canceled) {
			w.t.Errorf("gateway: %v", err)
		}
	})
}

// follow is a gateway that confirms whatever it is told.
func (w *world) follow(ctx context.Context) error {
	for at := (spec.Cursor{}); ; {
		u, err := w.store.Next(ctx, at)
		if err != nil {
			return err
		}
		at = u.Cursor()
		err = w.store.Report(ctx, w.report)
		if err := errors.Join(err, w.store.Acknowledge(ctx, "gw-a", at)); err != nil {
			return err
		}
	}
}

// sallyport runs the command with the world's API and token and returns what it
// printed and its error.
func (w *world) sallyport(args ...string) (string, error) {
	w.t.Helper()
	return execute(append(args, "--api", w.api, "--token-file", w.token)...)
}

func execute(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	return out.String(), err
}

func (w *world) must(args ...string) string {
	w.t.Helper()
	out, err := w.sallyport(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// cell finds the value beside a title in the first column.
func cell(t *testing.T, out, title string) string {
	t.Helper()
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, title+"  "); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatalf("there is no %q in\n%s", title, out)
	return ""
}

func attachArgs(more ...string) []string {
	return append([]string{"attach", "--project", "prj_1", "--environment", "production", "--region", "iad1"}, more...)
}

func TestAttachMakesAKey(t *testing.T) {
	w := newWorld(t)
	out := w.must(attachArgs()...)
	raw, err := base64.StdEncoding.DecodeString(cell(t, out, "PRIVATE KEY (shown once)"))
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	a := w.store.List("", 1).Attachments[0]
	if base64.StdEncoding.EncodeToString(private.PublicKey().Bytes()) != a.PublicKey || cell(t, out, "PUBLIC KEY") != a.PublicKey {
		t.Error("the private key is not that of the attachment")
	}
	for title, want := range map[string]string{
		"ID": a.ID, "NETWORK": "net_1 (main)", "INNER ADDRESS": "10.20.0.2", "WORKER ADDRESS": "10.20.0.3", "ADDRESS OF THE PAIR": a.Egress.String(),
		"PAIR": "203.0.113.1, 203.0.113.2", "DNS": "10.20.0.1", "MTU": "1420", "ACTIVE GATEWAY": "gw-a",
		"ACTIVE GATEWAY ENDPOINT": "192.0.2.1:51820", "ACTIVE GATEWAY PUBLIC KEY": hostKey,
	} {
		if got := cell(t, out, title); got != want {
			t.Errorf("%s: got %q, want %q", title, got, want)
		}
	}
	text := base64.StdEncoding.EncodeToString(raw)
	if strings.Count(out, text) != 1 {
		t.Error("the private key is not printed exactly once")
	}
	for _, args := range [][]string{{"status"}, {"attachments"}, {"status", "--output", "json"}, {"attachments", "--output", "json"}} {
		if strings.Contains(w.must(args...), text) {
			t.Errorf("%v prints the private key", args)
		}
	}
}

func TestAttachInJSON(t *testing.T) {
	w := newWorld(t)
	var got attached
	if err := json.Unmarshal([]byte(w.must(attachArgs("--output", "json")...)), &got); err != nil {
		t.Fatal(err)
	}
	if got.PrivateKey == "" || got.Attachment != w.store.List("", 1).Attachments[0] || len(got.Gateways) != 1 {
		t.Errorf("got %+v", got)
	}
	given := w.must(attachArgs("--public-key", hostKey, "--output", "json", "--runtime", "python", "--kind", "function")...)
	var second attached
	if err := json.Unmarshal([]byte(given), &second); err != nil {
		t.Fatal(err)
	}
	if second.PrivateKey != "" || second.Attachment.PublicKey != hostKey || second.Attachment.Runtime != "python" {
		t.Errorf("got %+v", second)
	}
}

func TestBypassNeedsNoKey(t *testing.T) {
	w := newWorld(t)
	out := w.must(attachArgs("--runtime", "edge")...)
	if cell(t, out, "BYPASS") != spec.BypassEdge || strings.Contains(out, "KEY") {
		t.Errorf("got\n%s", out)
	}
	out = w.must(attachArgs("--kind", "build", "--output", "json")...)
	if !strings.Contains(out, spec.BypassBuilds) || strings.Contains(out, "privateKey") {
		t.Errorf("got\n%s", out)
	}
	status := w.must("status")
	if cell(t, status, "BYPASS: "+spec.BypassEdge) != "1 now, 1 since the start" || cell(t, status, "ATTACHMENTS") != "0" {
		t.Errorf("got\n%s", status)
	}
}

func TestListAndDetach(t *testing.T) {
	w := newWorld(t)
	if got := w.must("attachments"); got != "nobody is attached\n" {
		t.Errorf("got %q", got)
	}
	if got := w.must("attachments", "--output", "json"); !strings.Contains(got, `"attachments": []`) {
		t.Errorf("got %q", got)
	}
	w.must(attachArgs("--public-key", hostKey)...)
	id := w.store.List("", 1).Attachments[0].ID
	out := w.must("attachments")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	want := id + " prj_1 production function nodejs net_1 10.20.0.2 203.0.113."
	if got := strings.Join(strings.Fields(lines[1]), " "); len(lines) != 2 || !strings.HasPrefix(got, want) || !strings.HasSuffix(got, " 2025-01-02 03:04:05 -") {
		t.Errorf("got\n%s", out)
	}
	if got := w.must("detach", id); got != "detached "+id+"\n" {
		t.Errorf("got %q", got)
	}
	if w.store.Status().Attachments != 0 {
		t.Error("it is still attached")
	}
	if _, err := w.sallyport("detach", id); err == nil || !strings.Contains(err.Error(), "there is no attachment") {
		t.Errorf("got %v", err)
	}
	if _, err := w.sallyport("detach", id, "a/b"); err == nil || !strings.Contains(err.Error(), "nothing was detached") {
		t.Errorf("got %v", err)
	}
	if _, err := w.sallyport("detach", "a/b"); err == nil || !strings.Contains(err.Error(), "not the ID") {
		t.Errorf("got %v", err)
	}
	w.must(attachArgs("--public-key", hostKey)...)
	if got := w.must("detach", w.store.List("", 1).Attachments[0].ID, "--output", "json"); !strings.Contains(got, `"detached": "att-`) {
		t.Errorf("got %q", got)
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t)
	w.must(attachArgs("--public-key", hostKey)...)
	out := w.must("status")
	var text []string
	for line := range strings.Lines(out) {
		text = append(text, strings.Join(strings.Fields(line), " "))
		if strings.TrimRight(line, "\n") != strings.TrimRight(line, " \n") {
			t.Errorf("blanks at the end of %q", line)
		}
	}
	want := `REGION iad1
REVISION 2
ATTACHMENTS 1

REGION POOL HOST ENDPOINT REVISION LAST REPORT (UTC) STATE
iad1 203.0.113.0/28 gw-a 192.0.2.1 2 2025-01-02 03:04:05 -
fra1 198.51.100.0/28 gw-b 192.0.2.2 - - -

NETWORK TEAM CIDR ATTACHED PAIR SESSIONS PACKETS OUT PACKETS IN WRONG SOURCE
net_1 (main) team_a 10.20.0.0/16 1 203.0.113.1, 203.0.113.2 (203.0.113.2 draining) 11, 12 777 0 0

NETWORK HOST ENDPOINT UPLINK PEERS PUBLIC KEY
net_1 (main) gw-a 192.0.2.1:51820 - 2 ` + hostKey + `

NETWORK DROPPED BECAUSE PACKETS
net_1 (main) malformed 5
net_1 (main) wrong�[31mreason 1`
	if got := strings.Join(text, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var s api.Status
	if err := json.Unmarshal([]byte(w.must("status", "--output", "json")), &s); err != nil || s.Region != "iad1" || s.Networks[0].Hosts[0].Peers != 2 {
		t.Errorf("got %+v, %v", s, err)
	}
}

func TestEnvironment(t *testing.T) {
	w := newWorld(t)
	t.Setenv("SALLYPORT_API", w.api)
	t.Setenv("SALLYPORT_TOKEN_FILE", w.token)
	if out, err := execute("status"); err != nil || !strings.Contains(out, "iad1") {
		t.Errorf("got %v", err)
	}
	// Flags win.
	if _, err := execute("status", "--api", "unix:///nonexistent/api.sock"); err == nil || !strings.Contains(err.Error(), "/nonexistent/api.sock") {
		t.Errorf("got %v", err)
	}
}

// Each row is a mistake and what the error tells to do.
func TestErrorsSayWhatToDo(t *testing.T) {
	w := newWorld(t)
	t.Setenv("SALLYPORT_API", "")
	t.Setenv("SALLYPORT_TOKEN_FILE", "")
	wrong := filepath.Join(t.TempDir(), "wrong")
	huge := filepath.Join(t.TempDir(), "huge")
	empty := filepath.Join(t.TempDir(), "empty")
	for name, text := range map[string]string{wrong: "the-token-of-others", huge: strings.Repeat("x", 5000), empty: "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		args []string
		says string
	}{
		"socket missing":      {[]string{"status", "--api", "unix:///nonexistent/api.sock", "--token-file", w.token}, "is sallyportd running here"},
		"address wrong":       {[]string{"status", "--api", "192.0.2.1:80", "--token-file", w.token}, "write unix:///path"},
		"no token":            {[]string{"status", "--api", w.api}, "--token-file or SALLYPORT_TOKEN_FILE"},
		"token file missing":  {[]string{"status", "--api", w.api, "--token-file", "/nonexistent/token"}, "/nonexistent/token"},
		"token file huge":     {[]string{"status", "--api", w.api, "--token-file", huge}, "more than 4096 bytes"},
		"token file empty":    {[]string{"status", "--api", w.api, "--token-file", empty}, "empty"},
		"token wrong":         {[]string{"status", "--api", w.api, "--token-file", wrong}, "--token-file or SALLYPORT_TOKEN_FILE names"},
		"format":              {[]string{"status", "--api", w.api, "--token-file", w.token, "--output", "xml"}, "use table or json"},
		"wg-quick in JSON":    {attachArgs("--api", w.api, "--token-file", w.token, "--format", "wg-quick", "--output", "json"), "leave out one"},
		"attach's format":     {attachArgs("--api", w.api, "--token-file", w.token, "--format", "yaml"), "use table or wg-quick"},
		"peering's format":    {[]string{"peering", "show", "p", "--api", w.api, "--token-file", w.token, "--format", "yaml"}, "use table or wg-quick"},
		"peering whose ID":    {[]string{"peering", "show", "a/b", "--api", w.api, "--token-file", w.token}, "sallyport peering list"},
		"peering unknown":     {[]string{"peering", "show", "peer_x", "--api", w.api, "--token-file", w.token}, "sallyport peering list"},
		"key":                 {attachArgs("--api", w.api, "--token-file", w.token, "--public-key", "x"), "--public-key: not a WireGuard public key"},
		"flag missing":        {[]string{"attach", "--project", "p"}, `"environment", "region" not set`},
		"project unknown":     {[]string{"attach", "--project", "p", "--environment", "e", "--region", "iad1", "--api", w.api, "--token-file", w.token}, "add it"},
		"another region":      {[]string{"attach", "--project", "prj_1", "--environment", "production", "--region", "fra1", "--api", w.api, "--token-file", w.token}, "--api or SALLYPORT_API"},
		"detach whom":         {[]string{"detach"}, "requires at least 1 arg"},
		"command unknown":     {[]string{"atach"}, "attach"},
		"argument to nothing": {[]string{"version", "x"}, "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := execute(tc.args...)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v", err)
			}
			if out != "" {
				t.Errorf("printed %q", out)
			}
		})
	}
	if w.store.Status().Attachments != 0 {
		t.Error("something was attached")
	}
}

func TestVersion(t *testing.T) {
	if out, err := execute("version"); err != nil || !strings.HasPrefix(out, "sallyport dev, go1.") {
		t.Errorf("got %q, %v", out, err)
	}
}
