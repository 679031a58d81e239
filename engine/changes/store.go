package changes

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"

	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/engine/wal"
)

// The stored form of a Map. Numbers are unsigned LEB128 ("varint") unless
// their size is given, which then is little-endian.
//
//	"WHCHANGE" 1                  magic and version, 8 bytes and one
//	flags                         bit 0: LimitsKnown is false; bit 1: the record
//	                              before the first span was never completed
//	page size, file blocks
//	major                         of PostgreSQL, 0 if not of WAL
//	n, n times:                   spans, ascending and contiguous
//	    timeline, start, end
//	head, tail: 0, or 1 and       pieces of records at the borders
//	    start, missing, cut, length, bytes
//	n, n times:                   directories of databases, ascending
//	    tablespace, database
//	n, n times:                   forks, ascending
//	    tablespace, database, relation, fork
//	    limit                     0: none, else the block and 1
//	    truncated                 0 or 1
//	    n, n times:               chunks of 65536 blocks, ascending
//	        number
//	        0, n, n times: gap, length - 1      runs; a gap is counted from the
//	                                            end of the run before
//	     or 1, 8192 bytes                       a bitmap, 64-bit words
//	CRC-32C of all of it          4 bytes
//
// Of a chunk's two forms the shorter is written, so equal Maps are equal bytes.
const (
	magic   = "WHCHANGE"
	version = 1

	flagUnlimited = 1 << 0
	flagLost      = 1 << 1

	// maxFragment bounds what is believed of a piece of a record: it lies
	// in memory.
	maxFragment = 1 << 30
)

// Write stores the Map.
func (m *Map) Write(w io.Writer) error {
	e := encoder{w: bufio.NewWriter(w), sum: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
	e.bytes([]byte(magic))
	e.bytes([]byte{version})
	e.uint(flag(m.unlimited, flagUnlimited) | flag(m.lost, flagLost))
	e.uint(uint64(m.layout.PageSize))
	e.uint(uint64(m.layout.FileBlocks))
	e.uint(uint64(m.major))
	e.uint(uint64(len(m.spans)))
	for _, s := range m.spans {
		e.uint(uint64(s.Timeline))
		e.uint(uint64(s.Start))
		e.uint(uint64(s.End))
	}
	e.fragment(m.head)
	e.fragment(m.tail)
	e.uint(uint64(len(m.dirs)))
	for _, d := range m.Databases() {
		e.uint(uint64(d.Tablespace))
		e.uint(uint64(d.Database))
	}
	e.uint(uint64(len(m.forks)))
	for _, f := range m.sorted() {
		e.fork(f, m.forks[f])
	}
	e.err = errors.Join(e.err, binary.Write(e.w, binary.LittleEndian, e.sum.Sum32()), e.w.Flush())
	if e.err != nil {
		return fmt.Errorf("write change map: %w", e.err)
	}
	return nil
}

func flag(set bool, bit uint64) uint64 {
	if set {
		return bit
	}
	return 0
}

type encoder struct {
	w       *bufio.Writer
	sum     hash.Hash32
	scratch []byte
	err     error
}

func (e *encoder) bytes(b []byte) {
	e.sum.Write(b)
	if _, err := e.w.Write(b); e.err == nil {
		e.err = err
	}
}

func (e *encoder) uint(v uint64) {
	e.scratch = binary.AppendUvarint(e.scratch[:0], v)
	e.bytes(e.scratch)
}

func (e *encoder) fragment(f *wal.Fragment) {
	if f == nil {
		e.uint(0)
		return
	}
	e.uint(1)
	e.uint(uint64(f.Start))
	e.uint(uint64(f.Missing))
	e.uint(flag(f.Cut, 1))
	e.uint(uint64(len(f.Bytes)))
	e.bytes(f.Bytes)
}

func (e *encoder) fork(f Fork, s *blockSet) {
	for _, v := range []uint32{f.Tablespace, f.Database, f.Relation, uint32(f.Fork)} {
		e.uint(uint64(v))
	}
	if s.limit == noLimit {
		e.uint(0)
	} else {
		e.uint(uint64(s.limit) + 1)
	}
	e.uint(flag(s.truncated, 1))
	e.uint(uint64(len(s.chunks)))
	for i := range s.chunks {
		c := &s.chunks[i]
		e.uint(uint64(c.number))
		if runs := c.runs(); len(runs) < chunkSize/8 {
			e.uint(0)
			e.bytes(runs)
			continue
		}
		e.uint(1)
		e.bytes(c.encode())
	}
}

// encode is the stored form of a chunk as a bitmap.
func (c *chunk) encode() []byte {
	out := make([]byte, chunkSize/8)
	for low := range c.all() {
		out[low/8] |= 1 << (low % 8) // 64-bit words, little-endian
	}
	return out
}

// runs is the stored form of a chunk as runs.
func (c *chunk) runs() []byte {
	var (
		out        []byte
		n          uint64
		next, from = 0, -1 // end of the last run; start of the one being read
		last       = 0
	)
	flush := func() {
		if from >= 0 {
			out = binary.AppendUvarint(out, uint64(from-next))
			out = binary.AppendUvarint(out, uint64(last-from))
			next = last + 1
			n++
		}
	}
	for low := range c.all() {
		if from >= 0 && int(low) == last+1 {
			last++
			continue
		}
		flush()
		from, last = int(low), int(low)
	}
	flush()
	return append(binary.AppendUvarint(nil, n), out...)
}

// Read reads a stored Map, to the end of r. The error wraps ErrFormat when
// that is none, or is damaged.
func Read(r io.Reader) (*Map, error) {
	d := decoder{r: bufio.NewReader(r), sum: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
	m := d.read()
	if d.err == nil {
		want := d.sum.Sum32()
		if got := binary.LittleEndian.Uint32(d.take(4)); got != want {
			d.fail("checksum %08x, want %08x", got, want)
		}
	}
	if d.err == nil {
		if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
			d.fail("it goes on after its end")
		}
	}
	if d.err != nil {
		return nil, fmt.Errorf("read change map: %w", d.err)
	}
	return m, nil
}

type decoder struct {
	r   *bufio.Reader
	sum hash.Hash32
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
	}
}

