package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseAddress(t *testing.T) {
	for in, want := range map[string][2]string{
		"unix:///run/sallyport/api.sock": {"unix", "/run/sallyport/api.sock"},
		"http://127.0.0.1:9470":          {"tcp", "127.0.0.1:9470"},
		"http://127.9.9.9:1/":            {"tcp", "127.9.9.9:1"},
		"http://[::1]:9470":              {"tcp", "[::1]:9470"},
	} {
		network, target, err := parseAddress(in)
		if err != nil || network != want[0] || target != want[1] {
			t.Errorf("%s: got %s %s, %v", in, network, target, err)
		}
	}
	for _, in := range []string{
		"", "/run/api.sock", "unix://run/api.sock", "unix:", "unix:run", "https://127.0.0.1:9470", "http://127.0.0.1", "http://127.0.0.1:0",
		"http://192.0.2.1:80", "http://localhost:80", "http://127.0.0.1:80/v1", "http://0.0.0.0:80", "127.0.0.1:80", "http://\x7f",
	} {
		if _, _, err := parseAddress(in); err == nil {
			t.Errorf("%q passed", in)
		}
	}
}

func TestNewClientChecksTheToken(t *testing.T) {
	for _, bad := range []string{"", "two words", "line\n", "t\x00", "tökèn"} {
		_, err := NewClient(ClientConfig{Address: "http://127.0.0.1:1", Token: bad})
		if err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

// A server that does not keep to the API must not confuse or exhaust a client.
func TestStrangeServers(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		says   string
	}{
		"HTML":        {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }, "decode the answer"},
		"HTML error":  {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) }, "HTTP status 502"},
		"empty error": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); w.Write([]byte(`{"error":{}}`)) }, "not in the words of this API"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}, "HTTP status 302"},
		"cut short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			w.Write([]byte("{"))
		}, "read the answer"},
		"pages forever": {func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"attachments":[],"next":"a"}`)) }, "leads back"},
		"flood": {func(w http.ResponseWriter, _ *http.Request) {
			chunk := make([]byte, 1<<20)
			for range maxResponse>>20 + 2 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, "more than 64 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(tc.answer))
			defer srv.Close()
			c, err := NewClient(ClientConfig{Address: srv.URL, Token: "t"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = c.Attachments(context.Background())
			var known *Error
			if err == nil || errors.As(err, &known) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestErrorCarriesStatus(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer t" || r.URL.EscapedPath() != "/v1/attachments/a%2Fb" || r.Method != "DELETE" {
			t.Errorf("got %s %s %v", r.Method, r.URL, r.Header)
		}
		w.WriteHeader(409)
		w.Write([]byte(`{"error":{"code":"conflict","message":"it is taken"}}`))
	}))
	defer srv.Close()
	c, err := NewClient(ClientConfig{Address: srv.URL, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var e *Error
	if err := c.Detach(context.Background(), "a/b"); !errors.As(err, &e) || *e != (Error{Status: 409, Code: CodeConflict, Message: "it is taken"}) || err.Error() != "it is taken (conflict)" {
		t.Errorf("got %v", err)
	}
}
