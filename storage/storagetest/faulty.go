package storagetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/walherd/walherd/storage"
)

// Op is an operation of a Bucket.
type Op string

// The operations.
const (
	Put    Op = "put"
	Open   Op = "open"
	Stat   Op = "stat"
	List   Op = "list"
	Delete Op = "delete"
)

// ErrInjected is the error of a fault that names none. It is one that a retry
// may mend.
var ErrInjected = errors.New("injected fault")

// Fault is one thing that goes wrong, once or always.
type Fault struct {
	// Op is the operation it hits.
	Op Op
	// Name, if not empty, restricts it to calls on that object (for List:
	// the prefix; for Delete: the first name).
	Name string
	// Nth is which of the calls that match Op and Name fails, counted from
	// 1 after the fault was added; 0 is every one.
	Nth int
	// Gate, if not nil, delays the call until it is closed or yields, or
	// the context ends. A fault with a Gate, no Err and no Bytes only
	// delays.
	Gate <-chan struct{}
	// Bytes lets so many bytes of a Put's reader or an Open's body pass
	// (for List: so many entries) before the fault; 0 fails the call
	// before it does anything. A negative number is a body that opens
	// well and fails at its first byte.
	Bytes int64
	// Late does the operation whole and then loses the answer.
	Late bool
	// Silent ends a body after Bytes with io.EOF instead of an error: what
	// a Bucket promises not to do, for tests of those who check.
	Silent bool
	// Err is what the call or the body fails with; nil is ErrInjected.
	Err error
}

func (f *Fault) err() error {
	if f.Err != nil {
		return f.Err
	}
	return ErrInjected
}

func (f *Fault) delaysOnly() bool {
	return f.Gate != nil && f.Err == nil && f.Bytes == 0 && !f.Late && !f.Silent
}

// Call is one call a Faulty received, also when a fault hit it.
type Call struct {
	Op   Op
	Name string // as in Fault
	// Names of a Delete.
	Names []string
	// Range of an Open.
	Range storage.Range
	// List options.
	List storage.ListOptions
}

// Faulty is a Bucket that fails as told and keeps a record of the calls. It is
// safe for concurrent use.
type Faulty struct {
	b storage.Bucket

	mu     sync.Mutex
	faults []*script
	calls  []Call
}

type script struct {
	Fault
	seen int
}

var _ storage.Bucket = (*Faulty)(nil)

// NewFaulty wraps b, without faults at first.
func NewFaulty(b storage.Bucket, faults ...Fault) *Faulty {
	f := &Faulty{b: b}
	f.Add(faults...)
	return f
}

// Add adds faults. When several hit one call the first added counts.
func (f *Faulty) Add(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fault := range faults {
		f.faults = append(f.faults, &script{Fault: fault})
	}
}

// Clear removes all faults.
func (f *Faulty) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Calls is the record so far, in the order the calls began.
func (f *Faulty) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Call(nil), f.calls...)
}

// begin records the call, finds its fault and waits at the gate. The fault
// returned is nil when the call is to go its way.
func (f *Faulty) begin(ctx context.Context, call Call) (*Fault, error) {
	fault := f.match(call)
	if fault == nil {
		return nil, nil
	}
	if fault.Gate != nil {
		select {
		case <-fault.Gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch {
	case fault.delaysOnly():
		return nil, nil
	case fault.Bytes == 0 && !fault.Late && !fault.Silent:
		return nil, fmt.Errorf("%s %s: %w", call.Op, call.Name, fault.err())
	}
	return fault, nil
}

func (f *Faulty) match(call Call) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	var hit *Fault
	for _, s := range f.faults {
		if s.Op != call.Op || s.Name != "" && s.Name != call.Name {
			continue
		}
		s.seen++
		if hit == nil && (s.Nth == 0 || s.Nth == s.seen) {
			hit = &s.Fault
		}
	}
	return hit
}

// late loses the answer of an operation that succeeded.
func late(fault *Fault, call Op, name string, err error) error {
	if err == nil && fault != nil && fault.Late {
		return fmt.Errorf("%s %s: answer lost: %w", call, name, fault.err())
	}
	return err
}

// Put implements storage.Bucket.
func (f *Faulty) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	fault, err := f.begin(ctx, Call{Op: Put, Name: name})
	if err != nil {
		return storage.Info{}, err
	}
	if fault != nil && fault.Bytes != 0 {
		r = &cutReader{r: r, left: max(fault.Bytes, 0), err: fault.err()}
	}
	info, err := f.b.Put(ctx, name, r, opt)
	return info, late(fault, Put, name, err)
}

// Open implements storage.Bucket.
func (f *Faulty) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	fault, err := f.begin(ctx, Call{Op: Open, Name: name, Range: rng})
	if err != nil {
		return nil, err
	}
	body, err := f.b.Open(ctx, name, rng)
	if err != nil || fault == nil || fault.Late {
		if err == nil && fault != nil {
			body.Close()
			return nil, late(fault, Open, name, nil)
		}
		return body, err
	}
	cut := &cutReader{r: body, left: max(fault.Bytes, 0), err: fault.err()}
	if fault.Silent {
		cut.err = io.EOF
	}
	return &cutBody{cutReader: cut, body: body}, nil
}

// Stat implements storage.Bucket.
func (f *Faulty) Stat(ctx context.Context, name string) (storage.Info, error) {
	fault, err := f.begin(ctx, Call{Op: Stat, Name: name})
	if err != nil {
		return storage.Info{}, err
	}
	info, err := f.b.Stat(ctx, name)
	return info, late(fault, Stat, name, err)
}

// List implements storage.Bucket.
func (f *Faulty) List(ctx context.Context, prefix string, opt storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		fault, err := f.begin(ctx, Call{Op: List, Name: prefix, List: opt})
		if err != nil {
			yield(storage.Info{}, err)
			return
		}
		var passed int64
		for info, err := range f.b.List(ctx, prefix, opt) {
			if fault != nil && err == nil && passed >= fault.Bytes {
				yield(storage.Info{}, fmt.Errorf("list %s: %w", prefix, fault.err()))
				return
			}
			passed++
			if !yield(info, err) {
				return
			}
		}
	}
}

// Delete implements storage.Bucket.
func (f *Faulty) Delete(ctx context.Context, names ...string) error {
	call := Call{Op: Delete, Names: append([]string(nil), names...)}
	if len(names) > 0 {
		call.Name = names[0]
	}
	fault, err := f.begin(ctx, call)
	if err != nil {
		return err
	}
	return late(fault, Delete, call.Name, f.b.Delete(ctx, names...))
}

// cutReader yields left bytes of r, then err; the end of r if that is sooner.
type cutReader struct {
	r    io.Reader
	left int64
	err  error
}

func (c *cutReader) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, c.err
	}
	if int64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	return n, err
}

type cutBody struct {
	*cutReader
	body io.ReadCloser
}

func (b *cutBody) Info() (storage.Info, bool) { return storage.InfoOf(b.body) }

func (b *cutBody) Close() error { return b.body.Close() }
