package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

const token = "a-token-of-the-tests"

// serve serves a store on a unix socket and returns a client of it.
func serve(t *testing.T, s *Store) (*api.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "api.sock")
	l, err := Listen(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: NewServer(s, ServerConfig{Token: token})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	c, err := api.NewClient(api.ClientConfig{Address: "unix://" + path, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the server ended: %v", err)
		}
	})
	return c, path
}

func TestClientAndServer(t *testing.T) {
	s := newStore(t, nil)
	startGateway(t, s)
	c, path := serve(t, s)
	ctx := context.Background()

	resp, err := c.Attach(ctx, request(1))
	if err != nil {
		t.Fatal(err)
	}
	if a := s.full().Attached; len(a) != 1 || a[0] != resp.Attachment || len(resp.Gateways) != 1 {
		t.Errorf("the store has %+v, the client %+v", a, resp)
	}
	edge := request(2)
	edge.Runtime = spec.RuntimeEdge
	bypass, err := c.Attach(ctx, edge)
	if err != nil || bypass.Attachment.Bypass == "" || !reflect.DeepEqual(bypass, api.AttachResponse{Attachment: bypass.Attachment}) {
		t.Errorf("got %+v, %v", bypass, err)
	}
	list, err := c.Attachments(ctx)
	if err != nil || len(list) != 2 {
		t.Errorf("got %+v, %v", list, err)
	}
	st, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(st, s.Status()) {
		t.Errorf("got  %+v\nwant %+v", st, s.Status())
	}
	if st.Region != "iad1" || st.Revision != 2 || st.Attachments != 1 || st.Bypasses[spec.BypassEdge] != 1 || len(st.Regions) != 2 || len(st.Networks) != 2 {
		t.Errorf("got %+v", st)
	}
	host := st.Regions[0].Hosts[0]
	if host.Name != "gw-a" || host.Revision != 2 || !host.Reported.Equal(epoch) || st.Regions[1].Hosts[0].Revision != 0 {
		t.Errorf("got %+v", st.Regions)
	}
	n := st.Networks[0]
	if n.ID != "net_1" || n.Attachments != 1 || len(n.Hosts) != 1 || n.Hosts[0].Host != "gw-a" || n.Hosts[0].PublicKey != key(9000) ||
		n.Hosts[0].Sessions != [2]int{3, 4} || n.Hosts[0].Drops["malformed"] != 2 || n.Hosts[0].WrongSource != 0 {
		t.Errorf("got %+v", n)
	}
	for _, id := range []string{resp.Attachment.ID, bypass.Attachment.ID} {
		if err := c.Detach(ctx, id); err != nil {
			t.Error(err)
		}
	}
	var e *api.Error
	if err := c.Detach(ctx, "att-x"); !errors.As(err, &e) || e.Status != 404 || e.Code != api.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v (%v)", info.Mode(), err)
	}

	for name, tc := range map[string]struct{ address, token, says string }{
		"wrong token": {"unix://" + path, "another-token", "api.token_file"},
		"no socket":   {"unix:///nonexistent/api.sock", token, "is sallyportd running here"},
		"no server":   {"http://127.0.0.1:1", token, "nobody listens there"},
	} {
		bad, err := api.NewClient(api.ClientConfig{Address: tc.address, Token: tc.token})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bad.Status(ctx); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v", name, err)
		}
		bad.Close()
	}
	over, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
	defer cancel()
	if _, err := c.Status(over); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// Pages together are everything, once each, in order.
