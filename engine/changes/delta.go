package changes

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/walherd/walherd/engine/wal"
)

// ErrInexpressible: a WAL-G delta file has no room for what happened.
var ErrInexpressible = errors.New("cannot be told in a WAL-G delta file")

// DeltaSegments is how many segments one WAL-G delta file stands for: those of
// a name whose number is a multiple of it, and the following.
const DeltaSegments = 16

// A WAL-G delta file (<segment>_delta) is a sequence of locations of 16 bytes,
// little-endian: tablespace, database, relation, block; without fork, the block
// counted over all files of the relation, duplicates allowed. 16 zero bytes end
// it. Then follow the length, in 4 bytes, and the bytes of the record that the
// last segment's end cuts in two.
const locationSize = 16

// WriteDelta stores the Map in WAL-G's form: the main forks' blocks, in order,
// and the record at the end. What WAL-G must not be left unaware of is an
// error that wraps ErrInexpressible, before anything is written: a truncated
// relation (pages that grew anew may be zeros nobody logged) or a database
// whose directory was copied. A created relation is told by its file, which no
// earlier backup has.
func (m *Map) WriteDelta(w io.Writer) error {
	for f, s := range m.forks {
		if f.Fork == wal.MainFork && s.truncated {
			return fmt.Errorf("write WAL-G delta: relation %s was truncated to %d blocks: %w", f.RelFile, s.limit, ErrInexpressible)
		}
	}
	for d := range m.dirs {
		return fmt.Errorf("write WAL-G delta: database %d in tablespace %d was copied or dropped: %w", d.Database, d.Tablespace, ErrInexpressible)
	}
	var state []byte
	if m.tail != nil {
		if m.tail.Cut {
			return fmt.Errorf("write WAL-G delta: the record at %s is too long: %w", m.tail.Start, ErrInexpressible)
		}
		state = m.tail.Bytes
	}
	b := bufio.NewWriter(w)
	var buf [locationSize]byte
	for _, f := range m.sorted() {
		if f.Fork != wal.MainFork {
			continue
		}
		for block := range m.forks[f].blocks(0, noLimit) {
			putLocation(buf[:], f.RelFile, block)
			b.Write(buf[:])
		}
	}
	clear(buf[:])
	b.Write(buf[:])
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(state))))
	b.Write(state)
	// bufio keeps the first failure.
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write WAL-G delta: %w", err)
	}
	return nil
}

func putLocation(b []byte, rel wal.RelFile, block uint32) {
	for i, v := range []uint32{rel.Tablespace, rel.Database, rel.Relation, block} {
		binary.LittleEndian.PutUint32(b[4*i:], v)
	}
}

// ReadDelta reads a WAL-G delta file of the given span. The Map's LimitsKnown
// is false: truncations and copied databases are not in it. state is the
// beginning of the record that the span's end cuts in two, empty if none does;
// its changes are missing. A file may end without its terminator, then it has
// no state.
func ReadDelta(r io.Reader, layout Layout, span Span) (m *Map, state []byte, err error) {
	if m, err = New(layout, span); err != nil {
		return nil, nil, err
	}
	m.unlimited = true
	b := bufio.NewReader(r)
	var buf [locationSize]byte
	for {
		if _, err := io.ReadFull(b, buf[:]); errors.Is(err, io.EOF) {
			return m, nil, nil
		} else if err != nil {
			return nil, nil, deltaError(err)
		}
		if buf == [locationSize]byte{} {
			break
		}
		le := binary.LittleEndian
		rel := wal.RelFile{Tablespace: le.Uint32(buf[0:]), Database: le.Uint32(buf[4:]), Relation: le.Uint32(buf[8:])}
		m.Mark(Fork{rel, wal.MainFork}, le.Uint32(buf[12:]))
	}
	if _, err := io.ReadFull(b, buf[:4]); err != nil {
		return nil, nil, deltaError(err)
	}
	size := int64(binary.LittleEndian.Uint32(buf[:4]))
	if size > maxFragment {
		return nil, nil, fmt.Errorf("read WAL-G delta: %w: piece of a record of %d bytes", ErrFormat, size)
	}
	// Not made at once: the length is a stranger's word.
	state, err = io.ReadAll(io.LimitReader(b, size+1))
	if err == nil && int64(len(state)) != size {
		err = fmt.Errorf("%w: piece of a record of %d bytes, %d follow", ErrFormat, size, len(state))
	}
	if err != nil {
		return nil, nil, deltaError(err)
	}
	return m, state, nil
}

func deltaError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: it ends within a field", ErrFormat)
	}
	return fmt.Errorf("read WAL-G delta: %w", err)
}
