package storage

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"
)

// Leftover is an upload that has begun and not ended: one under way, or what a
// process that died has left. No List shows it, and it takes space.
type Leftover struct {
	// Name of what the upload was to become, or of the temporary object.
	Name string
	// ID tells uploads of one name apart, where the store does that.
	ID string
	// Moved is the last sign of life that the store knows of.
	Moved time.Time
}

// Sweeper is a Bucket whose unfinished uploads can be found. Stores that keep
// nothing of them, or drop it themselves after a while, are none.
type Sweeper interface {
	// Leftovers yields the unfinished uploads below prefix, also those under
	// way. After an error it stops.
	Leftovers(ctx context.Context, prefix string) iter.Seq2[Leftover, error]
	// DropLeftovers removes uploads; their Puts, if there are any, fail. One
	// that is gone is no error.
	DropLeftovers(ctx context.Context, uploads ...Leftover) error
}

// SweeperOf finds the Sweeper behind the decorators of b: those with a method
// Unwrap, and Sub.
func SweeperOf(b Bucket) (Sweeper, bool) {
	for {
		switch v := b.(type) {
		case *sub:
			s, ok := SweeperOf(v.b)
			return &subSweeper{sub: v, s: s}, ok
		case Sweeper:
			return v, true
		case interface{ Unwrap() Bucket }:
			b = v.Unwrap()
		default:
			return nil, false
		}
	}
}

type subSweeper struct {
	*sub
	s Sweeper
}

func (s *subSweeper) Leftovers(ctx context.Context, prefix string) iter.Seq2[Leftover, error] {
	return func(yield func(Leftover, error) bool) {
		for l, err := range s.s.Leftovers(ctx, s.prefix+prefix) {
			var ok bool
			if l.Name, ok = strings.CutPrefix(l.Name, s.prefix); err == nil && !ok {
				continue
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

func (s *subSweeper) DropLeftovers(ctx context.Context, uploads ...Leftover) error {
	full := make([]Leftover, len(uploads))
	for i, l := range uploads {
		if err := CheckName(l.Name); err != nil {
			return fmt.Errorf("drop an unfinished upload: %w", err)
		}
		l.Name = s.prefix + l.Name
		full[i] = l
	}
	return s.s.DropLeftovers(ctx, full...)
}
