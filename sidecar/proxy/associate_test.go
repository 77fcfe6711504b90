package proxy

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// associated asks for an association and returns its socket's address and the
// connection that holds it.
func (w *world) associated(t *testing.T, port uint16) (net.Conn, netip.AddrPort) {
	t.Helper()
	c := w.client(t)
	w.login(t, c)
	code, bound := request(t, c, commandAssociate, ip(netip.IPv4Unspecified(), port))
	if code != 0 || bound.Addr() != netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		t.Fatalf("UDP ASSOCIATE is answered with %d and %v", code, bound)
	}
	return c, bound
}

// speaker is a client's socket for datagrams.
func speaker(t *testing.T) *net.UDPConn {
	t.Helper()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	_ = u.SetDeadline(time.Now().Add(patience))
	return u
}

func say(t *testing.T, u *net.UDPConn, to netip.AddrPort, destination, payload []byte) {
	t.Helper()
	b := append(append([]byte{0, 0, 0}, destination...), payload...)
	if _, err := u.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
}

// hear waits for a datagram, which must be the origin's.
func hear(t *testing.T, u *net.UDPConn) []byte {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := u.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte{0, 0, 0}, ip(origin, portEcho)...)
	if !bytes.HasPrefix(b[:n], want) {
		t.Fatalf("a datagram begins with % x, want % x", b[:min(n, 10)], want)
	}
	return b[len(want):n]
}

func TestAssociate(t *testing.T) {
	w := newWorld(t, nil)
	c, at := w.associated(t, 0)
	u := speaker(t)
	big := bytes.Repeat([]byte("0123456789"), 139) // what one packet holds
	for _, payload := range [][]byte{[]byte("hello"), {}, big} {
		say(t, u, at, ip(origin, portEcho), payload)
		if got := hear(t, u); !bytes.Equal(got, payload) {
			t.Errorf("%d bytes come back as %d", len(payload), len(got))
		}
	}
	for range 3 { // looked up once
		say(t, u, at, name("origin.example", portEcho), []byte("by name"))
		if got := hear(t, u); string(got) != "by name" {
			t.Errorf("got %q", got)
		}
	}
	if n := w.askedFor("udp 10.0.0.1 origin.example."); n != 1 {
		t.Errorf("the name was asked for %d times", n)
	}

	// None of these comes back; the last shows that all were seen.
	other := speaker(t)
	say(t, other, at, ip(origin, portEcho), []byte("from another port"))
	_, _ = u.WriteToUDPAddrPort([]byte{0, 0}, at)
	_, _ = u.WriteToUDPAddrPort(append([]byte{0, 0, 1}, ip(origin, portEcho)...), at) // a fragment
	_, _ = u.WriteToUDPAddrPort(append([]byte{1, 0, 0}, ip(origin, portEcho)...), at)
	say(t, u, at, ip(netip.IPv4Unspecified(), portEcho), []byte("to nobody"))
	say(t, u, at, append([]byte{familyIPv6}, make([]byte, 18)...), []byte("by IPv6"))
	say(t, u, at, name("nothing.example", portEcho), []byte("to no name"))
	say(t, u, at, ip(origin, portEcho), []byte("last"))
	if got := hear(t, u); string(got) != "last" {
		t.Errorf("got %q, want the last", got)
	}

	_ = c.Close() // ends the association
	w.wantStats(t, Stats{Served: 1})
	eventually(t, "its socket is closed", func() bool {
		u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err == nil {
			_ = u.Close()
		}
		return err == nil
	})
}

// An association belongs to the port that was named, or to who speaks first.
func TestAssociationOwner(t *testing.T) {
	w := newWorld(t, nil)
	named, other := speaker(t), speaker(t)
	_, at := w.associated(t, uint16(named.LocalAddr().(*net.UDPAddr).Port))
	say(t, other, at, ip(origin, portEcho), []byte("other"))
	say(t, named, at, ip(origin, portEcho), []byte("named"))
	if got := hear(t, named); string(got) != "named" {
		t.Errorf("got %q", got)
	}
	_ = other.SetReadDeadline(time.Unix(1, 0))
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the other port hears something, %v", err)
	}
}

func TestAssociationLimit(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxAssociations = 1 })
	first, _ := w.associated(t, 0)
	c := w.client(t)
	w.login(t, c)
	if code, _ := request(t, c, commandAssociate, ip(netip.IPv4Unspecified(), 0)); socksReply(code) != replyFailure {
		t.Errorf("one beyond the limit is answered with %d", code)
	}
	w.wantStats(t, Stats{Open: 1, Served: 1, Refused: 1})
	_ = first.Close()
	w.wantStats(t, Stats{Served: 1, Refused: 1})
	eventually(t, "there is room again", w.associate)
	w.dissociate()
}

// Closing the server ends associations, too.
func TestCloseEndsAssociations(t *testing.T) {
	w := newWorld(t, nil)
	c, _ := w.associated(t, 0)
	w.Close()
	_ = ended(t, c)
}
