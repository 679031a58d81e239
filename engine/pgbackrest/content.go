package pgbackrest

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/restore"
	"github.com/walherd/walherd/engine/seal"
)

// content reads what is stored of one file: decrypted, decompressed, and
// checked against size and SHA-1 before it ends with io.EOF. Damage is
// ErrCorrupt.
type content struct {
	plain, opened io.Reader
	closers       []io.Closer
	sum           hash.Hash
	want          [sha1Len]byte
	// left is how many bytes are still to come; with open, it is not known.
	left int64
	open bool
	// unproven tells that no SHA-1 is known.
	unproven bool
	err      error
}

// newContent reads stored to its end. A size below 0 is not known.
func newContent(stored io.Reader, passphrase string, readers *compress.Readers, method compress.Method, size int64, want [sha1Len]byte) (*content, error) {
	c := &content{opened: stored, sum: sha1.New(), want: want, left: size, open: size < 0}
	if passphrase != "" {
		opened := seal.OpenSaltedCBC(stored, passphrase)
		c.opened, c.closers = opened, append(c.closers, opened)
	}
	plain, err := readers.New(c.opened, method)
	if err != nil {
		return nil, err
	}
	c.plain, c.closers = plain, append(c.closers, plain)
	return c, nil
}

// Read implements io.Reader.
func (c *content) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.plain.Read(p)
	c.sum.Write(p[:n])
	c.left -= int64(n)
	switch {
	case !c.open && c.left < 0:
		c.err = corrupt("it is longer than it was")
		return 0, c.err
	case errors.Is(err, compress.ErrCorrupt), errors.Is(err, seal.ErrCorrupt):
		err = corrupt("%w", err)
	case err == io.EOF:
		err = c.end()
	}
	c.err = err
	return n, err
}

// end looks at what is known only at the end.
func (c *content) end() error {
	// A decompressor may stop at its own end mark; behind it is nothing, and
	// the cipher's padding is looked at.
	n, err := io.Copy(io.Discard, c.opened)
	switch {
	case errors.Is(err, seal.ErrCorrupt):
		return corrupt("%w", err)
	case err != nil:
		return err
	case n > 0:
		return corrupt("%d bytes follow its compressed data", n)
	case !c.open && c.left > 0:
		return corrupt("it is %d bytes shorter than it was", c.left)
	}
	if got := c.sum.Sum(nil); !c.unproven && !bytes.Equal(got, c.want[:]) {
		return corrupt("its SHA-1 is %s, and was %s", hex.EncodeToString(got), hex.EncodeToString(c.want[:]))
	}
	return io.EOF
}

// Close implements io.Closer. The stored stream is closed if it is among the
// closers.
func (c *content) Close() error {
	var errs []error
	for _, x := range c.closers {
		errs = append(errs, x.Close())
	}
	c.closers = nil
	return errors.Join(errs...)
}

// filesSource is a plan's restore.FilesSource.
type filesSource struct {
	r       *Repository
	p       *Plan
	readers *compress.Readers
}

// Open implements restore.FilesSource.
func (s filesSource) Open(ctx context.Context, i int) (restore.Contents, error) {
	b := s.p.batches[i]
	c := &contents{batch: b, readers: s.readers, method: s.p.manifest.method, passphrase: s.p.manifest.passphrase, at: b.offset}
	if b.object == "" {
		return c, nil
	}
	var err error
	c.stored, err = s.r.store.Open(ctx, b.object, b.offset, b.length)
	return c, err
}

// contents are the files of one batch.
type contents struct {
	batch
	readers    *compress.Readers
	method     compress.Method
	passphrase string
	stored     io.ReadCloser // nil if all files are empty
	at         int64
	next       int
	last       *content
}

// Next implements restore.Contents.
func (c *contents) Next() (io.Reader, error) {
	if err := c.closeLast(); err != nil {
		return nil, err
	}
	f := c.files[c.next]
	c.next++
	if c.stored == nil {
		return bytes.NewReader(nil), nil
	}
	stored := io.Reader(c.stored)
	if c.length > 0 {
		if _, err := io.CopyN(io.Discard, c.stored, f.offset-c.at); err != nil {
			return nil, fmt.Errorf("read bundle: %w", err)
		}
		c.at = f.offset + f.Stored
		stored = io.LimitReader(c.stored, f.Stored)
	}
	var err error
	c.last, err = newContent(stored, c.passphrase, c.readers, c.method, f.Size, f.SHA1)
	return c.last, err
}

func (c *contents) closeLast() error {
	if c.last == nil {
		return nil
	}
	last := c.last
	c.last = nil
	return last.Close()
}

// Close implements restore.Contents.
func (c *contents) Close() error {
	err := c.closeLast()
	if c.stored != nil {
		err = errors.Join(err, c.stored.Close())
	}
	return err
}
