package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// stock is a machine with a device of WireGuard's own programs, which is
// configured as `sallyport` says.
type stock struct {
	*netlab.Namespace
	g      *ground
	device string
	text   string // as it was printed
}

// newStock configures a device from a text for wg-quick, unchanged: wg gets what
// `wg-quick strip` leaves for it, and the machine the addresses, the MTU and the
// routes that wg-quick would set. The private key is the one given where the text
// says that it comes from a file.
func newStock(g *ground, n *netlab.Namespace, text, key string) *stock {
	g.t.Helper()
	s := &stock{Namespace: n, g: g, text: text}
	stripped := output(g.t, nil, "wg-quick", "strip", g.write("stock.conf", text))
	device := g.wireGuard(n, stripped)
	s.device = device.Device()
	if command := s.setting("PostUp"); command != "" {
		want := "wg set %i private-key /etc/wireguard/%i.key"
		if command != want {
			g.t.Fatalf("the configuration runs %q; want %q", command, want)
		}
		if err := device.SetPrivateKey(key); err != nil {
			g.t.Fatal(err)
		}
	}
	var addresses []netip.Prefix
	if a := s.setting("Address"); a != "" {
		addresses = append(addresses, netip.MustParsePrefix(a))
	}
	mtu, err := strconv.Atoi(s.setting("MTU"))
	if err != nil {
		g.t.Fatal(err)
	}
	if err := device.Up(mtu, addresses, []netip.Prefix{netip.MustParsePrefix(s.setting("AllowedIPs"))}); err != nil {
		g.t.Fatal(err)
	}
	return s
}

