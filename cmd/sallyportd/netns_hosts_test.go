package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/tunnel"
)

// TestTwoHosts: each address of a pair is on a host of its own, and sandboxes leave
// from both. The control plane may die and come back: nothing that runs notices.
func TestTwoHosts(t *testing.T) { byEach(t, twoHosts) }

func twoHosts(t *testing.T, by uplinkKind) {
	e := newEstate(t, by)
	e.startRegion()
	e.startSidecar()
	boxes := []*sandbox{e.sandboxOn(t, acmeFunction, e.a), e.sandboxOn(t, acmeFunction, e.b), e.sandboxOn(t, globexFunction, e.b)}
	egress := []netip.Addr{acmePair[0], acmePair[1], globexPair[1]}
	// On a busy machine two ends that call each other at first may have to call again, after
	// seconds; the other host carries meanwhile.
	for i, b := range boxes {
		eventually(t, 20*time.Second, "a sandbox leaves by its own host", func() error {
			if r := b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Count: 1}); len(r.Sources) != 1 || r.Sources[0].Addr() != egress[i] {
				return fmt.Errorf("it left from %v", r.Sources)
			}
			return nil
		})
	}
	for i, b := range boxes {
		allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Count: 10}).Sources, 10, egress[i:i+1])
		allFrom(t, b.must(t, task{Do: "udp", Target: at(originAddr, portUDP)}).Sources, 1, egress[i:i+1])
		e.startLoad(t, b, originAddr)
	}
	for i, h := range []*gatewayHost{e.a, e.b} {
		if h.at.Sources()[netlab.Source{Addr: acmePair[i]}] == 0 || h.at.Sources()[netlab.Source{Addr: acmePair[1-i]}] != 0 {
			t.Errorf("the sources on the link of %s are %v; want %v, and not %v", h.name, h.at.Sources(), acmePair[i], acmePair[1-i])
		}
	}
	if by == bySockets {
		t.Run("control plane", func(t *testing.T) { killControl(t, e, boxes) })
	}
	for i, b := range boxes {
		if r := b.load(t); !slices.Equal(r.Sources, egress[i:i+1]) {
			t.Errorf("the load of a sandbox left from %v; want %v alone", r.Sources, egress[i])
		}
	}
	if by == bySockets { // these are about the control plane, for which all uplinks are one
		t.Run("attach without the active host", func(t *testing.T) { attachBesideDead(t, e) })
	}
}

// killControl kills the control plane under load and starts it again.
func killControl(t *testing.T, e *estate, boxes []*sandbox) {
	before, err := e.api.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	reports := make([]loadReport, len(boxes))
	for i, b := range boxes {
		reports[i] = b.load(t)
	}
	// more waits until each sandbox has had that many more answers, and none failed.
	more := func(what string, n uint64) {
		t.Helper()
		for i, b := range boxes {
			eventually(t, 5*time.Second, "the load is answered "+what, func() error {
				if r := b.load(t); r.Answered < reports[i].Answered+n || r.AnsweredUDP < reports[i].AnsweredUDP+n {
					return fmt.Errorf("%+v", r)
				}
				return nil
			})
			if r := b.load(t); r.Failed != reports[i].Failed || r.Ended != "" || r.Held != reports[i].Held {
				t.Errorf("%s, the load of a sandbox suffered: it was %+v, and is %+v", what, reports[i], r)
			}
			reports[i] = b.load(t)
		}
	}
	e.kill(e.plane)
	more("without a control plane", 40)
	if out, err := e.cli("status"); err == nil {
		t.Errorf("a control plane that was killed has the status %s", out)
	}
	e.startControl()
	again := time.Now()
	eventually(t, 10*time.Second, "all attachments are listed again", func() error {
		after, err := e.api.Attachments(t.Context())
		if err == nil && !sameAttachments(before, after) {
			err = fmt.Errorf("they were %+v, and are %+v", before, after)
		}
		return err
	})
	t.Logf("all attachments were listed %v after the control plane was back", time.Since(again).Round(time.Millisecond))
	more("after the control plane came back", 40)
	fresh := e.sandbox(t, acmeFunction)
	allFrom(t, fresh.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
	fresh.end()
	for _, p := range e.atOrigin.Packets() {
		if p.At.After(began) && p.Proto == protoTCP && p.TCPFlags&tcpReset != 0 {
			t.Errorf("a connection was reset: %v", p)
		}
	}
}

func sameAttachments(a, b []spec.Attachment) bool {
	return slices.EqualFunc(a, b, func(a, b spec.Attachment) bool {
		a.Created, b.Created = time.Time{}, time.Time{}
		return a == b
	})
}

// attachBesideDead kills a host and attaches sandboxes whose address it has.
func attachBesideDead(t *testing.T, e *estate) {
	e.kill(e.a.daemon)
	began := time.Now()
	b := e.sandboxOn(t, acmeFunction, e.a)
	t.Logf("sandboxes whose host is dead start: the first after %v", time.Since(began).Round(time.Millisecond))
	allFrom(t, b.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Count: 5}).Sources, 5, acmePair[1:])
	// The first waited for the host, until it had not been heard of for 3 s. Another does not.
	again := e.sandboxOn(t, acmeFunction, e.a)
	for tries := 1; again.took >= 3*time.Second; tries++ {
		if tries == 3 { // a busy machine may need as long for one
			t.Errorf("another takes %v", again.took)
			break
		}
		again = e.sandboxOn(t, acmeFunction, e.a)
	}
	allFrom(t, again.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair[1:])
	text := e.mustCLI("attach", "--project", "shop", "--environment", "production", "--region", "iad1", "--format", "wg-quick")
	if want := fmt.Sprintf("leaves from %v, by gateway %s.", acmePair[1], e.b.name); !strings.Contains(text, want) {
		t.Errorf("a stock client is told %q; want %q in it", text, want)
	}
	e.mustCLI("detach", attachmentID(t, text))
}

