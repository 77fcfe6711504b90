package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// Attach attaches a sandbox and waits until the gateway host that holds its
// dedicated address has it in force, or, while that one is away, the host that holds
// the other address of the pair; a sandbox that bypasses is only written down. When
// no host confirms in time, or ctx ends, nothing stays. The error is an
// [*api.Error], or that of the context.
func (s *Store) Attach(ctx context.Context, req api.AttachRequest) (api.AttachResponse, error) {
	called := s.cfg.Clock.Now()
	e, known, err := s.enter(req)
	if err != nil || e.Bypass != "" {
		return api.AttachResponse{Attachment: e.Attachment}, err
	}
	resp, err := s.await(ctx, e, called)
	if err != nil && !known {
		s.withdraw(e)
	}
	return resp, err
}

// enter makes the attachment, or finds the one that is resumed.
func (s *Store) enter(req api.AttachRequest) (e entry, known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := s.resolve(req)
	if err != nil {
		return entry{}, false, err
	}
	if req.Passive && found.Bypass != "" {
		return entry{}, false, badRequest("passive: the sandbox bypasses (%s); it is counted where it runs, and has no address in a passive network", found.Bypass)
	}
	if req.PublicKey != "" || found.Bypass == "" {
		if err := spec.CheckPublicKey(req.PublicKey); err != nil {
			return entry{}, false, badRequest("publicKey: %v", err)
		}
	}
	id := ""
	if req.Resume != nil {
		if id = req.Resume.ID; !spec.ValidID(id) {
			return entry{}, false, badRequest("resume.id: %q is not the ID of an attachment", id)
		}
		if old, ok := s.attachments[id]; ok {
			if !same(old.Attachment, req) {
				return entry{}, false, conflict("attachment %q is another sandbox's, or has other addresses; start the sandbox anew", id)
			}
			return *old, true, nil
		}
		if s.revoked.has(id) {
			return entry{}, false, conflict("attachment %q was detached; start the sandbox anew", id)
		}
	} else {
		id = newID()
	}
	if len(s.attachments) >= s.cfg.MaxAttachments {
		return entry{}, false, &api.Error{Status: http.StatusServiceUnavailable, Code: api.CodeExhausted,
			Message: fmt.Sprintf("%d sandboxes are attached or bypass, as many as this control plane holds; detach some (`sallyport attachments` lists them)", len(s.attachments))}
	}
	a := spec.Attachment{
		ID: id, Project: req.Project, Environment: req.Environment, Kind: req.Kind, Runtime: req.Runtime,
		Region: req.Region, Passive: req.Passive, Bypass: found.Bypass, Created: s.cfg.Clock.Now().UTC(),
	}
	if found.Bypass == "" {
		a.Network, a.PublicKey = found.Network.ID, req.PublicKey
		if err := s.address(&a, found.Network, req.Resume); err != nil {
			return entry{}, false, err
		}
	} else if req.Resume != nil && req.Resume.InnerAddress.IsValid() {
		return entry{}, false, conflict("attachment %q had a tunnel and would now bypass (%s); start the sandbox anew", id, found.Bypass)
	}
	return *s.insert(a), false, nil
}

// insert writes an attachment down and tells the followers.
func (s *Store) insert(a spec.Attachment) *entry {
	s.lastSeq++
	e := &entry{Attachment: a, seq: s.lastSeq}
	s.attachments[a.ID] = e
	if a.Bypass != "" {
		s.bypassTotal[a.Bypass]++
		return e
	}
	s.attachedCount++
	e.revision = s.revision + 1
	s.log(change{attached: e})
	return e
}

