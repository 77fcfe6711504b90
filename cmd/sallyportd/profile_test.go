package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport-net/sallyport/internal/config"
)

const profileToken = "0123456789abcdef"

// askProfile asks a handler for a path with an Authorization, from an address.
func askProfile(t *testing.T, h http.Handler, path, authorization, from string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/debug/pprof/"+path, nil)
	r.RemoteAddr = from
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Nobody gets a profile without the token, or from elsewhere; and what is asked wrongly is
// refused with what would be right.
func TestProfileRefusals(t *testing.T) {
	const good, here = "Bearer " + profileToken, "127.0.0.1:4000"
	h := admin(nil, profileToken)
	for _, c := range []struct {
		path, authorization, from string
		status                    int
		says                      string
	}{
		{"heap", "", here, http.StatusUnauthorized, "profiles need the token in the file that admin.token_file"},
		{"heap", "Bearer", here, http.StatusUnauthorized, "profiles need the token in the file that admin.token_file"},
		{"heap", "Bearer ", here, http.StatusUnauthorized, "profiles need the token in the file that admin.token_file"},
		{"heap", "Basic " + profileToken, here, http.StatusUnauthorized, "profiles need the token in the file that admin.token_file"},
		{"heap", good + "x", here, http.StatusUnauthorized, "the token is not that of admin.token_file"},
		{"heap", "Bearer 0123456789abcde", here, http.StatusUnauthorized, "the token is not that of admin.token_file"},
		{"nonsense", "", here, http.StatusUnauthorized, "profiles need the token in the file that admin.token_file"},
		{"heap", "", "@", http.StatusUnauthorized, "profiles need the token in the file that admin.token_file"},
		{"heap", good, "192.0.2.1:4000", http.StatusForbidden, "in the clear"},
		{"heap", good, "127.0.0.2:4000", http.StatusForbidden, "in the clear"},
		{"nonsense", good, here, http.StatusNotFound, "allocs, block, goroutine, heap, mutex, profile, trace"},
		{"cmdline", good, here, http.StatusNotFound, "allocs"},
		{"profile?seconds=61", good, here, http.StatusBadRequest, "1 to 60"},
		{"profile?seconds=0", good, here, http.StatusBadRequest, "1 to 60"},
		{"trace?seconds=-1", good, here, http.StatusBadRequest, "1 to 60"},
		{"heap?seconds=9e9", good, here, http.StatusBadRequest, "1 to 60"},
		{"goroutine?debug=3", good, here, http.StatusBadRequest, "0 to 2"},
		{"heap?gc=1", good, here, http.StatusBadRequest, "no such parameter"},
		{"goroutine?debug=2", good, here, http.StatusOK, "TestProfileRefusals"},
	} {
		if w := askProfile(t, h, c.path, c.authorization, c.from); w.Code != c.status || !strings.Contains(w.Body.String(), c.says) {
			t.Errorf("%s with %q from %s: %d %.200s, want %d and %q", c.path, c.authorization, c.from, w.Code, w.Body, c.status, c.says)
		}
	}
	if w := askProfile(t, admin(nil, ""), "heap", "Bearer ", here); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "admin.token_file") {
		t.Errorf("without a token of its own: %d %s", w.Code, w.Body)
	}
}

// Each kind is a profile: gzip, or a trace.
func TestProfileKinds(t *testing.T) {
	for kind, begins := range map[string]string{
		"heap": "\x1f\x8b", "allocs": "\x1f\x8b", "goroutine": "\x1f\x8b", "trace?seconds=1": "go 1.",
		"profile?seconds=1": "\x1f\x8b", "mutex?seconds=1": "\x1f\x8b", "block?seconds=1": "\x1f\x8b",
	} {
		t.Run(kind, func(t *testing.T) {
			w := askProfile(t, admin(nil, profileToken), kind, "Bearer "+profileToken, "[::1]:4000")
			if w.Code != http.StatusOK || !bytes.HasPrefix(w.Body.Bytes(), []byte(begins)) {
				t.Errorf("%d, %d bytes that begin with %.20q", w.Code, w.Body.Len(), w.Body.String())
			}
		})
	}
}

// One profile is taken at a time, and who goes away ends it: a long one is under way until
// its asker has gone.
func TestOneProfileAtATime(t *testing.T) {
	begun := make(chan struct{})
	p := newProfiler(profileToken)
	p.kinds["profile"] = profile{30, func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	}}
	mux := http.NewServeMux()
	mux.Handle("GET /debug/pprof/{kind}", p)
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/debug/pprof/profile", nil)
		r.RemoteAddr = "127.0.0.1:1"
		r.Header.Set("Authorization", "Bearer "+profileToken)
		mux.ServeHTTP(httptest.NewRecorder(), r)
	}()
	<-begun
	if w := askProfile(t, mux, "heap", "Bearer "+profileToken, "127.0.0.1:2"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("a second one: %d %.200s", w.Code, w.Body)
	}
	leave()
	<-gone
	if w := askProfile(t, mux, "heap", "Bearer "+profileToken, "127.0.0.1:2"); w.Code != http.StatusOK {
		t.Errorf("after it: %d %.200s", w.Code, w.Body)
	}
}

// On a unix socket the token is asked for, too.
func TestProfileOnUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: admin(nil, profileToken)}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-ended })
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	for authorization, want := range map[string]int{"": http.StatusUnauthorized, "Bearer wrong": http.StatusUnauthorized, "Bearer " + profileToken: http.StatusOK} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://unix/debug/pprof/goroutine", nil)
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("with %q: %d, want %d", authorization, resp.StatusCode, want)
		}
	}
}

// The API's token, which workers have, opens no profiles, in whatever file it is.
func TestAdminTokenOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	file := func(name, token string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	workers, admins, copied := file("api", "abcdefghijklmnop"), file("admin", profileToken), file("copied", "abcdefghijklmnop")
	for _, roles := range []config.Roles{{Control: true, Gateway: true}, {Gateway: true}} {
		d := config.Daemon{Roles: roles}
		if d.Control.TokenFile = workers; roles.Control {
			d.API.TokenFile, d.Control.TokenFile = workers, ""
		}
		for admin, want := range map[string]string{"": "", admins: profileToken} {
			d.Admin.TokenFile = admin
			if got, err := adminToken(d); err != nil || got != want {
				t.Errorf("%+v: %q, %v", roles, got, err)
			}
		}
		for _, admin := range []string{workers, copied} {
			d.Admin.TokenFile = admin
			if got, err := adminToken(d); got != "" || err == nil || !strings.Contains(err.Error(), "of its own") {
				t.Errorf("%+v, %s: %q, %v", roles, admin, got, err)
			}
		}
	}
}
