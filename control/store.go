// Package control is the control plane of one region: it holds the desired state
// and who is attached, tells gateways, and serves the API of
// [github.com/sallyport-net/sallyport/control/api].
//
// The life of an attachment: [Store.Attach] resolves who asks to a network and
// allocates addresses; the change gets the next revision; gateways that wait in
// [Store.Next], in this process or over HTTP, take it, report the network's key and
// acknowledge the revision; then Attach returns. So the gateway knows peer and address before the sandbox
// sends its first packet.
//
// What is attached lives in memory. After a restart the workers attach their
// running sandboxes again, with the addresses that they have (api.Resume).
package control

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sallyport-net/sallyport/control/api"
	"github.com/sallyport-net/sallyport/control/spec"
)

// Clock tells the time of day.
type Clock interface{ Now() time.Time }

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// StoreConfig is what a Store is made of.
type StoreConfig struct {
	// State is the desired state; it must be valid, and is not changed afterwards.
	State spec.State
	// Region is the one that is served here.
	Region string
	// Clock dates attachments and reports; nil: the system's.
	Clock Clock
	// AcknowledgeTimeout is how long Attach waits for the gateway; 0: 5 s.
	AcknowledgeTimeout time.Duration
	// HostSilence is how long a host may not have been heard of before Attach takes
	// it for away, and is content with its sibling; 0: 3 s. Hosts report every second.
	HostSilence time.Duration
	// FirstContact is how long Attach waits for a host that was never heard of before
	// it is content with the sibling; 0: 1 s.
	FirstContact time.Duration
	// MaxAttachments bounds what is attached or bypasses at once; 0: 131072.
	MaxAttachments int
	// History is how many changes are kept for followers; one that is further
	// behind gets a full update. 0: 8192.
	History int
	// MaxRevoked is how many of the newest detached sandboxes are known not to be
	// attached again. 0: 131072.
	MaxRevoked int
}

func (c *StoreConfig) complete() error {
	if err := c.State.Validate().Err(); err != nil {
		return fmt.Errorf("the desired state is not valid: %w", err)
	}
	if _, ok := c.State.Region(c.Region); !ok {
		return fmt.Errorf("region %q is not in the desired state; serve one that is, or add it", c.Region)
	}
	if c.AcknowledgeTimeout < 0 || c.HostSilence < 0 || c.FirstContact < 0 || c.MaxAttachments < 0 || c.History < 0 || c.MaxRevoked < 0 {
		return fmt.Errorf("a timeout of %v, a silence of %v, a first contact within %v, %d attachments, a history of %d and %d revoked: none may be below 0 (0 stands for the default)",
			c.AcknowledgeTimeout, c.HostSilence, c.FirstContact, c.MaxAttachments, c.History, c.MaxRevoked)
	}
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	setDefault(&c.AcknowledgeTimeout, 5*time.Second)
	setDefault(&c.HostSilence, 3*time.Second)
	setDefault(&c.FirstContact, time.Second)
	setDefault(&c.MaxAttachments, 1<<17)
	setDefault(&c.History, 1<<13)
	setDefault(&c.MaxRevoked, 1<<17)
	return nil
}

func setDefault[T comparable](v *T, standard T) {
	var zero T
	if *v == zero {
		*v = standard
	}
}

// Store holds the desired state of a region and who is attached. It is safe for
// concurrent use.
type Store struct {
	cfg StoreConfig
	// id tells this store's revisions from those of any other.
	id string

	mu    sync.Mutex // guards all below
	state *spec.State
	// revision counts changes, from 1. The change of revision r is at r%History.
	revision uint64
	changes  []change
	// changed and heard are closed, and made anew, when the revision rose and when
	// a host reported or acknowledged.
	changed, heard chan struct{}

	attachments   map[string]*entry
	revoked       revoked
	networks      map[string]*network // by ID, those with someone attached
	hosts         map[string]*host    // of the region, by name
	bypassTotal   map[string]uint64
	lastSeq       uint64
	attachedCount int
}

// entry is one attachment. seq orders entries as they were made.
type entry struct {
	spec.Attachment
	seq      uint64
	revision uint64 // of the change that brought it; 0 for a bypass
}

// host is what a gateway host said of itself.
type host struct {
	revision uint64    // the newest that it acknowledged
	heard    time.Time // when it last said anything
	reported time.Time // when it last reported, in UTC
	draining bool
	networks map[string]spec.NetworkReport
}

