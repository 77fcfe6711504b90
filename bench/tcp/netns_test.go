package tcp

import (
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/bench/handshake"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// TestAnswerer has kernel sockets ask an answerer, rightly and wrongly.
func TestAnswerer(t *testing.T) {
	lab := netlab.Test(t)
	n := lab.Namespace("far")
	a, err := NewAnswerer(AnswererConfig{
		AnswererConfig: handshake.AnswererConfig{Request: []byte("ask"), Answer: []byte("answer"), Sources: []netip.Addr{netip.MustParseAddr("198.18.0.1")}},
		Place:          n, Link: "answer",
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Address("answer", netip.MustParsePrefix("198.18.0.1/24"))
	if err := lab.Err(); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{"198.18.0.2:80": "answer", "198.18.0.200:8080": "answer", "198.18.0.3:80": ""} {
		c, err := n.Dial(t.Context(), "tcp4", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		request := "ask"
		if want == "" {
			request = "tell"
		}
		if _, err := c.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); string(got) != want || (err != nil) != (want == "") {
			t.Errorf("%s answers %q, %v", address, got, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if got, err := a.Counts(); err != nil || got.Opened < 3 || got.Asked < 2 || got.Refused != 1 || got.WrongSource != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
