package control

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

func TestAttach(t *testing.T) {
	s := newStore(t, nil)
	g := startGateway(t, s)
	resp, err := s.Attach(context.Background(), request(1))
	if err != nil {
		t.Fatal(err)
	}
	a := resp.Attachment
	if !strings.HasPrefix(a.ID, "att-") || !spec.ValidID(a.ID) || a.Project != "prj_1" || a.Environment != "production" || a.Kind != spec.KindFunction ||
		a.Runtime != "nodejs" || a.Region != "iad1" || a.Network != "net_1" || a.PublicKey != key(1) || a.Created != epoch || a.Bypass != "" {
		t.Errorf("got %+v", a)
	}
	if a.Inner != addr("10.20.0.2") || a.Worker != addr("10.20.0.3") || a.Egress != s.cfg.State.Networks[0].Pair[spec.EgressIndex(a.Inner)] {
		t.Errorf("addresses: %+v", a)
	}
	n := s.cfg.State.Networks[0]
	want := api.AttachedNetwork{
		ID: "net_1", Name: "main", Region: "iad1", CIDR: n.CIDR, Pair: n.Pair,
		Gateway: addr("10.20.0.1"), DNS: []netip.Addr{addr("10.20.0.1")}, MTU: 1420,
	}
	if !reflect.DeepEqual(resp.Network, want) || resp.Passive != nil {
		t.Errorf("network: %+v, passive %+v", resp.Network, resp.Passive)
	}
	if len(resp.Gateways) != 1 || resp.Gateways[0].Role != spec.RoleActive || resp.Gateways[0].Host != "gw-a" || resp.Gateways[0].PublicKey != key(9000) ||
		resp.Gateways[0].Endpoint.Port() != 51820 || resp.Gateways[0].Network != "net_1" || resp.Gateways[0].EgressIP != a.Egress {
		t.Errorf("gateways: %+v", resp.Gateways)
	}
	g.mu.Lock()
	if got := g.view.attached[a.ID]; got != a {
		t.Errorf("when Attach returned, the gateway knew %+v", got)
	}
	g.mu.Unlock()

	// The same worker again: its own address is shared; another's is not.
	b, c := attach(t, s, request(1)), attach(t, s, request(2))
	if b.Worker != a.Worker || b.Inner == a.Inner || c.Worker == a.Worker || c.Inner == a.Inner || b.ID == a.ID {
		t.Errorf("got %+v and %+v", b, c)
	}
	// The same worker in another network, which has the same CIDR.
	other := request(1)
	other.Project = "prj_2"
	if d := attach(t, s, other); d.Network != "net_2" || d.Inner != addr("10.20.0.2") {
		t.Errorf("got %+v", d)
	}
	// The worker's address goes with its last attachment.
	inUse := func() int { return s.networks["net_1"].addresses.InUse() }
	for _, step := range []struct {
		id   string
		left int
	}{{a.ID, 4}, {b.ID, 2}, {c.ID, 0}} {
		if err := s.Detach(step.id); err != nil {
			t.Fatal(err)
		}
		if inUse() != step.left {
			t.Errorf("after %s: %d addresses in use, want %d", step.id, inUse(), step.left)
		}
	}
	if err := s.Detach(a.ID); code(err) != api.CodeNotFound {
		t.Errorf("detached twice: %v", err)
	}
}

func TestAttachNamesThePassiveRegion(t *testing.T) {
	s := newStore(t, func(c *StoreConfig) {
		c.State.Networks = append(c.State.Networks, spec.Network{
			ID: "net_3", Team: "team_a", Region: "fra1", CIDR: prefix("10.30.0.0/24"), Pair: [2]netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")},
		})
		c.State.Projects[0].Environments[0].Passive = "net_3"
	})
	startGateway(t, s)
	resp, err := s.Attach(context.Background(), request(1))
	if err != nil {
		t.Fatal(err)
	}
	if want := (api.PassiveRegion{Region: "fra1", Network: "net_3", API: "http://127.0.0.1:9"}); resp.Passive == nil || *resp.Passive != want {
		t.Errorf("got %+v", resp.Passive)
	}
}

