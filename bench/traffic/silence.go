package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sallyport-net/sallyport/bench/wire"
)

var (
	// ErrDead says that a gateway does not shake hands.
	ErrDead = errors.New("the gateway does not answer")
	// ErrSilent says that a gateway shakes hands, and that nothing comes back through it.
	ErrSilent = errors.New("the gateway shakes hands, but no answer comes through it")
)

const (
	// secondThought is how long a far side is asked what it has of a load that was not answered.
	secondThought = time.Second
	// fewAsked is how many questions of a Blast must be without an answer at least for silence:
	// those of a short one may be among the packets that were lost.
	fewAsked = 5
)

// SilentError is [ErrSilent], with what the far side says of the load.
type SilentError struct {
	// Answers says that the far side answers a message, though not the load: then Report is
	// what it counted of that.
	Answers bool
	Report  wire.Report

	endpoint netip.AddrPort
	silent   time.Duration
}

// Error says where to look.
func (e *SilentError) Error() string {
	text := fmt.Sprintf("%v: %v, for %v; ", ErrSilent, e.endpoint, e.silent)
	switch r := &e.Report; {
	case !e.Answers:
		return text + "look whether the far side runs, knows the run and is reached from the gateway"
	case r.Packets+r.Echoed+r.Joined == 0:
		return text + "the far side answers a message, but nothing of this load came to it: look whether it was started " +
			"again, and whether the gateway lets sandboxes open so many sessions"
	default:
		return text + fmt.Sprintf("the far side answers a message, but of this load no more came to it than %d packets, %d requests and %d joins: "+
			"look whether the gateway lets sandboxes open so many sessions (limits of sallyportd, for one sandbox and for an address)", r.Packets, r.Echoed, r.Joined)
	}
}

// Unwrap makes it an ErrSilent.
func (e *SilentError) Unwrap() error { return ErrSilent }

// diagnose finds out whether a silent gateway is there at all, and what came to the far side.
// The caller holds s.busy.
func (s *Source) diagnose(ctx context.Context, l *lane) error {
	e, load := l.end, &l.run.load
	silent := load.Patience
	if since := l.quiet.since.Load(); since != 0 {
		silent = (s.now() - time.Duration(since)).Round(time.Millisecond)
	}
	began := time.Now()
	if err := e.tunnel.Rehandshake(e.key); err != nil {
		return err
	}
	err := s.shaken(ctx, []*end{e}, began, handshake)
	switch {
	case err == nil:
		found := &SilentError{endpoint: e.gateway.Endpoint, silent: silent}
		ctx, cancel := context.WithTimeout(ctx, secondThought)
		defer cancel()
		if report, err := s.report(ctx, load.Run, load.Remotes[0]); err == nil {
			found.Answers, found.Report = true, report
		}
		if l.run.kind == wire.KindData && found.Answers && found.Report.Packets > 0 && l.run.asked() < fewAsked {
			return nil // its packets tell more than the few answers that are missing
		}
		return found
	case ctx.Err() != nil:
		return err
	}
	return fmt.Errorf("%w: %v has been silent for %v and shakes hands no more; look whether it runs", ErrDead, e.gateway.Endpoint, silent)
}