// TestGatewayFirst: a gateway that starts again while the control plane is down goes
// on with its state file, and calls its clients before they notice. A state file that
// is damaged or another's is refused, and the gateway learns all from the control plane.
func TestGatewayFirst(t *testing.T) {
	e := newEstate(t, bySockets)
	e.startRegion()
	e.startSidecar()
	// Globex has no passive network, and its other host will be dead: there is nowhere else to go.
	b := e.sandboxOn(t, globexFunction, e.a)
	var client *stock
	if stockUsable() == nil {
		client = e.attachStock(t, e.a)
		if _, err := client.curl(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		e.awaitMemory(t, clientAddr)
	}
	e.awaitMemory(t, workerAddr)
	t.Run("secrets", func(t *testing.T) { noSecrets(t, e) })
	e.kill(e.plane)
	e.kill(e.b.daemon)
	e.kill(e.a.daemon)
	began := time.Now()
	e.startHost(e.a)
	answered := func(what string, ask func() (netip.AddrPort, error), want netip.Addr) {
		t.Helper()
		eventually(t, soon-time.Since(began), what+" is answered", func() error {
			from, err := ask()
			if err == nil && from.Addr() != want {
				t.Errorf("%s leaves from %v; want %v", what, from, want)
			}
			return err
		})
		t.Logf("%s was answered %v after the start of the new gateway", what, time.Since(began).Round(time.Millisecond))
	}
	if client != nil {
		answered("the stock client", func() (netip.AddrPort, error) { return client.curl(150 * time.Millisecond) }, acmePair[0])
	}
	answered("the sandbox", func() (netip.AddrPort, error) {
		a, err := b.ask(task{Do: "http", Target: at(originAddr, portHTTP), Within: 150 * time.Millisecond})
		if err == nil && a.Failure != "" {
			err = errors.New(a.Failure)
		}
		if err != nil {
			return netip.AddrPort{}, err
		}
		return a.Sources[0], nil
	}, globexPair[0])
	if !strings.Contains(e.said("gw-a"), "starting with the state file") {
		t.Error("the gateway does not say that it goes on with its state file")
	}
	e.startControl()
	e.startHost(e.b)
	e.awaitHosts(e.a, e.b)
	if client != nil {
		e.resumeStock(t, client)
		if from, err := client.curl(time.Second); err != nil || from.Addr() != acmePair[0] {
			t.Errorf("attached again, the client leaves from %v, %v", from, err)
		}
	}
	t.Run("damage", func(t *testing.T) { damage(t, e) })
	t.Run("stock client", func(t *testing.T) { requireStock(t) })
}

func (e *estate) memory(h *gatewayHost) string { return filepath.Join(e.dir, h.name+"-state.json") }

// awaitMemory waits until the state file of gw-a says where somebody is.
func (e *estate) awaitMemory(t *testing.T, who ...netip.Addr) {
	t.Helper()
	eventually(t, 10*time.Second, "the state file says where everybody is", func() error {
		text, err := os.ReadFile(e.memory(e.a))
		for _, a := range who {
			if want := fmt.Sprintf(`:"%v:`, a); err == nil && !bytes.Contains(text, []byte(want)) {
				err = fmt.Errorf("it has no %s", want)
			}
		}
		return err
	})
}

// noSecrets looks for keys in the state file, in every form that they may have.
func noSecrets(t *testing.T, e *estate) {
	text, err := os.ReadFile(e.memory(e.a))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(e.memory(e.a)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the state file's mode is %v, %v; want 0600", info.Mode(), err)
	}
	for what, key := range e.privateKeys(t) {
		for form, secret := range map[string][]byte{
			"raw": key, "base64": []byte(base64.StdEncoding.EncodeToString(key)), "hex": []byte(hex.EncodeToString(key)),
			"unpadded base64": []byte(base64.RawURLEncoding.EncodeToString(key)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(key))),
		} {
			if bytes.Contains(text, secret) {
				t.Errorf("the state file holds %s as %s", what, form)
			}
		}
	}
	// What is public is found: the search would find the rest.
	list, err := e.api.Attachments(t.Context())
	if err != nil || len(list) == 0 {
		t.Fatalf("attached are %+v, %v", list, err)
	}
	for _, a := range list {
		if !bytes.Contains(text, []byte(a.PublicKey)) {
			t.Errorf("the state file does not have the public key of %+v", a)
		}
	}
}

