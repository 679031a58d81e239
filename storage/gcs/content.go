package gcs

import (
	"encoding/base64"
	"encoding/binary"
	"strings"
	"sync"

	"github.com/walherd/walherd/storage/pieces"
)

// freeBlocks is what each content may hold without asking.
const freeBlocks = 2

// memory is the chunks of all uploads, shared among the running Puts.
type memory struct {
	pool  *pieces.Pool
	chunk int64
	limit int64 // bytes in all but the free blocks

	mu   sync.Mutex
	puts int64 // running
}

func newMemory(limit, chunk int64) *memory {
	return &memory{chunk: chunk, limit: limit, pool: pieces.NewPool(pieces.PoolOptions{
		Keep: int(min(limit, 2*chunk)/pieces.MaxChunk) + freeBlocks, Limit: limit, Free: freeBlocks,
	})}
}

// begin and end count the running Puts.
func (m *memory) begin() { m.mu.Lock(); m.puts++; m.mu.Unlock() }
func (m *memory) end()   { m.mu.Lock(); m.puts--; m.mu.Unlock() }

// share is the size of the next chunk: a Put holds two of them, one that is
// sent and one that is read. Chunks on the way are not cut; whoever finds the
// memory taken gets along with less until they are through.
func (m *memory) share() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	share := m.limit / (2 * max(m.puts, 1)) / pieces.MaxChunk * pieces.MaxChunk
	return min(max(share, freeBlocks*pieces.MaxChunk), m.chunk)
}

// encodeCRC writes a sum as the API does: base64 of big-endian bytes.
func encodeCRC(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

func decodeCRC(s string) (crc uint32, ok bool) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(raw), true
}

// hashCRC finds the CRC32C among the values of X-Goog-Hash
// ("crc32c=n03x6A==,md5=Ojk9c3dhfxgoKVVHYwFbHQ==").
func hashCRC(values []string) (crc uint32, ok bool) {
	for _, value := range values {
		for one := range strings.SplitSeq(value, ",") {
			if sum, found := strings.CutPrefix(strings.TrimSpace(one), "crc32c="); found {
				return decodeCRC(sum)
			}
		}
	}
	return 0, false
}
