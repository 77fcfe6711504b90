package sidecar

import (
	"net/http"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
	"github.com/sallyport-net/sallyport/tunnel"
)

// A control plane that lost its memory is told again, with the same addresses,
// and a gateway that restarted elsewhere with another key is found.
func TestResumeAfterRestart(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a := open(t, s, "p")
	bypass, err := s.attach(t.Context(), sandboxRequest{Project: "p", Environment: "production", Kind: spec.KindFunction, Runtime: spec.RuntimeEdge})
	if err != nil {
		t.Fatal(err)
	}
	before, _ := s.attachments(s.home)
	if err := s.compare(t.Context(), s.home); err != nil || len(p.resumed) != 0 {
		t.Fatalf("nothing differs: %v, resumed %v", err, p.resumed)
	}

	old := p.gateways["net_a"]
	fresh := newGateway(t, tunnel.NewKey())
	old.end()
	p.with(func() { clear(p.list); p.gateways["net_a"] = fresh })
	if err := s.compare(t.Context(), s.home); err != nil {
		t.Fatal(err)
	}
	if len(p.resumed) != 2 || p.count() != 2 {
		t.Fatalf("resumed %v, want both", p.resumed)
	}
	for _, r := range p.resumed {
		if was := before[r.ID]; r.InnerAddress != was.Inner || r.WorkerAddress != was.Worker || r.Network != was.Network {
			t.Errorf("resumed %+v, was %+v", r, was)
		}
	}
	a.send("192.0.2.1:53", 5)
	a.next(t)
	if fresh.from(a.inner) != 1 {
		t.Error("the packet did not go to the new gateway")
	}
	if s.entries[bypass.ID] == nil {
		t.Error("the bypass was lost")
	}
}

// A gateway that restarted at another port keeps its key.
func TestGatewayMoves(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a := open(t, s, "p")
	old := p.gateways["net_a"]
	old.end()
	fresh := newGateway(t, old.key)
	p.with(func() { clear(p.list); p.gateways["net_a"] = fresh })
	if err := s.compare(t.Context(), s.home); err != nil {
		t.Fatal(err)
	}
	a.send("192.0.2.1:53", 5)
	a.next(t)
	if got := s.status().Networks[0].Paths[0]; got.Gateway.Endpoint.Port() != fresh.tunnel.ListenPort() || got.Handshake.IsZero() {
		t.Errorf("path %+v; want port %d", got, fresh.tunnel.ListenPort())
	}
}

// A gateway that lost its session is greeted although the control plane never
// forgot anything.
func TestSilentGatewayIsGreeted(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a := open(t, s, "p")
	fresh := newGateway(t, tunnel.NewKey())
	p.gateways["net_a"].end()
	p.with(func() { p.gateways["net_a"] = fresh })
	s.mu.Lock()
	l := s.network("net_a").links["gw1"]
	l.silent(time.Now(), 0) // what came up to now does not count
	l.heard = time.Now().Add(-silentLimit)
	s.mu.Unlock()
	if err := s.compare(t.Context(), s.home); err != nil {
		t.Fatal(err)
	}
	a.send("192.0.2.1:53", 5)
	a.next(t)
	if fresh.from(a.inner) != 1 {
		t.Error("the packet did not go to the new gateway")
	}
}

// A sandbox whose address belongs to another one now loses its network.
func TestConflictEndsTheSandbox(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a := open(t, s, "p")
	p.with(func() { delete(p.list, a.id) })
	conflict := &api.Error{Status: http.StatusConflict, Code: api.CodeConflict, Message: "the address is another's"}
	here, _ := s.attachments(s.home)
	s.notResumed(t.Context(), s.home, here[a.id], conflict)
	if len(s.entries) != 0 {
		t.Error("the sandbox is still attached")
	}
	select {
	case <-a.closed:
	default:
		t.Error("its device is still open")
	}
}

// Without a control plane sandboxes go on, new ones are refused, and what is
// detached meanwhile is told later.
func TestControlPlaneAway(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a, b := open(t, s, "p"), open(t, s, "p")
	away := &api.Error{Status: http.StatusServiceUnavailable, Code: "away", Message: "not now"}
	p.with(func() { p.refuse = away })

	if err := s.compare(t.Context(), s.home); err == nil {
		t.Error("no error")
	}
	if c := s.status().Control; c.Reachable || c.Error == "" || c.Since.IsZero() {
		t.Errorf("status %+v", c)
	}
	a.send("192.0.2.1:53", 5)
	a.next(t)
	if _, err := s.attach(t.Context(), request("p")); err == nil {
		t.Error("a new sandbox was attached")
	}
	s.detach(t.Context(), b.id, "test")

	p.with(func() { p.refuse = nil })
	if err := s.compare(t.Context(), s.home); err != nil {
		t.Fatal(err)
	}
	if p.count() != 1 || len(s.home.owed) != 0 {
		t.Errorf("%d attachments, owed %v; want one and none", p.count(), s.home.owed)
	}
	if c := s.status().Control; !c.Reachable {
		t.Errorf("status %+v", c)
	}
}

// An attachment of this worker whose answer was lost is given back after a while;
// those of other workers are not touched.
func TestOrphansAreGivenBack(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	mine := spec.Attachment{ID: "att_mine", PublicKey: s.key.Public().String(), Network: "net_a"}
	other := spec.Attachment{ID: "att_other", PublicKey: tunnel.NewKey().Public().String(), Network: "net_a"}
	p.with(func() { p.list[mine.ID], p.list[other.ID] = mine, other })
	for range 2 {
		if err := s.compare(t.Context(), s.home); err != nil || p.count() != 2 {
			t.Fatalf("%v, %d attachments; too early", err, p.count())
		}
	}
	s.home.orphans[mine.ID] = time.Now().Add(-orphanLimit)
	if err := s.compare(t.Context(), s.home); err != nil {
		t.Fatal(err)
	}
	if _, there := p.list[mine.ID]; there || p.count() != 1 {
		t.Errorf("left %v", p.list)
	}
	if err := s.compare(t.Context(), s.home); err != nil || len(s.home.orphans) != 0 {
		t.Errorf("%v, orphans %v", err, s.home.orphans)
	}
}

// A worker's own address may change when the control plane restarted.
func TestWorkerAddressChanges(t *testing.T) {
	p := newPlane(t)
	s := newTestSidecar(t, p)
	a := open(t, s, "p")
	e := s.entries[a.id]
	s.mu.Lock()
	moved := e.attachment
	moved.Worker = moved.Inner.Next()
	n := e.network
	s.mu.Unlock()
	p.with(func() {
		p.list[a.id] = moved
		p.admit(p.gateways["net_a"], "net_a")
	})
	known, err := s.renew(t.Context(), s.home, api.AttachResponse{Attachment: moved, Network: n.info, Gateways: []spec.Gateway{p.gateways["net_a"].describe("net_a")}})
	if !known || err != nil {
		t.Fatalf("renew = %v, %v", known, err)
	}
	if err := n.links["gw1"].path.prove(short(t, patience)); err != nil {
		t.Errorf("no probe is answered from the new address: %v", err)
	}
}