func TestBypassIsCounted(t *testing.T) {
	s := newStore(t, nil) // without a gateway: nobody has to confirm a bypass
	edge, build := request(1), request(1)
	edge.Runtime, edge.PublicKey = spec.RuntimeEdge, ""
	build.Kind = spec.KindBuild
	a, b := attach(t, s, edge), attach(t, s, build)
	attach(t, s, edge)
	if a.Bypass != spec.BypassEdge || b.Bypass != spec.BypassBuilds || a.Network != "" || a.Inner.IsValid() || a.ID == "" {
		t.Errorf("got %+v and %+v", a, b)
	}
	if s.revision != 1 {
		t.Errorf("gateways are told of a bypass: revision %d", s.revision)
	}
	if err := s.Detach(a.ID); err != nil {
		t.Fatal(err)
	}
	st := s.Status()
	if st.Attachments != 0 || !reflect.DeepEqual(st.Bypasses, map[string]int{spec.BypassEdge: 1, spec.BypassBuilds: 1}) ||
		!reflect.DeepEqual(st.BypassesTotal, map[string]uint64{spec.BypassEdge: 2, spec.BypassBuilds: 1}) {
		t.Errorf("got %+v", st)
	}
	if page := s.List("", 10); len(page.Attachments) != 2 || page.Next != "" {
		t.Errorf("listed %+v", page)
	}
}

func TestAttachRefuses(t *testing.T) {
	s := newStore(t, nil)
	with := func(change func(*api.AttachRequest)) api.AttachRequest { r := request(1); change(&r); return r }
	for name, tc := range map[string]struct {
		req  api.AttachRequest
		code string
		says string
	}{
		"kind":                {with(func(r *api.AttachRequest) { r.Kind = "cron" }), api.CodeBadRequest, `kind "cron"`},
		"runtime":             {with(func(r *api.AttachRequest) { r.Runtime = "" }), api.CodeBadRequest, "runtime"},
		"project":             {with(func(r *api.AttachRequest) { r.Project = "prj_9" }), api.CodeNotFound, "prj_9"},
		"environment":         {with(func(r *api.AttachRequest) { r.Environment = "staging" }), api.CodeNotFound, "production, lonely"},
		"no network":          {with(func(r *api.AttachRequest) { r.Environment = "lonely" }), api.CodeNoNetwork, "lonely"},
		"other region":        {with(func(r *api.AttachRequest) { r.Region = "fra1" }), api.CodeWrongRegion, "http://127.0.0.1:9"},
		"no region":           {with(func(r *api.AttachRequest) { r.Region = "sfo1" }), api.CodeBadRequest, `there is no region "sfo1"`},
		"no key":              {with(func(r *api.AttachRequest) { r.PublicKey = "" }), api.CodeBadRequest, "publicKey"},
		"bad key":             {with(func(r *api.AttachRequest) { r.PublicKey = "AAAA" }), api.CodeBadRequest, "publicKey"},
		"bad key of a bypass": {with(func(r *api.AttachRequest) { r.Runtime, r.PublicKey = "edge", "AAAA" }), api.CodeBadRequest, "publicKey"},
		"resumed ID":          {with(func(r *api.AttachRequest) { r.Resume = &api.Resume{ID: "a/b"} }), api.CodeBadRequest, "resume.id"},
	} {
		_, err := s.Attach(context.Background(), tc.req)
		if code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if s.revision != 1 || len(s.attachments) != 0 {
		t.Errorf("something stayed: revision %d, %d attachments", s.revision, len(s.attachments))
	}
}

func TestAttachIsTakenBack(t *testing.T) {
	for name, tc := range map[string]struct {
		host func(*Store) error // what the host does before
		says string
	}{
		"silent host":        {func(*Store) error { return nil }, `gateway host "gw-a" has acknowledged revision 0, not 2`},
		"behind":             {func(s *Store) error { return s.Acknowledge(context.Background(), "gw-a", at(s, 1)) }, "acknowledged revision 1, not 2"},
		"ahead of the store": {func(s *Store) error { return s.Acknowledge(context.Background(), "gw-a", at(s, 99)) }, "acknowledged revision 0, not 2"},
		"of a lost store": {func(s *Store) error {
			return s.Acknowledge(context.Background(), "gw-a", spec.Cursor{Store: "lost", Revision: 2})
		}, "acknowledged revision 0, not 2"},
	} {
		s := newStore(t, func(c *StoreConfig) { c.AcknowledgeTimeout = time.Millisecond })
		if err := tc.host(s); err != nil {
			t.Fatal(err)
		}
		_, err := s.Attach(context.Background(), request(1))
		if code(err) != api.CodeGatewayPending || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v", name, err)
		}
		if len(s.attachments) != 0 || s.attachedCount != 0 || s.networks["net_1"].addresses.InUse() != 0 || s.revision != 3 {
			t.Errorf("%s: something stayed", name)
		}
	}

	// It acknowledges, but has no tunnel.
	s := newStore(t, func(c *StoreConfig) { c.AcknowledgeTimeout = 20 * time.Millisecond })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for after := (spec.Cursor{}); ; {
			u, err := s.Next(ctx, after)
			if err != nil {
				return
			}
			after = u.Cursor()
			if err := s.Acknowledge(ctx, "gw-a", after); err != nil {
				t.Error(err)
			}
		}
	}()
	_, err := s.Attach(ctx, request(1))
	if code(err) != api.CodeGatewayPending || !strings.Contains(err.Error(), "has not reported a tunnel") {
		t.Errorf("got %v", err)
	}
	cancel()
	<-done
}

