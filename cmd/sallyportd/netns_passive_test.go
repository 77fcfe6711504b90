package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// failing is an estate with a passive region, of which hosts and regions fail.
type failing struct {
	*estate
	boxes    []*sandbox // of acme: one on each host of iad1
	recorded [][]byte   // what the tunnels of all gateways sent to the worker
}

// sidecarView is what the tests want to know of what the sidecar says.
type sidecarView struct {
	Networks []struct {
		ID    string
		Paths []struct {
			Gateway spec.Gateway
			State   string
			Health  uint8
		}
		Groups []struct {
			Prefers  string
			State    string
			Switches uint64
		}
	}
}

// sandboxView is the same of one sandbox.
type sandboxView struct {
	Inner   netip.Addr
	Network string
	Passive struct{ Region, Network, State, Reason string }
}

// ask asks the sidecar's own API.
func (e *estate) askSidecar(t *testing.T, path string, out any) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", e.socket)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://sidecar"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s answers %s: %v", path, resp.Status, err)
	}
}

// awaitPassive waits until a sandbox's attachment to its passive network is in a
// state, for a reason that holds some words.
func (e *estate) awaitPassive(t *testing.T, b *sandbox, state string, words ...string) {
	t.Helper()
	eventually(t, 15*time.Second, "the passive network is "+state, func() error {
		var list struct{ Sandboxes []sandboxView }
		e.askSidecar(t, "/v1/sandboxes", &list)
		i := slices.IndexFunc(list.Sandboxes, func(v sandboxView) bool { return v.Inner == b.inner && v.Network == "net-acme" })
		if i < 0 {
			return errors.New("the sandbox is not listed")
		}
		p := list.Sandboxes[i].Passive
		if p.State != state || p.Region != "cle1" || p.Network != "net-standby" {
			return fmt.Errorf("it is %+v", p)
		}
		for _, w := range words {
			if !strings.Contains(p.Reason, w) {
				return fmt.Errorf("it is %+v; want %q in the reason", p, w)
			}
		}
		return nil
	})
}

// warned fails the test unless a sandbox's user was told that it has no passive network.
func warned(t *testing.T, b *sandbox, words ...string) {
	t.Helper()
	for _, w := range append([]string{"warning: no passive network net-standby in region cle1: "}, words...) {
		if text := b.stderr.String(); !strings.Contains(text, w) {
			t.Errorf("the user is told %q; want %q in it", text, w)
		}
	}
}

// goesOn waits until the sandboxes' loads have had n answers more of each kind, and
// fails the test if anything failed meanwhile.
func (f *failing) goesOn(t *testing.T, n uint64) {
	t.Helper()
	for _, b := range f.boxes {
		before := b.load(t)
		var now loadReport
		eventually(t, 10*time.Second, "the load goes on", func() error {
			if now = b.load(t); now.Answered < before.Answered+n || now.AnsweredUDP < before.AnsweredUDP+n {
				return fmt.Errorf("%+v, after %+v", now, before)
			}
			return nil
		})
		if now.Failed != before.Failed || now.Ended != before.Ended {
			t.Errorf("the load of %v suffered: it was %+v, and is %+v", b.inner, before, now)
		}
	}
}

// switches counts those of acme's sandboxes.
func (f *failing) switches(t *testing.T) (n uint64) {
	t.Helper()
	var v sidecarView
	f.askSidecar(t, "/v1/status", &v)
	for _, network := range v.Networks {
		if network.ID != "net-acme" {
			continue
		}
		for _, g := range network.Groups {
			n += g.Switches
		}
	}
	return n
}

// TestPassive: a sandbox is told when it has no passive network, gets it once the
// passive region is there, and goes there when its own is not; and nobody but the
// gateways has a say in that.
func TestPassive(t *testing.T) {
	f := &failing{estate: newEstate(t, bySockets)}
	f.startRegion()
	f.startSidecar()
	t.Run("not ready", f.notReady)
	f.boxes = []*sandbox{f.sandboxOn(t, acmeFunction, f.a), f.sandboxOn(t, acmeFunction, f.b)}
	for _, b := range f.boxes {
		f.awaitPassive(t, b, "ready")
		f.startLoad(t, b, originAddr)
	}
	t.Run("secrets of the passive region", f.hidden)
	t.Run("forged and replayed answers", f.forgedAndReplayed)
	t.Run("forged by a stock client", f.forgedByStock)
	t.Run("region killed", f.regionKilled)
	t.Run("region back", f.regionBack)
}

// unmoved fails the test unless all gateways are good in the sidecar's eyes, and
// there have been no switches but those before.
func (f *failing) unmoved(t *testing.T, before uint64) {
	t.Helper()
	var v sidecarView
	f.askSidecar(t, "/v1/status", &v)
	for _, network := range v.Networks {
		for _, p := range network.Paths {
			if p.State != "good" && p.State != "suspect" || p.Health != 0 {
				t.Errorf("the sidecar thinks of a gateway: %+v", p)
			}
		}
	}
	if n := f.switches(t) - before; n != 0 {
		t.Errorf("there were %d switches", n)
	}
}

