package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/internal/netlab"
)

// narrow makes the way to the vault narrower than the tunnel, while an upload stands still:
// its sandbox is told the new size, and the rest arrives.
func (w *wired) narrow(t *testing.T) {
	const size, narrowest = 8 << 20, "1280"
	up := w.near.must(t, task{Do: "begin upload", Target: at(vaultAddr, portLazy), Size: size, Within: 20 * time.Second}).Size
	if up == 0 || up >= size {
		t.Fatalf("%d bytes of %d have left", up, size)
	}
	tooBig := w.count(t, "sallyport_drops_total", `direction="egress"`, `network="net-acme"`, `reason="too_big"`)
	w.onA(t, "link", "set", "eth1", "mtu", narrowest)
	toolOn(t, w.vault, "ip", "link", "set", "eth0", "mtu", narrowest)
	w.inVault.read <- struct{}{}
	w.near.must(t, task{Do: "finish", Size: size - up})
	if w.count(t, "sallyport_drops_total", `direction="egress"`, `network="net-acme"`, `reason="too_big"`) == tooBig {
		t.Error("nothing was too big: the test proves nothing")
	}
	for _, b := range []*sandbox{w.near, w.far} {
		b.must(t, task{Do: "upload", Target: at(vaultAddr, portSum), Size: 1 << 20})
		b.must(t, task{Do: "download", Target: at(vaultAddr, portGive), Size: 1 << 20})
	}
	w.onA(t, "link", "set", "eth1", "mtu", "1500")
	toolOn(t, w.vault, "ip", "link", "set", "eth0", "mtu", "1500")
}

