package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// TestPairOnly: whoever is attached leaves from its network's pair and nothing
// else; whoever bypasses leaves from the worker's address, and is counted.
func TestPairOnly(t *testing.T) { byEach(t, pairOnly) }

func pairOnly(t *testing.T, by uplinkKind) {
	w := newWorld(t, by)
	w.bypasses = true
	w.up()
	acme, globex := w.sandbox(t, acmeFunction), w.sandbox(t, globexFunction)
	if acme.inner != globex.inner {
		t.Errorf("the first functions of two networks with one CIDR have %v and %v, want the same", acme.inner, globex.inner)
	}
	http, udp := at(originAddr, portHTTP), at(originAddr, portUDP)
	allFrom(t, acme.must(t, task{Do: "http", Target: http, Count: 20}).Sources, 20, acmePair)
	allFrom(t, globex.must(t, task{Do: "http", Target: http, Count: 20}).Sources, 20, globexPair)
	allFrom(t, acme.must(t, task{Do: "udp", Target: udp}).Sources, 1, acmePair)
	allFrom(t, globex.must(t, task{Do: "udp", Target: udp}).Sources, 1, globexPair)
	build := w.sandbox(t, acmeBuild)
	allFrom(t, build.must(t, task{Do: "http", Target: http}).Sources, 1, acmePair)

	worker := append(acmePair[:0:0], workerAddr)
	for _, who := range []subject{acmeEdge, acmeEdge, acmeOptedOut} {
		allFrom(t, w.sandbox(t, who).must(t, task{Do: "http", Target: http}).Sources, 1, worker)
	}
	status, err := w.api.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.BypassesTotal[spec.BypassEdge] != 2 || status.BypassesTotal[spec.BypassBuilds] != 1 || status.Attachments != 3 {
		t.Errorf("the status counts %d attachments and the bypasses %v; want 3, 2 of the edge and 1 build", status.Attachments, status.BypassesTotal)
	}
}

