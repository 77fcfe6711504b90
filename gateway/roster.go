package gateway

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/sallyport-net/sallyport/control/spec"
)

// adoptionGrace is how long those stay attached whom a control plane that lost its
// memory does not name: their workers attach them again meanwhile, as they were.
const adoptionGrace = 15 * time.Second

// roster is who is attached in the region, of all networks, by the word of the
// store that is followed. It takes the time from its caller.
//
// A store that is another than the one before does not know who was attached.
// Whom it does not name is an orphan: known as before, until the grace is over, the
// store gives one of its addresses to another, or says that it is gone.
type roster struct {
	store    string // whose word it is; empty: nobody's yet
	attached map[string]spec.Attachment

	orphans map[string]spec.Attachment    // those of attached that are orphans
	at      map[place]map[string]struct{} // their ids by the addresses that they have
	until   time.Time                     // the end of the grace of all orphans
}

// place is an inner address of one network.
type place struct {
	network string
	addr    netip.Addr
}

func newRoster() roster {
	return roster{attached: map[string]spec.Attachment{}, orphans: map[string]spec.Attachment{}, at: map[place]map[string]struct{}{}}
}

// update takes an update in. What it returns is what networks have to do: after
// a full one, take everybody from the roster; after another, let detached go
// and take attached in.
func (r *roster) update(u spec.Update, now time.Time) (attached []spec.Attachment, detached []string) {
	if u.Full {
		r.replace(u, now)
		return nil, nil
	}
	detached = slices.Clone(u.Detached)
	for _, id := range detached {
		r.remove(id)
	}
	for _, a := range u.Attached {
		r.adopt(a.ID)
		detached = append(detached, r.displace(a)...)
		r.attached[a.ID] = a
	}
	return u.Attached, detached
}

// replace takes a full update in: exact, unless it is the first of another store.
// Orphans that it calls detached go.
func (r *roster) replace(u spec.Update, now time.Time) {
	another := r.store != "" && u.Store != r.store
	for _, id := range u.Detached {
		r.remove(id)
	}
	before := r.attached
	r.store = u.Store
	r.attached = make(map[string]spec.Attachment, len(u.Attached))
	for _, a := range u.Attached {
		r.attached[a.ID] = a
		r.adopt(a.ID)
	}
	for id, a := range before {
		if _, named := r.attached[id]; named {
			continue
		}
		if _, orphan := r.orphans[id]; orphan || another {
			r.attached[id] = a
			r.orphan(a)
		}
	}
	if another {
		r.until = now.Add(adoptionGrace)
	}
	for _, a := range u.Attached {
		r.displace(a)
	}
}

// places are the addresses that an attachment has.
func places(a spec.Attachment) []place {
	at := []place{{a.Network, a.Inner}}
	if a.Worker.IsValid() {
		at = append(at, place{a.Network, a.Worker})
	}
	return at
}

// orphan notes that the store has not named an attachment.
func (r *roster) orphan(a spec.Attachment) {
	r.orphans[a.ID] = a
	for _, p := range places(a) {
		if r.at[p] == nil {
			r.at[p] = map[string]struct{}{}
		}
		r.at[p][a.ID] = struct{}{}
	}
}

// adopt notes that an attachment is no orphan, or none any more.
func (r *roster) adopt(id string) {
	for _, p := range places(r.orphans[id]) {
		if delete(r.at[p], id); len(r.at[p]) == 0 {
			delete(r.at, p)
		}
	}
	delete(r.orphans, id)
}

// displace removes the orphans that have an address which the store gave to a,
// and returns their ids. Those of the same worker share its address with a.
func (r *roster) displace(a spec.Attachment) (gone []string) {
	for _, p := range places(a) {
		for id := range r.at[p] {
			o := r.orphans[id]
			if p.addr == a.Worker && p.addr == o.Worker && a.PublicKey == o.PublicKey {
				continue
			}
			r.remove(id)
			gone = append(gone, id)
		}
	}
	return gone
}

// remove forgets one attachment.
func (r *roster) remove(id string) {
	r.adopt(id)
	delete(r.attached, id)
}

// hold begins the grace again: the control plane is away, so that no worker can
// attach anybody.
func (r *roster) hold(now time.Time) { r.until = now.Add(adoptionGrace) }

// expire removes the orphans once their grace is over, and returns their ids.
func (r *roster) expire(now time.Time) []string {
	if len(r.orphans) == 0 || now.Before(r.until) {
		return nil
	}
	gone := slices.Sorted(maps.Keys(r.orphans))
	for _, id := range gone {
		r.remove(id)
	}
	return gone
}

// byNetwork lists everybody, by the network's id.
func (r *roster) byNetwork() map[string][]spec.Attachment {
	all := map[string][]spec.Attachment{}
	for _, a := range r.attached {
		all[a.Network] = append(all[a.Network], a)
	}
	return all
}
