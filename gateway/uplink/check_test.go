package uplink

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
)

// A check comes from exactly the dedicated address, ends by RST, and takes a
// refusal for an answer.
func TestCheck(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	l := listen(t)
	to := l.Addr().(*net.TCPAddr).AddrPort()
	for _, from := range []netip.Addr{dedicated1, dedicated2} {
		if err := s.up.Check(t.Context(), from, to); err != nil {
			t.Fatal(err)
		}
		far := accept(t, l)
		if got := far.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != from {
			t.Errorf("the target sees %v, want %v", got, from)
		}
		far.SetDeadline(time.Now().Add(patience))
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the target reads %v, want a reset", err)
		}
	}
	l.Close()
	if err := s.up.Check(t.Context(), dedicated1, to); err != nil {
		t.Errorf("a target that refuses: %v", err)
	}
	if err := s.up.Check(t.Context(), netip.MustParseAddr("127.0.0.1"), to); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("an address that is not dedicated: %v", err)
	}
	if st := s.up.Stats(); st.TCP != 0 || st.Pending != 0 {
		t.Errorf("checks are counted as sessions: %+v", st)
	}
	s.wantDrops(nil)
}

// A target that does not answer is waited for as long as the caller wants, and
// not beyond the uplink's end.
func TestCheckOfSilence(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	to := listenStuck(t).Addr().(*net.TCPAddr).AddrPort()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := s.up.Check(ctx, dedicated1, to)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() || !strings.Contains(err.Error(), to.String()) {
		t.Errorf("got %v, want a timeout that names the target", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.up.Check(context.Background(), dedicated1, to) }()
	s.close()
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v, want %v", err, os.ErrClosed)
		}
	case <-time.After(patience):
		t.Fatal("the check outlives the uplink")
	}
}

// The port of a check is free for sessions towards all others, and refused to one
// towards the check's own target only.
func TestCheckSharesItsPort(t *testing.T) {
	s := newSandbox(t, SocketsConfig{})
	target, other := listen(t), listen(t)
	busy, err := (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(dedicated1, 0)), Control: bindLate}).Dial("tcp4", target.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	from := busy.LocalAddr().(*net.TCPAddr).AddrPort()
	s.send(syn(from, other.Addr().(*net.TCPAddr).AddrPort(), 7))
	if got := accept(t, other).RemoteAddr().String(); got != from.String() {
		t.Errorf("the session comes from %v, want %v", got, from)
	}
	to := target.Addr().(*net.TCPAddr).AddrPort()
	s.send(syn(from, to, 8))
	if e, want := s.event(), (Event{PortRefused, Flow{packet.TCP, from, to}}); e != want {
		t.Errorf("event %v, want %v", e, want)
	}
}
