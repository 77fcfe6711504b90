package service

import (
	"net/netip"
	"sync"
)

// limiter bounds how much is in the works, in total and for one client, so
// that one sandbox cannot take everything.
type limiter struct {
	max, maxClient int

	mu      sync.Mutex
	total   int
	clients map[netip.Addr]int
}

func newLimiter(total, client int) *limiter {
	return &limiter{max: total, maxClient: client, clients: make(map[netip.Addr]int)}
}

// enter takes a place for client and reports whether there was one.
func (l *limiter) enter(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.max || l.clients[client] >= l.maxClient {
		return false
	}
	l.total++
	l.clients[client]++
	return true
}

// leave gives the place back.
func (l *limiter) leave(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.clients[client]--; l.clients[client] == 0 {
		delete(l.clients, client)
	}
}