// notReady starts sandboxes while the passive region is down, and then while it does
// not know the passive network.
func (f *failing) notReady(t *testing.T) {
	first := f.sandbox(t, acmeFunction)
	warned(t, first, "its control plane does not answer")
	f.awaitPassive(t, first, "failed", "its control plane does not answer")
	allFrom(t, first.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)

	f.write("cle1-state.yaml", strings.ReplaceAll(estateState, ", passive: net-standby", ""))
	f.startHost(f.c)
	f.awaitHosts(f.c)
	f.awaitPassive(t, first, "failed", "passive network")
	second := f.sandbox(t, acmeFunction)
	warned(t, second, "passive network")
	allFrom(t, second.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)

	f.write("cle1-state.yaml", estateState)
	if err := f.c.daemon.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for _, b := range []*sandbox{first, second} {
		f.awaitPassive(t, b, "ready")
	}
	third := f.sandbox(t, acmeFunction)
	if text := third.stderr.String(); strings.Contains(text, "cle1: ") { // which it may not have had yet
		t.Errorf("with a passive network the user is told %q", text)
	}
	for _, b := range []*sandbox{first, second, third} {
		b.end()
	}
}

// hidden: what the sidecar has for the passive region's control plane is not to be
// had in a sandbox.
func (f *failing) hidden(t *testing.T) {
	for _, b := range f.boxes {
		b.fails(t, task{Do: "connect", Network: "unix", Target: filepath.Join(f.dir, "cle1", "api.sock")})
		a, err := b.ask(task{Do: "file", Target: filepath.Join(f.dir, "cle1-token")})
		if err != nil || len(a.Texts) > 0 && a.Texts[0] != "" {
			t.Errorf("a sandbox reads the token of the passive region: %+v, %v", a, err)
		}
	}
}

// regionKilled kills all of iad1, while what the gateways once said goes on arriving.
func (f *failing) regionKilled(t *testing.T) {
	end := make(chan struct{})
	var replaying sync.WaitGroup
	replaying.Go(func() { replay(t, f.hub, f.recorded, 20*time.Millisecond, end) })
	defer replaying.Wait()
	defer close(end)
	began := time.Now()
	for _, d := range []*daemon{f.plane, f.a.daemon, f.b.daemon} {
		f.kill(d)
	}
	killed := time.Now()
	answered := []uint64{f.boxes[0].load(t).AnsweredUDP, f.boxes[1].load(t).AnsweredUDP}
	for i, b := range f.boxes {
		eventually(t, soon, "the sandbox leaves from the passive pair, by TCP and UDP", func() error {
			r := b.load(t)
			if r.AnsweredUDP == answered[i] || !slices.ContainsFunc(r.Sources, func(a netip.Addr) bool { return slices.Contains(standbyPair, a) }) {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		eventually(t, soon, "an open connection of before ends", func() error {
			if r := b.load(t); r.Ended == "" {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		if r := b.load(t); r.Errno != syscall.ECONNRESET {
			t.Errorf("an open connection of before: %s; want a reset", r.Ended)
		}
	}
	t.Logf("both sandboxes had left from the passive pair %v after the region was killed", time.Since(killed).Round(time.Millisecond))
	for _, b := range f.boxes {
		allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Count: 5}).Sources, 5, standbyPair)
		name := fmt.Sprintf("passive-%v.origin.example.", strings.ReplaceAll(b.inner.String(), ".", "-"))
		if got := b.must(t, task{Do: "lookup", Target: name}).Texts; !slices.Equal(got, []string{originAddr.String()}) {
			t.Errorf("%s is %v", name, got)
		}
		asked := f.origin.asked.of(name)
		for _, q := range asked {
			if !slices.Contains(standbyPair, q.from.Addr()) {
				t.Errorf("%v asked for %s; want one of %v", q.from, name, standbyPair)
			}
		}
		if len(asked) == 0 {
			t.Errorf("nobody asked for %s", name)
		}
		if a := b.must(t, task{Do: "address"}); len(a.Sources) != 1 || a.Sources[0].Addr() != b.inner {
			t.Errorf("the sandbox has %v now, and had %v", a.Sources, b.inner)
		}
		b.must(t, task{Do: "ping", Target: originAddr.String()})
	}
	for _, p := range f.atOrigin.Packets() {
		if p.Out && p.At.After(killed) && slices.Contains(acmePair, p.Src.Addr()) && p.Proto == protoUDP {
			t.Errorf("%v after the region was killed (which took %v): %v", p.At.Sub(killed), killed.Sub(began), p)
		}
	}
}

// regionBack starts iad1 again: new connections go back to it.
func (f *failing) regionBack(t *testing.T) {
	f.startControl()
	f.startHost(f.a)
	f.startHost(f.b)
	f.awaitHosts(f.a, f.b)
	began := time.Now()
	for i, b := range f.boxes {
		eventually(t, 10*time.Second, "the sandbox leaves from its own pair again", func() error {
			a, err := b.ask(task{Do: "http", Target: at(originAddr, portHTTP), Within: time.Second})
			switch {
			case err != nil:
				return err
			case a.Failure != "":
				t.Errorf("on the way back a request fails: %s", a.Failure)
			case a.Sources[0].Addr() != acmePair[i]:
				return fmt.Errorf("it leaves from %v", a.Sources[0])
			}
			return nil
		})
	}
	t.Logf("both sandboxes had left from their own addresses %v after the gateways were back", time.Since(began).Round(time.Millisecond))
}
