package wal

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/walherd/walherd/engine/pg"
)

const testSystem pg.SystemID = 7412345678901234567

// writer makes WAL as a server does, for tests.
type writer struct {
	major    int
	size     pg.SegmentSize
	page     int
	timeline pg.Timeline
	start    pg.LSN
	prev     pg.LSN
	out      []byte
	next     PageInfo // flags for the next page
}

func newWriter(major int, start pg.LSN) *writer {
	return &writer{major: major, size: 1 << 20, page: 8192, timeline: 1, start: start, prev: start - 64}
}

func (w *writer) at() pg.LSN { return w.start + pg.LSN(len(w.out)) }

// header begins a page of which remaining bytes go on with a record.
func (w *writer) header(remaining int) {
	le := binary.LittleEndian
	magic, _ := Magic(w.major)
	info := w.next
	w.next = 0
	long := uint64(w.at())%uint64(w.size) == 0
	if long {
		info |= LongHeader
	}
	if remaining > 0 {
		info |= FirstIsContRecord
	}
	addr := w.at()
	w.out = le.AppendUint16(w.out, magic)
	w.out = le.AppendUint16(w.out, uint16(info))
	w.out = le.AppendUint32(w.out, uint32(w.timeline))
	w.out = le.AppendUint64(w.out, uint64(addr))
	w.out = le.AppendUint32(w.out, uint32(remaining))
	w.out = append(w.out, 0, 0, 0, 0)
	if long {
		w.out = le.AppendUint64(w.out, uint64(testSystem))
		w.out = le.AppendUint32(w.out, uint32(w.size))
		w.out = le.AppendUint32(w.out, uint32(w.page))
	}
}

// record writes one record and gives its position.
func (w *writer) record(m Manager, info uint8, headers, payload []byte) pg.LSN {
	w.align()
	if len(w.out)%w.page == 0 {
		w.header(0)
	}
	start := w.at()
	w.put(rawRecord(w.prev, m, info, headers, payload))
	w.prev = start
	return start
}

func (w *writer) align() {
	for len(w.out)%8 != 0 {
		w.out = append(w.out, 0)
	}
}

func (w *writer) put(raw []byte) {
	for len(raw) > 0 {
		if len(w.out)%w.page == 0 {
			w.header(len(raw))
		}
		n := min(len(raw), w.page-len(w.out)%w.page)
		w.out = append(w.out, raw[:n]...)
		raw = raw[n:]
	}
}

// abandon writes the first n bytes of a record, up to the end of the page they
// end on: what a crash leaves.
func (w *writer) abandon(total, n int) {
	w.align()
	if len(w.out)%w.page == 0 {
		w.header(0)
	}
	raw := rawRecord(w.prev, LogicalMessage, 0, nil, make([]byte, total))
	for len(raw) > 0 {
		if len(w.out)%w.page == 0 {
			if n <= 0 {
				break
			}
			w.header(len(raw))
		}
		k := min(len(raw), w.page-len(w.out)%w.page)
		w.out = append(w.out, raw[:k]...)
		raw, n = raw[k:], n-k
	}
	w.next = FirstIsOverwriteContRecord
}

// fill writes zeros to the end of the segment.
func (w *writer) fill() []byte {
	for len(w.out) == 0 || len(w.out)%int(w.size) != 0 {
		w.out = append(w.out, 0)
	}
	return w.out
}

func (w *writer) switchSegment() {
	w.record(XLog, opSwitch, nil, nil)
	w.fill()
}

// rawRecord is a record: headers without that of the main data, which is
// payload.
func rawRecord(prev pg.LSN, m Manager, info uint8, headers, payload []byte) []byte {
	le := binary.LittleEndian
	raw := make([]byte, recordHeader)
	raw = append(raw, headers...)
	switch {
	case len(payload) > 255:
		raw = append(raw, idDataLong)
		raw = le.AppendUint32(raw, uint32(len(payload)))
	case len(payload) > 0:
		raw = append(raw, idDataShort, byte(len(payload)))
	}
	raw = append(raw, payload...)
	le.PutUint32(raw, uint32(len(raw)))
	le.PutUint32(raw[4:], 742)
	le.PutUint64(raw[8:], uint64(prev))
	raw[16], raw[17] = info, byte(m)
	sum := crc32.Checksum(raw[recordHeader:], crc32c())
	le.PutUint32(raw[recordCRC:], crc32.Update(sum, crc32c(), raw[:recordCRC]))
	return raw
}

// blockHeader is a block reference without image and data.
func blockHeader(b BlockRef) []byte {
	le := binary.LittleEndian
	raw := []byte{b.ID, byte(b.Fork), 0, 0}
	for _, v := range []uint32{b.Rel.Tablespace, b.Rel.Database, b.Rel.Relation, b.Block} {
		raw = le.AppendUint32(raw, v)
	}
	return raw
}
