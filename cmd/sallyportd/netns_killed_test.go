package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAttachKilled: when the sidecar is killed, sandboxes in namespaces have no network
// left, by IPv4 or IPv6, and hear so at once; the next sidecar takes the namespaces anew.
func TestAttachKilled(t *testing.T) {
	requireTun(t)
	w := newWorld(t, bySockets)
	w.up()
	kinds := []string{"", "veth", "tap"}
	boxes := make([]*attached, len(kinds))
	attachAll := func() {
		for i, kind := range kinds {
			if boxes[i] == nil {
				boxes[i] = &attached{ns: newNamespace(t)}
			}
			b, err := w.attach(t.Context(), acmeFunction, boxes[i].ns, kind)
			if err != nil {
				t.Fatalf("%q: %v", kind, err)
			}
			if boxes[i] = b; kind == "tap" {
				continue // it is its guest that has the network
			}
			from, err := b.whence(t.Context())
			if err != nil {
				t.Fatalf("%q: %v", kind, err)
			}
			allFrom(t, from, 1, acmePair)
		}
	}
	attachAll()
	w.sidecar.end(t, syscall.SIGKILL)
	for i, b := range boxes {
		eventually(t, 10*time.Second, "the interface is gone", func() error {
			left := slices.DeleteFunc(linksIn(t, b.ns), func(name string) bool {
				return kinds[i] == "tap" && (name == "tap0" || name == "sallybr0")
			})
			if len(left) != 0 {
				return fmt.Errorf("there are %v", left)
			}
			return nil
		})
		for _, target := range []string{at(originAddr, portHTTP), "[2001:db8::1]:80"} {
			err := b.ns.Do(func() error {
				c, err := net.DialTimeout("tcp", target, soon)
				if err == nil {
					_ = c.Close()
				}
				return err
			})
			if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("%q: without a sidecar, a connect to %s ends with %v", kinds[i], target, err)
			}
		}
	}
	w.startSidecar()
	w.awaitSidecar()
	attachAll()
}

// TestAttachWithoutTUN: where there is no /dev/net/tun, what the refusal of a TUN names works.
func TestAttachWithoutTUN(t *testing.T) {
	w := newWorld(t, bySockets)
	w.startGateway()
	w.awaitGateway()
	run := append(slices.Clone(withoutTUN), filepath.Join(w.bin, "sallyport-sidecar"), "run", "--config", filepath.Join(w.dir, "sidecar.yaml"))
	w.sidecar = w.run(w.worker, "sallyport-sidecar", run[0], run[1:]...)
	w.awaitSidecar()
	ns := newNamespace(t)
	for _, ethernet := range []string{"", "tap"} {
		if _, err := w.attach(t.Context(), acmeFunction, ns, ethernet); err == nil || !strings.Contains(err.Error(), "/dev/net/tun") {
			t.Errorf("%q: %v; want /dev/net/tun, which is missing", ethernet, err)
		}
		if links := linksIn(t, ns); len(links) != 0 {
			t.Errorf("%q: the links %v are left", ethernet, links)
		}
	}
	b, err := w.attach(t.Context(), acmeFunction, ns, "veth")
	if err != nil {
		t.Fatal(err)
	}
	from, err := b.whence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	allFrom(t, from, 1, acmePair)
}
