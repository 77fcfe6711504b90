package tunnel

import (
	"fmt"
	"math/rand/v2"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	// greetSpacing is how long a handshake of either end may be under way before a
	// greeting. A peer drops one that follows another within 20 ms, and may mix two
	// handshakes up on which it works at once.
	greetSpacing = 100 * time.Millisecond
	// greetTries is how often a greeting is sent. WireGuard goes on every 5 s.
	greetTries = 3
	// greetWait is how long the first is waited for, and up to greetJitter longer, so
	// that two ends do not go on together. The next waits twice as long each: a
	// greeting makes the one before void, which may only be slow.
	greetWait   = 400 * time.Millisecond
	greetJitter = 200 * time.Millisecond
)

// greeting is a handshake that somebody asked for. The tunnel's lock guards it.
type greeting struct {
	peer  Key
	began time.Time
	sent  int // how often
	// spoilt: it may have made a handshake void that comes to an end all the same.
	spoilt bool
	timer  *time.Timer
}

// Rehandshake forgets the session with a peer and shakes hands anew: at once, or
// shortly after a handshake that is just under way has failed, and again where a
// message is lost, sooner than WireGuard would. A peer that restarted has lost its
// side of the session, and this side would notice only after 15 s. While one is under
// way, another call changes nothing. The peer needs an endpoint.
func (t *Tunnel) Rehandshake(peer Key) error {
	return t.beginGreeting(&greeting{peer: peer, began: time.Now()}, 0)
}

// Await sees to it that the first handshake with a peer, which its keepalive has just
// begun, is repeated where a message is lost, sooner than WireGuard would: it goes on
// after 5 s. Where there was a handshake, or one is under way that somebody asked for,
// it changes nothing. The peer needs an endpoint.
func (t *Tunnel) Await(peer Key) error {
	return t.beginGreeting(&greeting{peer: peer}, greetWait+rand.N(greetJitter))
}

// beginGreeting begins one after a time, unless another one is under way.
func (t *Tunnel) beginGreeting(g *greeting, after time.Duration) error {
	known := t.stateOf(g.peer)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed() {
		return fmt.Errorf("shake hands with peer %s of the tunnel %s: %w", g.peer, t.public, ErrClosed)
	}
	p := t.dev.LookupPeer(device.NoisePublicKey(g.peer))
	if p == nil {
		return fmt.Errorf("shake hands with peer %s of the tunnel %s: %w", g.peer, t.public, ErrUnknownPeer)
	}
	if other := t.greetings[g.peer]; other != nil {
		done := known.LastHandshake.After(other.began)
		switch {
		case after > 0, !done && other.sent > 0:
			return nil // another one now would make it void, which may only be slow
		case !done:
			g.began = other.began // it has only waited
		}
	}
	t.endGreeting(g.peer)
	t.greetings[g.peer] = g
	if after > 0 {
		g.timer = time.AfterFunc(after, func() { t.greetAgain(g) })
		return nil
	}
	g.timer = time.AfterFunc(time.Hour, func() { t.greetAgain(g) })
	if err := t.greet(g, p, known); err != nil {
		t.endGreeting(g.peer)
		return fmt.Errorf("shake hands with peer %s of the tunnel %s: %w", g.peer, t.public, err)
	}
	return nil
}

// greet sends a greeting, or waits while a handshake is under way, and sees to it that
// somebody looks after it. The caller holds the lock.
func (t *Tunnel) greet(g *greeting, p *device.Peer, known PeerStats) error {
	heard, called := t.seen.initiations(p)
	initiation := called
	if heard.After(called) {
		initiation = heard
	}
	began := time.Now()
	if early := greetSpacing - began.Sub(initiation); early > 0 && !known.LastHandshake.After(initiation) {
		g.timer.Reset(early)
		return nil
	}
	answering := t.bind.calls.answering(known.Endpoint, began)
	if answering.After(began) && !known.LastHandshake.After(answering.Add(-unravelling)) {
		g.timer.Reset(answering.Sub(began))
		return nil
	}
	wait := (greetWait + rand.N(greetJitter)) << g.sent
	g.sent++
	p.ExpireCurrentKeypairs()
	err := p.SendHandshakeInitiation(false)
	if err != nil {
		return err
	}
	now, _ := t.seen.initiations(p)
	// The peer called, or answered, meanwhile.
	g.spoilt = !now.Equal(heard) || t.bind.calls.answering(known.Endpoint, began).After(answering)
	if g.sent == greetTries {
		t.endGreeting(g.peer)
	} else {
		g.timer.Reset(wait)
	}
	return nil
}

// greetAgain goes on with a greeting, unless there was a handshake since it began.
func (t *Tunnel) greetAgain(g *greeting) {
	known := t.stateOf(g.peer)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.greetings[g.peer] != g {
		return // it has ended, or another one is under way
	}
	p := t.dev.LookupPeer(device.NoisePublicKey(g.peer))
	if p == nil || t.closed() || !g.spoilt && known.LastHandshake.After(g.began) || t.greet(g, p, known) != nil {
		t.endGreeting(g.peer) // where it cannot be sent, WireGuard itself goes on
	}
}

// stateOf is what is known of a peer; zero where it is not. The caller does not hold
// the lock.
func (t *Tunnel) stateOf(peer Key) PeerStats {
	state, err := t.read()
	if err != nil {
		return PeerStats{}
	}
	for _, p := range state.peers {
		if p.PublicKey == peer {
			return p
		}
	}
	return PeerStats{}
}

// endGreeting gives up the greeting of a peer, if there is one. The caller holds the lock.
func (t *Tunnel) endGreeting(peer Key) {
	if g := t.greetings[peer]; g != nil {
		g.timer.Stop()
		delete(t.greetings, peer)
	}
}