// privateKeys are the secrets of gw-a and all keys that derive from them.
func (e *estate) privateKeys(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(e.dir, name))
		if err != nil || len(b) != 32 {
			t.Fatalf("%s has %d bytes: %v", name, len(b), err)
		}
		return b
	}
	host, region := read("gw-a-secret"), read("region-secret")
	out["the host's secret"], out["the region's secret"] = host, region
	add := func(what string, k tunnel.Key, err error) {
		if err != nil {
			t.Fatal(err)
		}
		out[what] = k[:]
	}
	for _, id := range []string{"net-acme", "net-globex"} {
		k, err := tunnel.DeriveKey(host, id)
		add("the key of "+id, k, err)
		k, err = tunnel.DeriveSiteKey(region, id)
		add("the site key of "+id, k, err)
		for _, h := range []string{"gw-a", "gw-b"} {
			k, err = tunnel.DeriveRelayKey(region, id, h)
			add("the relay key of "+id+" and "+h, k, err)
		}
	}
	return out
}

// damage starts gw-a with state files that are no good.
func damage(t *testing.T, e *estate) {
	good, err := os.ReadFile(e.memory(e.a))
	if err != nil {
		t.Fatal(err)
	}
	var other []byte
	eventually(t, 5*time.Second, "gw-b has a state file", func() error {
		other, err = os.ReadFile(e.memory(e.b))
		return err
	})
	// One that makes another address of an address: all but the checksum is good.
	flipped, inner := bytes.Clone(good), []byte(`"inner":"10.2`)
	at := bytes.Index(flipped, inner)
	if at < 0 {
		t.Fatalf("the state file has no inner address: %s", good)
	}
	flipped[at+len(inner)-1] ^= 1
	for _, c := range []struct {
		name string
		text []byte
		want string
	}{
		{"truncated", good[:len(good)/2], "damaged"},
		{"empty", nil, "damaged"},
		{"a flipped bit", flipped, "checksum"},
		{"another host's", other, "host gw-b"},
	} {
		e.kill(e.a.daemon)
		if err := os.WriteFile(e.memory(e.a), c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		before := len(e.said("gw-a"))
		e.startHost(e.a)
		e.awaitHosts(e.a)
		said := e.said("gw-a")[before:]
		i := strings.Index(said, "state file refused")
		if i < 0 || !strings.Contains(said[i:], c.want) || !strings.Contains(said[i:], e.memory(e.a)) {
			t.Errorf("%s: the gateway says %q; want that the state file is refused, its name and %q", c.name, said, c.want)
		}
		// What it does not know any more it learns from the control plane.
		eventually(t, 5*time.Second, "the gateway has its peer", func() error {
			text, err := askAdmin(e.a.Namespace, "/metrics")
			if err == nil && !strings.Contains(text, "sallyport_wireguard_peers{network=\"net-globex\"} 1\n") {
				err = errors.New("it has none")
			}
			return err
		})
	}
}
