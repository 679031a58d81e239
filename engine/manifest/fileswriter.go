package manifest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// FilesWriter writes files_metadata.json as its facts arrive, so that the
// memory used does not depend on the number of files. The sections come in
// the order of the document: every File, then each Tar followed by its
// entries, then each Database followed by its tables; Close ends the document.
// A section that is never begun is left out.
//
// The first error stays: every later call returns it, and so does Close. A
// document whose Close did not return nil is not one. Names must be unique
// within their section; the writer keeps none, so it cannot check.
//
// A FilesWriter is not safe for concurrent use.
type FilesWriter struct {
	w   *bufio.Writer
	buf bytes.Buffer
	enc *json.Encoder
	err error

	section section
	// members counts what the innermost open object or array holds.
	members int
	// sections counts what the document holds.
	sections int
	// within is set when a tar's list or a database is open; tables when
	// the database's tables_new is.
	within, tables bool
	outer          int
}

type section int

const (
	noSection section = iota
	inFiles
	inTars
	inDatabases
	closed
)

// NewFilesWriter begins a document on w. It buffers; it does not close w.
func NewFilesWriter(w io.Writer) *FilesWriter {
	f := &FilesWriter{w: bufio.NewWriterSize(w, 64<<10)}
	f.enc = json.NewEncoder(&f.buf)
	// The reference writes this document without HTML escapes, unlike the
	// other two.
	f.enc.SetEscapeHTML(false)
	f.text("{")
	return f
}

// File writes the facts about one entry of the data directory.
func (f *FilesWriter) File(name string, file File) error {
	if file.IsIncremented && file.IsSkipped {
		return f.fail(fmt.Errorf("write files metadata: %q is both incremented and skipped", name))
	}
	if !f.enter(inFiles, filesKey) {
		return f.err
	}
	file.MTime = storable(file.MTime)
	f.member(name)
	f.value(file)
	return f.err
}

// Tar begins the list of the entries that object, a tar with its extension
// (part_001.tar.lz4), was given.
func (f *FilesWriter) Tar(object string) error {
	if !f.enter(inTars, tarFileSetsKey) {
		return f.err
	}
	f.leaveInner()
	f.member(object)
	f.open("[")
	return f.err
}

// TarEntry appends the name of an entry to the tar begun last.
func (f *FilesWriter) TarEntry(name string) error {
	if f.section != inTars || !f.within {
		return f.fail(fmt.Errorf("write files metadata: entry %q of no tar", name))
	}
	f.comma()
	f.value(name)
	return f.err
}

// Database begins a database.
func (f *FilesWriter) Database(name string, oid uint32) error {
	if !f.enter(inDatabases, databasesKey) {
		return f.err
	}
	f.leaveInner()
	f.member(name)
	f.open("{")
	f.member(oidKey)
	f.text(strconv.FormatUint(uint64(oid), 10))
	return f.err
}

// Table appends a top-level relation, named schema.relation, to the database
// begun last.
func (f *FilesWriter) Table(name string, t Table) error {
	if f.section != inDatabases || !f.within {
		return f.fail(fmt.Errorf("write files metadata: table %q of no database", name))
	}
	if !f.tables {
		f.member(tablesKey)
		f.text("{")
		f.members = 0
		f.tables = true
	}
	f.member(name)
	f.value(t)
	return f.err
}

// Close ends the document and flushes it.
func (f *FilesWriter) Close() error {
	if f.err != nil {
		return f.err
	}
	if f.section == closed {
		return nil
	}
	f.leaveSection()
	f.text("}")
	f.section = closed
	if err := f.w.Flush(); err != nil {
		return f.fail(fmt.Errorf("write files metadata: %w", err))
	}
	return f.err
}

// enter moves to a section, forward only.
func (f *FilesWriter) enter(s section, key string) bool {
	switch {
	case f.err != nil:
		return false
	case s < f.section:
		f.fail(fmt.Errorf("write files metadata: %s after a later section", key))
		return false
	case s == f.section:
		return true
	}
	f.leaveSection()
	f.members = f.sections
	f.member(key)
	f.sections = f.members
	f.text("{")
	f.members = 0
	f.section = s
	return f.err == nil
}

func (f *FilesWriter) leaveSection() {
	f.leaveInner()
	if f.section != noSection {
		f.text("}")
	}
}

// open begins the list or object of one tar or database.
func (f *FilesWriter) open(bracket string) {
	f.text(bracket)
	f.outer, f.members = f.members, 0
	f.within, f.tables = true, false
}

func (f *FilesWriter) leaveInner() {
	if !f.within {
		return
	}
	if f.tables {
		f.text("}")
	}
	if f.section == inTars {
		f.text("]")
	} else {
		f.text("}")
	}
	f.members = f.outer
	f.within, f.tables = false, false
}

func (f *FilesWriter) comma() {
	if f.members > 0 {
		f.text(",")
	}
	f.members++
}

func (f *FilesWriter) member(name string) {
	f.comma()
	f.value(name)
	f.text(":")
}

func (f *FilesWriter) value(v any) {
	if f.err != nil {
		return
	}
	f.buf.Reset()
	if err := f.enc.Encode(v); err != nil {
		f.fail(fmt.Errorf("write files metadata: %w", err))
		return
	}
	if _, err := f.w.Write(bytes.TrimSuffix(f.buf.Bytes(), []byte("\n"))); err != nil {
		f.fail(fmt.Errorf("write files metadata: %w", err))
	}
}

func (f *FilesWriter) text(s string) {
	if f.err != nil {
		return
	}
	if _, err := f.w.WriteString(s); err != nil {
		f.fail(fmt.Errorf("write files metadata: %w", err))
	}
}

func (f *FilesWriter) fail(err error) error {
	if f.err == nil {
		f.err = err
	}
	return f.err
}
