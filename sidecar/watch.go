package sidecar

import (
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport-net/sallyport/internal/packet"
	"github.com/sallyport-net/sallyport/sidecar/failover"
)

// watchConfig is what a watch is made of.
type watchConfig struct {
	network  string // its ID
	failover failover.Config
	linger   time.Duration
	clock    clock
	switches *switchMetrics
	log      *slog.Logger
}

// watch decides which gateway the sandboxes of one network use: the shell of a
// [failover.Monitor]. One goroutine sends the probes that are due, and carries out
// what was decided; answers come in by the paths' goroutines. Packets take notice
// of it by one atomic per group.
type watch struct {
	watchConfig
	kick    chan struct{} // there is something to do before the time
	stop    chan struct{} // closed by end
	ended   chan struct{} // closed when the goroutine has ended
	records switchLog
	tasks   sync.WaitGroup // reports being written

	mu      sync.Mutex // guards what follows
	monitor *failover.Monitor
	tracks  map[failover.PathID]*track
	groups  map[failover.GroupID]*group
	last    failover.GroupID
	probes  []failover.Probe // of the last turn
	events  []failover.Event // that wait for the next turn
	unread  uint64           // events of the monitor that were lost, as far as caught up
}

// track is a path as one watch sees it.
type track struct {
	watch  *watch
	link   *link
	path   *path
	id     failover.PathID
	nonce  uint64
	folded packet.Instant // how much of what was heard the monitor knows
	host   HostName
}

// HostName names a gateway host in logs and reports.
type HostName struct {
	Host    string `json:"host"`
	Region  string `json:"region"`
	Network string `json:"network"` // the network of the tunnel, by ID
}

// groupKey is what the sandboxes of a group have in common: the gateway host that
// they prefer, and the same of their passive network, if they have one.
type groupKey struct {
	host             string
	passive, standby string // the passive network and its preferred host
}

// group are sandboxes that prefer the same gateways in the same order.
type group struct {
	watch  *watch
	key    groupKey
	id     failover.GroupID
	choice atomic.Uint32 // route for new flows, as a number; 0: none

	// What follows is guarded by the watch's lock.
	entries   int // that belong to it, with a device or without
	members   map[*sandbox]struct{}
	order     []*track
	lingering map[failover.PathID]packet.Instant // until when old flows may stay on a route that was left
}

// newWatch makes a watch and its goroutine.
func newWatch(cfg watchConfig) (*watch, error) {
	monitor, err := failover.New(cfg.failover, newNonce(), failover.Instant(cfg.clock.now()))
	if err != nil {
		return nil, err
	}
	w := &watch{
		watchConfig: cfg,
		kick:        make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
		monitor: monitor,
		tracks:  make(map[failover.PathID]*track), groups: make(map[failover.GroupID]*group),
	}
	go w.run()
	return w, nil
}

// end ends the goroutine and waits for it. The watch takes no more answers.
func (w *watch) end() {
	close(w.stop)
	<-w.ended
	w.tasks.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.tracks {
		t.path.ignore(t.nonce)
	}
}

// run takes its turns until the watch ends.
func (w *watch) run() {
	defer close(w.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-w.kick:
		case <-timer.C:
		}
		timer.Reset(w.turn())
	}
}

// hurry makes the next turn come at once.
func (w *watch) hurry() {
	select {
	case w.kick <- struct{}{}:
	default: // it comes already
	}
}

// turn does what is due and says how long nothing is.
func (w *watch) turn() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.tracks {
		if at := packet.Instant(t.path.heard.Load()); at > t.folded {
			t.folded = at
			w.monitor.Heard(t.id, failover.Instant(at))
		}
	}
	now := w.clock.now()
	var next failover.Instant
	w.probes, next = w.monitor.Poll(w.probes[:0], failover.Instant(now))
	for _, p := range w.probes {
		if t := w.tracks[p.Path]; t != nil {
			t.path.send(packet.Probe{Type: packet.ProbeRequest, Nonce: t.nonce, Sequence: p.Sequence})
		}
	}
	w.settle()
	due := min(packet.Instant(next), w.expire(now))
	return time.Duration(max(due-w.clock.now(), 0))
}

// knownHealth are the bits that mean something here; gateways of a later version may
// set others.
const knownHealth = packet.HealthUplinkLost | packet.HealthDraining | packet.HealthFull

