package swift

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	ncw "github.com/ncw/swift/v2"

	"github.com/walherd/walherd/storage"
)

// markHeader is the metadata in which each Put leaves a random mark: with it
// an object whose store's answer was lost tells whether it is ours.
const markHeader = "X-Object-Meta-Walherd-Put"

// put is one Put.
type put struct {
	b        *Bucket
	name     string
	key      string
	ifAbsent bool
	mark     string
	size     int64
	etag     string
}

// Put implements storage.Bucket. It holds Options.BufferSize bytes. Content up
// to that goes with its MD5, which the store checks before it shows the
// object; longer content is streamed and the store's MD5 compared after: what
// was damaged under way is removed again.
//
// Content of more than Options.MaxObject bytes goes in segments, which are
// removed when the Put fails. The length is known of a reader with Len() int
// (bytes.Reader, bytes.Buffer, strings.Reader) and of a regular file. When
// content of no known length turns out too large, Put fails with
// storage.ErrPermanent, unless Options.Segments is set.
//
// After storing it asks the store for the object's time. A store that does
// not answer that makes no failed Put: Modified is then this machine's time.
func (b *Bucket) Put(ctx context.Context, name string, r io.Reader, opt storage.PutOptions) (storage.Info, error) {
	key, err := b.key(name)
	if err != nil {
		return storage.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, b.explain(ctx, "put", key, err)
	}
	p := &put{b: b, name: name, key: key, ifAbsent: opt.IfAbsent, mark: strings.ToLower(rand.Text())}
	length, known := lengthOf(r)
	head, more, err := readHead(r, b.opt.BufferSize)
	if err != nil {
		return storage.Info{}, p.fail(ctx, &readError{err})
	}
	if err := ctx.Err(); err != nil {
		return storage.Info{}, p.fail(ctx, err)
	}
	old, err := p.oldSegments(ctx)
	if err != nil {
		return storage.Info{}, p.fail(ctx, err)
	}
	switch {
	case !more:
		err = p.plain(ctx, head, nil)
	case known && length > b.opt.MaxObject, !known && b.opt.Segments:
		err = p.large(ctx, io.MultiReader(bytes.NewReader(head), r))
	default:
		err = p.plain(ctx, head, r)
	}
	if err != nil {
		return storage.Info{}, p.fail(ctx, err)
	}
	info, err := p.describe(ctx)
	if err == nil {
		b.forget(ctx, old)
	}
	return info, err
}

// lengthOf is how much r will yield, if it can tell.
func lengthOf(r io.Reader) (int64, bool) {
	switch r := r.(type) {
	case interface{ Len() int }:
		return int64(r.Len()), true
	case *os.File:
		st, err := r.Stat()
		if err != nil || !st.Mode().IsRegular() {
			return 0, false
		}
		at, err := r.Seek(0, io.SeekCurrent)
		return st.Size() - at, err == nil
	}
	return 0, false
}

// readHead reads up to limit bytes, and tells whether there may be more. It
// takes memory as content arrives.
func readHead(r io.Reader, limit int) (head []byte, more bool, err error) {
	var buf bytes.Buffer
	n, err := io.CopyN(&buf, struct{ io.Reader }{r}, int64(limit))
	if err == io.EOF {
		return buf.Bytes(), false, nil
	}
	return buf.Bytes(), n == int64(limit), err
}

// fail words an error of this Put.
func (p *put) fail(ctx context.Context, err error) error {
	at := fmt.Sprintf("put swift://%s/%s", p.b.opt.Container, p.key)
	var read *readError
	switch {
	case errors.As(err, &read):
		return fmt.Errorf("%s: read the content: %w", at, read.err)
	case errors.Is(err, storage.ErrExist):
		return fmt.Errorf("%s: %w", at, storage.ErrExist)
	case errors.Is(err, errLarge):
		return fmt.Errorf("%s: %w (%d bytes), and its length was not known before: lower WALG_TAR_SIZE_THRESHOLD, or have large objects put in segments: %w",
			at, errLarge, p.b.opt.MaxObject, storage.ErrPermanent)
	case status(err) == http.StatusNotFound && ctx.Err() == nil:
		return p.b.noContainer("put into", err)
	}
	return p.b.explain(ctx, "put", p.key, err)
}

