// Package intake turns a transfer into the bytes of an object: receive,
// verify, compress, and (when a key is configured) seal, as one stream between
// the carrier and the bucket. Nothing is staged: a few compression blocks are
// all that is held.
package intake

import (
	"context"
	"fmt"
	"io"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/messages/transit"
)

// Codec says how objects are written. The zero value stores bytes as they
// come.
type Codec struct {
	Compress compress.Options
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
	if c.Compress.Method == "" {
		return transit.Copy(ctx, w, r)
	}
	z, err := compress.NewWriter(w, c.Compress)
	if err != nil {
		return 0, fmt.Errorf("start compression: %w", err)
	}
	n, err := transit.Copy(ctx, z, r)
	if err != nil {
		// Half a transfer must not end as a well-formed object.
		z.Abort()
		return n, err
	}
	if err := z.Close(); err != nil {
		return n, fmt.Errorf("compress: %w", err)
	}
	return n, nil
}
