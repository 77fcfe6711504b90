package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// lookEvery is how often something is looked at that nobody announces.
const lookEvery = 5 * time.Millisecond

// finalError is one that waiting longer cannot mend.
type finalError struct{ why error }

// Error implements error.
func (e *finalError) Error() string { return e.why.Error() }

// Unwrap gives the cause.
func (e *finalError) Unwrap() error { return e.why }

// Final marks an error that waiting longer cannot mend: [Until] returns it at once.
func Final(err error) error { return &finalError{err} }

// cutOff says whether what was done with ctx until now may have failed for ctx
// alone. Sockets take its deadline for theirs, which may strike before ctx ends.
func cutOff(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// Until looks until it sees no error, at the latest until ctx ends. The error says
// what was waited for, what the last look said that was not cut off, and why ctx
// ended.
func Until(ctx context.Context, what string, look func(context.Context) error) error {
	began := time.Now()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	var said error
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		if said == nil || !cutOff(ctx) {
			said = err
		}
		var final *finalError
		if errors.As(err, &final) {
			return fmt.Errorf("waited until %s: %w", what, err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %v until %s: %w (%w)", time.Since(began).Round(time.Millisecond), what, said, context.Cause(ctx))
		}
	}
}
