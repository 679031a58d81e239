package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// denials ends calls that the broker's permissions do not admit. The broker
// answers a forbidden publish on the connection, not to the caller: without
// this a request to a forbidden subject waits for its whole time limit.
type denials struct {
	mu      sync.Mutex
	waiting map[*denial]struct{}
	// recent are subjects refused lately, for what was published before
	// anybody waited. Permissions can be widened on a running broker.
	recent map[string]time.Time
	// deaf is why no answer can come on this connection: the broker does not
	// let it listen on its own inbox. That lasts until it connects anew.
	deaf error
}

// remember is how long a refused subject is refused without asking again.
const remember = 10 * time.Second

type denial struct {
	subject string
	end     context.CancelCauseFunc
}

// about tells whether a refused subject is what is waited for, or below it.
func (w *denial) about(refused string) bool {
	return refused == w.subject || strings.HasPrefix(refused, w.subject+".")
}

// watch returns a context that ends with ErrDenied when the broker refuses a
// publish to subject, or below it. The caller calls stop.
func (d *denials) watch(ctx context.Context, subject string) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &denial{subject: subject, end: cancel}
	d.mu.Lock()
	if d.waiting == nil {
		d.waiting = map[*denial]struct{}{}
	}
	d.waiting[w] = struct{}{}
	for refused, at := range d.recent {
		if w.about(refused) && time.Since(at) < remember {
			cancel(denied(refused))
		}
	}
	if d.deaf != nil {
		cancel(d.deaf)
	}
	d.mu.Unlock()
	return ctx, func() {
		d.mu.Lock()
		delete(d.waiting, w)
		d.mu.Unlock()
		cancel(nil)
	}
}

// refuse ends those that wait for subject; false if nobody does.
func (d *denials) refuse(subject string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.recent == nil || len(d.recent) > 100 {
		d.recent = map[string]time.Time{}
	}
	d.recent[subject] = time.Now()
	found := false
	for w := range d.waiting {
		if w.about(subject) {
			w.end(denied(subject))
			found = true
		}
	}
	return found
}

// deafen ends all that wait: their answers would go to an inbox that the
// broker does not let this connection listen on.
func (d *denials) deafen(inbox string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deaf = fmt.Errorf("%w: subscribe to %s (a user of another role? check WALHERD_NATS_USER and what it may subscribe to)", ErrDenied, inbox)
	for w := range d.waiting {
		w.end(d.deaf)
	}
}

// hear forgets that the connection was deaf: a new one may not be.
func (d *denials) hear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deaf = nil
}

func denied(subject string) error { return fmt.Errorf("%w: publish to %s", ErrDenied, subject) }

// deniedSubject reads the subject out of the broker's complaint, the only
// place it is in: Permissions Violation for Publish to "SUBJECT".
func deniedSubject(err error) (string, bool) { return complaint(err, "Publish to \"") }

// deniedSubscription is deniedSubject of a subscription.
func deniedSubscription(err error) (string, bool) { return complaint(err, "Subscription to \"") }

func complaint(err error, what string) (string, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	_, rest, ok := strings.Cut(err.Error(), what)
	if !ok {
		return "", false
	}
	subject, _, ok := strings.Cut(rest, "\"")
	return subject, ok
}

// ended prefers the reason a context ended for to the error that a library
// made of it.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		if cause := context.Cause(ctx); errors.Is(cause, ErrDenied) {
			return cause
		}
	}
	return err
}
