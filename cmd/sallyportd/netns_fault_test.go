package main

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/internal/netlab"
)

// Protocols and flags in captures.
const (
	protoICMP, protoTCP, protoUDP = 1, 6, 17
	tcpSyn, tcpReset, tcpAck      = 2, 4, 16
)

// packetFrom matches TCP packets to the origin with a source and a flag.
func packetFrom(source netip.AddrPort, flag uint8) func(netlab.Packet) bool {
	return func(p netlab.Packet) bool {
		return p.Out && p.Proto == protoTCP && p.Src == source && p.TCPFlags&flag != 0
	}
}

// attachment finds one by its inner address in the network of acme.
func (w *world) attachment(t *testing.T, inner netip.Addr) spec.Attachment {
	t.Helper()
	list, err := w.api.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.Inner == inner && a.Network == "net-acme" {
			return a
		}
	}
	t.Fatalf("no attachment has %v: %+v", inner, list)
	return spec.Attachment{}
}

// startLoad starts a sandbox's load towards a far side and waits until all parts of it have been answered.
func (g *ground) startLoad(t *testing.T, b *sandbox, to netip.Addr) {
	t.Helper()
	b.must(t, task{Do: "load", Targets: []string{at(to, portHTTP), at(to, portUDP), at(to, portEcho)}})
	eventually(t, 5*time.Second, "the load is answered", func() error {
		if r := b.load(t); r.Answered == 0 || r.AnsweredUDP == 0 || !r.Held.IsValid() {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}

// TestKillGateway kills sallyportd under load and starts it again: everything
// goes on with the addresses of before, and connections of before are reset.
func TestKillGateway(t *testing.T) { byEach(t, killGateway) }

func killGateway(t *testing.T, by uplinkKind) {
	w := newWorld(t, by)
	w.up()
	boxes := []*sandbox{w.sandbox(t, acmeFunction), w.sandbox(t, acmeFunction), w.sandbox(t, acmeFunction), w.sandbox(t, globexFunction)}
	for _, b := range boxes {
		w.startLoad(t, b, originAddr)
	}
	before, err := w.api.Attachments(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.gateway.end(t, syscall.SIGKILL)
	answered := make([]loadReport, len(boxes))
	for i, b := range boxes {
		eventually(t, 5*time.Second, "the load fails", func() error {
			if answered[i] = b.load(t); answered[i].Failed == 0 {
				return errors.New("everything is answered")
			}
			return nil
		})
	}
	began := time.Now()
	w.startGateway()
	const bound = 15 * time.Second
	for i, b := range boxes {
		eventually(t, bound-time.Since(began), "the load is answered again", func() error {
			r := b.load(t)
			if r.Answered <= answered[i].Answered || r.AnsweredUDP <= answered[i].AnsweredUDP {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	}
	recovered := time.Since(began)
	for _, b := range boxes {
		eventually(t, bound-time.Since(began), "a connection of before ends", func() error {
			if b.load(t).Ended == "" {
				return errors.New("it is open")
			}
			return nil
		})
	}
	reset := time.Since(began)
	for _, b := range boxes {
		r := b.load(t)
		if r.Errno != syscall.ECONNRESET {
			t.Errorf("a connection of before: %s; want a reset", r.Ended)
		}
		if len(r.Sources) != 1 {
			t.Errorf("one sandbox left from %v", r.Sources)
		}
		if a := b.must(t, task{Do: "address"}); len(a.Sources) != 1 || a.Sources[0].Addr() != b.inner {
			t.Errorf("a sandbox has the addresses %v now, and had %v", a.Sources, b.inner)
		}
	}
	// The gateway calls its workers before they have told the control plane of their
	// sandboxes again.
	eventually(t, bound-time.Since(began), "all are attached as before", func() error {
		after, err := w.api.Attachments(t.Context())
		if err == nil && !sameAttachments(before, after) {
			err = fmt.Errorf("attachments were %+v and are %+v", before, after)
		}
		return err
	})
	t.Logf("after the start of the new sallyportd: all answered in %v, connections of before reset in %v",
		recovered.Round(time.Millisecond), reset.Round(time.Millisecond))
}

// TestKillSidecar kills the sidecar under load: its sandboxes have no network
// left, and nothing of theirs leaves by any other way. A new one serves new sandboxes.
func TestKillSidecar(t *testing.T) {
	w := newWorld(t, bySockets)
	w.up()
	boxes := []*sandbox{w.sandbox(t, acmeFunction), w.sandbox(t, acmeFunction), w.sandbox(t, globexFunction)}
	for _, b := range boxes {
		w.startLoad(t, b, originAddr)
	}
	w.sidecar.end(t, syscall.SIGKILL)
	failed := make([]uint64, len(boxes))
	for i, b := range boxes {
		failed[i] = b.load(t).Failed
	}
	for i, b := range boxes {
		eventually(t, 5*time.Second, "the load fails", func() error {
			if r := b.load(t); r.Failed < failed[i]+3 || r.Refusal != syscall.EHOSTUNREACH && r.Refusal != syscall.ENETUNREACH {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	}
	closed := time.Now()
	requests := w.origin.requests.Load()
	for _, b := range boxes {
		for _, what := range []task{
			{Do: "connect", Target: at(originAddr, portHTTP)},
			{Do: "udp", Target: at(originAddr, portUDP), Within: time.Second},
			{Do: "lookup", Target: "leak.origin.example.", Within: 2 * time.Second},
			{Do: "connect", Network: "tcp6", Target: "[2001:db8::1]:80"},
			{Do: "connect", Target: at(workerAddr, portHTTP)},
		} {
			a := b.fails(t, what)
			if what.Do == "connect" && a.Took > soon {
				t.Errorf("without a sidecar, a connect to %s takes %v to fail", what.Target, a.Took)
			}
		}
	}
	if n := w.origin.requests.Load() - requests; n != 0 {
		t.Errorf("%d requests arrived from sandboxes without a sidecar", n)
	}
	for _, p := range w.atOrigin.Packets() {
		news := p.Proto == protoUDP || p.Proto == protoICMP || p.Proto == protoTCP && p.TCPFlags&(tcpSyn|tcpAck) == tcpSyn
		if p.Out && p.At.After(closed) && news {
			t.Errorf("%v after the end of the sandboxes' network: %v", p.At.Sub(closed), p)
		}
	}
	began := time.Now()
	w.startSidecar()
	w.awaitSidecar()
	fresh := w.sandbox(t, acmeFunction)
	allFrom(t, fresh.must(t, task{Do: "http", Target: at(originAddr, portHTTP)}).Sources, 1, acmePair)
	t.Logf("a new sandbox was served %v after the start of the new sidecar", time.Since(began).Round(time.Millisecond))
	for _, b := range boxes {
		b.fails(t, task{Do: "connect", Target: at(originAddr, portHTTP)})
		if b.inner == fresh.inner && b != boxes[2] {
			t.Errorf("the new sandbox has the address %v of one that still runs", b.inner)
		}
	}
}
