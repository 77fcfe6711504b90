package hostnet

import (
	"errors"
	"io/fs"
	"slices"
)

// Rollback undoes a plan of which something failed with an error, which it returns with
// what could not be undone. Where the failure is a lack of permission, what Undo was
// refused for the same reason is left out: it would say so once more for each part.
func Rollback(h Host, p Plan, failure error) error {
	undone := h.Undo(p)
	if many, ok := undone.(interface{ Unwrap() []error }); ok && errors.Is(failure, fs.ErrPermission) {
		undone = errors.Join(slices.DeleteFunc(slices.Clone(many.Unwrap()), func(err error) bool { return errors.Is(err, fs.ErrPermission) })...)
	}
	return errors.Join(failure, undone)
}
