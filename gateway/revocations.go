package gateway

import (
	"net/netip"
	"sync"
	"sync/atomic"
)

// revocations are the inner addresses that were revoked last.
type revocations struct {
	count atomic.Uint32 // of all, ever
	mu    sync.Mutex    // guards what follows
	last  [32]netip.Addr
}

func (r *revocations) add(inner netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.count.Load()
	r.last[n%uint32(len(r.last))] = inner
	r.count.Store(n + 1)
}

// since returns those that followed the first n.
func (r *revocations) since(n uint32) revokedSince {
	r.mu.Lock()
	defer r.mu.Unlock()
	return revokedSince{n, r.count.Load(), r.last}
}

// revokedSince are the inner addresses that were revoked from one count on until another.
type revokedSince struct {
	from, until uint32
	last        [32]netip.Addr
}

// has reports whether an address may be one of them: all are where they are more than
// are remembered.
func (s *revokedSince) has(a netip.Addr) bool {
	n := s.until - s.from
	if n > uint32(len(s.last)) {
		return true
	}
	for i := range n {
		if s.last[(s.from+i)%uint32(len(s.last))] == a {
			return true
		}
	}
	return false
}