// resolve finds the network, in the words of the API.
func (s *Store) resolve(req api.AttachRequest) (spec.Resolution, error) {
	found, err := spec.Resolve(*s.state, spec.Query{
		Project: req.Project, Environment: req.Environment, Kind: req.Kind, Runtime: req.Runtime,
		Region: req.Region, Passive: req.Passive,
	})
	var field *spec.FieldError
	var none *spec.NoNetworkError
	var noPassive *spec.NoPassiveError
	switch {
	case errors.As(err, &field):
		return found, badRequest("%v", err)
	case req.Region != s.cfg.Region:
		return found, s.wrongRegion(req.Region)
	case errors.As(err, &none):
		return found, &api.Error{Status: http.StatusConflict, Code: api.CodeNoNetwork, Message: err.Error()}
	case errors.As(err, &noPassive):
		return found, &api.Error{Status: http.StatusConflict, Code: api.CodeNoPassive, Message: err.Error()}
	case err != nil:
		return found, &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound, Message: err.Error()}
	}
	return found, nil
}

func (s *Store) wrongRegion(name string) error {
	region, ok := s.state.Region(name)
	if !ok {
		return badRequest("region: there is no region %q; this control plane serves %q", name, s.cfg.Region)
	}
	where := "ask that region's"
	if region.API != "" {
		where = "ask " + region.API
	}
	return &api.Error{Status: http.StatusMisdirectedRequest, Code: api.CodeWrongRegion,
		Message: fmt.Sprintf("region: this control plane serves %q, not %q; %s", s.cfg.Region, name, where)}
}

// address gives an attachment its addresses, or those that it resumes.
func (s *Store) address(a *spec.Attachment, n spec.Network, resume *api.Resume) error {
	net, err := s.network(n)
	if err != nil {
		return fmt.Errorf("network %q: %w", n.ID, err)
	}
	var wanted netip.Addr
	if resume != nil {
		if wanted = resume.WorkerAddress; resume.Network != "" && resume.Network != n.ID {
			return conflict("attachment %q was in network %q and would now be in %q; start the sandbox anew", a.ID, resume.Network, n.ID)
		}
		if !resume.InnerAddress.IsValid() {
			return conflict("attachment %q had no tunnel and would now have one, in network %q; start the sandbox anew", a.ID, n.ID)
		}
		if err := net.addresses.Take(resume.InnerAddress); err != nil {
			return conflict("attachment %q cannot have its address in network %q again: %v; start the sandbox anew", a.ID, n.ID, err)
		}
		a.Inner = resume.InnerAddress
	} else if a.Inner, err = net.addresses.Allocate(); err != nil {
		return exhausted(n)
	}
	if a.Worker, err = net.join(a.PublicKey, wanted); err != nil {
		net.addresses.Free(a.Inner)
		return exhausted(n)
	}
	a.Egress = n.Pair[spec.EgressIndex(a.Inner)]
	return nil
}

// same reports whether a request resumes an attachment that is still there.
func same(a spec.Attachment, req api.AttachRequest) bool {
	if a.Project != req.Project || a.Environment != req.Environment || a.Kind != req.Kind ||
		a.Runtime != req.Runtime || a.Region != req.Region || a.Passive != req.Passive || a.Inner != req.Resume.InnerAddress {
		return false
	}
	return a.Bypass != "" || a.PublicKey == req.PublicKey &&
		(req.Resume.Network == "" || req.Resume.Network == a.Network)
}

// await waits until a host has acknowledged the attachment and reported the
// network's key.
func (s *Store) await(ctx context.Context, e entry, called time.Time) (api.AttachResponse, error) {
	timeout := time.NewTimer(s.cfg.AcknowledgeTimeout)
	defer timeout.Stop()
	recheck := time.NewTimer(s.cfg.AcknowledgeTimeout)
	defer recheck.Stop()
	for {
		s.mu.Lock()
		resp, missing, err := s.ready(e, called)
		heard, patience := s.heard, s.patience(e, called)
		s.mu.Unlock()
		if err != nil || missing == "" {
			return resp, err
		}
		if patience > 0 { // then a sibling will do
			recheck.Reset(patience)
		}
		select {
		case <-heard:
		case <-recheck.C:
		case <-ctx.Done():
			return api.AttachResponse{}, fmt.Errorf("attach %s: gave up while %s: %w", e.ID, missing, context.Cause(ctx))
		case <-timeout.C:
			return api.AttachResponse{}, &api.Error{Status: http.StatusServiceUnavailable, Code: api.CodeGatewayPending,
				Message: fmt.Sprintf("the sandbox is not attached: after %v %s; check that sallyportd runs on that host and follows this control plane (`sallyport status` shows its revision and last report), and read its log",
					s.cfg.AcknowledgeTimeout, missing)}
		}
	}
}