func (d *decoder) lost(err error) {
	if d.err != nil {
		return
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it ends too early", ErrFormat)
	}
	d.err = err
}

// take reads n bytes; zeros after a failure. It grows with what is there, not
// with what is promised.
func (d *decoder) take(n uint64) []byte {
	const step = 1 << 20
	out := make([]byte, 0, min(n, step))
	for d.err == nil && uint64(len(out)) < n {
		have := len(out)
		out = append(out, make([]byte, min(n-uint64(have), step))...)
		if _, err := io.ReadFull(d.r, out[have:]); err != nil {
			d.lost(err)
		}
	}
	if d.err != nil {
		return make([]byte, min(n, chunkSize))
	}
	d.sum.Write(out)
	return out
}

// ReadByte makes the decoder an io.ByteReader for varints.
func (d *decoder) ReadByte() (byte, error) {
	b, err := d.r.ReadByte()
	if err == nil {
		d.sum.Write([]byte{b})
	}
	return b, err
}

// uint reads a number of at most limit.
func (d *decoder) uint(limit uint64, what string) uint64 {
	if d.err != nil {
		return 0
	}
	v, err := binary.ReadUvarint(d)
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		d.fail("%s: %v", what, err)
	case err != nil:
		d.lost(err)
	case v > limit:
		d.fail("%s is %d, at most %d can be", what, v, limit)
	default:
		return v
	}
	return 0
}

func (d *decoder) u32(what string) uint32 { return uint32(d.uint(math.MaxUint32, what)) }

func (d *decoder) bool(what string) bool { return d.uint(1, what) == 1 }

func (d *decoder) read() *Map {
	if head := d.take(uint64(len(magic)) + 1); d.err == nil && string(head[:len(magic)]) != magic {
		d.fail("it begins with %q", head)
	} else if head[len(magic)] != version {
		d.fail("version %d, version %d is known", head[len(magic)], version)
	}
	flags := d.uint(flagUnlimited|flagLost, "flags")
	m := empty(Layout{PageSize: d.u32("page size"), FileBlocks: d.u32("file size")})
	m.unlimited, m.lost = flags&flagUnlimited != 0, flags&flagLost != 0
	if err := m.layout.validate(); err != nil {
		d.fail("%v", err)
	}
	m.major = int(d.uint(math.MaxInt16, "PostgreSQL's version"))
	d.spans(m)
	m.head, m.tail = d.fragment(), d.fragment()
	d.dirs(m)
	d.forks(m)
	return m
}

