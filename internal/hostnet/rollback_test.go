package hostnet_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport-net/sallyport/internal/hostnet"
)

// stubborn is a host whose Undo fails.
type stubborn struct {
	hostnet.Host
	errs []error
}

func (s stubborn) Undo(hostnet.Plan) error { return errors.Join(s.errs...) }

// TestRollback: a process without permission is told so once, and everything else of what
// cannot be undone.
func TestRollback(t *testing.T) {
	refused := fmt.Errorf("add route: %w", unix.EPERM)
	other := errors.New("add route: no such link")
	h := stubborn{errs: []error{fmt.Errorf("remove rule: %w", unix.EPERM), errors.New("remove link: busy"), fmt.Errorf("remove route: %w", unix.EACCES)}}
	for _, c := range []struct {
		failure error
		left    string
	}{
		{refused, "add route: operation not permitted\nremove link: busy"},
		{other, "add route: no such link\nremove rule: operation not permitted\nremove link: busy\nremove route: permission denied"},
	} {
		err := hostnet.Rollback(h, hostnet.Plan{}, c.failure)
		if err.Error() != c.left || !errors.Is(err, c.failure) {
			t.Errorf("after %q the error is %q, want %q", c.failure, err, c.left)
		}
	}
	h.errs = h.errs[:1]
	if err := hostnet.Rollback(h, hostnet.Plan{}, refused); err.Error() != refused.Error() {
		t.Errorf("the error is %q", err)
	}
	if err := hostnet.Rollback(hostnet.NewFake(), hostnet.Plan{}, other); strings.TrimSpace(err.Error()) != other.Error() {
		t.Errorf("of an Undo that works the error is %q", err)
	}
}
