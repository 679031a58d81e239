package pieces

import (
	"bytes"
	"context"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/walherd/walherd/storage"
)

// Sum is the checksum a store keeps of a whole object.
type Sum struct {
	Name string // CRC32C, MD5
	Hash hash.Hash
	Want []byte // as Hash.Sum gives it
}

// BodyOptions say what a Body reads for whom.
type BodyOptions struct {
	// Ctx is the caller's; Cancel ends the one that Source lives in.
	Ctx    context.Context
	Cancel context.CancelFunc
	// Where names the object in errors: s3://bucket/key.
	Where string
	Info  storage.Info
	Known bool // Info is
	// Left is how many bytes Source gives.
	Left   int64
	Source io.ReadCloser
	// Sum holds a whole object against its checksum; nil for a part, or
	// where the store keeps none.
	Sum *Sum
}

// Body is what a caller of Open reads; it is a storage.Describer. A body whose
// checksum does not fit ends with storage.ErrPermanent instead of io.EOF: its
// bytes are delivered already, so no continuation can mend them.
type Body struct {
	opt    BodyOptions
	err    error // the end
	closed atomic.Bool
}

// NewBody makes a body, which owns Source and Cancel.
func NewBody(o BodyOptions) *Body { return &Body{opt: o} }

// Info implements storage.Describer.
func (d *Body) Info() (storage.Info, bool) { return d.opt.Info, d.opt.Known }

// Read implements io.Reader.
func (d *Body) Read(p []byte) (int, error) {
	o := &d.opt
	if d.closed.Load() {
		return 0, d.end(ErrClosed)
	}
	if err := o.Ctx.Err(); err != nil {
		return 0, d.end(err)
	}
	if d.err != nil {
		return 0, d.err
	}
	n, err := o.Source.Read(p)
	o.Left -= int64(n)
	if o.Sum != nil {
		o.Sum.Hash.Write(p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case o.Ctx.Err() != nil:
		d.err = d.end(o.Ctx.Err())
	case d.closed.Load():
		d.err = d.end(ErrClosed)
	case err != io.EOF:
		d.err = fmt.Errorf("read %s, %d bytes before its end: %w: %w", o.Where, o.Left, io.ErrUnexpectedEOF, err)
	default:
		d.err = d.prove()
	}
	return n, d.err
}

func (d *Body) end(err error) error { return fmt.Errorf("read %s: %w", d.opt.Where, err) }

// prove is io.EOF if the bytes are those the store keeps the sum of.
func (d *Body) prove() error {
	sum := d.opt.Sum
	if sum == nil {
		return io.EOF
	}
	if got := sum.Hash.Sum(nil); !bytes.Equal(got, sum.Want) {
		return fmt.Errorf("read %s: its bytes have the %s %x, the store keeps %x: they are damaged; read it again, and if that does not help restore the object from elsewhere: %w",
			d.opt.Where, sum.Name, got, sum.Want, storage.ErrPermanent)
	}
	return io.EOF
}

// Close ends the body, also while a Read waits.
func (d *Body) Close() error {
	d.closed.Store(true)
	d.opt.Cancel()
	return d.opt.Source.Close()
}