// setting is the value of a key; empty: there is none.
func (s *stock) setting(key string) string {
	for line := range strings.Lines(s.text) {
		if k, v, ok := strings.Cut(line, " = "); ok && k == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// try runs a program on the machine.
func (s *stock) try(name string, args ...string) (string, error) {
	var out strings.Builder
	cmd := exec.CommandContext(s.g.t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := s.Run(cmd)
	return out.String(), err
}

func (s *stock) must(name string, args ...string) string {
	s.g.t.Helper()
	out, err := s.try(name, args...)
	if err != nil {
		s.g.t.Fatalf("%v: %s", err, out)
	}
	return out
}

// curl asks the origin where the request comes from.
func (s *stock) curl(within time.Duration) (netip.AddrPort, error) {
	out, err := s.try("curl", "-sS", "--max-time", fmt.Sprintf("%.3f", within.Seconds()), "http://"+at(originAddr, portHTTP)+"/")
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %s", err, out)
	}
	return netip.ParseAddrPort(strings.TrimSpace(out))
}

// attachStock makes the client's machine a sandbox, by the command, and connects it.
func (e *estate) attachStock(t *testing.T, on *gatewayHost) *stock {
	t.Helper()
	for range 4 {
		text := e.mustCLI("attach", "--project", "shop", "--environment", "production", "--region", "iad1", "--format", "wg-quick")
		if strings.Contains(text, fmt.Sprintf("leaves from %v, by gateway %s.", on.dedicated[0], on.name)) {
			return newStock(e.ground, e.client, text, "")
		}
		e.mustCLI("detach", attachmentID(t, text))
	}
	t.Fatalf("none of 4 attachments in a row leaves by %s", on.name)
	return nil
}

// attachmentID finds the ID in a configuration's comment.
func attachmentID(t *testing.T, text string) string {
	t.Helper()
	found := regexp.MustCompile("(?m)^# `sallyport detach (att-[A-Z0-9]+)` ends it[.]").FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("the configuration does not say how to end it: %s", text)
	}
	return found[1]
}

// resumeStock attaches a stock client again, by the command that its configuration
// has for it, after the control plane has forgotten it.
func (e *estate) resumeStock(t *testing.T, s *stock) {
	t.Helper()
	found := regexp.MustCompile("(?m)^# +sallyport (attach .*--resume .*)$").FindStringSubmatch(s.text)
	if found == nil {
		t.Fatalf("the configuration does not say how to attach it again: %s", s.text)
	}
	e.mustCLI(strings.Fields(found[1])...)
	inner := netip.MustParsePrefix(s.setting("Address")).Addr()
	if a := e.attachment(t, acmeFunction, inner); a.ID != attachmentID(t, s.text) {
		t.Errorf("attached again is %+v", a)
	}
}

// TestStockSandbox: what `sallyport attach --format wg-quick` prints makes a stock
// WireGuard client a sandbox, with the address that it names, until it is detached.
func TestStockSandbox(t *testing.T) {
	requireStock(t)
	e := newEstate(t, bySockets)
	e.startRegion()
	for _, on := range []*gatewayHost{e.a, e.b} {
		t.Run(on.name, func(t *testing.T) { stockSandbox(t, e, on) })
	}
}

func stockSandbox(t *testing.T, e *estate, on *gatewayHost) {
	s := e.attachStock(t, on)
	defer s.must("ip", "link", "del", s.device)
	id, egress := attachmentID(t, s.text), on.dedicated[0]
	inner := netip.MustParsePrefix(s.setting("Address")).Addr()
	if a := e.attachment(t, acmeFunction, inner); a.ID != id || a.Egress != egress {
		t.Errorf("the configuration is of %s with %v, the control plane lists %+v", id, egress, a)
	}
	began := time.Now()
	if from, err := s.curl(5 * time.Second); err != nil || from.Addr() != egress {
		t.Errorf("curl: the origin saw %v, %v; want %v", from, err, egress)
	}
	t.Logf("the first request took %v, with the handshake", time.Since(began).Round(time.Millisecond))
	got := s.must("dig", "+short", "+time=3", "+tries=1", "@"+s.setting("DNS"), "www.origin.example", "A")
	if strings.TrimSpace(got) != originAddr.String() {
		t.Errorf("dig says %q", got)
	}
	if !slices.ContainsFunc(e.origin.asked.of("www.origin.example."), func(q query) bool { return q.from.Addr() == egress }) {
		t.Errorf("nobody asked for www.origin.example from %v", egress)
	}
	s.must("ping", "-n", "-c", "3", "-i", "0.05", "-W", "2", originAddr.String())

	held := holdOpen(t, e, s)
	judgeReadouts(t, e, on, inner, held)
	out := e.mustCLI("detach", id)
	ended := time.Now()
	if !strings.Contains(out, id) {
		t.Errorf("detach says %q", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	reset, err := e.atOrigin.Wait(ctx, packetFrom(held, tcpReset))
	if err != nil {
		t.Fatalf("the far side of the connection hears nothing of the detachment: %v", err)
	}
	if from, err := s.curl(300 * time.Millisecond); err == nil {
		t.Errorf("a detached client is answered, from %v", from)
	}
	if out, err := s.try("ping", "-n", "-c", "2", "-i", "0.05", "-W", "0.3", originAddr.String()); err == nil {
		t.Errorf("a detached client's ping is answered: %s", out)
	}
	for _, p := range e.atOrigin.Packets() {
		if p.Out && p.Src.Addr() == egress && p.At.After(ended.Add(100*time.Millisecond)) {
			t.Errorf("%v after the detachment: %v", p.At.Sub(ended), p)
		}
	}
	t.Logf("the open connection was reset %v after the command", reset.At.Sub(ended).Round(time.Millisecond))
}

// holdOpen opens a connection to the origin's echo, to the end of the test, and
// says where the origin sees it come from.
func holdOpen(t *testing.T, e *estate, s *stock) netip.AddrPort {
	t.Helper()
	c, err := s.Dial(t.Context(), "tcp4", at(originAddr, portEcho))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return toldSource(t, c)
}

// toldSource reads the line in which an echo tells the source.
func toldSource(t *testing.T, c net.Conn) netip.AddrPort {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := c.Read(b); err != nil || b[0] == '\n' {
			from, parse := netip.ParseAddrPort(string(line))
			if err := errors.Join(err, parse); err != nil {
				t.Fatalf("the echo says %q: %v", line, err)
			}
			_ = c.SetReadDeadline(time.Time{})
			return from
		}
	}
}
