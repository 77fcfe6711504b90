package control

// revoked remembers the IDs of those that were detached last, so that a worker
// that still runs the sandbox cannot attach it again: what it has not heard of
// yet looks to it like a control plane that lost its memory.
type revoked struct {
	ids  []string // a ring once it is full
	next int
	set  map[string]struct{}
	max  int
}

func newRevoked(max int) revoked { return revoked{set: make(map[string]struct{}), max: max} }

// add takes an ID in, in place of the oldest if there is no room.
func (r *revoked) add(id string) {
	if r.has(id) {
		return
	}
	r.set[id] = struct{}{}
	if len(r.ids) < r.max {
		r.ids = append(r.ids, id)
		return
	}
	delete(r.set, r.ids[r.next])
	r.ids[r.next] = id
	r.next = (r.next + 1) % r.max
}

func (r *revoked) has(id string) bool {
	_, ok := r.set[id]
	return ok
}

// list returns the IDs, the oldest first.
func (r *revoked) list() []string {
	if len(r.ids) == 0 {
		return nil
	}
	return append(append(make([]string, 0, len(r.ids)), r.ids[r.next:]...), r.ids[:r.next]...)
}