// answered implements asker.
func (t *track) answered(m packet.Probe, now packet.Instant) bool {
	w := t.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	ok := w.monitor.Answer(t.id, m.Sequence, failover.Health(m.Health&knownHealth), failover.Instant(now))
	if w.events = w.monitor.Events(w.events); len(w.events) > 0 {
		w.hurry()
	}
	return ok
}

// settle carries out what the monitor has decided. The caller holds the lock.
func (w *watch) settle() {
	w.events = w.monitor.Events(w.events)
	for _, e := range w.events {
		w.happened(e)
	}
	w.events = w.events[:0]
	if lost := w.monitor.Stats().EventsLost; lost != w.unread {
		w.unread = lost
		w.catchUp()
	}
}

// catchUp carries out what was decided while the monitor had no room for more events:
// where very many groups leave a path at once. The caller holds the lock.
func (w *watch) catchUp() {
	for _, g := range w.groups {
		from := failover.PathID(g.choice.Load())
		if to, _ := w.monitor.Choice(g.id); to != from && from != 0 {
			e := failover.Event{At: failover.Instant(w.clock.now()), Group: g.id, From: from, To: to, Switched: true, Lost: w.isLost(from)}
			w.happened(e)
		}
	}
}

// happened carries out one decision.
func (w *watch) happened(e failover.Event) {
	g := w.groups[e.Group]
	if g == nil {
		return
	}
	if e.Switched {
		g.choice.Store(uint32(e.To))
		delete(g.lingering, e.To)
	} else if _, there := g.lingering[e.From]; !there {
		return // they were ended already
	}
	v := w.newSwitchover(g, e.From, e.Reason.String())
	v.record.Detection = e.Detection
	v.record.Switched = e.Switched
	if to := w.tracks[e.To]; to != nil {
		v.record.To = &to.host
	}
	switch {
	case e.Lost:
		g.lose(e.From, v)
	default:
		g.lingering[e.From] = packet.Instant(e.At) + packet.Instant(w.linger)
		v.begin(0)
	}
}

// lose takes the flows of all members off a route. The caller holds the lock.
func (g *group) lose(from failover.PathID, v *switchover) {
	delete(g.lingering, from)
	v.record.Lost = true
	v.begin(len(g.members))
	for s := range g.members {
		s.sweepAll(from, v)
	}
}

// expire ends the stay of flows on routes that were left long ago, or that are lost
// by now, and says when the former is due next. The monitor tells of lost ones, too,
// but not of those that a sandbox brought along from another group. The caller
// holds the lock.
func (w *watch) expire(now packet.Instant) packet.Instant {
	next := now + packet.Instant(time.Hour)
	for _, g := range w.groups {
		for from, until := range g.lingering {
			switch {
			case now >= until:
				g.lose(from, w.newSwitchover(g, from, reasonLinger))
			case w.isLost(from) && !w.isLost(failover.PathID(g.choice.Load())):
				g.lose(from, w.newSwitchover(g, from, failover.ReasonDead.String()))
			default:
				next = min(next, until)
			}
		}
	}
	return next
}

// reasonLinger is why flows are taken off a route that was not lost: they stayed
// for as long as they may.
const reasonLinger = "linger"

// add begins to watch a tunnel.
func (w *watch) add(l *link) *track {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &track{
		watch: w, link: l, path: l.path, nonce: newNonce(),
		host: HostName{Host: l.gateway.Host, Region: l.network.info.Region, Network: l.network.info.ID},
	}
	if t.id = w.monitor.AddPath(failover.Instant(w.clock.now())); t.id == 0 {
		return nil
	}
	t.folded = packet.Instant(t.path.heard.Load())
	w.tracks[t.id] = t
	t.path.listen(t.nonce, t)
	w.hurry()
	return t
}

// remove ends it. The flows that the groups still have there are lost.
func (w *watch) remove(t *track) {
	t.path.ignore(t.nonce)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.monitor.RemovePath(t.id, failover.Instant(w.clock.now()))
	w.settle()
	for _, g := range w.groups {
		if _, still := g.lingering[t.id]; still {
			g.lose(t.id, w.newSwitchover(g, t.id, failover.ReasonRemoved.String()))
		}
	}
	delete(w.tracks, t.id)
}

