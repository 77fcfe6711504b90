package control

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// twoHosts makes a store whose networks have one address of their pair on gw-a and
// one on gw-z, with the system's clock.
func twoHosts(t *testing.T) *Store {
	return newStore(t, func(c *StoreConfig) {
		c.State.Regions[0].Hosts = append(c.State.Regions[0].Hosts, spec.Host{Name: "gw-z", Endpoint: addr("192.0.2.9")})
		c.Clock = nil
	})
}

// confirm is what a host says when it has applied everything.
func confirm(t *testing.T, s *Store, name string) {
	t.Helper()
	r := report(map[string]bool{"net_1": true, "net_2": true})
	r.Host = name
	for i := range r.Networks {
		r.Networks[i].PublicKey = key(100 + int(name[len(name)-1]))
	}
	s.mu.Lock()
	now := at(s, s.revision)
	s.mu.Unlock()
	if err := errors.Join(s.Report(context.Background(), r), s.Acknowledge(context.Background(), name, now)); err != nil {
		t.Error(err)
	}
}

// pass lets the time of a bubble pass.
func pass(d time.Duration) { <-time.After(d) }

// hostsOf names the host of the attachment's egress address and the other one.
func hostsOf(a spec.Attachment) (active, sibling string) {
	hosts := [2]string{"gw-a", "gw-z"}
	i := spec.EgressIndex(a.Inner)
	return hosts[i], hosts[1-i]
}

func TestTwoHosts(t *testing.T) {
	s := twoHosts(t)
	active := make(map[string]bool)
	for i := range 8 {
		e, _, err := s.enter(request(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		confirm(t, s, "gw-a")
		confirm(t, s, "gw-z")
		resp, err := s.await(context.Background(), e, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		first, second := hostsOf(e.Attachment)
		i := spec.EgressIndex(e.Inner)
		pair := s.state.Networks[0].Pair
		want := []spec.Gateway{
			{Role: spec.RoleActive, Host: first, Network: "net_1", PublicKey: key(100 + int(first[3])), Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), EgressIP: pair[i]},
			{Role: spec.RoleSibling, Host: second, Network: "net_1", PublicKey: key(100 + int(second[3])), Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), EgressIP: pair[1-i]},
		}
		if !reflect.DeepEqual(resp.Gateways, want) || e.Egress != pair[i] {
			t.Errorf("got %+v, want %+v", resp.Gateways, want)
		}
		active[first] = true
	}
	if len(active) != 2 {
		t.Error("one host is active for all")
	}
}

// While the host of the egress address is away, its sibling is enough; how long
// that takes depends on what is known of the host.
func TestSiblingIsEnough(t *testing.T) {
	for name, tc := range map[string]struct {
		before func(t *testing.T, s *Store, active string) // what the active host did
		after  time.Duration                               // the attach is ready
		both   bool                                        // the active host is listed, too
	}{
		"never heard of": {func(*testing.T, *Store, string) {}, time.Second, false},
		"silent for 1 s": {func(t *testing.T, s *Store, active string) {
			confirm(t, s, active)
			pass(time.Second)
		}, 2 * time.Second, true},
		"silent for 5 s": {func(t *testing.T, s *Store, active string) {
			confirm(t, s, active)
			pass(5 * time.Second)
		}, 0, true},
		"draining": {func(t *testing.T, s *Store, active string) {
			confirm(t, s, active)
			r := report(map[string]bool{"net_1": true})
			r.Host, r.Draining = active, true
			if err := s.Report(context.Background(), r); err != nil {
				t.Error(err)
			}
		}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := twoHosts(t)
				e, _, err := s.enter(request(1))
				if err != nil {
					t.Fatal(err)
				}
				active, sibling := hostsOf(e.Attachment)
				s.withdraw(e)
				tc.before(t, s, active)
				confirm(t, s, sibling)

				req := request(1)
				req.Resume = &api.Resume{ID: e.ID, InnerAddress: e.Inner}
				if e, _, err = s.enter(req); err != nil {
					t.Fatal(err)
				}
				confirm(t, s, sibling)
				start := time.Now()
				resp, err := s.await(context.Background(), e, start)
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took != tc.after {
					t.Errorf("ready after %v, want %v", took, tc.after)
				}
				want := []string{sibling}
				if tc.both {
					want = append(want, active)
				}
				var got []string
				for _, g := range resp.Gateways {
					got = append(got, g.Host)
				}
				if !reflect.DeepEqual(got, want) || resp.Gateways[0].Role != spec.RoleSibling || tc.both && resp.Gateways[1].Role != spec.RoleActive {
					t.Errorf("got %+v, want %v", resp.Gateways, want)
				}
			})
		})
	}
}

