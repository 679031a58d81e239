package changes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// ScanOptions tunes Scan.
type ScanOptions struct {
	Layout Layout
	// Timeline in the segments' names. 0: that of the last page, which is
	// another only for the first segment of a timeline.
	Timeline pg.Timeline
	// From and To bound the range; 0: all of the input.
	From, To pg.LSN
	// MaxRecord as in wal.ReaderOptions.
	MaxRecord int
}

// Scan makes the Map of the WAL in src: one or more whole consecutive
// segments. It covers what the input has: where the written WAL ends before
// To, so does the Map's span. An error tells the position.
func Scan(src io.Reader, opt ScanOptions) (*Map, error) {
	m := empty(opt.Layout.defaults())
	if err := m.layout.validate(); err != nil {
		return nil, fmt.Errorf("scan WAL for changes: %w", err)
	}
	r := wal.NewReader(src, wal.ReaderOptions{From: opt.From, To: opt.To, PageSize: int(m.layout.PageSize), MaxRecord: opt.MaxRecord})
	for {
		rec, err := r.Next()
		if err == nil {
			err = m.Add(rec)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("scan WAL for changes: %w", err)
		}
	}
	if r.Major() == 0 {
		return nil, fmt.Errorf("scan WAL for changes: %w", io.ErrUnexpectedEOF)
	}
	m.major = r.Major()
	span := Span{Timeline: opt.Timeline, Start: max(r.Begin(), opt.From), End: r.End()}
	if span.Timeline == 0 {
		span.Timeline = r.Timeline()
	}
	if opt.To != 0 {
		span.End = min(span.End, opt.To)
	}
	if span.End < span.Start {
		return nil, fmt.Errorf("scan WAL for changes: %w: it ends at %s, before %s", ErrGap, span.End, span.Start)
	}
	m.spans = []Span{span}
	m.tail = r.Tail()
	if m.tail != nil && m.tail.Start < span.Start {
		m.tail = nil
	}
	if span.Start == r.Begin() {
		m.head, m.lost = r.Head(), r.HeadLost()
	}
	return m, nil
}

// Add marks what a record changes. An error (a record that does not hold what
// its kind holds, or ErrMinimal) leaves the Map as it was.
func (m *Map) Add(rec *wal.Record) error {
	var err error
	switch rec.Manager {
	case wal.XLog:
		err = checkLevel(rec)
	case wal.Storage:
		err = m.addStorage(rec)
	case wal.Transaction:
		err = m.addTransaction(rec)
	case wal.Database:
		err = m.addDatabase(rec)
	}
	if err != nil {
		return &wal.RecordError{LSN: rec.Start, Err: err}
	}
	for i := range rec.Blocks {
		// A page is added to the set of its fork, whatever the record is: that
		// is the point of block references.
		if b := &rec.Blocks[i]; b.Fork != wal.FreeSpaceFork {
			m.Mark(Fork{b.Rel, b.Fork}, b.Block)
		}
	}
	return nil
}

// errMalformed is for a special record that does not hold what it should.
func errMalformed(rec *wal.Record) error {
	if rec.Cut {
		return fmt.Errorf("%w: %s record %#02x of %d bytes is too long to keep", wal.ErrRecord, rec.Manager, rec.Op(), rec.Length)
	}
	return fmt.Errorf("%w: %s record %#02x with %d bytes of data", wal.ErrRecord, rec.Manager, rec.Op(), len(rec.Data))
}

// checkLevel refuses what was written under wal_level=minimal. The layouts are
// those of xl_parameter_change and xl_end_of_recovery
// (src/include/access/xlog_internal.h) and CheckPoint
// (src/include/catalog/pg_control.h); before 17 only the first tells the level.
func checkLevel(rec *wal.Record) error {
	const (
		shutdown        = 0x00 // XLOG_CHECKPOINT_SHUTDOWN
		parameterChange = 0x60
		endOfRecovery   = 0x90
		checkpointRedo  = 0xE0
	)
	at := -1
	switch op := rec.Op(); {
	case op == parameterChange:
		at = 20
	case rec.Major < 17:
	case op == shutdown:
		at = 20
	case op == endOfRecovery:
		at = 16
	case op == checkpointRedo:
		at = 0
	}
	if at < 0 {
		return nil
	}
	if len(rec.Data) < at+4 {
		return errMalformed(rec)
	}
	if binary.LittleEndian.Uint32(rec.Data[at:]) == 0 { // WAL_LEVEL_MINIMAL
		return ErrMinimal
	}
	return nil
}

