// Package intake turns a transfer into the bytes of an object: receive,
// verify, compress, and (when a key is configured) seal, as one stream between
// the carrier and the bucket. Nothing is staged: a few compression blocks are
// all that is held.
package intake

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/messages/transit"
)

// Codec says how objects are written and read: compressed, then sealed. The
// zero value stores bytes as they come.
type Codec struct {
	Compress compress.Options
	// Sealer encrypts objects; nil stores them in plain.
	Sealer seal.Sealer
}

// Open undoes the stages of a stored object whose name ends in ext, "" for one
// that is not compressed. What the reader gives is unproven until io.EOF. The
// caller closes the reader, which leaves stored open.
func (c Codec) Open(ctx context.Context, stored io.Reader, ext string) (io.ReadCloser, error) {
	method, err := compress.ByExtension(ext)
	if err != nil {
		return nil, err
	}
	if c.Sealer == nil {
		return compress.NewReader(stored, method, c.Compress.Workers)
	}
	opened, err := c.Sealer.Open(ctx, stored)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	plain, err := compress.NewReader(opened, method, c.Compress.Workers)
	if err != nil {
		_ = opened.Close() // nothing was read
		return nil, err
	}
	return &openedReader{ReadCloser: plain, sealed: opened}, nil
}

// openedReader reads the decompressed stream, and at its end what is left of
// the sealed one: its authentication comes last, and a decompressor may stop at
// its own end mark before it.
type openedReader struct {
	io.ReadCloser
	sealed io.ReadCloser
	proven bool
}

func (r *openedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err == io.EOF && !r.proven {
		extra, serr := io.Copy(io.Discard, r.sealed)
		switch {
		case serr != nil:
			return n, serr
		case extra > 0:
			return n, fmt.Errorf("%w: %d bytes follow the compressed data", seal.ErrCorrupt, extra)
		}
		r.proven = true
	}
	return n, err
}

func (r *openedReader) Close() error {
	return errors.Join(r.ReadCloser.Close(), r.sealed.Close())
}

// Extension is what is appended to the name of an object, with its dot.
func (c Codec) Extension() string {
	if c.Compress.Method == "" || c.Compress.Method.Extension() == "" {
		return ""
	}
	return "." + c.Compress.Method.Extension()
}

// Store receives everything from r and passes the encoded bytes to put as a
// reader. It returns the count of bytes before encoding. When the transfer or
// an encoding stage fails, put's reader fails with that error, so that put
// stores nothing; when put fails, the stages end. r is not closed.
func Store(ctx context.Context, r transit.Receiver, c Codec, put func(io.Reader) error) (int64, error) {
	pr, pw := io.Pipe()
	type result struct {
		n   int64
		err error
	}
	received := make(chan result, 1)
	go func() {
		n, err := encode(ctx, pw, r, c)
		pw.CloseWithError(err) // nil is io.EOF
		received <- result{n, err}
	}()
	err := put(pr)
	if err != nil {
		pr.CloseWithError(err)
	} else {
		// A put that stopped reading early has not stored everything.
		pr.CloseWithError(io.ErrClosedPipe)
	}
	got := <-received
	switch {
	case err != nil:
		return got.n, err
	case got.err != nil:
		return got.n, got.err
	}
	return got.n, nil
}

func encode(ctx context.Context, w io.Writer, r transit.Receiver, c Codec) (int64, error) {
	stages := []stage{}
	if c.Sealer != nil {
		sealed, err := c.Sealer.Seal(ctx, w)
		if err != nil {
			return 0, fmt.Errorf("encrypt: %w", err)
		}
		w, stages = sealed, append(stages, sealed)
	}
	if c.Compress.Method != "" {
		packed, err := compress.NewWriter(w, c.Compress)
		if err != nil {
			abort(stages)
			return 0, fmt.Errorf("start compression: %w", err)
		}
		w, stages = packed, append(stages, packed)
	}
	n, err := transit.Copy(ctx, w, r)
	if err != nil {
		abort(stages)
		return n, err
	}
	for i := len(stages) - 1; i >= 0; i-- {
		if err := stages[i].Close(); err != nil {
			abort(stages[:i])
			return n, fmt.Errorf("encode: %w", err)
		}
	}
	return n, nil
}

// stage is a writer that ends well or not at all.
type stage interface {
	io.WriteCloser
	Abort()
}

// abort gives the stages up, the last one first: half a transfer must not end
// as a well-formed object.
func abort(stages []stage) {
	for i := len(stages) - 1; i >= 0; i-- {
		stages[i].Abort()
	}
}