// ready makes the answer, or says what is missing for one.
func (s *Store) ready(e entry, called time.Time) (resp api.AttachResponse, missing string, err error) {
	if now, ok := s.attachments[e.ID]; !ok || now.seq != e.seq {
		return resp, "", conflict("attachment %q was detached while its gateway was asked", e.ID)
	}
	n, ok := s.state.Network(e.Network)
	if !ok {
		return resp, "", conflict("network %q was removed while its gateway was asked", e.Network)
	}
	gateways, missing := s.gateways(n, e, called)
	if missing != "" {
		return resp, missing, nil
	}
	return api.AttachResponse{
		Attachment: e.Attachment,
		Network: api.AttachedNetwork{
			ID: n.ID, Name: n.Name, Region: n.Region, CIDR: n.CIDR, Pair: n.Pair, Gateway: n.Gateway(),
			DNS: []netip.Addr{n.Gateway()}, MTU: spec.TunnelMTU,
		},
		Gateways: gateways,
		Passive:  s.passive(e.Attachment),
	}, "", nil
}

// passive says where the attachment's environment goes while this region is
// unavailable; nil: nowhere, or the attachment is there already.
func (s *Store) passive(a spec.Attachment) *api.PassiveRegion {
	if a.Passive {
		return nil
	}
	r, err := spec.Resolve(*s.state, spec.Query{
		Project: a.Project, Environment: a.Environment, Kind: a.Kind, Runtime: a.Runtime, Region: a.Region,
	})
	if err != nil || r.Passive == nil {
		return nil
	}
	region, _ := s.state.Region(r.Passive.Region)
	return &api.PassiveRegion{Region: region.Name, Network: r.Passive.ID, API: region.API}
}

// Detach ends an attachment, for good: it cannot be resumed. One that is not known
// is an [*api.Error] with api.CodeNotFound; gateways are told all the same, because
// they may hold it from the store before this one.
func (s *Store) Detach(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.attachments[id]
	if !ok {
		if spec.ValidID(id) && !s.revoked.has(id) {
			s.revoked.add(id)
			s.log(change{detached: id})
		}
		return &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound,
			Message: fmt.Sprintf("there is no attachment %q; `sallyport attachments` lists them", id)}
	}
	s.remove(e)
	s.revoked.add(id)
	return nil
}

// withdraw ends an attachment that could not be completed, unless somebody else
// has ended it.
func (s *Store) withdraw(e entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, ok := s.attachments[e.ID]; ok && now.seq == e.seq {
		s.remove(now)
	}
}

func (s *Store) remove(e *entry) {
	delete(s.attachments, e.ID)
	if e.Bypass != "" {
		return
	}
	net := s.networks[e.Network]
	net.addresses.Free(e.Inner)
	net.leave(e.PublicKey)
	s.attachedCount--
	s.log(change{detached: e.ID})
}

// newID makes the ID of an attachment: nobody can guess one.
func newID() string { return "att-" + rand.Text() }

func badRequest(format string, args ...any) error {
	return &api.Error{Status: http.StatusBadRequest, Code: api.CodeBadRequest, Message: fmt.Sprintf(format, args...)}
}

func conflict(format string, args ...any) error {
	return &api.Error{Status: http.StatusConflict, Code: api.CodeConflict, Message: fmt.Sprintf(format, args...)}
}

func exhausted(n spec.Network) error {
	return &api.Error{Status: http.StatusServiceUnavailable, Code: api.CodeExhausted,
		Message: fmt.Sprintf("every address of network %q (%v) is in use; detach sandboxes, or give the project a network with a larger CIDR", n.ID, n.CIDR)}
}
