package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sallyport-net/sallyport/internal/hostnet"
	"github.com/sallyport-net/sallyport/internal/netlab"
	"github.com/sallyport-net/sallyport/sidecar"
)

// TestSoakThousand attaches as many sandboxes as a worker has, first all that 16 callers
// can, then more at 100 a second, and says what that takes. Each has its first byte from
// the origin; then all are detached, or the sidecar ends, which detaches them. `make
// check` does it with fewer.
func TestSoakThousand(t *testing.T) {
	many, paced := 50, 25
	if netlab.Soak(t, 0) > 0 {
		many, paced = 1000, 500
	}
	for _, kind := range []string{"tun", "veth"} {
		t.Run(kind, func(t *testing.T) {
			requireTun(t)
			w := newWorld(t, bySockets)
			w.up()
			spaces := make([]*hostnet.Namespace, many+paced)
			for i := range spaces {
				spaces[i] = newNamespace(t)
			}
			ethernet := strings.TrimPrefix(kind, "tun")
			before := w.resident(t)
			boxes := w.attachMany(t, spaces[:many], ethernet)
			t.Logf("the sidecar's resident memory was %d KB, and is %d KB", before, w.resident(t))
			boxes = append(boxes, w.attachPaced(t, spaces[many:], ethernet)...)
			if list, err := w.api.Attachments(t.Context()); err != nil || len(list) != many+paced {
				t.Errorf("%d attachments, %v; want %d", len(list), err, many+paced)
			}
			if kind == "tun" {
				w.detachMany(t, boxes)
			} else {
				w.endSidecar(t, spaces)
			}
			if list, err := w.api.Attachments(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("after all were detached, %d attachments, %v", len(list), err)
			}
		})
	}
}

// attachMany attaches namespaces by 16 callers and has each reach the origin afterwards.
func (w *world) attachMany(t *testing.T, spaces []*hostnet.Namespace, ethernet string) []*attached {
	t.Helper()
	boxes := make([]*attached, len(spaces))
	var all errgroup.Group
	all.SetLimit(attachAtOnce)
	began := time.Now()
	for i, n := range spaces {
		all.Go(func() (err error) {
			boxes[i], err = w.attach(t.Context(), acmeFunction, n, ethernet)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sandboxes were attached in %v", len(boxes), time.Since(began).Round(time.Millisecond))
	for _, b := range boxes {
		all.Go(func() error {
			_, err := b.whence(t.Context())
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	return boxes
}

// attachPaced attaches namespaces at 100 a second, and says how long each took from the
// call to the first byte from the origin.
func (w *world) attachPaced(t *testing.T, spaces []*hostnet.Namespace, ethernet string) []*attached {
	t.Helper()
	boxes, attach, first := make([]*attached, len(spaces)), make([]time.Duration, len(spaces)), make([]time.Duration, len(spaces))
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	var all errgroup.Group
	for i, n := range spaces {
		<-pace.C
		all.Go(func() (err error) {
			began := time.Now()
			if boxes[i], err = w.attach(t.Context(), acmeFunction, n, ethernet); err != nil {
				return err
			}
			attach[i] = time.Since(began)
			_, err = boxes[i].whence(t.Context())
			first[i] = time.Since(began)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string][]time.Duration{"attach": attach, "attach to first byte": first} {
		slices.Sort(d)
		t.Logf("%d more at 100 a second: %s p50 %v, p99 %v, the longest %v", len(d), name,
			d[len(d)/2].Round(10*time.Microsecond), d[len(d)*99/100].Round(10*time.Microsecond), d[len(d)-1].Round(10*time.Microsecond))
	}
	return boxes
}

// detachMany detaches all of them.
func (w *world) detachMany(t *testing.T, boxes []*attached) {
	t.Helper()
	var all errgroup.Group
	all.SetLimit(attachAtOnce)
	began := time.Now()
	for _, b := range boxes {
		all.Go(func() error { return sidecar.Detach(t.Context(), w.socket, b.ID) })
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sandboxes were detached in %v", len(boxes), time.Since(began).Round(time.Millisecond))
}

// endSidecar ends the sidecar as systemd does, within the time that the unit gives it,
// and looks whether any of the interfaces is left.
func (w *world) endSidecar(t *testing.T, spaces []*hostnet.Namespace) {
	t.Helper()
	began := time.Now()
	_ = w.sidecar.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-w.sidecar.ended:
	case <-time.After(15 * time.Second):
		t.Fatal("the sidecar did not end within 15 s")
	}
	t.Logf("the sidecar of %d sandboxes ended in %v", len(spaces), time.Since(began).Round(time.Millisecond))
	for _, n := range spaces {
		if links := linksIn(t, n); len(links) != 0 {
			t.Fatalf("the links %v outlive the sidecar", links)
		}
	}
}

// resident is the sidecar's resident memory in KB.
func (w *world) resident(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.sidecar.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(grep(string(text), "VmRSS"))
	if len(fields) < 2 {
		t.Fatalf("no VmRSS in %s", text)
	}
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