// The host of the egress address comes first as soon as it is there, and an attach
// that no host confirms says what is missing on both.
func TestBothHostsAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := twoHosts(t)
		_, err := s.Attach(context.Background(), request(1))
		if code(err) != api.CodeGatewayPending || strings.Count(err.Error(), "has acknowledged revision 0, not 2") != 2 || !strings.Contains(err.Error(), "silent or draining") {
			t.Errorf("got %v", err)
		}
		e, _, err := s.enter(request(1))
		if err != nil {
			t.Fatal(err)
		}
		active, _ := hostsOf(e.Attachment)
		done := make(chan api.AttachResponse, 1)
		go func() {
			resp, err := s.await(context.Background(), e, time.Now())
			if err != nil {
				t.Error(err)
			}
			done <- resp
		}()
		pass(4 * time.Second) // it would be content with the sibling now
		confirm(t, s, active)
		if resp := <-done; len(resp.Gateways) != 1 || resp.Gateways[0].Host != active || resp.Gateways[0].Role != spec.RoleActive {
			t.Errorf("got %+v", resp.Gateways)
		}
	})
}

// passiveStore serves fra1, whose network net_3 is the passive one of prj_1 in
// production; its two addresses are on two hosts.
func passiveStore(t *testing.T) *Store {
	return newStore(t, func(c *StoreConfig) {
		c.Region = "fra1"
		c.State.Regions[1].Hosts = append(c.State.Regions[1].Hosts, spec.Host{Name: "gw-c", Endpoint: addr("192.0.2.3")})
		c.State.Networks = append(c.State.Networks, spec.Network{
			ID: "net_3", Team: "team_a", Region: "fra1", CIDR: prefix("10.30.0.0/24"), Pair: [2]netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")},
		})
		c.State.Projects[0].Environments[0].Passive = "net_3"
		c.State.Projects[1].Environments = append(c.State.Projects[1].Environments, spec.Environment{Name: "preview", Passive: "net_1"})
	})
}

func TestPassiveAttach(t *testing.T) {
	s := passiveStore(t)
	passive := request(1)
	passive.Region, passive.Passive = "fra1", true
	e, _, err := s.enter(passive)
	if err != nil {
		t.Fatal(err)
	}
	for i, host := range []string{"gw-b", "gw-c"} {
		r := spec.HostReport{Host: host, Region: "fra1", Networks: []spec.NetworkReport{{ID: "net_3", PublicKey: key(50 + i)}}}
		if err := errors.Join(s.Report(context.Background(), r), s.Acknowledge(context.Background(), host, at(s, 2))); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := s.await(context.Background(), e, epoch)
	if err != nil {
		t.Fatal(err)
	}
	a := resp.Attachment
	if !a.Passive || a.Network != "net_3" || a.Region != "fra1" || a.Bypass != "" || a.Inner != addr("10.30.0.2") || resp.Passive != nil || resp.Network.ID != "net_3" {
		t.Errorf("got %+v", resp)
	}
	i := spec.EgressIndex(a.Inner)
	pair := s.state.Networks[2].Pair
	want := []spec.Gateway{
		{Role: spec.RolePassive, Host: []string{"gw-b", "gw-c"}[i], Network: "net_3", PublicKey: key(50 + i), EgressIP: pair[i]},
		{Role: spec.RolePassive, Host: []string{"gw-b", "gw-c"}[1-i], Network: "net_3", PublicKey: key(51 - i), EgressIP: pair[1-i]},
	}
	if !reflect.DeepEqual(resp.Gateways, want) {
		t.Errorf("got %+v, want %+v", resp.Gateways, want)
	}

	// It is resumed as what it is.
	again := passive
	again.Resume = &api.Resume{ID: a.ID, Network: a.Network, InnerAddress: a.Inner, WorkerAddress: a.Worker}
	if got := attach(t, s, again); got != a {
		t.Errorf("got %+v", got)
	}
	again.Passive = false
	if same(a, again) {
		t.Error("an active sandbox is resumed as a passive one")
	}
	other := passiveStore(t)
	again.Passive = true
	if e, _, err := other.enter(again); err != nil || e.Attachment != a {
		t.Errorf("by a store that forgot it: %+v, %v", e.Attachment, err)
	}
}

func TestPassiveAttachRefuses(t *testing.T) {
	s := passiveStore(t)
	for name, tc := range map[string]struct {
		change func(*api.AttachRequest)
		code   string
		says   string
	}{
		"edge":           {func(r *api.AttachRequest) { r.Runtime = spec.RuntimeEdge }, api.CodeBadRequest, spec.BypassEdge},
		"builds":         {func(r *api.AttachRequest) { r.Kind = spec.KindBuild }, api.CodeBadRequest, spec.BypassBuilds},
		"no passive":     {func(r *api.AttachRequest) { r.Environment = "lonely" }, api.CodeNoPassive, "no passive network"},
		"elsewhere":      {func(r *api.AttachRequest) { r.Project, r.Environment = "prj_2", "preview" }, api.CodeNoPassive, `in region "iad1", not in "fra1"`},
		"other region":   {func(r *api.AttachRequest) { r.Region = "iad1" }, api.CodeWrongRegion, "iad1"},
		"not the active": {func(r *api.AttachRequest) { r.Passive = false }, api.CodeNoNetwork, "no active network"},
	} {
		req := request(1)
		req.Region, req.Passive = "fra1", true
		tc.change(&req)
		if _, err := s.Attach(context.Background(), req); code(err) != tc.code || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if st := s.Status(); s.revision != 1 || len(s.attachments) != 0 || len(st.Bypasses) != 0 || len(st.BypassesTotal) != 0 {
		t.Errorf("something stayed, or was counted: %+v", st)
	}
}
