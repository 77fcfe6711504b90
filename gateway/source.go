package gateway

import (
	"context"

	"github.com/sallyport-net/sallyport/control/spec"
)

// Source is the desired state that a gateway follows: list, watch, acknowledge.
// The control plane's store serves it in the same process; a client of another
// process may serve it as well. All methods are safe for concurrent use.
type Source interface {
	// Next blocks until there is something newer than after, and returns it. After
	// the zero cursor, one of another store, or where the source no longer knows
	// what came since, the update is full: it replaces everything before.
	Next(ctx context.Context, after spec.Cursor) (spec.Update, error)
	// Acknowledge says that host has applied everything up to a cursor: a sandbox
	// that was attached by then may send.
	Acknowledge(ctx context.Context, host string, at spec.Cursor) error
	// Report tells keys, ports and counters of the host's networks.
	Report(ctx context.Context, report spec.HostReport) error
}