// followed returns the tracks of tunnels, in the order of their ids.
func (w *watch) followed() []*track {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*track, 0, len(w.tracks))
	for _, t := range w.tracks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *track) int { return int(a.id) - int(b.id) })
	return out
}

// enter finds or makes a group and counts an entry in. A new group begins with the
// first of the tracks in first that is in its order.
func (w *watch) enter(key groupKey, first, order []*track) *group {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.groups {
		if g.key == key {
			g.entries++
			return g
		}
	}
	w.last++
	g := &group{
		watch: w, key: key, id: w.last, entries: 1,
		members: make(map[*sandbox]struct{}), lingering: make(map[failover.PathID]packet.Instant),
	}
	w.groups[g.id] = g
	w.set(g, first) // a choice stays when the order changes
	w.set(g, order)
	return g
}

// leave counts an entry out, and its sandbox if it had one.
func (w *watch) leave(g *group, s *sandbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(g.members, s)
	if g.entries--; g.entries == 0 {
		w.monitor.RemoveGroup(g.id)
		delete(w.groups, g.id)
	}
}

// join makes a sandbox heed a group. Where it comes from another one, its flows may
// stay on the routes that they have, unless these are lost.
func (w *watch) join(g *group, s *sandbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old, was := s.group.Load(), s.choose()
	g.members[s] = struct{}{}
	s.group.Store(g)
	now := s.choose()
	if old == nil || was == 0 {
		return
	}
	stays := maps.Clone(old.lingering)
	stays[was] = w.clock.now() + packet.Instant(w.linger)
	for from, until := range stays {
		if _, known := g.lingering[from]; known || from == now {
			continue
		}
		if !w.isLost(from) || w.isLost(now) {
			g.lingering[from] = until
			continue
		}
		w.abandonLocked(g, from, s, failover.ReasonDead)
	}
	w.hurry()
}

// isLost says whether flows of a route are lost. The caller holds the lock.
func (w *watch) isLost(id failover.PathID) bool {
	p := w.monitor.Path(id)
	return p.State == failover.PathNone || p.State == failover.PathDead || p.Health&failover.HealthUplinkLost != 0
}

// arrange sets the orders of all groups anew.
func (w *watch) arrange(order func(groupKey) []*track) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.groups {
		if wanted := order(g.key); !slices.Equal(wanted, g.order) {
			w.set(g, wanted)
		}
	}
}

// set sets a group's order. The caller holds the lock.
func (w *watch) set(g *group, order []*track) {
	ids := make([]failover.PathID, len(order))
	for i, t := range order {
		ids[i] = t.id
	}
	g.order = order
	w.monitor.SetGroup(g.id, ids, failover.Instant(w.clock.now()))
	w.settle()
	choice, _ := w.monitor.Choice(g.id)
	g.choice.Store(uint32(choice))
	w.hurry()
}

// idle says whether no group has a use for a tunnel: none prefers it, and no
// connection is left there.
func (w *watch) idle(t *track) bool {
	w.mu.Lock()
	var members []*sandbox
	for _, g := range w.groups {
		if slices.Contains(g.order, t) || failover.PathID(g.choice.Load()) == t.id {
			w.mu.Unlock()
			return false
		}
		if _, lingers := g.lingering[t.id]; !lingers {
			continue
		}
		for s := range g.members {
			members = append(members, s)
		}
	}
	w.mu.Unlock()
	return !slices.ContainsFunc(members, func(s *sandbox) bool { return s.connected(t.id) })
}

// well says whether a tunnel answers its probes, as far as it is watched here.
func (w *watch) well(l *link) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.tracks {
		if t.link == l && w.monitor.Path(t.id).State != failover.PathGood {
			return false
		}
	}
	return true
}

// abandon takes the flows of one sandbox off a route that it may use no more.
func (w *watch) abandon(g *group, t *track, s *sandbox) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandonLocked(g, t.id, s, failover.ReasonRemoved)
}

// abandonLocked takes the flows of one sandbox off a route. The caller holds the lock.
func (w *watch) abandonLocked(g *group, from failover.PathID, s *sandbox, why failover.Reason) {
	v := w.newSwitchover(g, from, why.String())
	v.record.Lost = true
	v.begin(1)
	s.sweepAll(from, v)
}