// count reads one of gw-a's series, 0 where it has not begun.
func (w *wired) count(t *testing.T, name string, labels ...string) (n int) {
	t.Helper()
	text, err := askAdmin(w.a.Namespace, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, name+"{") && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(line, l) }) {
			fields := strings.Fields(line)
			if _, err := fmt.Sscan(fields[len(fields)-1], &n); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// accepted: two networks meet as long as the other one's owner says so, and what is open
// between them when that ends is reset at once.
func (w *wired) accepted(t *testing.T) {
	state := w.state(t)
	w.books.must(t, task{Do: "listen", Target: "0.0.0.0:8098", Count: 1})
	to := at(w.books.inner, 8098)
	for _, b := range []*sandbox{w.near, w.far} {
		before := strings.Count(w.books.stderr.String(), "ARRIVED: "+b.inner.String()+":")
		ended := make(chan answer, 1)
		go func() {
			a, err := b.ask(task{Do: "await reset", Target: to, Count: 100, Within: 20 * time.Second})
			if err != nil {
				a.Failure = err.Error()
			}
			ended <- a
		}()
		eventually(t, 20*time.Second, "the connection is open", func() error {
			if n := strings.Count(w.books.stderr.String(), "ARRIVED: "+b.inner.String()+":"); n == before {
				return fmt.Errorf("%d arrived", n)
			}
			return nil
		})
		w.reload(t, strings.Replace(state, booksAccept, "", 1), "desired state read anew")
		select {
		case a := <-ended:
			if a.Errno != syscall.ECONNRESET {
				t.Errorf("the open connection of %v ends with %s", b.inner, a.Failure)
			}
		case <-time.After(soon):
			t.Errorf("the connection of %v is open %v after its peering ended", b.inner, soon)
		}
		if text := w.mustCLI("peering", "list"); !strings.Contains(text, "pending-acceptance by net-books") {
			t.Errorf("nobody is said to have to accept in %s", text)
		}
		if a := b.fails(t, task{Do: "connect", Target: to}); a.Took > soon {
			t.Errorf("a connect without acceptance fails after %v: %s", a.Took, a.Failure)
		}
		if err := reaches(b, vaultAddr); err != nil {
			t.Errorf("another peering suffers: %v", err)
		}
		w.reload(t, state, "desired state read anew")
		eventually(t, 20*time.Second, "the other network is reached again", func() error {
			a, err := b.ask(task{Do: "connect", Target: to})
			if err == nil && a.Failure != "" {
				err = fmt.Errorf("%s", a.Failure)
			}
			return err
		})
	}
}

// missing asks for a peering by an interface that comes later: it alone is down, which is
// said once and shown.
func (w *wired) missing(t *testing.T) {
	state := w.state(t)
	said := len(w.said("gw-a"))
	w.reload(t, state+"  - {id: peer-late, network: net-acme, kind: interface, cidrs: [10.60.0.0/24], interface: eth9, nextHop: 10.9.2.1, state: active}\n", "desired state read anew")
	show := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, "the command says "+want, func() error {
			if text := w.mustCLI("peering", "show", "peer-late"); !strings.Contains(text, want) {
				return fmt.Errorf("it says %s", text)
			}
			return nil
		})
	}
	show("no interface eth9")
	if n := w.count(t, "sallyport_peering_up", `peering="peer-late"`); n != 0 {
		t.Errorf("peering_up is %d", n)
	}
	if _, err := askAdmin(w.a.Namespace, "/readyz"); err != nil {
		t.Errorf("the host is not ready for one peering: %v", err)
	}
	for _, b := range []*sandbox{w.near, w.globex} {
		if err := reaches(b, vaultAddr); err != nil {
			t.Errorf("another peering suffers: %v", err)
		}
	}
	late := w.lab.Namespace("late")
	w.lab.Connect(
		netlab.End{Namespace: w.a.Namespace, Link: "eth9", Address: netip.MustParsePrefix("10.9.3.2/24")},
		netlab.End{Namespace: late, Link: "eth0", Address: netip.MustParsePrefix("10.9.2.1/24")})
	show("10.9.2.1 is not on the link of interface eth9")
	w.a.Address("eth9", netip.MustParsePrefix("10.9.2.2/24"))
	show("forwarding")
	w.a.Sysctl("net.ipv4.conf.eth9.forwarding", "1")
	eventually(t, 20*time.Second, "the peering is up", func() error {
		if text := w.mustCLI("peering", "show", "peer-late"); strings.Contains(text, "DOWN") {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	for _, why := range []string{"no interface eth9", "not on the link", "eth9.forwarding"} {
		if n := strings.Count(w.said("gw-a")[said:], why); n != 1 {
			t.Errorf("the log says %d times %q", n, why)
		}
	}
	w.reload(t, state, "desired state read anew")
}

// unprivileged starts gw-a without the right to make interfaces: peerings by interface are
// down and say why, the host serves everything else.
func (w *wired) unprivileged(t *testing.T) {
	w.a.daemon = w.run(w.a.Namespace, "gw-a", "setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin",
		filepath.Join(w.bin, "sallyportd"), "run", "--config", filepath.Join(w.dir, "gw-a.yaml"))
	w.awaitHosts(w.a)
	eventually(t, 20*time.Second, "the command says what is missing", func() error {
		text := w.mustCLI("peering", "show", "peer-vault")
		for _, want := range []string{"DOWN", "CAP_NET_ADMIN", "kind wireguard"} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("%q is not in %s", want, text)
			}
		}
		return nil
	})
	eventually(t, 20*time.Second, "the other network is reached", func() error {
		a, err := w.near.ask(task{Do: "connect", Target: at(w.books.inner, 8097)})
		if err == nil && a.Failure != "" {
			err = fmt.Errorf("%s", a.Failure)
		}
		return err
	})
	if a := w.near.fails(t, task{Do: "connect", Target: at(vaultAddr, portHTTP)}); a.Errno != syscall.EHOSTUNREACH || a.Took > soon {
		t.Errorf("a connect to the vault fails after %v with %s", a.Took, a.Failure)
	}
	if rules, routes := w.left(t); len(rules)+len(routes) != 0 {
		t.Errorf("half of it is there: %q, %q", rules, routes)
	}
}
