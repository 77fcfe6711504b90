package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, looks := time.Now(), 0
		must(t, Until(t.Context(), "it is so", func(context.Context) error {
			if looks++; looks < 3 {
				return errors.New("not yet")
			}
			return nil
		}))
		if took := time.Since(began); looks != 3 || took != 2*lookEvery {
			t.Errorf("%d looks in %v", looks, took)
		}
	})
}

func TestUntilFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, why := time.Now(), errors.New("it never will")
		err := Until(t.Context(), "it is so", func(context.Context) error { return Final(why) })
		says(t, err, "waited until it is so: it never will")
		if took := time.Since(began); !errors.Is(err, why) || took != 0 {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// The error is that of the last look that had its time.
func TestUntilTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 12*time.Millisecond, errors.New("too long"))
		defer cancel()
		looks := 0
		err := Until(ctx, "it is so", func(ctx context.Context) error {
			if looks++; looks < 3 {
				return errors.New("not yet")
			}
			<-ctx.Done()
			return errors.New("cut off")
		})
		says(t, err, "waited 12ms until it is so: not yet (too long)")
	})
}

func TestHTTP(t *testing.T) {
	ready := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ready {
			http.Error(w, "starting", http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	probe := HTTP{NewClient((&net.Dialer{}).DialContext), server.URL + "/readyz"}
	says(t, probe.Ready(t.Context()), "/readyz answers 503 Service Unavailable: starting")
	ready = true
	must(t, probe.Ready(t.Context()))
	server.Close()
	says(t, probe.Ready(t.Context()), "connection refused")
}

func TestSocket(t *testing.T) {
	s := Socket(filepath.Join(t.TempDir(), "socket"))
	says(t, s.Ready(t.Context()), "no such file or directory")
	l, err := net.Listen("unix", string(s))
	must(t, err)
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host+r.URL.Path)
	})}}
	server.Start()
	defer server.Close()
	must(t, s.Ready(t.Context()))
	b, err := Get(t.Context(), s.Client(), "http://whoever/what")
	must(t, err)
	if string(b) != "whoever/what" {
		t.Errorf("it answers %q", b)
	}
}
