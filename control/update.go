package control

import (
	"cmp"
	"slices"

	"github.com/sallyport-net/sallyport/control/spec"
)

// since makes the update that brings a follower from a cursor to the newest.
func (s *Store) since(at spec.Cursor) spec.Update {
	after := at.Revision
	// The log holds the changes of the last len(changes) revisions.
	if at.Store != s.id || after == 0 || after > s.revision || s.revision-after > uint64(len(s.changes)) {
		u := s.full()
		if at.Store != "" { // it may have some from a store before, and keep them for a while
			u.Detached = s.revoked.list()
		}
		return u
	}
	u := spec.Update{Store: s.id, Revision: s.revision}
	// Many changes of one attachment become at most one departure, of what the
	// follower has, and one arrival, of what there is now.
	arrived := make(map[string]*entry)
	for r := after + 1; r <= s.revision; r++ {
		switch c := s.changes[r%uint64(len(s.changes))]; {
		case c.state:
			u.State = s.state
		case c.attached != nil:
			arrived[c.attached.ID] = c.attached
		default:
			if _, both := arrived[c.detached]; both {
				delete(arrived, c.detached) // came and went: the follower never had this one
				if !s.revoked.has(c.detached) {
					continue
				}
				// But it may have it from the store before this one, if it was attached
				// again here, and it was ended for good.
			}
			u.Detached = append(u.Detached, c.detached)
		}
	}
	entries := make([]*entry, 0, len(arrived))
	for _, e := range arrived {
		entries = append(entries, e)
	}
	u.Attached = inOrder(entries)
	return u
}

func (s *Store) full() spec.Update {
	entries := make([]*entry, 0, len(s.attachments))
	for _, e := range s.attachments {
		if e.Bypass == "" {
			entries = append(entries, e)
		}
	}
	return spec.Update{Store: s.id, Revision: s.revision, Full: true, State: s.state, Attached: inOrder(entries)}
}

// inOrder returns attachments as they were made.
func inOrder(entries []*entry) []spec.Attachment {
	slices.SortFunc(entries, func(a, b *entry) int { return cmp.Compare(a.seq, b.seq) })
	out := make([]spec.Attachment, len(entries))
	for i, e := range entries {
		out[i] = e.Attachment
	}
	return out
}
