package gcs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/pieces"
)

// session is a resumable upload. The store takes its bytes in order, keeps
// what it got when a request breaks, and tells how far it came:
// https://cloud.google.com/storage/docs/performing-resumable-uploads
type session struct {
	*put
	url string // who knows it may write: it is never told
	at  int64  // bytes the store has
}

// errLost is a session whose beginning nobody has any more.
var errLost = errors.New("the store has lost the upload session or a part of it: upload the object anew")

// large uploads first and the rest of src. One chunk is sent while the next is
// read.
func (p *put) large(ctx context.Context, first *pieces.Content, src *pieces.Source, whole hash.Hash32) (*object, error) {
	// Looked for before gigabytes are sent; the store decides at the end.
	if p.ifAbsent {
		switch _, err := p.b.stat(ctx, p.key, 0); {
		case err == nil:
			return nil, storage.ErrExist
		case status(err) != http.StatusNotFound:
			return nil, err
		}
	}
	p.mark = rand.Text()
	s := &session{put: p}
	err := s.begin(ctx)
	var done *object
	if err == nil {
		done, err = s.run(ctx, first, src, whole)
	}
	if err != nil {
		s.abort(ctx)
	}
	return done, err
}

type sent struct {
	done *object // of the last chunk
	err  error
}

func (s *session) run(ctx context.Context, c *pieces.Content, src *pieces.Source, whole hash.Hash32) (*object, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for more := true; ; {
		out := make(chan sent, 1)
		last := !more
		if last {
			s.size, s.crc = src.Size(), whole.Sum32()
		}
		go func(c *pieces.Content) {
			done, err := s.send(ctx, c, last)
			if err != nil {
				cancel(err)
			}
			out <- sent{done, err}
		}(c)
		if last {
			result := <-out
			c.Release()
			return result.done, result.err
		}
		next := pieces.NewContent(s.b.mem.pool)
		var err error
		if more, err = next.Fill(ctx, src, s.b.mem.share()); err != nil {
			cancel(err)
		}
		result := <-out
		// The first failure is the cause of the other.
		if err = errors.Join(err, result.err); err != nil {
			c.Release()
			next.Release()
			return nil, context.Cause(ctx)
		}
		c.Release()
		c = next
	}
}

// begin opens the session.
func (s *session) begin(ctx context.Context) error {
	data := s.resource("")
	a, err := s.b.do(ctx, &request{
		method: http.MethodPost, url: s.uploadURL("resumable"), secret: true,
		header: http.Header{"Content-Type": {"application/json; charset=UTF-8"}, "X-Upload-Content-Type": {contentType}},
		size:   int64(len(data)),
		body:   func(func()) io.ReadCloser { return io.NopCloser(bytes.NewReader(data)) },
	})
	if err != nil {
		if s.ifAbsent && status(err) == http.StatusPreconditionFailed {
			return storage.ErrExist
		}
		return err
	}
	s.url, s.at = a.header.Get("Location"), 0
	if s.url == "" {
		return errors.New("the store opens an upload session and does not tell where")
	}
	return nil
}

// send has the store take a chunk, the one behind what it has. The last one
// makes the object.
func (s *session) send(ctx context.Context, c *pieces.Content, last bool) (*object, error) {
	ctx, cancel := s.b.limited(ctx)
	defer cancel()
	start, tries, attempts := s.at, s.b.newTries(), 0
	ask := false // how far it came is not known
	for {
		before := s.at
		attempts++
		done, err := s.push(ctx, c, start, last, ask)
		gone := status(err) == http.StatusNotFound || status(err) == http.StatusGone
		switch {
		case err == nil && done != nil:
			if !last {
				return nil, fmt.Errorf("the store ended the upload after %d bytes", start+c.Size())
			}
			return done, nil
		case err == nil && (s.at < start || s.at > start+c.Size()):
			return nil, fmt.Errorf("%w (it has %d bytes, and had %d)", errLost, s.at, before)
		case err == nil && !last && s.at == start+c.Size():
			return nil, nil
		case err == nil:
			// It kept a part of what was sent, or it told what it has: go on
			// from there.
			if s.at > before {
				tries.Reset()
			}
			if ask || s.at > before {
				ask = false
				continue
			}
			err = fmt.Errorf("%w: it has %d bytes after %d were sent", errIdle, s.at, start+c.Size())
		case gone:
			// The last answer may have been lost, and the session with it.
			if last {
				if o, made := s.made(ctx); made {
					return o, nil
				}
			}
			if start > 0 || attempts > maxSessions {
				return nil, errLost
			}
			// All of it is still here.
			if err := s.begin(ctx); err != nil {
				return nil, err
			}
			ask = false
			continue
		case status(err) == http.StatusPreconditionFailed:
			return s.refused(ctx, attempts, err)
		}
		if err := tries.Again(ctx, err); err != nil {
			return nil, err
		}
		ask = true
	}
}

// maxSessions is how many sessions in a row may expire at once.
const maxSessions = 3

var errIdle = errors.New("the store took nothing of the chunk")

// push sends what the store does not have of a chunk, or asks what it has. It
// gives the object when that is made, and else moves s.at.
func (s *session) push(ctx context.Context, c *pieces.Content, start int64, last, ask bool) (*object, error) {
	total := "*"
	header := http.Header{}
	if last {
		total = strconv.FormatInt(s.size, 10)
		// The whole is checked before the object appears.
		header.Set("X-Goog-Hash", "crc32c="+encodeCRC(s.crc))
	}
	done := new(object)
	r := &request{method: http.MethodPut, url: s.url, header: header, secret: true, into: done, unfinished: true}
	if rest := start + c.Size() - s.at; ask || rest == 0 {
		// Of all bytes, this also makes the object.
		header.Set("Content-Range", "bytes */"+total)
		r.body = func(func()) io.ReadCloser { return http.NoBody }
	} else {
		from := s.at - start
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", s.at, start+c.Size()-1, total))
		r.size = rest
		r.body = func(touch func()) io.ReadCloser { return c.Reader(from, touch) }
	}
	a, err := s.b.once(ctx, r)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusPermanentRedirect {
		return done, nil
	}
	s.at, err = persisted(a.header)
	return nil, err
}

// persisted reads how many bytes an unfinished upload has: "Range: bytes=0-99"
// is a hundred, no header is none.
func persisted(h http.Header) (int64, error) {
	value := h.Get("Range")
	if value == "" {
		return 0, nil
	}
	_, end, ok := strings.Cut(strings.TrimPrefix(value, "bytes="), "-")
	n, err := strconv.ParseInt(end, 10, 64)
	if !ok || err != nil || n < 0 || !strings.HasPrefix(value, "bytes=0-") {
		return 0, fmt.Errorf("the store tells the range %q of an upload", value)
	}
	return n + 1, nil
}

// abort cancels the session. Failing to do so costs nothing: unfinished uploads
// are no objects, are not charged for, and expire.
func (s *session) abort(ctx context.Context) {
	if s.url == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	// 499 is the answer to success.
	s.b.once(ctx, &request{method: http.MethodDelete, url: s.url, body: func(func()) io.ReadCloser { return http.NoBody }})
}