// plain sends the content in one request: head, and rest unless that is nil.
func (p *put) plain(ctx context.Context, head []byte, rest io.Reader) error {
	h := ncw.Headers{"Content-Type": "application/octet-stream", markHeader: p.mark}
	if p.ifAbsent {
		h["If-None-Match"] = "*"
	}
	u := newUpload(ctx, head, rest)
	u.limit = p.b.opt.MaxObject
	claimed := false
	claim := func() error {
		if claimed {
			return nil
		}
		if err := p.b.claim(ctx, p.key); err != nil {
			return err
		}
		claimed = true
		return nil
	}
	defer func() {
		if claimed {
			p.b.unclaim(p.key)
		}
	}()
	switch {
	case rest == nil:
		sum := md5.Sum(head)
		h["Etag"], h["Content-Length"] = hex.EncodeToString(sum[:]), strconv.Itoa(len(head))
		if p.ifAbsent {
			if err := claim(); err != nil {
				return err
			}
		}
	case p.ifAbsent:
		// The store looked when the upload began, which may be long ago.
		u.last = func() error {
			if err := claim(); err != nil {
				return err
			}
			_, err := p.b.head(ctx, p.key)
			if err == nil {
				return storage.ErrExist
			}
			if status(err) == http.StatusNotFound {
				return nil
			}
			return err
		}
	}
	_, err := p.send(ctx, ncw.RequestOpts{Container: p.b.opt.Container, ObjectName: p.key, Headers: h}, u)
	return err
}

// send puts u, again while that can help, and takes its size and sum. It
// tells whether the store may have it nevertheless when it fails.
func (p *put) send(ctx context.Context, opts ncw.RequestOpts, u *upload) (maybe bool, err error) {
	opts.Operation = http.MethodPut
	if opts.Headers["Content-Length"] != "0" {
		opts.Body = u
	}
	for try := 1; ; try++ {
		h, err := p.b.do(ctx, opts)
		if opts.Body == nil {
			u.ended = true
		}
		n, sum, ended, bad := u.detach()
		p.size, p.etag = n, sum
		switch {
		case bad != nil:
			return false, bad
		case err == nil && !ended:
			err = errors.New("the store answered before it had the whole content")
		case err == nil:
			return false, p.prove(ctx, opts, h, sum)
		}
		// A refusal is certain; after an error of the server, or without an
		// answer, what was sent may still become visible.
		maybe = maybe || ended && (status(err) == 0 || status(err) >= 500)
		if ctx.Err() != nil {
			return maybe, ctx.Err()
		}
		if status(err) == http.StatusPreconditionFailed && p.ifAbsent && !maybe {
			return false, storage.ErrExist
		}
		if maybe {
			// Was that our own, whose answer was lost?
			o, see := p.b.headIn(ctx, opts.Container, opts.ObjectName)
			switch {
			case see == nil && o.mark == p.mark && (o.static || o.size == n):
				return false, nil
			case see == nil && status(err) == http.StatusPreconditionFailed && p.ifAbsent:
				return false, storage.ErrExist
			}
		}
		if !passing(err) || try > p.b.opt.Retries || !u.attach() {
			return maybe, err
		}
		if err := p.b.pause(ctx, try); err != nil {
			return maybe, err
		}
	}
}

// prove compares the store's sum with ours. What differs is removed, if it is
// still there.
func (p *put) prove(ctx context.Context, opts ncw.RequestOpts, h ncw.Headers, sum string) error {
	got := strings.Trim(h["Etag"], `"`)
	if opts.Parameters != nil || got == "" || strings.EqualFold(got, sum) {
		return nil // of a manifest the store has checked the sum itself
	}
	err := fmt.Errorf("the store got other bytes than were sent: its MD5 is %s, ours %s", got, sum)
	ctx, cancel := cleanup(ctx)
	defer cancel()
	if o, see := p.b.headIn(ctx, opts.Container, opts.ObjectName); see == nil && o.mark == p.mark {
		if _, del := p.b.do(ctx, ncw.RequestOpts{Container: opts.Container, ObjectName: opts.ObjectName, Operation: http.MethodDelete}); del != nil {
			return fmt.Errorf("%w; and the damaged object could not be removed, delete it: %w", err, &failure{plain(del), del})
		}
	}
	return err
}

// cleanup is a context to clear up in when that of the caller may have ended.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
}

// describe asks for what Stat would tell, and holds the stored size against
// what was sent.
func (p *put) describe(ctx context.Context) (storage.Info, error) {
	info := storage.Info{Name: p.name, Size: p.size, Modified: time.Now().UTC().Truncate(time.Second)}
	o, err := p.b.head(ctx, p.key)
	if err != nil || o.mark == "" {
		return info, nil
	}
	if o.mark != p.mark {
		if p.ifAbsent { // of two at the same moment the other one stayed
			return storage.Info{}, p.fail(ctx, storage.ErrExist)
		}
		return info, nil
	}
	if o.size != p.size {
		return storage.Info{}, fmt.Errorf("put swift://%s/%s: the store holds %d bytes of %d", p.b.opt.Container, p.key, o.size, p.size)
	}
	info.Modified = o.modified
	return info, nil
}

// claim makes IfAbsent exact within the process.
func (b *Bucket) claim(ctx context.Context, key string) error {
	for {
		b.mu.Lock()
		held, taken := b.claims[key]
		if !taken {
			b.claims[key] = make(chan struct{})
		}
		b.mu.Unlock()
		if !taken {
			return nil
		}
		select {
		case <-held:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *Bucket) unclaim(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.claims[key])
	delete(b.claims, key)
}
