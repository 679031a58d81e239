package swift

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"sync"
)

// upload is the body of one PUT: a head that is held in memory and the rest,
// which can be read once. It stands between the caller's reader and the HTTP
// transport, which may go on reading after its answer.
type upload struct {
	ctx  context.Context
	head []byte
	rest io.Reader // nil: the head is all
	// limit of bytes; 0 is none.
	limit int64
	// last is called before the end is told, and may forbid it.
	last func() error

	mu      sync.Mutex
	at      int // in head
	n       int64
	sum     hash.Hash
	touched bool // the rest was read from
	over    bool // the transport may read no more
	ended   bool // all was handed out
	err     error
}

var (
	errLarge    = errors.New("the content is larger than one object may be")
	errDetached = errors.New("the upload is over")
)

func newUpload(ctx context.Context, head []byte, rest io.Reader) *upload {
	return &upload{ctx: ctx, head: head, rest: rest, sum: md5.New()}
}

// Read implements io.Reader. What it fails with cuts the request short, so
// that the store drops what it got.
func (u *upload) Read(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return 0, errDetached
	}
	if u.err != nil {
		return 0, u.err
	}
	if u.ended {
		return 0, io.EOF
	}
	if u.at < len(u.head) {
		n := copy(p, u.head[u.at:])
		u.at += n
		u.count(p[:n])
		return n, nil
	}
	if u.rest == nil {
		return u.end()
	}
	u.touched = true
	n, err := u.rest.Read(p)
	u.count(p[:n])
	switch {
	case err != nil && err != io.EOF:
		u.err = &readError{err}
	case u.limit > 0 && u.n > u.limit:
		u.err = errLarge
	case err == io.EOF && n == 0:
		return u.end()
	case err == io.EOF:
		u.rest, u.touched = nil, true // told at the next call
	}
	return n, u.err
}

func (u *upload) count(p []byte) {
	u.sum.Write(p)
	u.n += int64(len(p))
}

// end tells the end, after which the store may keep the object.
func (u *upload) end() (int, error) {
	if u.err = u.ctx.Err(); u.err == nil && u.last != nil {
		u.err = u.last()
	}
	if u.err != nil {
		return 0, u.err
	}
	u.ended = true
	return 0, io.EOF
}

// Seek rewinds, for the library, which sends a body again after it got a new
// token. It fails when the content cannot be read again.
func (u *upload) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, errors.New("only the start can be sought")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.touched || u.err != nil {
		return 0, errors.New("the content cannot be read a second time")
	}
	u.at, u.n, u.ended = 0, 0, false
	u.sum.Reset()
	return 0, nil
}

// detach waits for a Read under way and forbids more: the caller's reader is
// the caller's again. It tells what was read.
func (u *upload) detach() (n int64, etag string, ended bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	return u.n, hex.EncodeToString(u.sum.Sum(nil)), u.ended, u.err
}

// attach undoes detach for another try; false when the content is gone.
func (u *upload) attach() bool {
	if _, err := u.Seek(0, io.SeekStart); err != nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = false
	return true
}

// readError is an error of the caller's reader, not of the store.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }
