package control

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)

// fixedClock always tells the same time.
type fixedClock struct{}

func (fixedClock) Now() time.Time { return epoch }

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// key is the n-th public key.
func key(n int) string {
	b := make([]byte, 32)
	b[0], b[1], b[31] = byte(n), byte(n>>8), 1
	return base64.StdEncoding.EncodeToString(b)
}

func state() spec.State {
	return spec.State{
		Teams: []spec.Team{{ID: "team_a"}},
		Regions: []spec.Region{
			{Name: "iad1", Pool: []netip.Prefix{prefix("203.0.113.0/28")}, Hosts: []spec.Host{{Name: "gw-a", Endpoint: addr("192.0.2.1")}}},
			{Name: "fra1", Pool: []netip.Prefix{prefix("198.51.100.0/28")}, Hosts: []spec.Host{{Name: "gw-b", Endpoint: addr("192.0.2.2")}}, API: "http://127.0.0.1:9"},
		},
		Networks: []spec.Network{
			{ID: "net_1", Name: "main", Team: "team_a", Region: "iad1", CIDR: prefix("10.20.0.0/24"), Pair: [2]netip.Addr{addr("203.0.113.1"), addr("203.0.113.2")}},
			{ID: "net_2", Team: "team_a", Region: "iad1", CIDR: prefix("10.20.0.0/24"), Pair: [2]netip.Addr{addr("203.0.113.3"), addr("203.0.113.4")}},
		},
		Projects: []spec.Project{
			{ID: "prj_1", Team: "team_a", Environments: []spec.Environment{{Name: "production", Active: []string{"net_1"}}, {Name: "lonely"}}},
			{ID: "prj_2", Team: "team_a", Environments: []spec.Environment{{Name: "production", Active: []string{"net_2"}, Builds: true}}},
		},
	}
}

func newStore(t testing.TB, change func(*StoreConfig)) *Store {
	t.Helper()
	cfg := StoreConfig{State: state(), Region: "iad1", Clock: fixedClock{}}
	if change != nil {
		change(&cfg)
	}
	s, err := NewStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func request(n int) api.AttachRequest {
	return api.AttachRequest{Project: "prj_1", Environment: "production", Kind: spec.KindFunction, Runtime: "nodejs", Region: "iad1", PublicKey: key(n)}
}

// gatewayHost follows a store as a gateway does: it applies, reports and
// acknowledges, until the test is over.
type gatewayHost struct {
	source source
	name   string
	mu     sync.Mutex
	view   view
}

// source is what a gateway follows: a store, or a client of one.
type source interface {
	Next(context.Context, spec.Cursor) (spec.Update, error)
	Acknowledge(context.Context, string, spec.Cursor) error
	Report(context.Context, spec.HostReport) error
}

// view is what a follower knows.
type view struct {
	at       spec.Cursor
	state    *spec.State
	attached map[string]spec.Attachment
}

func (v *view) apply(u spec.Update) error {
	if u.Full {
		*v = view{attached: make(map[string]spec.Attachment)}
	}
	if u.State != nil {
		v.state = u.State
	}
	for _, id := range u.Detached {
		delete(v.attached, id)
	}
	for _, a := range u.Attached {
		if _, dup := v.attached[a.ID]; dup {
			return fmt.Errorf("%s is attached twice", a.ID)
		}
		v.attached[a.ID] = a
	}
	if u.Store == v.at.Store && u.Revision <= v.at.Revision {
		return fmt.Errorf("revision %d after %d", u.Revision, v.at.Revision)
	}
	v.at = u.Cursor()
	return nil
}

func startGateway(t testing.TB, s source) *gatewayHost {
	t.Helper()
	g := &gatewayHost{source: s, name: "gw-a"}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the follower ended: %v", err)
		}
	})
	return g
}

func (g *gatewayHost) follow(ctx context.Context) error {
	for {
		g.mu.Lock()
		after := g.view.at
		g.mu.Unlock()
		u, err := g.source.Next(ctx, after)
		if err != nil {
			return err
		}
		g.mu.Lock()
		err = g.view.apply(u)
		networks := make(map[string]bool)
		for _, a := range g.view.attached {
			networks[a.Network] = true
		}
		g.mu.Unlock()
		if err != nil {
			return err
		}
		if err := g.source.Report(ctx, report(networks)); err != nil {
			return err
		}
		if err := g.source.Acknowledge(ctx, g.name, u.Cursor()); err != nil {
			return err
		}
	}
}

func report(networks map[string]bool) spec.HostReport {
	r := spec.HostReport{Host: "gw-a", Region: "iad1"}
	for id := range networks {
		r.Networks = append(r.Networks, spec.NetworkReport{
			ID: id, PublicKey: key(9000), Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"),
			Sessions: [2]int{3, 4}, Drops: map[string]uint64{"malformed": 2}, WrongSource: 0,
		})
	}
	return r
}

func attach(t testing.TB, s *Store, req api.AttachRequest) spec.Attachment {
	t.Helper()
	resp, err := s.Attach(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Attachment
}

// at is a place in the changes of a store.
func at(s *Store, revision uint64) spec.Cursor { return spec.Cursor{Store: s.id, Revision: revision} }

// code is the code of an API error; "" for none.
func code(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
