package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/sidecar/handover"
)

// running is a sidecar that serves.
type running struct {
	*Sidecar
	client *localClient
	stop   context.CancelFunc
	ended  chan error
}

// serve runs a sidecar until the test ends.
func serve(t *testing.T, p *plane) *running {
	t.Helper()
	s := newTestSidecar(t, p)
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Sidecar: s, client: newLocalClient(s.cfg.Socket), stop: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- s.Run(ctx); close(r.ended) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	eventually(t, "the sidecar serves", func() bool {
		_, err := r.client.attach(t.Context(), sandboxRequest{})
		var said *api.Error
		return errors.As(err, &said)
	})
	return r
}

// get asks for a document of the local API.
func (r *running) get(t *testing.T, path string, out any) {
	t.Helper()
	if err := r.client.call(t.Context(), http.MethodGet, path, nil, out); err != nil {
		t.Fatal(err)
	}
}

func edge() sandboxRequest {
	return sandboxRequest{Project: "p", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeEdge}
}

// What bypasses is counted as long as its connection lives.
func TestBypassIsHeldByItsConnection(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("served", func(t *testing.T) {
		p := newPlane(t)
		r := serve(t, p)
		ans, err := r.client.attach(t.Context(), edge())
		if err != nil || ans.Bypass != spec.BypassEdge || ans.Inner.IsValid() {
			t.Fatalf("attach = %+v, %v", ans, err)
		}
		conn, err := r.client.device(t.Context(), ans.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := holdBare(conn); err != nil {
			t.Fatal(err)
		}
		var list Listing
		r.get(t, "/v1/sandboxes", &list)
		if list.Attached != 0 || list.Bypassed[spec.BypassEdge] != 1 || list.Sandboxes[0].State != "running" {
			t.Errorf("listing %+v", list)
		}
		if _, err := r.client.device(t.Context(), ans.ID); err == nil {
			t.Error("a second device was taken")
		}
		_ = conn.Close()
		eventually(t, "the bypass ends with its connection", func() bool { return p.count() == 0 })
		r.get(t, "/v1/sandboxes", &list)
		if len(list.Sandboxes) != 0 || list.BypassedTotal[spec.BypassEdge] != 1 {
			t.Errorf("listing %+v", list)
		}
	})
}

func TestLocalAPIErrors(t *testing.T) {
	p := newPlane(t)
	r := serve(t, p)
	ctx := t.Context()
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               string
	}{
		"no JSON":         {"POST", "/v1/sandboxes", "x", 400, api.CodeBadRequest},
		"unknown field":   {"POST", "/v1/sandboxes", `{"projekt":"p"}`, 400, api.CodeBadRequest},
		"large":           {"POST", "/v1/sandboxes", `{"project":"` + strings.Repeat("p", maxRequest) + `"}`, 400, api.CodeBadRequest},
		"unknown project": {"POST", "/v1/sandboxes", `{"project":"x"}`, 404, api.CodeNotFound},
		"unknown sandbox": {"DELETE", "/v1/sandboxes/att_9", "", 404, api.CodeNotFound},
		"no upgrade":      {"POST", "/v1/sandboxes/att_9/device", "", 400, api.CodeBadRequest},
		"unknown path":    {"GET", "/v2/status", "", 404, api.CodeNotFound},
	} {
		err := r.client.call(ctx, c.method, c.path, []byte(c.body), nil)
		var said *api.Error
		if !errors.As(err, &said) || said.Status != c.status || said.Code != c.code || said.Message == "" {
			t.Errorf("%s: %v; want %d %s", name, err, c.status, c.code)
		}
	}
	if _, err := r.client.device(ctx, "att_9"); err == nil || !strings.Contains(err.Error(), "att_9") {
		t.Errorf("device of nobody: %v", err)
	}
	p.with(func() { p.refuse = &api.Error{Status: 503, Code: api.CodeExhausted, Message: "no address is left"} })
	_, err := r.client.attach(ctx, request("p"))
	mustContain(t, err, "no address is left", api.CodeExhausted)
}