// change is one step of the log: an attachment came, went, or the state changed.
type change struct {
	attached *entry
	detached string
	state    bool
}

// NewStore makes a store with nobody attached.
func NewStore(cfg StoreConfig) (*Store, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("make the store of the control plane: %w", err)
	}
	s := &Store{
		cfg:         cfg,
		id:          rand.Text(),
		state:       &cfg.State,
		changes:     make([]change, cfg.History),
		changed:     make(chan struct{}),
		heard:       make(chan struct{}),
		attachments: make(map[string]*entry),
		revoked:     newRevoked(cfg.MaxRevoked),
		networks:    make(map[string]*network),
		hosts:       make(map[string]*host),
		bypassTotal: make(map[string]uint64),
	}
	s.log(change{state: true})
	return s, nil
}

// log gives a change its revision and wakes the followers.
func (s *Store) log(c change) {
	s.revision++
	s.changes[s.revision%uint64(len(s.changes))] = c
	close(s.changed)
	s.changed = make(chan struct{})
}

// Next waits until there is something newer than after, and returns it. The update
// is full for the zero cursor, for one of another store, and where the store does
// not know (any more) what came since. The error is that of the context.
func (s *Store) Next(ctx context.Context, after spec.Cursor) (spec.Update, error) {
	for {
		s.mu.Lock()
		if after != (spec.Cursor{Store: s.id, Revision: s.revision}) {
			u := s.since(after)
			s.mu.Unlock()
			return u, nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return spec.Update{}, fmt.Errorf("wait for a change after revision %d: %w", after.Revision, context.Cause(ctx))
		}
	}
}

// Acknowledge says that a host of the region has applied everything up to a
// cursor. One of another store is passed over: the host will be given a full update.
// A host that the region does not have is an [*api.Error] with api.CodeNotFound.
func (s *Store) Acknowledge(_ context.Context, name string, at spec.Cursor) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := s.host(name)
	if err != nil {
		return fmt.Errorf("acknowledge revision %d: %w", at.Revision, err)
	}
	h.heard = s.cfg.Clock.Now()
	if at.Store == s.id && at.Revision <= s.revision && at.Revision > h.revision {
		h.revision = at.Revision
		s.hear()
	}
	return nil
}

// Report takes what a host of the region says of its networks. The error is an
// [*api.Error]: of a host or region that is not served here, or of a report that
// names no network or key.
func (s *Store) Report(_ context.Context, report spec.HostReport) error {
	if err := report.Check(); err != nil {
		return badRequest("report of host %q: %v", report.Host, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if report.Region != s.cfg.Region {
		return &api.Error{Status: http.StatusMisdirectedRequest, Code: api.CodeWrongRegion,
			Message: fmt.Sprintf("report of host %q of region %q: this control plane serves region %q; correct the region, or the address of the control API, in the host's configuration", report.Host, report.Region, s.cfg.Region)}
	}
	h, err := s.host(report.Host)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	h.heard = s.cfg.Clock.Now()
	h.reported, h.draining = h.heard.UTC(), report.Draining
	h.networks = make(map[string]spec.NetworkReport, len(report.Networks))
	for _, n := range report.Networks {
		n.Drops = maps.Clone(n.Drops)
		if n.Site != nil {
			n.Site = &spec.SiteReport{PublicKey: n.Site.PublicKey, Endpoint: n.Site.Endpoint, Peerings: slices.Clone(n.Site.Peerings)}
		}
		h.networks[n.ID] = n
	}
	s.hear()
	return nil
}

// host finds what is known of a host of the region.
func (s *Store) host(name string) (*host, error) {
	if h, ok := s.hosts[name]; ok {
		return h, nil
	}
	region, _ := s.state.Region(s.cfg.Region)
	for _, h := range region.Hosts {
		if h.Name == name {
			s.hosts[name] = &host{}
			return s.hosts[name], nil
		}
	}
	return nil, &api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound,
		Message: fmt.Sprintf("region %q has no host %q; add it to the desired state, or correct the host's configuration", s.cfg.Region, name)}
}

// hear wakes those that wait for a host.
func (s *Store) hear() {
	close(s.heard)
	s.heard = make(chan struct{})
}
