package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// perform has a function do tasks.
func perform(t *testing.T, tasks ...task) []answer {
	t.Helper()
	var in, out bytes.Buffer
	for _, x := range tasks {
		if err := json.NewEncoder(&in).Encode(x); err != nil {
			t.Fatal(err)
		}
	}
	if err := Function(t.Context(), &in, &out); err != nil {
		t.Fatal(err)
	}
	var answers []answer
	for d := json.NewDecoder(&out); d.More(); {
		var a answer
		if err := d.Decode(&a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	if len(answers) != len(tasks) {
		t.Fatalf("%d answers to %d tasks: %v", len(answers), len(tasks), answers)
	}
	return answers
}

func TestFunction(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	server := httptest.NewServer(http.HandlerFunc(tellSource))
	defer server.Close()
	answers := perform(t,
		task{Do: doHTTP, Target: server.Listener.Addr().String(), Count: 3},
		task{Do: doHTTP, Target: "127.0.0.1:1"},
		task{Do: "dance"},
		task{Do: doCease},
		task{Do: doLost},
	)
	if a := answers[0]; a.Failure != "" || len(a.Addresses) != 3 || len(distinct(a.Addresses)) != 1 {
		t.Errorf("three requests: %+v", a)
	}
	for _, a := range answers[1:] {
		if a.Failure == "" {
			t.Errorf("no failure in %+v", a)
		}
	}
	if err := Function(t.Context(), strings.NewReader("nonsense"), io.Discard); err == nil {
		t.Error("nonsense is taken for a task")
	}
}

func TestLoad(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	server := httptest.NewServer(http.HandlerFunc(tellSource))
	defer server.Close()
	home := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	answers := perform(t,
		task{Do: doLoad, Target: server.Listener.Addr().String()},
		task{Do: doFirst, Sources: home},
		task{Do: doFirst, Sources: home, Since: monotonic() + 50*time.Millisecond},
		task{Do: doCease},
		task{Do: doFirst, Sources: home},
	)
	for _, a := range answers[:4] {
		if a.Failure != "" {
			t.Errorf("%+v", a)
		}
	}
	if first, later := answers[1], answers[2]; first.At <= 0 || later.At < first.At+20*time.Millisecond {
		t.Errorf("the first answer at %v, one 50 ms later at %v", first.At, later.At)
	}
	if a := answers[3]; a.Requests == 0 || !slices.Equal(distinct(a.Addresses), home) {
		t.Errorf("the load saw %+v", a)
	}
	if answers[4].Failure == "" {
		t.Error("a load that has ended answers")
	}
}

func TestHeld(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newHolder(l)
	in, tasks := io.Pipe()
	answers, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- Function(t.Context(), in, out) }()
	b := &sandbox{tasks: json.NewEncoder(tasks), output: json.NewDecoder(answers)}
	do := func(x task) answer {
		t.Helper()
		a, err := b.do(x)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := do(task{Do: doHold, Target: l.Addr().String()}); a.Failure != "" || len(a.Addresses) != 1 {
		t.Fatalf("hold: %+v", a)
	}
	for range 2 {
		if a := do(task{Do: doTalk}); a.Failure != "" {
			t.Errorf("talk: %+v", a)
		}
	}
	if err := h.close(); err != nil {
		t.Error(err)
	}
	if a := do(task{Do: doLost}); a.At == 0 || a.Failure != "end of file" {
		t.Errorf("lost: %+v", a)
	}
	if a := do(task{Do: doTalk}); a.Failure == "" {
		t.Errorf("talk on a connection that ended: %+v", a)
	}
	if err := tasks.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAssociation relays datagrams by a proxy that does what RFC 1928 says, and no more.
func TestAssociation(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	echo, relay := packetSocket(t), packetSocket(t)
	defer echo.Close()
	defer relay.Close()
	go func() { _ = echoSources(echo) }()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- serveAssociation(l, relay) }()
	s := &socks{at: &url.URL{Host: l.Addr().String(), User: url.UserPassword("user", "word")}}
	ctx, cancel := context.WithTimeout(t.Context(), taskPatience)
	defer cancel()
	seen, err := datagram(ctx, s, echo.LocalAddr().String())
	if err != nil || len(seen) != 1 || seen[0].String() != relay.LocalAddr().String() {
		t.Errorf("saw %v (%v), not %v", seen, err, relay.LocalAddr())
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func packetSocket(t *testing.T) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serveAssociation serves one association and one datagram each way.
func serveAssociation(l net.Listener, relay net.PacketConn) error {
	defer l.Close()
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	bound := netip.MustParseAddrPort(relay.LocalAddr().String())
	reply := append([]byte{5, 0, 0, 1, 127, 0, 0, 1}, byte(bound.Port()>>8), byte(bound.Port()))
	for _, step := range []struct{ want, send []byte }{
		{[]byte{5, 1, 2}, []byte{5, 2}},
		{[]byte("\x01\x04user\x04word"), []byte{1, 0}},
		{[]byte{5, 3, 0, 1, 0, 0, 0, 0, 0, 0}, reply},
	} {
		got := make([]byte, len(step.want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, step.want) {
			return fmt.Errorf("got %v (%v), not %v", got, err, step.want)
		}
		if _, err := c.Write(step.send); err != nil {
			return err
		}
	}
	b := make([]byte, 256)
	n, client, err := relay.ReadFrom(b)
	if err != nil {
		return err
	}
	header := bytes.Clone(b[:10])
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte(header[4:8])), uint16(header[8])<<8|uint16(header[9])))
	if _, err := relay.WriteTo(b[10:n], to); err != nil {
		return err
	}
	n, _, err = relay.ReadFrom(b)
	if err != nil {
		return err
	}
	if _, err := relay.WriteTo(append(header, b[:n]...), client); err != nil {
		return err
	}
	_, _ = c.Read(b) // until the client ends it
	return nil
}