func (d *decoder) spans(m *Map) {
	n := d.uint(math.MaxUint32, "count of spans")
	for i := uint64(0); i < n && d.err == nil; i++ {
		s := Span{Timeline: pg.Timeline(d.u32("timeline")), Start: pg.LSN(d.uint(math.MaxUint64, "start")), End: pg.LSN(d.uint(math.MaxUint64, "end"))}
		if k := len(m.spans); s.Timeline == 0 || s.End < s.Start || k > 0 && (s.Start != m.spans[k-1].End || s.Timeline <= m.spans[k-1].Timeline) {
			d.fail("span %s", s)
		}
		m.spans = append(m.spans, s)
	}
	if len(m.spans) == 0 {
		d.fail("no span")
	}
}

func (d *decoder) fragment() *wal.Fragment {
	if !d.bool("piece of a record") {
		return nil
	}
	f := &wal.Fragment{Start: pg.LSN(d.uint(math.MaxUint64, "start of a record")), Missing: d.u32("rest of a record"), Cut: d.bool("mark")}
	f.Bytes = d.take(d.uint(maxFragment, "length of a piece"))
	if f.Cut && len(f.Bytes) > 0 {
		d.fail("a piece that was too long to keep, kept")
	}
	return f
}

func (d *decoder) dirs(m *Map) {
	n := d.uint(math.MaxUint32, "count of databases")
	var last wal.RelFile
	for i := uint64(0); i < n && d.err == nil; i++ {
		dir := DatabaseDir{Tablespace: d.u32("tablespace"), Database: d.u32("database")}
		at := wal.RelFile{Tablespace: dir.Tablespace, Database: dir.Database}
		if i > 0 && at.Compare(last) <= 0 {
			d.fail("database %d/%d out of order", dir.Tablespace, dir.Database)
		}
		last = at
		m.dirs[dir] = struct{}{}
	}
}

func (d *decoder) forks(m *Map) {
	n := d.uint(math.MaxUint32, "count of forks")
	var last Fork
	for i := uint64(0); i < n && d.err == nil; i++ {
		f := Fork{wal.RelFile{Tablespace: d.u32("tablespace"), Database: d.u32("database"), Relation: d.u32("relation")}, wal.Fork(d.uint(uint64(wal.InitFork), "fork"))}
		if i > 0 && f.compare(last) <= 0 {
			d.fail("relation %s out of order", f.RelFile)
		}
		last = f
		s := &blockSet{limit: noLimit}
		if limit := d.uint(math.MaxUint32, "limit"); limit > 0 {
			s.limit = uint32(limit - 1)
		}
		s.truncated = d.bool("mark of a truncation")
		chunks := d.uint(1<<(32-chunkBits), "count of chunks")
		for j := uint64(0); j < chunks && d.err == nil; j++ {
			c := chunk{number: uint16(d.uint(math.MaxUint16, "chunk"))}
			if k := len(s.chunks); k > 0 && c.number <= s.chunks[k-1].number {
				d.fail("chunk %d of %s out of order", c.number, f.RelFile)
			}
			d.chunk(&c)
			s.chunks = append(s.chunks, c)
		}
		m.forks[f] = s
	}
}

func (d *decoder) chunk(c *chunk) {
	if d.bool("form of a chunk") {
		raw := d.take(chunkSize / 8)
		if d.err != nil {
			return
		}
		c.bits = new(bitmap)
		for i := range c.bits {
			c.bits[i] = binary.LittleEndian.Uint64(raw[i*8:])
		}
		return
	}
	n := d.uint(chunkSize, "count of runs")
	at := uint64(0)
	for i := uint64(0); i < n && d.err == nil; i++ {
		at += d.uint(chunkSize, "gap")
		end := at + d.uint(chunkSize, "length of a run") + 1
		if d.err != nil || end > chunkSize {
			d.fail("a run beyond its chunk")
			return
		}
		for ; at < end; at++ {
			c.add(uint16(at))
		}
	}
}