// TestStartStorm starts sandboxes from the first moment, while neither daemon is
// up: each attempt fails with a clear error or leaves from the pair.
func TestStartStorm(t *testing.T) {
	const many = 30
	w := newWorld(t, bySockets)
	w.startGateway()
	w.startSidecar()
	var refused atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for i := range many {
		who, pair := acmeFunction, acmePair
		if i%3 == 0 {
			who, pair = globexFunction, globexPair
		}
		all.Go(func() {
			for {
				b, err := w.start(who)
				if err != nil {
					t.Error(err)
					return
				}
				a, err := b.ask(task{Do: "http", Target: at(originAddr, portHTTP)})
				b.end()
				switch {
				case err == nil && a.Failure != "":
					t.Errorf("a sandbox that started has no network: %s", a.Failure)
					return
				case err == nil:
					allFrom(t, a.Sources, 1, pair)
					return
				}
				text := b.stderr.String()
				if b.cmd.ProcessState.ExitCode() != 125 || !strings.HasPrefix(text, "sallyport-sidecar: ") {
					t.Errorf("a sandbox that could not start ends with %v and %q; want exit code 125 and a reason", b.err, text)
				}
				if refused.Add(1); time.Since(began) > 20*time.Second {
					t.Errorf("no start within 20 s: %s", text)
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d sandboxes ran within %v of the daemons' start, after %d refusals", many, time.Since(began).Round(time.Millisecond), refused.Load())
}

// TestTCPSemantics: what a TCP connection promises holds through tunnel,
// translation and uplink.
func TestTCPSemantics(t *testing.T) { byEach(t, tcpSemantics) }

func tcpSemantics(t *testing.T, by uplinkKind) {
	w := newWorld(t, by)
	w.up()
	b := w.sandbox(t, acmeFunction)

	for _, c := range []struct {
		name, network, target string
		want                  syscall.Errno
	}{
		{"closed port", "tcp4", at(originAddr, portClosed), syscall.ECONNREFUSED},
		{"host unreachable, says a router", "tcp4", at(refusedByHub, 80), syscall.EHOSTUNREACH},
		{"host unreachable, says the gateway's kernel", "tcp4", at(refusedHere, 80), syscall.EHOSTUNREACH},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := b.fails(t, task{Do: "connect", Network: c.network, Target: c.target})
			if a.Errno != c.want || a.Took > soon {
				t.Errorf("%q after %v; want %q within %v", a.Failure, a.Took, c.want.Error(), soon)
			}
		})
	}
	t.Run("datagram to a closed port", func(t *testing.T) {
		a := b.fails(t, task{Do: "udp", Target: at(originAddr, portClosed)})
		if a.Errno != syscall.ECONNREFUSED || a.Took > soon {
			t.Errorf("%q after %v; want %q within %v", a.Failure, a.Took, syscall.ECONNREFUSED.Error(), soon)
		}
	})
	t.Run("half-close by the sandbox", func(t *testing.T) {
		b.must(t, task{Do: "upload", Target: at(originAddr, portSum), Size: 1 << 20})
	})
	t.Run("half-close by the far side", func(t *testing.T) {
		const size = 1 << 20
		b.must(t, task{Do: "download", Target: at(originAddr, portGive), Size: size})
		if got := next(t, w.origin.takes, soon, "the far side has all"); got != (taken{size / 2, noiseSum(size / 2), nil}) {
			t.Errorf("after its FIN the far side got %+v", got)
		}
	})
	t.Run("reset by the sandbox", func(t *testing.T) {
		b.must(t, task{Do: "reset", Target: at(originAddr, portTake)})
		if got := next(t, w.origin.takes, soon, "the far side hears of it"); !errors.Is(got.err, syscall.ECONNRESET) {
			t.Errorf("the far side got %d bytes and %v; want a reset", got.bytes, got.err)
		}
	})
	t.Run("reset by the far side", func(t *testing.T) {
		if a := b.fails(t, task{Do: "await reset", Target: at(originAddr, portReset)}); a.Errno != syscall.ECONNRESET || a.Took > soon {
			t.Errorf("%q after %v; want %q", a.Failure, a.Took, syscall.ECONNRESET.Error())
		}
	})
	t.Run("50 MB each way", func(t *testing.T) {
		const size = 50 << 20
		up := b.must(t, task{Do: "upload", Target: at(originAddr, portSum), Size: size, Within: 20 * time.Second})
		down := b.must(t, task{Do: "download", Target: at(originAddr, portGive), Size: size, Within: 20 * time.Second})
		if got := next(t, w.origin.takes, 20*time.Second, "the far side has all"); got.bytes != size/2 || got.err != nil {
			t.Errorf("the far side got %d bytes and %v", got.bytes, got.err)
		}
		t.Logf("50 MB up in %v, 50 MB down and 25 MB up in %v, checksums included", up.Took.Round(time.Millisecond), down.Took.Round(time.Millisecond))
	})
	t.Run("slow readers", func(t *testing.T) { slowReaders(t, w, b) })
}

// slowReaders: who does not read holds up who writes, and nothing is lost.
func slowReaders(t *testing.T, w *world, b *sandbox) {
	const size, room = 64 << 20, 48 << 20
	lively := func() {
		t.Helper()
		if a := b.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}); a.Took > soon {
			t.Errorf("beside a connection that is held up, a request takes %v", a.Took)
		}
	}
	b.must(t, task{Do: "begin download", Target: at(originAddr, portPour), Size: size, Within: 20 * time.Second})
	down := next(t, w.origin.stalls, 10*time.Second, "the far side is held up")
	lively()
	b.must(t, task{Do: "drain", Size: size})

	up := b.must(t, task{Do: "begin upload", Target: at(originAddr, portLazy), Size: size, Within: 20 * time.Second}).Size
	lively()
	w.origin.read <- struct{}{}
	b.must(t, task{Do: "finish", Size: size})
	if down < 0 || down > room || up > room {
		t.Errorf("writers were held up after %d bytes down and %d up; want at most %d", down, up, room)
	}
	t.Logf("writers were held up after %.1f MB down, %.1f MB up", float64(down)/1e6, float64(up)/1e6)
}

// TestDNS: names are looked up from the pair, by TCP where a datagram is too
// small, and not at all where the policy denies everything.
func TestDNS(t *testing.T) { byEach(t, dnsFromPair) }

func dnsFromPair(t *testing.T, by uplinkKind) {
	w := newWorld(t, by)
	w.up()
	b, quiet := w.sandbox(t, acmeFunction), w.sandbox(t, quietFunction)
	resolv := b.must(t, task{Do: "file", Target: "/etc/resolv.conf"}).Texts[0]
	if want := fmt.Sprintf("nameserver %v\n", innerGateway); resolv != want {
		t.Fatalf("resolv.conf is %q, want %q", resolv, want)
	}
	if got := b.must(t, task{Do: "lookup", Target: "www.origin.example."}).Texts; !slices.Equal(got, []string{originAddr.String()}) {
		t.Errorf("www.origin.example is %v", got)
	}
	if got := b.must(t, task{Do: "lookup", Target: "big.origin.example."}).Texts; len(got) != bigNames {
		t.Errorf("big.origin.example has %d addresses, want %d", len(got), bigNames)
	}
	a := b.fails(t, task{Do: "lookup", Target: "nothing.example."})
	if !strings.Contains(a.Failure, "no such host") {
		t.Errorf("a name that does not exist fails with %q", a.Failure)
	}
	byTCP := 0
	for _, name := range []string{"www.origin.example.", "big.origin.example."} {
		queries := w.origin.asked.of(name)
		if len(queries) == 0 {
			t.Errorf("nobody asked for %s", name)
		}
		for _, q := range queries {
			if !slices.Contains(acmePair, q.from.Addr()) {
				t.Errorf("%v asked for %s; want one of %v", q.from, name, acmePair)
			}
			if q.network == "tcp" {
				byTCP++
			}
		}
	}
	if byTCP == 0 {
		t.Error("nobody asked by TCP")
	}
	a = quiet.fails(t, task{Do: "lookup", Target: "secret.origin.example."})
	if n := len(w.origin.asked.of("secret.origin.example.")); n != 0 || a.Took > 2*time.Second {
		t.Errorf("where everything is denied, %d queries left, and the lookup failed after %v", n, a.Took)
	}
	a = quiet.fails(t, task{Do: "connect", Target: at(originAddr, portHTTP)})
	if a.Took > soon {
		t.Errorf("where everything is denied, a connect fails after %v: %s", a.Took, a.Failure)
	}
}

// TestManyConnections: many connections to one destination share one address of
// the pair, each with its own port; and a dead destination harms no other.
func TestManyConnections(t *testing.T) {
	const many, pending, perDestination = 500, 600, 400
	w := newWorld(t, bySockets, "pending_connects: 4096", "pending_connects: 500",
		"pending_connects_per_destination: 1024", fmt.Sprint("pending_connects_per_destination: ", perDestination))
	w.up()
	b, neighbour, stranger := w.sandbox(t, acmeFunction), w.sandbox(t, acmeFunction), w.sandbox(t, globexFunction)
	// By halves, each of which the limit of pending connects has room for.
	half := task{Do: "hold", Target: at(originAddr, portEcho), Count: many / 2, Within: 20 * time.Second}
	a, rest := b.must(t, half), b.must(t, half)
	a.Sources, a.Took = append(a.Sources, rest.Sources...), a.Took+rest.Took
	allFrom(t, a.Sources, many, acmePair)
	ports := make(map[uint16]struct{})
	for _, s := range a.Sources {
		ports[s.Port()] = struct{}{}
		if s.Addr() != a.Sources[0].Addr() {
			t.Fatalf("one sandbox leaves from %v and %v", s.Addr(), a.Sources[0].Addr())
		}
	}
	if len(ports) != many {
		t.Errorf("%d connections to one destination have %d ports", many, len(ports))
	}
	t.Logf("%d connections at once in %v", many, a.Took.Round(time.Millisecond))

	b.must(t, task{Do: "flood", Target: at(lostAddr, 80), Count: pending})
	eventually(t, 10*time.Second, "what is beyond the limit is refused", func() error {
		a, err := b.ask(task{Do: "flooded"})
		if err != nil || a.Count < pending-perDestination {
			return fmt.Errorf("%d refused, %d pending, %w", a.Count, a.Size, err)
		}
		if a.Errno != syscall.EHOSTUNREACH || a.Size != perDestination {
			t.Errorf("%d connects are pending, the others fail with %q", a.Size, a.Failure)
		}
		return nil
	})
	for name, box := range map[string]*sandbox{"the same sandbox": b, "another of its network": neighbour, "another network": stranger} {
		a := box.must(t, task{Do: "http", Target: at(originAddr, portHTTP), Count: 20})
		if a.Took > soon {
			t.Errorf("beside a dead destination, requests of %s take %v", name, a.Took)
		}
	}
}

// TestDetachRevokes: a detached sandbox has no network from that moment on; its
// running flows end, and its neighbour's do not.
func TestDetachRevokes(t *testing.T) {
	w := newWorld(t, bySockets)
	w.up()
	b, neighbour := w.sandbox(t, acmeFunction), w.sandbox(t, acmeFunction)
	for _, box := range []*sandbox{b, neighbour} {
		w.startLoad(t, box, originAddr)
	}
	before := b.load(t)
	id := w.attachment(t, b.inner).ID
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	began := time.Now()
	if err := w.api.Detach(ctx, id); err != nil {
		t.Fatal(err)
	}
	// The connection that was open is reset on the far side.
	reset, err := w.atOrigin.Wait(ctx, packetFrom(before.Held, tcpReset))
	if err != nil {
		t.Fatalf("the far side of an open connection hears nothing: %v", err)
	}
	eventually(t, 5*time.Second, "the sidecar lets go", func() error {
		a, err := b.ask(task{Do: "connect", Target: at(originAddr, portHTTP), Within: time.Second})
		if err == nil && a.Errno != syscall.ENETUNREACH && a.Errno != syscall.EHOSTUNREACH {
			err = fmt.Errorf("a connect ends with %q", a.Failure)
		}
		return err
	})
	gone := time.Since(began)
	list, err := w.api.Attachments(ctx)
	if err != nil || slices.ContainsFunc(list, func(a spec.Attachment) bool { return a.ID == id }) {
		t.Errorf("the detached sandbox is attached again, %v: %+v", err, list)
	}
	after := neighbour.load(t)
	if after.Failed != 0 || after.Ended != "" {
		t.Errorf("the neighbour's flows suffered: %+v", after)
	}
	late := 0
	for _, p := range w.atOrigin.Packets() {
		if p.Out && p.Src.Port() == before.Port && p.Proto == 17 && slices.Contains(acmePair, p.Src.Addr()) && p.At.Sub(began) > 100*time.Millisecond {
			late++
		}
	}
	if late != 0 {
		t.Errorf("%d datagrams of its mapping left later than 100 ms after the detachment", late)
	}
	t.Logf("after the call, the open connection was reset in %v, the sidecar had let go in %v", reset.At.Sub(began).Round(time.Millisecond), gone.Round(time.Millisecond))
}
