package spec

import (
	"strings"
	"testing"
	"time"
)

// Of kind network both have to say so: the one that asks by the state, the other by its
// acceptance, which counts for that one connection of that one network.
func TestAcceptance(t *testing.T) {
	const late = PeeringExpiry
	for _, c := range []struct {
		name   string
		change func(p *Peering, other *Network)
		after  time.Duration
		want   PeeringState
	}{
		{"both", func(*Peering, *Network) {}, late, PeeringActive},
		{"asked and accepted", func(p *Peering, _ *Network) { p.State = PeeringPending }, late, PeeringActive},
		{"not accepted", func(_ *Peering, o *Network) { o.AcceptedPeerings = nil }, late - 1, PeeringPending},
		{"not accepted in time", func(_ *Peering, o *Network) { o.AcceptedPeerings = nil }, late, PeeringExpired},
		{"asked, not accepted in time", func(p *Peering, o *Network) { p.State, o.AcceptedPeerings = PeeringPending, nil }, late, PeeringExpired},
		{"not accepted, no time known", func(p *Peering, o *Network) { p.Requested, o.AcceptedPeerings = time.Time{}, nil }, late, PeeringPending},
		{"set up before it is accepted", func(p *Peering, o *Network) { p.State, o.AcceptedPeerings = PeeringProvisioning, nil }, 0, PeeringPending},
		{"being set up", func(p *Peering, _ *Network) { p.State = PeeringProvisioning }, late, PeeringProvisioning},
		{"the other side does not know yet", func(p *Peering, _ *Network) { p.State = PeeringInitiating }, 0, PeeringInitiating},
		{"taken back by who asked", func(p *Peering, _ *Network) { p.State = PeeringDeleted }, 0, PeeringDeleted},
		{"rejected", func(p *Peering, _ *Network) { p.State = PeeringRejected }, 0, PeeringRejected},
		{"another of the same network is accepted", func(_ *Peering, o *Network) { o.AcceptedPeerings[0].Peering = "peer_other" }, 0, PeeringPending},
		{"one of that ID from another network is accepted", func(_ *Peering, o *Network) { o.AcceptedPeerings[0].Network = "net_3" }, 0, PeeringPending},
		{"who asks is another than was accepted", func(p *Peering, _ *Network) { p.Network = "net_3" }, 0, PeeringPending},
		{"the other network is not there", func(p *Peering, _ *Network) { p.PeerNetwork = "net_9" }, 0, PeeringPending},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := kinds()
			asked := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
			p := &s.Peerings[4]
			p.Requested = asked
			c.change(p, &s.Networks[3])
			if got := s.PeeringStateAt(*p, asked.Add(c.after)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if passes := s.PeeringState(*p) == PeeringActive; passes != (c.want == PeeringActive) {
				t.Errorf("packets pass: %t", passes)
			}
		})
	}
	s := kinds()
	if !s.Accepted(s.Peerings[0]) || s.PeeringState(s.Peerings[0]) != s.Peerings[0].State {
		t.Error("a peering by WireGuard waits for another network")
	}
}

// What is accepted must be there, and mean this network; errors name both sides.
func TestValidateAcceptance(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(s *State)
		path   string
		says   []string
	}{
		{"unknown", func(s *State) { s.Networks[3].AcceptedPeerings[0].Peering = "peer_9" }, "networks[3].acceptedPeerings[0]", []string{"net_4", "peer_9", "net_1", "take it out"}},
		{"another kind", func(s *State) { s.Networks[3].AcceptedPeerings[0].Peering = "peer_if" }, "networks[3].acceptedPeerings[0]", []string{"net_4", "peer_if", "net_1", "kind interface"}},
		{"by who asks", func(s *State) { s.Networks[0].AcceptedPeerings = s.Networks[3].AcceptedPeerings }, "networks[0].acceptedPeerings[0]", []string{"net_1", "net_4", "peer_net"}},
		{"of another network", func(s *State) { s.Networks[3].AcceptedPeerings[0].Network = "net_3" }, "networks[3].acceptedPeerings[0]", []string{"net_4", "net_3", "net_1", "peer_net"}},
		{"twice", func(s *State) {
			s.Networks[3].AcceptedPeerings = append(s.Networks[3].AcceptedPeerings, Acceptance{"peer_net", "net_1"})
		}, "networks[3].acceptedPeerings[1]", []string{"net_4", "peer_net", "twice"}},
		{"accepted without a site", func(s *State) { s.Peerings[4].State, s.Networks[3].Site = PeeringPending, nil }, "peerings[4].peerNetwork", []string{"net_4", "no site"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := kinds()
			c.change(&s)
			problems := s.Validate()
			if len(problems) != 1 || problems[0].Path != c.path {
				t.Fatalf("found %v; want one at %s", problems, c.path)
			}
			for _, want := range c.says {
				if !strings.Contains(problems[0].Error(), want) {
					t.Errorf("%q is not in %q", want, problems[0].Error())
				}
			}
		})
	}
	s := kinds()
	s.Networks[3].AcceptedPeerings = nil
	if err := s.Validate().Err(); err != nil {
		t.Errorf("one that waits: %v", err)
	}
	s = kinds()
	s.Peerings[4].State = PeeringDeleted
	if err := s.Validate().Err(); err != nil {
		t.Errorf("one that is deleted and was accepted: %v", err)
	}
}