// addStorage takes the records of src/include/catalog/storage_xlog.h.
func (m *Map) addStorage(rec *wal.Record) error {
	const (
		create   = 0x10 // XLOG_SMGR_CREATE
		truncate = 0x20 // XLOG_SMGR_TRUNCATE

		truncateHeap       = 1
		truncateVisibility = 2
	)
	d := data{rest: rec.Data}
	switch rec.Op() {
	case create:
		rel, fork := d.relFile(), d.u32()
		if d.short || fork > uint32(wal.InitFork) {
			return errMalformed(rec)
		}
		if f := wal.Fork(fork); f != wal.FreeSpaceFork {
			m.Limit(Fork{rel, f}, 0, false)
		}
	case truncate:
		block, rel, flags := d.u32(), d.relFile(), d.u32()
		if d.short {
			return errMalformed(rec)
		}
		if flags&truncateHeap != 0 {
			m.Limit(Fork{rel, wal.MainFork}, block, true)
		}
		if flags&truncateVisibility != 0 {
			// The record names the heap's block. That page of the map which
			// has bits of both sides is cut within.
			m.Limit(Fork{rel, wal.VisibilityFork}, block/m.layout.heapPages(), true)
		}
	}
	return nil
}

// addTransaction takes the files that end with a transaction, committed or
// not: xl_xact_commit and xl_xact_abort of src/include/access/xact.h, which
// begin alike.
func (m *Map) addTransaction(rec *wal.Record) error {
	const (
		opMask         = 0x70
		commit         = 0x00
		abort          = 0x20
		commitPrepared = 0x30
		abortPrepared  = 0x40
		hasInfo        = 0x80

		hasDatabase  = 1 << 0
		hasChildren  = 1 << 1
		hasRelations = 1 << 2
	)
	switch rec.Info & opMask {
	case commit, abort, commitPrepared, abortPrepared:
	default:
		return nil
	}
	if rec.Info&hasInfo == 0 {
		return nil
	}
	d := data{rest: rec.Data}
	d.skip(8) // the time
	info := d.u32()
	if info&hasDatabase != 0 {
		d.skip(8)
	}
	if info&hasChildren != 0 {
		d.skip(4 * uint64(d.u32()))
	}
	if info&hasRelations == 0 {
		if d.short {
			return errMalformed(rec)
		}
		return nil
	}
	n := d.u32()
	if d.short || uint64(len(d.rest)) < 12*uint64(n) {
		return errMalformed(rec)
	}
	for range n {
		rel := d.relFile()
		for _, f := range []wal.Fork{wal.MainFork, wal.VisibilityFork, wal.InitFork} {
			m.Limit(Fork{rel, f}, 0, false)
		}
	}
	return nil
}

// addDatabase takes the records of src/include/commands/dbcommands_xlog.h. In
// 15 a second way to create a database took the number that dropping had.
func (m *Map) addDatabase(rec *wal.Record) error {
	createCopy, createLog, drop := uint8(0x00), uint8(0x10), uint8(0x20)
	if rec.Major < 15 {
		createLog, drop = createCopy, 0x10
	}
	d := data{rest: rec.Data}
	switch op := rec.Op(); op {
	case createCopy, createLog:
		db, spc := d.u32(), d.u32()
		if d.short {
			return errMalformed(rec)
		}
		m.MarkDatabase(DatabaseDir{Tablespace: spc, Database: db})
	case drop:
		db, n := d.u32(), d.u32()
		if d.short || uint64(len(d.rest)) < 4*uint64(n) {
			return errMalformed(rec)
		}
		for range n {
			m.MarkDatabase(DatabaseDir{Tablespace: d.u32(), Database: db})
		}
	}
	return nil
}

// data reads a record's main data. Past its end it gives zeros and remembers.
type data struct {
	rest  []byte
	short bool
}

func (d *data) skip(n uint64) {
	if uint64(len(d.rest)) < n {
		d.rest, d.short = nil, true
		return
	}
	d.rest = d.rest[n:]
}

func (d *data) u32() (v uint32) {
	if len(d.rest) >= 4 {
		v = binary.LittleEndian.Uint32(d.rest)
	}
	d.skip(4)
	return v
}

func (d *data) relFile() wal.RelFile {
	return wal.RelFile{Tablespace: d.u32(), Database: d.u32(), Relation: d.u32()}
}
