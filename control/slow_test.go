package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
)

// slow serves a store without much patience and sends the bytes of one call to it.
// The channel tells when the call is over.
func slow(t *testing.T, s *Store, call string) (net.Conn, <-chan struct{}) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := Listen(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	handler, over := NewServer(s, ServerConfig{Token: token, Patience: 20 * time.Millisecond}), make(chan struct{}, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r)
		over <- struct{}{}
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-ended })
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, strings.ReplaceAll(call, "\n", "\r\n")); err != nil {
		t.Fatal(err)
	}
	return c, over
}

func await(t *testing.T, over <-chan struct{}) {
	t.Helper()
	select {
	case <-over:
	case <-time.After(20 * time.Second):
		t.Fatal("the call is held without end")
	}
}

// A body that does not come, with a token or without, holds nothing for long.
func TestSlowBody(t *testing.T) {
	const head = "POST /v1/gateway/reports HTTP/1.1\nHost: x\nContent-Length: 100\n"
	for name, tc := range map[string]struct{ call, want string }{
		"with the token": {head + "Authorization: Bearer " + token + "\n\n{", "the body did not come within 20ms"},
		"without":        {head + "\n{", "the request has no token"},
	} {
		t.Run(name, func(t *testing.T) {
			c, over := slow(t, newStore(t, nil), tc.call)
			await(t, over)
			// To its end: the connection is closed, too.
			if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), tc.want) {
				t.Errorf("answered %q, %v", b, err)
			}
		})
	}
}

// A call may take longer than its body or its answer, and so may the next one.
func TestPatienceIsForBodies(t *testing.T) {
	body, err := json.Marshal(request(1))
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, func(c *StoreConfig) { c.AcknowledgeTimeout = 100 * time.Millisecond }) // nobody acknowledges
	c, over := slow(t, s, fmt.Sprintf("POST /v1/attachments HTTP/1.1\nHost: x\nContent-Length: %d\nAuthorization: Bearer %s\n\n%s"+
		"GET /v1/gateway/updates?wait=100&store=%s&after=3 HTTP/1.1\nHost: x\nConnection: close\nAuthorization: Bearer %s\n\n", len(body), token, body, s.id, token))
	await(t, over)
	await(t, over)
	if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), api.CodeGatewayPending) || !strings.Contains(string(b), "204 No Content") {
		t.Errorf("answered %q, %v", b, err)
	}
}

// A follower that asks for an update and never reads it is let go.
func TestFollowerThatDoesNotRead(t *testing.T) {
	s := newStore(t, nil)
	for i := range 1 << 15 { // an update of a MiB, more than a socket holds
		if err := s.Detach(fmt.Sprintf("att-%026d", i)); code(err) == "" {
			t.Fatal(err)
		}
	}
	_, over := slow(t, s, "GET /v1/gateway/updates?store=before&after=1&wait=1000 HTTP/1.1\nHost: x\nAuthorization: Bearer "+token+"\n\n")
	await(t, over)
}
