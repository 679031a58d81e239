package storage

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
)

// Sub is the part of b below prefix as a Bucket of its own: "x" in it is
// prefix + "/" + "x" in b. Slashes around prefix do not count; an empty
// prefix is b itself. The store's errors name the object as b does.
func Sub(b Bucket, prefix string) (Bucket, error) {
	prefix = strings.Trim(prefix, "/")
	if prefix == "" {
		return b, nil
	}
	if err := CheckName(prefix); err != nil {
		return nil, fmt.Errorf("use storage prefix: %w", err)
	}
	return &sub{b: b, prefix: prefix + "/"}, nil
}

type sub struct {
	b      Bucket
	prefix string // ends in a slash
}

func (s *sub) Put(ctx context.Context, name string, r io.Reader, opt PutOptions) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	info, err := s.b.Put(ctx, s.prefix+name, r, opt)
	return s.strip(info), err
}

func (s *sub) Open(ctx context.Context, name string, rng Range) (io.ReadCloser, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	body, err := s.b.Open(ctx, s.prefix+name, rng)
	if err != nil {
		return nil, err
	}
	return &subBody{ReadCloser: body, sub: s}, nil
}

func (s *sub) Stat(ctx context.Context, name string) (Info, error) {
	if err := CheckName(name); err != nil {
		return Info{}, err
	}
	info, err := s.b.Stat(ctx, s.prefix+name)
	return s.strip(info), err
}

func (s *sub) List(ctx context.Context, prefix string, opt ListOptions) iter.Seq2[Info, error] {
	if opt.After != "" {
		opt.After = s.prefix + opt.After
	}
	return func(yield func(Info, error) bool) {
		for info, err := range s.b.List(ctx, s.prefix+prefix, opt) {
			if !yield(s.strip(info), err) {
				return
			}
		}
	}
}

func (s *sub) Delete(ctx context.Context, names ...string) error {
	if err := CheckNames(names); err != nil {
		return err
	}
	full := make([]string, len(names))
	for i, name := range names {
		full[i] = s.prefix + name
	}
	return s.b.Delete(ctx, full...)
}

func (s *sub) strip(info Info) Info {
	info.Name = strings.TrimPrefix(info.Name, s.prefix)
	return info
}

type subBody struct {
	io.ReadCloser
	sub *sub
}

func (b *subBody) Info() (Info, bool) {
	info, ok := InfoOf(b.ReadCloser)
	return b.sub.strip(info), ok
}