func TestPages(t *testing.T) {
	s := newStore(t, nil)
	edge := request(1)
	edge.Runtime = spec.RuntimeEdge
	var want []string
	for range 25 {
		want = append(want, attach(t, s, edge).ID)
	}
	slices.Sort(want)
	c, _ := serve(t, s)
	for _, limit := range []int{1, 7, 25, 26, 1000} {
		var got []string
		for after := ""; ; {
			page, err := c.List(context.Background(), after, limit)
			if err != nil || len(page.Attachments) > limit {
				t.Fatalf("got %d, %v", len(page.Attachments), err)
			}
			for _, a := range page.Attachments {
				got = append(got, a.ID)
			}
			if after = page.Next; after == "" {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("by %d: got %v, want %v", limit, got, want)
		}
	}
}

// Each row is a request and what the server says to it.
func TestServerRefuses(t *testing.T) {
	var log bytes.Buffer
	s := newStore(t, nil)
	h := NewServer(s, ServerConfig{Token: token, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, tc := range []struct {
		name, method, path, auth, body string
		status                         int
		code, says                     string
	}{
		{"no token", "GET", "/v1/status", "", "", 401, api.CodeUnauthorized, "Authorization: Bearer"},
		{"no token, no such path", "GET", "/secret", "", "", 401, api.CodeUnauthorized, ""},
		{"another scheme", "GET", "/v1/status", "Basic " + token, "", 401, api.CodeUnauthorized, ""},
		{"scheme alone", "GET", "/v1/status", "Bearer ", "", 401, api.CodeUnauthorized, ""},
		{"wrong token", "GET", "/v1/status", "Bearer " + token + "x", "", 403, api.CodeForbidden, "api.token_file"},
		{"scheme in lower case", "GET", "/v1/nothing", "bearer " + token, "", 404, api.CodeNotFound, "/v1/nothing"},
		{"no such path", "GET", "/", "Bearer " + token, "", 404, api.CodeNotFound, "/v1/attachments"},
		{"method of a list", "PUT", "/v1/attachments", "Bearer " + token, "", 405, api.CodeMethod, "GET, POST"},
		{"method of one", "GET", "/v1/attachments/att-x", "Bearer " + token, "", 405, api.CodeMethod, "DELETE"},
		{"method of the status", "POST", "/v1/status", "Bearer " + token, "", 405, api.CodeMethod, "GET"},
		{"unknown attachment", "DELETE", "/v1/attachments/att-x", "Bearer " + token, "", 404, api.CodeNotFound, "att-x"},
		{"no body", "POST", "/v1/attachments", "Bearer " + token, "", 400, api.CodeBadRequest, "body"},
		{"half a body", "POST", "/v1/attachments", "Bearer " + token, `{"project":`, 400, api.CodeBadRequest, "ends before"},
		{"not JSON", "POST", "/v1/attachments", "Bearer " + token, `project=x`, 400, api.CodeBadRequest, "body"},
		{"a list", "POST", "/v1/attachments", "Bearer " + token, `[]`, 400, api.CodeBadRequest, "array"},
		{"two values", "POST", "/v1/attachments", "Bearer " + token, `{} {}`, 400, api.CodeBadRequest, "more than one"},
		{"unknown field", "POST", "/v1/attachments", "Bearer " + token, `{"projekt":"x"}`, 400, api.CodeBadRequest, `"projekt"`},
		{"unknown inner field", "POST", "/v1/attachments", "Bearer " + token, `{"resume":{"ip":"x"}}`, 400, api.CodeBadRequest, `"ip"`},
		{"wrong type", "POST", "/v1/attachments", "Bearer " + token, `{"runtime":7}`, 400, api.CodeBadRequest, "runtime: a JSON number"},
		{"not an address", "POST", "/v1/attachments", "Bearer " + token, `{"resume":{"innerAddress":"x"}}`, 400, api.CodeBadRequest, "body"},
		{"too large", "POST", "/v1/attachments", "Bearer " + token, `{"project":"` + strings.Repeat("x", api.MaxRequest) + `"}`, 413, api.CodeTooLarge, "64 KiB"},
		{"bad key", "POST", "/v1/attachments", "Bearer " + token, `{"project":"prj_1","environment":"production","kind":"function","runtime":"go","region":"iad1","publicKey":"xyz"}`, 400, api.CodeBadRequest, "publicKey: "},
		{"limit 0", "GET", "/v1/attachments?limit=0", "Bearer " + token, "", 400, api.CodeBadRequest, "limit"},
		{"limit too high", "GET", "/v1/attachments?limit=1001", "Bearer " + token, "", 400, api.CodeBadRequest, "1000"},
		{"after nonsense", "GET", "/v1/attachments?after=a%2Fb", "Bearer " + token, "", 400, api.CodeBadRequest, "after"},
		{"unknown parameter", "GET", "/v1/attachments?project=x", "Bearer " + token, "", 400, api.CodeBadRequest, "project"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(tc.method, tc.path, strings.NewReader(tc.body))
			if tc.auth != "" {
				r.Header.Set("Authorization", tc.auth)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			var body api.ErrorBody
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Error == nil {
				t.Fatalf("not an error of the API: %s", w.Body)
			}
			if w.Code != tc.status || body.Error.Code != tc.code || !strings.Contains(body.Error.Message, tc.says) {
				t.Errorf("got %d %v", w.Code, body.Error)
			}
			if tc.status == 405 && w.Header().Get("Allow") == "" || tc.status == 401 && w.Header().Get("WWW-Authenticate") == "" {
				t.Errorf("headers: %v", w.Header())
			}
			if strings.Contains(w.Body.String(), token) {
				t.Error("the answer holds the token")
			}
		})
	}
	if len(s.attachments) != 0 {
		t.Error("something was attached")
	}

	// Without a token, nobody comes in.
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/v1/status", nil)
	r.Header.Set("Authorization", "Bearer x")
	NewServer(s, ServerConfig{}).ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("an empty token let somebody in: %d", w.Code)
	}
	if log.Len() != 0 {
		t.Errorf("callers' errors are in the log: %s", log.String())
	}
}

func TestServerFails(t *testing.T) {
	var log bytes.Buffer
	s := &server{log: slog.New(slog.NewTextHandler(&log, nil))}
	w := httptest.NewRecorder()
	s.fail(w, httptest.NewRequest("GET", "/v1/status", nil), io.ErrNoProgress)
	if w.Code != 500 || strings.Contains(w.Body.String(), io.ErrNoProgress.Error()) || !strings.Contains(log.String(), io.ErrNoProgress.Error()) {
		t.Errorf("got %d %s, log %s", w.Code, w.Body, log.String())
	}
	w = httptest.NewRecorder()
	s.answer(w, 200, func() {})
	if w.Code != 500 || !strings.Contains(w.Body.String(), api.CodeInternal) {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w = httptest.NewRecorder()
	s.fail(w, httptest.NewRequest("GET", "/v1/status", nil).WithContext(ctx), ctx.Err())
	if w.Code != 503 || !strings.Contains(w.Body.String(), api.CodeStopping) {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestListen(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	path := filepath.Join(dir, "api.sock")

	// What a dead process left is replaced.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := Listen(ctx, "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// What a living one holds is not.
	if _, err := Listen(ctx, "unix", path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v", err)
	}
	l.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stayed: %v", err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(ctx, "unix", file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("got %v", err)
	}
	if _, err := Listen(ctx, "unix", filepath.Join(file, "api.sock")); err == nil {
		t.Error("a socket inside a file")
	}
	if _, err := Listen(ctx, "unix", filepath.Join(dir, strings.Repeat("x", 200))); err == nil {
		t.Error("a path too long for a socket passed")
	}

	tcp, err := Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if _, err := Listen(ctx, "tcp", tcp.Addr().String()); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"0.0.0.0:0", "192.0.2.1:80", "[::]:0", "localhost:0", ":0", ""} {
		if _, err := Listen(ctx, "tcp", bad); err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("%s: got %v", bad, err)
		}
	}
	if _, err := Listen(ctx, "udp", "127.0.0.1:0"); err == nil {
		t.Error("udp passed")
	}
}