// A descriptor that is no interface, or of the wrong sort, ends the sandbox.
func TestWrongDevices(t *testing.T) {
	p := newPlane(t)
	r := serve(t, p)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	for name, c := range map[string]struct {
		req sandboxRequest
		m   handover.Message
		f   *os.File
	}{
		"pipe as TUN":       {request("p"), handover.Message{Type: handover.TUN}, read},
		"pipe as packet":    {request("p"), handover.Message{Type: handover.Packet, LocalMAC: handover.MAC{2, 0, 0, 0, 0, 1}, PeerMAC: handover.MAC{2, 0, 0, 0, 0, 2}}, read},
		"no device":         {request("p"), handover.Message{Type: handover.None}, nil},
		"device for bypass": {edge(), handover.Message{Type: handover.TUN}, read},
	} {
		ans, err := r.client.attach(t.Context(), c.req)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := r.client.device(t.Context(), ans.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := handover.Send(conn, c.m, c.f); err != nil {
			t.Fatal(err)
		}
		if err := handover.Await(conn); err == nil {
			t.Errorf("%s: the device was taken", name)
		}
		_ = conn.Close()
	}
	eventually(t, "all are detached", func() bool { return p.count() == 0 })
}

// A client that speaks before it is spoken to would lose its descriptor.
func TestImpatientClient(t *testing.T) {
	p := newPlane(t)
	r := serve(t, p)
	ans, err := r.client.attach(t.Context(), request("p"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", r.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /v1/sandboxes/%s/device HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n{}\n", ans.ID, handover.Protocol)
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.ReadAll(c)
	eventually(t, "it is detached", func() bool { return p.count() == 0 })
}

// A sandbox whose device never comes is given back.
func TestDeviceNeverComes(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	ans, err := s.attach(t.Context(), request("p"))
	if err != nil {
		t.Fatal(err)
	}
	s.entries[ans.ID].timer.Reset(0)
	eventually(t, "it is detached", func() bool { return p.count() == 0 })
	if _, err := s.claim(ans.ID); err == nil {
		t.Error("the sandbox can still be claimed")
	}
}

// A sidecar that ends takes everything back.
func TestEndDetachesAll(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a, b := open(t, s, "p"), open(t, s, "q")
	if _, err := s.attach(t.Context(), edge()); err != nil {
		t.Fatal(err)
	}
	s.close()
	if n := p.count(); n != 0 {
		t.Errorf("%d attachments are left", n)
	}
	for _, x := range []box{a, b} {
		select {
		case <-x.closed:
		default:
			t.Error("a device is still open")
		}
	}
	if _, err := s.attach(t.Context(), request("p")); err == nil {
		t.Error("a sidecar that ended attaches")
	}
	if n := p.count(); n != 0 {
		t.Errorf("%d attachments after a refused one", n)
	}
}

// The end waits for the calls that are under way, and takes no more.
func TestEndWaitsForCalls(t *testing.T) {
	v, err := newTestSidecar(t, newPlane(t)).listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer v.listener.Close()
	if !v.enter() {
		t.Fatal("no call is taken")
	}
	waited := make(chan struct{})
	go func() { v.wait(); close(waited) }()
	eventually(t, "no more calls are taken", func() bool {
		w := httptest.NewRecorder()
		v.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/status", nil))
		return w.Code == http.StatusServiceUnavailable && strings.Contains(w.Body.String(), api.CodeStopping)
	})
	select {
	case <-waited:
		t.Error("nobody waited for the call under way")
	default:
	}
	v.calls.Done()
	<-waited
}

func TestSocketIsPrivate(t *testing.T) {
	r := serve(t, newPlane(t))
	for path, want := range map[string]os.FileMode{r.cfg.Socket: 0o600 | os.ModeSocket, filepath.Dir(r.cfg.Socket): 0o700 | os.ModeDir} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	second, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, second.Run(t.Context()), "another sidecar serves there")
}

func TestListenRefusesAndReplaces(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	s.cfg.Socket = filepath.Join(os.TempDir(), "sidecar.sock")
	_, err := s.listen(t.Context())
	mustContain(t, err, "is open to others", "sallyport")

	s.cfg.Socket = filepath.Join(t.TempDir(), "own", "sidecar.sock")
	if err := os.MkdirAll(filepath.Dir(s.cfg.Socket), 0o700); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.cfg.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	v, err := s.listen(t.Context())
	if err != nil {
		t.Fatalf("a socket that was left behind: %v", err)
	}
	_ = v.listener.Close()

	if err := os.WriteFile(s.cfg.Socket, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.listen(t.Context())
	mustContain(t, err, s.cfg.Socket, "no socket; remove it")
}

func TestConfigRefusals(t *testing.T) {
	good := Config{Control: &api.Client{}, Region: "iad1", Socket: "/run/x/y"}
	for name, spoil := range map[string]func(*Config){
		"control": func(c *Config) { c.Control = nil },
		"region":  func(c *Config) { c.Region = "" },
		"socket":  func(c *Config) { c.Socket = "" },
	} {
		c := good
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestNoSidecar(t *testing.T) {
	c := newLocalClient(filepath.Join(t.TempDir(), "none.sock"))
	_, err := c.attach(t.Context(), request("p"))
	mustContain(t, err, "no sidecar serves at", "sallyport-sidecar run --config FILE")
	_, err = c.device(t.Context(), "x")
	mustContain(t, err, "no sidecar serves at")
}

func TestMetrics(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	s.cfg.Admin = netip.MustParseAddrPort("127.0.0.1:0")
	admin, err := s.listenAdmin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- admin.run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	a := open(t, s, "p")
	alive(t, s)
	a.out <- udp("198.51.100.1:1", "192.0.2.1:53", 1)
	a.send("192.0.2.1:53", 1)
	a.next(t)
	if _, err := s.attach(t.Context(), edge()); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503} {
		resp, err := http.Get("http://" + admin.listener.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s answers %d, want %d", path, resp.StatusCode, want)
		}
	}
	resp, err := http.Get("http://" + admin.listener.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`sallyport_sidecar_drops_total{direction="egress",reason="spoofed_source"} 1`,
		`sallyport_sidecar_sandboxes 1`,
		`sallyport_sidecar_bypassed{reason="edge runtime"} 1`,
		`sallyport_sidecar_bypassed_total{reason="edge runtime"} 1`,
		`sallyport_sidecar_path_alive{gateway="gw1",network="net_a"} 1`,
		`sallyport_sidecar_path_rtt_seconds{gateway="gw1",network="net_a"}`,
		`sallyport_sidecar_control_reachable{region="iad1"} 0`, // not asked yet
	} {
		if !strings.Contains(string(body), line) {
			t.Errorf("metrics lack %s", line)
		}
	}
	if strings.Contains(string(body), a.inner.String()) {
		t.Error("metrics show an inner address")
	}
}

// alive waits until the watch of the only network has had an answer.
func alive(t *testing.T, s *Sidecar) {
	t.Helper()
	eventually(t, "the gateway answers", func() bool { return s.status().Networks[0].Paths[0].Alive })
}

func TestStatusIsJSON(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	open(t, s, "p")
	alive(t, s)
	b, err := json.Marshal(s.status())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"region":"iad1"`, `"id":"net_a"`, `"alive":true`, `"host":"gw1"`, `"worker":"10.0.0.2"`} {
		if !strings.Contains(string(b), part) {
			t.Errorf("status %s lacks %s", b, part)
		}
	}
}
