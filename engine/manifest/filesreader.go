package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// FilesVisitor receives the facts of a files_metadata.json in the order of
// the document, in which the sections may come in any order. A nil function
// skips its facts. An error ends the reading and is returned, wrapped.
type FilesVisitor struct {
	// File receives one entry of the data directory.
	File func(name string, f File) error
	// Tar receives the name of a tar object, before its entries; a tar
	// may have none.
	Tar func(object string) error
	// TarEntry receives one name out of a tar's list. The tar need not hold
	// it: the file may have vanished after the list was made.
	TarEntry func(object, name string) error
	// Database receives a database, after its tables: the document may give
	// the OID last.
	Database func(name string, oid uint32) error
	// Table receives one top-level relation of a database.
	Table func(database, name string, t Table) error
}

// maxDepth bounds the nesting of members that are skipped.
const maxDepth = 1000

// ReadFiles reads a files_metadata.json and calls v for what it holds. Memory
// is bounded by the largest single member (one file, one relation with its
// subtables), not by their number. A document that ends early is an error
// that matches io.ErrUnexpectedEOF; what was reported until then is not the
// whole.
func ReadFiles(r io.Reader, v FilesVisitor) error {
	d := filesDecoder{json.NewDecoder(r)}
	err := d.document(v)
	if err == nil {
		err = d.end()
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read files metadata, at byte %d: %w", d.InputOffset(), err)
	}
	return nil
}

type filesDecoder struct{ *json.Decoder }

func (d filesDecoder) document(v FilesVisitor) error {
	return d.object(func(key string) error {
		switch {
		case strings.EqualFold(key, filesKey):
			return d.files(v)
		case strings.EqualFold(key, tarFileSetsKey):
			return d.tars(v)
		case strings.EqualFold(key, databasesKey):
			return d.databases(v)
		}
		return d.skip()
	})
}

func (d filesDecoder) files(v FilesVisitor) error {
	return d.object(func(name string) error {
		if v.File == nil {
			return d.skip()
		}
		var f File
		if err := d.Decode(&f); err != nil {
			return fmt.Errorf("file %q: %w", name, err)
		}
		if f.IsIncremented && f.IsSkipped {
			return fmt.Errorf("file %q is both incremented and skipped", name)
		}
		return v.File(name, f)
	})
}

func (d filesDecoder) tars(v FilesVisitor) error {
	return d.object(func(object string) error {
		if v.Tar != nil {
			if err := v.Tar(object); err != nil {
				return err
			}
		}
		if v.TarEntry == nil {
			return d.skip()
		}
		return d.array(func() error {
			var name string
			if err := d.Decode(&name); err != nil {
				return fmt.Errorf("tar %q: %w", object, err)
			}
			return v.TarEntry(object, name)
		})
	})
}

func (d filesDecoder) databases(v FilesVisitor) error {
	if v.Database == nil && v.Table == nil {
		return d.skip()
	}
	return d.object(func(name string) error {
		var oid uint32
		err := d.object(func(key string) error {
			switch {
			case strings.EqualFold(key, oidKey):
				return d.Decode(&oid)
			case strings.EqualFold(key, tablesKey) && v.Table != nil:
				return d.tablesOf(name, v)
			}
			return d.skip()
		})
		if err != nil {
			return fmt.Errorf("database %q: %w", name, err)
		}
		if v.Database != nil {
			return v.Database(name, oid)
		}
		return nil
	})
}

func (d filesDecoder) tablesOf(database string, v FilesVisitor) error {
	return d.object(func(name string) error {
		var t Table
		if err := d.Decode(&t); err != nil {
			return fmt.Errorf("table %q: %w", name, err)
		}
		return v.Table(database, name, t)
	})
}

// object reads an object, or null, and calls member with each name; member
// consumes the value.
func (d filesDecoder) object(member func(key string) error) error {
	open, err := d.begin('{')
	if err != nil || !open {
		return err
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("member name is %v, not a string", t)
		}
		if err := member(key); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// array reads an array, or null, and calls element for each element, which it
// consumes.
func (d filesDecoder) array(element func() error) error {
	open, err := d.begin('[')
	if err != nil || !open {
		return err
	}
	for d.More() {
		if err := element(); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

func (d filesDecoder) begin(want json.Delim) (open bool, err error) {
	t, err := d.Token()
	switch {
	case err != nil:
		return false, err
	case t == nil:
		return false, nil
	case t != want:
		return false, fmt.Errorf("found %v, want %v", t, want)
	}
	return true, nil
}

// skip consumes one value, token by token.
func (d filesDecoder) skip() error {
	for depth := 0; ; {
		t, err := d.Token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxDepth {
				return fmt.Errorf("nested deeper than %d", maxDepth)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// end accepts white space only.
func (d filesDecoder) end() error {
	switch t, err := d.Token(); {
	case err == nil:
		return fmt.Errorf("%v after the end of the document", t)
	case err != io.EOF:
		return err
	}
	return nil
}