func TestAttachEndsWithItsCaller(t *testing.T) {
	s := newStore(t, func(c *StoreConfig) { c.AcknowledgeTimeout = time.Hour })
	gone := errors.New("the caller is gone")
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := s.Attach(ctx, request(1))
		done <- err
	}()
	if _, err := s.Next(context.Background(), at(s, 1)); err != nil { // it is in the log
		t.Fatal(err)
	}
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if len(s.attachments) != 0 {
		t.Error("it stayed")
	}
}

func TestAttachMeetsDetach(t *testing.T) {
	s := newStore(t, func(c *StoreConfig) { c.AcknowledgeTimeout = time.Hour })
	done := make(chan error, 1)
	go func() {
		_, err := s.Attach(context.Background(), request(1))
		done <- err
	}()
	u, err := s.Next(context.Background(), at(s, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Detach(u.Attached[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Acknowledge(context.Background(), "gw-a", u.Cursor()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; code(err) != api.CodeConflict {
		t.Errorf("got %v", err)
	}
}

func TestResume(t *testing.T) {
	first := newStore(t, nil)
	startGateway(t, first)
	a, b := attach(t, first, request(1)), attach(t, first, request(1))
	resume := func(a spec.Attachment) api.AttachRequest {
		return api.AttachRequest{
			Project: a.Project, Environment: a.Environment, Kind: a.Kind, Runtime: a.Runtime, Region: a.Region, PublicKey: a.PublicKey,
			Resume: &api.Resume{ID: a.ID, Network: a.Network, InnerAddress: a.Inner, WorkerAddress: a.Worker},
		}
	}
	// While it is known, it is what it was.
	before := first.revision
	if got := attach(t, first, resume(b)); got != b || first.revision != before {
		t.Errorf("got %+v", got)
	}
	for name, change := range map[string]func(*api.AttachRequest){
		"project": func(r *api.AttachRequest) { r.Project = "prj_2" },
		"key":     func(r *api.AttachRequest) { r.PublicKey = key(2) },
		"address": func(r *api.AttachRequest) { r.Resume.InnerAddress = addr("10.20.0.77") },
		"network": func(r *api.AttachRequest) { r.Resume.Network = "net_2" },
	} {
		req := resume(b)
		change(&req)
		if _, err := first.Attach(context.Background(), req); code(err) != api.CodeConflict {
			t.Errorf("another %s: got %v", name, err)
		}
	}

	// After the store forgot all, in another order.
	second := newStore(t, nil)
	startGateway(t, second)
	for _, old := range []spec.Attachment{b, a} {
		if got := attach(t, second, resume(old)); got != old {
			t.Errorf("got %+v, want %+v", got, old)
		}
	}
	// A new one does not get what was resumed.
	if c := attach(t, second, request(3)); c.Inner == a.Inner || c.Inner == b.Inner || c.Inner == a.Worker || c.Worker == a.Worker {
		t.Errorf("got %+v", c)
	}
	for name, change := range map[string]func(*api.AttachRequest){
		"taken":           func(r *api.AttachRequest) { r.Resume.InnerAddress = a.Inner },
		"a worker's":      func(r *api.AttachRequest) { r.Resume.InnerAddress = a.Worker },
		"gateway's":       func(r *api.AttachRequest) { r.Resume.InnerAddress = addr("10.20.0.1") },
		"elsewhere":       func(r *api.AttachRequest) { r.Resume.InnerAddress = addr("10.21.0.9") },
		"none":            func(r *api.AttachRequest) { r.Resume.InnerAddress = r.Resume.InnerAddress.Prev().Prev() /* 10.20.0.0 */ },
		"another network": func(r *api.AttachRequest) { r.Resume.Network = "net_2" },
		"now a bypass":    func(r *api.AttachRequest) { r.Runtime = spec.RuntimeEdge },
	} {
		req := resume(a)
		req.Resume.ID = "att-new"
		change(&req)
		if _, err := second.Attach(context.Background(), req); code(err) != api.CodeConflict {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// The worker's address gives way, the sandbox's does not.
	req := resume(a)
	req.PublicKey = key(4)
	req.Resume = &api.Resume{ID: "att-new", InnerAddress: addr("10.20.0.99"), WorkerAddress: a.Inner}
	if got := attach(t, second, req); got.Inner != addr("10.20.0.99") || got.Worker == a.Inner || !got.Worker.IsValid() {
		t.Errorf("got %+v", got)
	}
}

func TestResumedBypass(t *testing.T) {
	s := newStore(t, nil)
	edge := request(1)
	edge.Runtime = spec.RuntimeEdge
	edge.Resume = &api.Resume{ID: "att-edge"}
	if a := attach(t, s, edge); a.ID != "att-edge" || a.Bypass == "" {
		t.Errorf("got %+v", a)
	}
	if attach(t, s, edge); s.bypassTotal[spec.BypassEdge] != 1 {
		t.Error("the same bypass was counted twice")
	}
	node := request(1)
	node.Resume = &api.Resume{ID: "att-other"}
	if _, err := s.Attach(context.Background(), node); code(err) != api.CodeConflict {
		t.Errorf("a bypass became a tunnel: %v", err)
	}
}

// TestRevoked: a sandbox that was detached does not come back, however often its
// worker asks, as long as it is among the newest that were.
func TestRevoked(t *testing.T) {
	const remembered = 3
	s := newStore(t, func(c *StoreConfig) { c.MaxRevoked = remembered })
	startGateway(t, s)
	resume := func(a spec.Attachment) error {
		r := request(1)
		r.Resume = &api.Resume{ID: a.ID, Network: a.Network, InnerAddress: a.Inner, WorkerAddress: a.Worker}
		_, err := s.Attach(context.Background(), r)
		return err
	}
	var gone []spec.Attachment
	for range 2 * remembered {
		a := attach(t, s, request(1))
		if err := s.Detach(a.ID); err != nil {
			t.Fatal(err)
		}
		gone = append(gone, a)
		for _, old := range gone[max(0, len(gone)-remembered):] {
			if err := resume(old); code(err) != api.CodeConflict || !strings.Contains(err.Error(), "detached") {
				t.Errorf("a detached sandbox is resumed: %v", err)
			}
		}
	}
	if st := s.Status(); st.Attachments != 0 {
		t.Errorf("%d are attached", st.Attachments)
	}
	if err := resume(gone[0]); err != nil {
		t.Errorf("one that is forgotten: %v", err)
	}
	if len(s.revoked.ids) != remembered || len(s.revoked.set) != remembered {
		t.Errorf("%d and %d IDs are kept, want %d", len(s.revoked.ids), len(s.revoked.set), remembered)
	}
}

func TestAttachUntilFull(t *testing.T) {
	s := newStore(t, nil)
	startGateway(t, s)
	var last spec.Attachment
	for range 252 { // 253 addresses, one for the worker
		last = attach(t, s, request(1))
	}
	if _, err := s.Attach(context.Background(), request(1)); code(err) != api.CodeExhausted || !strings.Contains(err.Error(), "net_1") {
		t.Errorf("got %v", err)
	}
	if err := s.Detach(last.ID); err != nil {
		t.Fatal(err)
	}
	// One is free, but a new worker needs two; its first must come back.
	if _, err := s.Attach(context.Background(), request(2)); code(err) != api.CodeExhausted {
		t.Errorf("got %v", err)
	}
	attach(t, s, request(1))

	few := newStore(t, func(c *StoreConfig) { c.MaxAttachments = 1 })
	startGateway(t, few)
	attach(t, few, request(1))
	if _, err := few.Attach(context.Background(), request(1)); code(err) != api.CodeExhausted {
		t.Errorf("got %v", err)
	}
}

func TestManyAttachAtOnce(t *testing.T) {
	s := newStore(t, func(c *StoreConfig) {
		c.State.Networks[0].CIDR = prefix("10.20.0.0/16")
		c.AcknowledgeTimeout = time.Minute
	})
	g := startGateway(t, s)
	const n = 500
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			resp, err := s.Attach(context.Background(), request(i%20+1))
			if err != nil {
				t.Error(err)
			} else if i%2 == 0 {
				if err := s.Detach(resp.Attachment.ID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d attached in %v", n, time.Since(start))
	if got := s.Status().Attachments; got != n/2 {
		t.Errorf("%d attached, want %d", got, n/2)
	}
	inner := make(map[string]bool)
	for _, a := range s.full().Attached {
		for _, x := range []string{a.Inner.String(), a.Worker.String() + a.PublicKey} {
			if inner[x] && x == a.Inner.String() {
				t.Errorf("%s is there twice", x)
			}
			inner[x] = true
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.view.at.Revision == 0 {
		t.Error("the gateway followed nothing")
	}
}
