package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
)

// action is what a function can be told to do.
type action string

// The actions.
const (
	// doPace opens new connections every Every, from now on.
	doPace action = "pace"
	// doHold opens a connection that stays idle and a UDP flow, in place of those
	// that there are, and waits until both were answered.
	doHold action = "hold"
	// doMeasure says what became of everything after the cut at Cut: it waits until
	// a new connection and the UDP flow are answered from another address than Old
	// and the idle connection has ended, at most until Limit after the cut.
	doMeasure action = "measure"
	// doAwait waits until a connection that is opened from now on is answered from
	// Source, at most for Limit.
	doAwait action = "await"
	// doLoad moves bytes both ways, by Streams connections each, for Limit.
	doLoad action = "load"
)

// order is one thing that a function is told to do.
type order struct {
	Do      action        `json:"do"`
	Every   time.Duration `json:"every,omitempty"`
	Cut     instant       `json:"cut,omitempty"`
	Old     netip.Addr    `json:"old,omitzero"`
	Source  netip.Addr    `json:"source,omitzero"`
	Limit   time.Duration `json:"limit,omitempty"`
	Streams int           `json:"streams,omitempty"`
}

// reply is what came of it.
type reply struct {
	// Failure is what went wrong; then the rest does not count.
	Failure string `json:"failure,omitempty"`
	// Measured is the answer to doMeasure.
	Measured measurement `json:"measured,omitzero"`
	// Sent and Received are the bytes of doLoad.
	Sent     uint64 `json:"sent,omitempty"`
	Received uint64 `json:"received,omitempty"`
	// Seen are all addresses from which something was answered since the last
	// reply, and how often.
	Seen map[netip.Addr]int `json:"seen,omitempty"`
	// Connections are the new connections that ended since the last reply.
	Connections tally `json:"connections"`
}

// measurement is what a function saw of one fault. Times are since the cut, and
// 0 where the thing did not happen.
type measurement struct {
	// First is when the first new connection was answered by another path than the
	// old one, among those that were opened after the cut; FirstOpened is when it was opened.
	First       time.Duration `json:"first"`
	FirstOpened time.Duration `json:"firstOpened"`
	Source      netip.Addr    `json:"source,omitzero"`
	// Reset is when the idle connection ended, and How says how.
	Reset time.Duration `json:"reset"`
	How   string        `json:"how,omitempty"`
	// UDP is when the UDP flow was answered by another path, to a question asked
	// after the cut.
	UDP       time.Duration `json:"udp"`
	UDPSource netip.Addr    `json:"udpSource,omitzero"`
	// Stale counts new connections that the old path still answered after the cut.
	Stale int `json:"stale"`
}

// tally counts connections.
type tally struct {
	Answered int           `json:"answered"`
	Failed   int           `json:"failed"`
	Skipped  int           `json:"skipped"` // not opened, as too many were under way
	Longest  time.Duration `json:"longest"` // from opening to the answer
}

// Function is the program that runs in the sandboxes: it does the orders that it
// reads, one JSON document each, and writes a reply to each, until r ends.
func Function(ctx context.Context, r io.Reader, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	f := newFlows(ctx)
	defer f.wait()
	defer cancel()
	in, out := json.NewDecoder(r), json.NewEncoder(w)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		if err := out.Encode(f.perform(o)); err != nil {
			return fmt.Errorf("write a reply: %w", err)
		}
	}
}

// perform does one order.
func (f *flows) perform(o order) (r reply) {
	var err error
	switch o.Do {
	case doPace:
		f.pace(o.Every)
	case doHold:
		err = f.hold()
	case doMeasure:
		r.Measured = f.measure(o)
	case doAwait:
		err = f.await(o)
	case doLoad:
		r.Sent, r.Received, err = load(f.ctx, o)
	default:
		err = fmt.Errorf("nobody taught this function to %q", o.Do)
	}
	if err != nil {
		r.Failure = err.Error()
	}
	r.Seen, r.Connections = f.collect()
	return r
}
