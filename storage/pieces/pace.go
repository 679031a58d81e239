package pieces

import (
	"context"
	"math/rand/v2"
	"time"
)

// Tries is a Pace of so many tries with doubling pauses.
type Tries struct {
	most              int
	shortest, longest time.Duration
	failed            int
}

// NewTries allows most tries, with pauses as Pause tells.
func NewTries(most int, shortest, longest time.Duration) *Tries {
	return &Tries{most: most, shortest: shortest, longest: longest}
}

// Again implements Pace.
func (t *Tries) Again(ctx context.Context, cause error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.failed >= t.most {
		return cause
	}
	t.failed++
	return Sleep(ctx, Pause(t.failed, t.shortest, t.longest))
}

// Reset implements Pace.
func (t *Tries) Reset() { t.failed = 0 }

// Pause before try n+1: shortest x 2^(n-1) up to longest, less up to a half by
// chance, so that many clients do not come back at once.
func Pause(n int, shortest, longest time.Duration) time.Duration {
	d := longest
	if n = max(n, 1) - 1; n < 32 && shortest<<n > 0 && shortest<<n < longest {
		d = shortest << n
	}
	return d/2 + rand.N(d/2+1)
}

// Sleep waits for d, or until ctx ends, with its error.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
