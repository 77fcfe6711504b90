package control

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// A follower that applies updates knows what the store knows, however far it fell
// behind and whenever it forgot.
func TestFollowersAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, err := NewStore(StoreConfig{State: state(), Region: "iad1", Clock: fixedClock{}, History: rapid.IntRange(1, 12).Draw(t, "history")})
		if err != nil {
			t.Fatal(err)
		}
		known := make(map[string]spec.Attachment)
		followers := make([]view, 3)
		// enter is what Attach does before it waits for a host.
		enter := func(t *rapid.T, req api.AttachRequest) {
			e, _, err := s.enter(req)
			if err != nil {
				t.Fatal(err)
			}
			if e.Bypass == "" {
				known[e.ID] = e.Attachment
			}
		}
		some := func(t *rapid.T) (string, bool) {
			if len(known) == 0 {
				return "", false
			}
			return rapid.SampledFrom(inOrderOf(s, known)).Draw(t, "attachment"), true
		}
		detach := func(t *rapid.T, id string) {
			if err := s.Detach(id); err != nil {
				t.Fatal(err)
			}
			delete(known, id)
		}
		t.Repeat(map[string]func(*rapid.T){
			"attach": func(t *rapid.T) {
				if len(known) < 100 {
					enter(t, request(rapid.IntRange(1, 3).Draw(t, "worker")))
				}
			},
			"bypass": func(t *rapid.T) {
				req := request(1)
				req.Runtime = spec.RuntimeEdge
				enter(t, req)
			},
			"detach": func(t *rapid.T) {
				if id, ok := some(t); ok {
					detach(t, id)
				}
			},
			"withdraw and resume": func(t *rapid.T) { // as after an attach that the gateway did not confirm
				id, ok := some(t)
				if !ok {
					return
				}
				old := known[id]
				s.withdraw(*s.attachments[id])
				delete(known, id)
				req := request(1)
				req.PublicKey = old.PublicKey
				req.Resume = &api.Resume{ID: id, InnerAddress: old.Inner, WorkerAddress: old.Worker}
				enter(t, req)
			},
			"detach what is not there": func(t *rapid.T) {
				if err := s.Detach(rapid.SampledFrom([]string{"att-lost", "att-gone", "a/b"}).Draw(t, "unknown")); code(err) != api.CodeNotFound {
					t.Fatal(err)
				}
			},
			"replace": func(t *rapid.T) {
				next := state()
				next.Networks[0].Name = fmt.Sprint("name ", s.revision)
				if err := s.Replace(next); err != nil {
					t.Fatal(err)
				}
			},
			"forget": func(t *rapid.T) { followers[rapid.IntRange(0, 2).Draw(t, "follower")] = view{} },
			"follow": func(t *rapid.T) {
				f := &followers[rapid.IntRange(0, 2).Draw(t, "follower")]
				if f.at == at(s, s.revision) {
					return
				}
				u, err := s.Next(context.Background(), f.at)
				if err != nil {
					t.Fatal(err)
				}
				if err := f.apply(u); err != nil {
					t.Fatal(err)
				}
				if f.at != at(s, s.revision) || !reflect.DeepEqual(f.attached, known) || f.state != s.state {
					t.Fatalf("follower knows %v at %d, store %v at %d", f.attached, f.at.Revision, known, s.revision)
				}
			},
			"": func(t *rapid.T) {
				if s.attachedCount != len(known) {
					t.Fatalf("%d counted, %d there", s.attachedCount, len(known))
				}
			},
		})
	})
}

// inOrderOf lists the IDs of attachments as they were made, for a draw that repeats.
func inOrderOf(s *Store, known map[string]spec.Attachment) []string {
	var ids []string
	for _, a := range s.full().Attached {
		if _, ok := known[a.ID]; ok {
			ids = append(ids, a.ID)
		}
	}
	return ids
}

