package delta

import (
	"fmt"
	"io"
)

// Partial is a file under restore from its newest version back: which of its
// pages no version has given yet. Those read as zeros meanwhile.
//
// Which pages are missing is remembered, not read off the file: a page may be
// zero because the newest version has it so, and must not be filled from an
// older one. WAL-G tells by the page's first 24 bytes and brings the old page
// back.
type Partial struct {
	pageSize int64
	missing  *set
}

// Create makes f, whatever is in it, the newest version as far as its increment
// goes. Failures are as those of Apply, and so is trying again.
func Create(f File, d *Reader, progress func(n int64)) (*Partial, error) {
	p := &Partial{pageSize: d.pageSize, missing: fullSet(d.pages.limit)}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("begin file with an increment: %w", &WriteError{err})
	}
	for first, n := range d.pages.runs() {
		for b := first; b < first+n; b++ {
			p.missing.remove(b)
		}
	}
	if err := Apply(f, d, progress); err != nil {
		return nil, err
	}
	return p, nil
}

// Complete reports whether no page is missing.
func (p *Partial) Complete() bool { return p.missing.empty() }

// Fill writes those pages of an older increment that are missing.
func (p *Partial) Fill(f File, d *Reader, progress func(n int64)) error {
	// What this version did not have, no older one may give: the file was
	// shorter here, so the pages beyond are zeros.
	p.missing.cut(d.fileSize / p.pageSize)
	err := p.fill(f, d, progress)
	if err != nil {
		return fmt.Errorf("fill in an increment: %w", err)
	}
	return nil
}

func (p *Partial) fill(f File, d *Reader, progress func(int64)) error {
	buf := make([]byte, min(bufferSize, max(d.fileSize, 1)))
	for first, n := range d.pages.runs() {
		if err := p.stretch(f, d.r, first, first+n, buf, progress); err != nil {
			return err
		}
		for b := first; b < min(first+n, p.missing.limit); b++ {
			p.missing.remove(b)
		}
	}
	return d.finish()
}

// FillWhole writes the missing pages from the oldest version, which is whole
// and size bytes long. Nothing is missing afterwards.
func (p *Partial) FillWhole(f File, content io.Reader, size int64, progress func(n int64)) error {
	buf := make([]byte, min(bufferSize, max(size, 1)))
	whole := size / p.pageSize
	err := p.stretch(f, content, 0, whole, buf, progress)
	if rest := size % p.pageSize; err == nil && rest > 0 {
		// Half a page, of a file that was no whole number of pages then.
		if p.missing.has(whole) {
			err = copyRange(f, whole*p.pageSize, rest, content, buf, progress)
		} else {
			_, err = io.CopyN(io.Discard, content, rest)
			err = unexpected(err)
		}
	}
	if err != nil {
		return fmt.Errorf("fill in a file: %w", err)
	}
	p.missing.cut(0)
	return nil
}

// stretch reads the pages from up to end, which follow one another in r, and
// writes those that are missing.
func (p *Partial) stretch(f File, r io.Reader, from, end int64, buf []byte, progress func(int64)) error {
	for at := from; at < end; {
		next := min(end, p.missing.next(at))
		if at >= p.missing.limit {
			next = end
		}
		if next > at {
			if _, err := io.CopyN(io.Discard, r, (next-at)*p.pageSize); err != nil {
				return unexpected(err)
			}
			at = next
			continue
		}
		next = min(end, p.missing.gap(at))
		if err := copyRange(f, at*p.pageSize, (next-at)*p.pageSize, r, buf, progress); err != nil {
			return err
		}
		at = next
	}
	return nil
}

// Bytes is what is missing, for PartialOf to take up again.
func (p *Partial) Bytes() []byte { return p.missing.bytes() }

// StoredSize is the length of Bytes for a file of fileSize bytes.
func StoredSize(fileSize int64, pageSize int) int {
	return int((fileSize/int64(pageSize) + 63) / 64 * 8)
}

// PartialOf is the Partial that Bytes gave for a file of fileSize bytes.
func PartialOf(stored []byte, fileSize int64, pageSize int) (*Partial, error) {
	if len(stored) != StoredSize(fileSize, pageSize) {
		return nil, fmt.Errorf("take up partial file: %d bytes of state for a file of %d", len(stored), fileSize)
	}
	return &Partial{pageSize: int64(pageSize), missing: setOf(fileSize/int64(pageSize), stored)}, nil
}
