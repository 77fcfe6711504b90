package control

import (
	"context"
	"net/http"
	"net/netip"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// peered makes a store with three peerings of net_1, one of net_2, which has no
// site tunnel, and one of a network in another region.
func peered(t *testing.T) *Store {
	return newStore(t, func(c *StoreConfig) {
		c.State.Networks[0].Site = &spec.Site{Host: "gw-a", Port: 51700}
		c.State.Networks = append(c.State.Networks, spec.Network{
			ID: "net_3", Team: "team_a", Region: "fra1", CIDR: prefix("10.20.0.0/24"), Pair: [2]netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")},
		})
		of := func(id, network, cidr string, state spec.PeeringState) spec.Peering {
			return spec.Peering{ID: id, Network: network, CIDRs: []netip.Prefix{prefix(cidr)}, State: state, Requested: epoch.Add(-spec.PeeringExpiry)}
		}
		active := of("peer_b", "net_1", "10.30.0.0/16", spec.PeeringActive)
		active.PublicKey, active.Endpoint = key(70), netip.MustParseAddrPort("192.0.2.66:51820")
		late := of("peer_d", "net_1", "10.32.0.0/16", spec.PeeringPending)
		late.Requested = epoch.Add(time.Second - spec.PeeringExpiry)
		c.State.Peerings = []spec.Peering{
			active, of("peer_a", "net_1", "10.31.0.0/16", spec.PeeringPending), late,
			of("peer_c", "net_2", "10.30.0.0/16", spec.PeeringRejected), of("peer_f", "net_3", "10.30.0.0/16", spec.PeeringPending),
		}
	})
}

func TestPeerings(t *testing.T) {
	s := peered(t)
	c, _ := serve(t, s)
	ctx := context.Background()
	find := func(id string) api.PeeringStatus {
		t.Helper()
		p, err := c.Peering(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	before := find("peer_b")
	want := api.PeeringStatus{Peering: s.state.Peerings[0], NetworkCIDR: prefix("10.20.0.0/24"), Ranges: s.state.Peerings[0].CIDRs, Host: "gw-a"}
	if !reflect.DeepEqual(before, want) {
		t.Errorf("before a report: got %+v, want %+v", before, want)
	}
	// A report of the network alone says nothing of its site tunnel.
	r := report(map[string]bool{"net_1": true})
	if err := s.Report(ctx, r); err != nil {
		t.Fatal(err)
	}
	if got := find("peer_b"); !reflect.DeepEqual(got, want) {
		t.Errorf("of a host without a site tunnel: got %+v", got)
	}
	on := spec.PeeringReport{ID: "peer_b", Handshake: epoch, Egress: spec.Traffic{Packets: 5, Bytes: 6}, Foreign: 7}
	r.Networks[0].Site = &spec.SiteReport{PublicKey: key(9), Endpoint: netip.MustParseAddrPort("192.0.2.1:51700"), Peerings: []spec.PeeringReport{on}}
	if err := s.Report(ctx, r); err != nil {
		t.Fatal(err)
	}
	r.Networks[0].Site.Peerings[0].Foreign = 99 // what was reported is the store's own
	want.SitePublicKey, want.SiteEndpoint, want.Report = key(9), netip.MustParseAddrPort("192.0.2.1:51700"), &on
	if got := find("peer_b"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := find("peer_a"); got.State != spec.PeeringExpired || got.SitePublicKey != key(9) || got.Report != nil {
		t.Errorf("got %+v", got)
	}
	if got := find("peer_c"); got.State != spec.PeeringRejected || got.Host != "" || got.SitePublicKey != "" {
		t.Errorf("got %+v", got)
	}

	list, err := c.Peerings(ctx)
	if err != nil || !reflect.DeepEqual(list, s.Peerings()) {
		t.Errorf("got %+v, %v", list, err)
	}
	var ids []string
	for _, p := range list.Peerings {
		ids = append(ids, p.ID+" "+string(p.State))
	}
	if want := []string{"peer_a expired", "peer_b active", "peer_c rejected", "peer_d pending-acceptance"}; !reflect.DeepEqual(ids, want) {
		t.Errorf("got %v, want %v", ids, want)
	}
	if !reflect.DeepEqual(list.Peerings[1], want) {
		t.Errorf("got %+v", list.Peerings[1])
	}
	st := s.Status()
	if got, want := st.Networks[0].Peerings, map[spec.PeeringState]int{spec.PeeringActive: 1, spec.PeeringExpired: 1, spec.PeeringPending: 1}; !reflect.DeepEqual(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}

	if _, err := c.Peering(ctx, "peer_x"); code(err) != api.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if _, err := c.Peering(ctx, "peer_f"); code(err) != api.CodeWrongRegion {
		t.Errorf("got %v", err)
	}
	h := NewServer(s, ServerConfig{Token: token})
	for _, path := range []string{"/v1/peerings", "/v1/peerings/peer_a"} {
		if w := call(h, "DELETE", path, ""); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET" {
			t.Errorf("%s: got %d", path, w.Code)
		}
	}
	if newStore(t, nil).Peerings().Peerings == nil {
		t.Error("no peerings are null, not a list")
	}
}

func TestStatusOfHosts(t *testing.T) {
	s := newStore(t, nil)
	r := report(map[string]bool{"net_1": true})
	r.Draining, r.Networks[0].UplinkLost = true, true
	if err := s.Report(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	st := s.Status()
	if !st.Regions[0].Hosts[0].Draining || st.Regions[1].Hosts[0].Draining || !st.Networks[0].Hosts[0].UplinkLost {
		t.Errorf("got %+v", st)
	}
	r.Draining, r.Networks[0].UplinkLost = false, false
	if err := s.Report(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	if st = s.Status(); st.Regions[0].Hosts[0].Draining || st.Networks[0].Hosts[0].UplinkLost {
		t.Errorf("it did not end: %+v", st)
	}
}

// A host that says nothing more is not shown as though all were well.
func TestStatusOfSilentHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, func(c *StoreConfig) { c.Clock = nil }) // the bubble's
		silence := func() int { return s.Status().Regions[0].Hosts[0].SilentSeconds }
		if n := silence(); n != 0 {
			t.Errorf("silent for %d s, though it was never heard of", n)
		}
		if err := s.Report(context.Background(), report(map[string]bool{"net_1": true})); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			after time.Duration
			want  int
		}{{0, 0}, {3 * time.Second, 0}, {19 * time.Second, 22}} {
			<-time.After(step.after) // in the bubble, where it takes no time
			if n := silence(); n != step.want {
				t.Errorf("silent for %d s, want %d", n, step.want)
			}
		}
		if err := s.Report(context.Background(), report(map[string]bool{"net_1": true})); err != nil {
			t.Fatal(err)
		}
		if n := silence(); n != 0 {
			t.Errorf("silent for %d s, though it is back", n)
		}
	})
}
