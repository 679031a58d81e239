//go:build !unix

package pinned

import "context"

// lock does nothing: builds at the same time are wasteful, not wrong, as each
// is renamed into place.
func lock(context.Context, string) (unlock func() error, err error) {
	return func() error { return nil }, nil
}
