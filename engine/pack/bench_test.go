package pack

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/walherd/walherd/engine/cluster"
)

// chunk is what a producer sends at once.
const chunk = 512 << 10

// BenchmarkEmit packs a directory with the file sizes of a pgbench database
// of 1.5 GB, from the page cache, with nobody behind it. For comparison:
//
//	tar cf - DIR | cat >/dev/null
//
// WALHERD_BENCH_DIR names another directory to pack instead.
func BenchmarkEmit(b *testing.B) {
	root := os.Getenv("WALHERD_BENCH_DIR")
	if root == "" {
		root = b.TempDir()
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = byte(i * 7)
		}
		fill(b, root, "base/5/16390", 1<<30, block)
		fill(b, root, "base/5/16390.1", 200<<20, block)
		fill(b, root, "base/5/16400", 256<<20, block)
		for i := range 1000 {
			fill(b, root, fmt.Sprintf("base/%d/%d", 1+i%3*3, 1000+i), int64(8192*(1+i%12)), block)
		}
	}
	emitAll(b, root)
}

// BenchmarkEmitSmallFiles packs 200,000 files of 0 to 7 KiB.
func BenchmarkEmitSmallFiles(b *testing.B) {
	root := b.TempDir()
	block := make([]byte, 8192)
	for i := range 200_000 {
		fill(b, root, fmt.Sprintf("base/%d/%d", 16384+i/2000, 1000+i%2000), int64(i%8)<<10, block)
	}
	emitAll(b, root)
}

func fill(b *testing.B, root, name string, size int64, block []byte) {
	b.Helper()
	path := filepath.Join(root, name)
	f, err := os.Create(path)
	if os.IsNotExist(err) {
		if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			f, err = os.Create(path)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	for size > 0 {
		n, err := f.Write(block[:min(size, int64(len(block)))])
		if err != nil {
			b.Fatal(err)
		}
		size -= int64(n)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

func emitAll(b *testing.B, root string) {
	l, err := cluster.Scan(b.Context(), root, cluster.Options{})
	if err != nil {
		b.Fatal(err)
	}
	owners := SystemOwners()
	buf := make([]byte, chunk)
	b.ReportAllocs()
	for b.Loop() {
		var total int64
		for _, part := range Regular(RegularOptions{})(Items(l.Entries)) {
			s := NewStream(l.Entries, part, NewFiles(l.Root), StreamOptions{Owners: owners})
			for {
				_, err := s.Fill(b.Context(), buf)
				if err == io.EOF {
					break
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			total += s.Report().TarBytes
		}
		b.SetBytes(total)
	}
	b.ReportMetric(float64(len(l.Entries)), "entries")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-sys")
}

// BenchmarkHeader renders one header.
func BenchmarkHeader(b *testing.B) {
	h := newHeaders(SystemOwners())
	e := cluster.Entry{Name: "/base/16384/16390", Size: 8192, Mode: 0o600, MTime: 1_700_000_000_123456789}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.entry(&e, e.Size); err != nil {
			b.Fatal(err)
		}
	}
}