func TestNextWaits(t *testing.T) {
	s := newStore(t, nil)
	u, err := s.Next(context.Background(), spec.Cursor{})
	if err != nil || !u.Full || u.Revision != 1 || u.State == nil {
		t.Fatalf("got %+v, %v", u, err)
	}
	if u.Cursor() != at(s, 1) || u.Store == "" {
		t.Errorf("got %+v", u.Cursor())
	}
	// Ahead of the store, or from another one, as after it lost its memory.
	if u, err := s.Next(context.Background(), spec.Cursor{Store: "lost", Revision: 1}); err != nil || !u.Full {
		t.Errorf("got %+v, %v", u, err)
	}
	if u, err := s.Next(context.Background(), at(s, 50)); err != nil || !u.Full {
		t.Errorf("got %+v, %v", u, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Next(ctx, at(s, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	got := make(chan spec.Update, 1)
	go func() {
		u, err := s.Next(context.Background(), at(s, 1))
		if err != nil {
			t.Error(err)
		}
		got <- u
	}()
	if err := s.Replace(state()); err != nil {
		t.Fatal(err)
	}
	if u := <-got; u.Revision != 2 || u.Full || u.State == nil {
		t.Errorf("got %+v", u)
	}
}

func TestReplace(t *testing.T) {
	s := newStore(t, nil)
	startGateway(t, s)
	a := attach(t, s, request(1))
	for name, change := range map[string]func(*spec.State){
		"not valid":    func(st *spec.State) { st.Networks[0].Team = "x" },
		"region gone":  func(st *spec.State) { st.Regions, st.Networks, st.Projects = st.Regions[1:], nil, nil },
		"network gone": func(st *spec.State) { st.Networks, st.Projects = st.Networks[1:], st.Projects[1:] },
		"other CIDR":   func(st *spec.State) { st.Networks[0].CIDR = prefix("10.20.0.0/23") },
		"other pair":   func(st *spec.State) { st.Networks[0].Pair[0] = addr("203.0.113.9") },
	} {
		next := state()
		change(&next)
		if err := s.Replace(next); err == nil {
			t.Errorf("%s: it passed", name)
		}
	}
	// Nobody is in net_2; and a network's sandboxes outlive its project.
	next := state()
	next.Networks[1].CIDR = prefix("10.99.0.0/24")
	next.Projects = next.Projects[1:]
	if err := s.Replace(next); err != nil {
		t.Fatal(err)
	}
	other := request(2)
	other.Project = "prj_2"
	if b := attach(t, s, other); b.Inner != addr("10.99.0.2") {
		t.Errorf("got %+v", b)
	}
	if _, err := s.Attach(context.Background(), request(1)); code(err) != api.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if err := s.Detach(a.ID); err != nil {
		t.Error(err)
	}
	// After the last one has gone, the network may change.
	next.Networks = append([]spec.Network(nil), next.Networks...)
	next.Networks[0].CIDR = prefix("10.88.0.0/24")
	if err := s.Replace(next); err != nil {
		t.Error(err)
	}
}

func TestHostsAreChecked(t *testing.T) {
	s := newStore(t, nil)
	if err := s.Acknowledge(context.Background(), "gw-b", at(s, 1)); err == nil {
		t.Error("another region's host acknowledged")
	}
	if err := s.Report(context.Background(), spec.HostReport{Host: "gw-b", Region: "iad1"}); err == nil {
		t.Error("another region's host reported")
	}
	if err := s.Report(context.Background(), spec.HostReport{Host: "gw-a", Region: "fra1"}); err == nil {
		t.Error("a report of another region passed")
	}
}

// A host that is taken out of the desired state is a stranger at once.
func TestHostLeaves(t *testing.T) {
	s := newStore(t, func(c *StoreConfig) {
		c.State.Regions[0].Hosts = append(c.State.Regions[0].Hosts, spec.Host{Name: "gw-z", Endpoint: addr("192.0.2.9")})
	})
	ctx := context.Background()
	for _, name := range []string{"gw-a", "gw-z"} {
		r := report(map[string]bool{"net_1": true})
		r.Host = name
		if err := errors.Join(s.Report(ctx, r), s.Acknowledge(ctx, name, at(s, 1))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Replace(state()); err != nil {
		t.Fatal(err)
	}
	if err := s.Report(ctx, spec.HostReport{Host: "gw-z", Region: "iad1"}); code(err) != api.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if err := s.Acknowledge(ctx, "gw-z", at(s, 2)); code(err) != api.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if st := s.Status(); len(st.Networks[0].Hosts) != 1 || st.Networks[0].Hosts[0].Host != "gw-a" || st.Regions[0].Hosts[0].Revision != 1 {
		t.Errorf("got %+v", st)
	}
}

func TestNewStoreChecks(t *testing.T) {
	for name, change := range map[string]func(*StoreConfig){
		"state":   func(c *StoreConfig) { c.State.Networks[0].Team = "x" },
		"region":  func(c *StoreConfig) { c.Region = "sfo1" },
		"timeout": func(c *StoreConfig) { c.AcknowledgeTimeout = -1 },
		"history": func(c *StoreConfig) { c.History = -1 },
	} {
		cfg := StoreConfig{State: state(), Region: "iad1"}
		change(&cfg)
		if _, err := NewStore(cfg); err == nil {
			t.Errorf("%s: it passed", name)
		}
	}
	s, err := NewStore(StoreConfig{State: state(), Region: "iad1"})
	if err != nil || s.cfg.AcknowledgeTimeout != 5*time.Second || s.cfg.Clock.Now().IsZero() {
		t.Errorf("defaults: %+v, %v", s, err)
	}
}
