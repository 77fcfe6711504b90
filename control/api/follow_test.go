package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

func follower(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(answer)
	t.Cleanup(srv.Close)
	c, err := NewClient(ClientConfig{Address: srv.URL, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Answers without news are asked for again, until the deadline.
func TestNextAsksAgain(t *testing.T) {
	var calls atomic.Int32
	c := follower(t, func(w http.ResponseWriter, r *http.Request) {
		wait, err := time.ParseDuration(r.FormValue("wait") + "ms")
		if err != nil || wait > MaxWait || r.URL.RequestURI() != "/v1/gateway/updates?after=7&store=st&wait="+r.FormValue("wait") {
			t.Errorf("asked for %s", r.URL)
		}
		calls.Add(1)
		select {
		case <-time.After(wait * 2 / 3):
			w.WriteHeader(http.StatusNoContent)
		case <-r.Context().Done():
		}
	})
	// On a busy machine the first answer may take all of a short time.
	for patience := 40 * time.Millisecond; ; patience *= 10 {
		calls.Store(0)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_, err := c.Next(ctx, spec.Cursor{Store: "st", Revision: 7})
		cancel()
		n := calls.Load()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %d calls: %v", n, err)
		}
		if n >= 2 {
			break
		}
		if patience > 4*time.Second {
			t.Fatalf("asked %d times in %v", n, patience)
		}
	}
	// An answer that comes much earlier than it was asked for would be asked for
	// again without end.
	hasty := follower(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	if _, err := hasty.Next(context.Background(), spec.Cursor{}); err == nil || !strings.Contains(err.Error(), "was to be held") {
		t.Errorf("got %v", err)
	}
}

// An update that has begun is read to its end, though the wait is over.
func TestSlowUpdateArrives(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	c := follower(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"store":"st",`)
		http.NewResponseController(w).Flush()
		close(begun)
		<-finish
		fmt.Fprint(w, `"revision":9}`)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	go func() {
		<-begun
		<-ctx.Done()
		close(finish)
	}()
	if u, err := c.Next(ctx, spec.Cursor{}); err != nil || u.Cursor() != (spec.Cursor{Store: "st", Revision: 9}) {
		t.Errorf("got %+v, %v", u, err)
	}
}

// A control plane that hangs is left, and a caller that goes away does not wait for it.
func TestHangingServer(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter){
		"silent": func(http.ResponseWriter) {},
		"in the middle": func(w http.ResponseWriter) {
			fmt.Fprint(w, `{"store":`)
			http.NewResponseController(w).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan struct{}, 2)
			c := follower(t, func(w http.ResponseWriter, r *http.Request) {
				answer(w)
				asked <- struct{}{}
				<-r.Context().Done()
			})
			ctx, cancel := context.WithCancel(context.Background())
			go func() { <-asked; cancel() }()
			if _, err := c.Next(ctx, spec.Cursor{}); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if name != "silent" {
				return // it may take as long as a large update
			}
			over, end := context.WithTimeout(context.Background(), time.Millisecond)
			defer end()
			if _, err := c.Next(over, spec.Cursor{}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestStrangeUpdates(t *testing.T) {
	for body, says := range map[string]string{
		"<html>":                    "decode the answer",
		`{"revision":1}`:            "names no store",
		`{"store":"st"}`:            "names no store",
		`{"store":"st","revision":`: "decode the answer",
		`{"store":"st","revision":1,"full":true}`: "no desired state",
	} {
		c := follower(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
		if _, err := c.Next(context.Background(), spec.Cursor{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v", body, err)
		}
	}
	c := follower(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusMisdirectedRequest)
		fmt.Fprint(w, `{"error":{"code":"wrong_region","message":"elsewhere"}}`)
	})
	var e *Error
	if err := c.Report(context.Background(), spec.HostReport{}); !errors.As(err, &e) || e.Code != CodeWrongRegion {
		t.Errorf("got %v", err)
	}
	if err := c.Acknowledge(context.Background(), "gw-a", spec.Cursor{}); !errors.As(err, &e) || e.Status != http.StatusMisdirectedRequest {
		t.Errorf("got %v", err)
	}
	if _, err := c.Next(context.Background(), spec.Cursor{}); !errors.As(err, &e) || e.Code != CodeWrongRegion {
		t.Errorf("got %v", err)
	}
}
