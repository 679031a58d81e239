package changes_test

import (
	"bytes"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/changes"
	"github.com/walherd/walherd/engine/pg"
	"github.com/walherd/walherd/producer/pgtest"
)

// BenchmarkScan scans the WAL that pgbench makes a server write, from memory.
// MB/cpu-s is by the process's own time, for a machine that others use too.
func BenchmarkScan(b *testing.B) {
	pgt := pgtest.New(b, pgtest.WithConf("wal_keep_size = 2GB", "max_wal_size = 2GB"))
	pgt.Run("pgbench", "--initialize", "--quiet", "--scale=5")
	measure := func(b *testing.B, work func()) {
		lsn := func() pg.LSN {
			l, err := pg.ParseLSN(pgt.SQL("SELECT pg_current_wal_insert_lsn()"))
			if err != nil {
				b.Fatal(err)
			}
			return l
		}
		from := lsn()
		work()
		to := lsn()
		pgt.SQL("CREATE TABLE IF NOT EXISTS flush (); SELECT pg_switch_wal() IS NULL")
		var all []byte
		for seg := from.Segment(1, pg.DefaultSegmentSize); seg.Start(pg.DefaultSegmentSize) < to; seg = seg.Next(pg.DefaultSegmentSize) {
			raw, err := os.ReadFile(pgt.WALDir() + "/" + seg.String())
			if err != nil {
				b.Fatal(err)
			}
			all = append(all, raw...)
		}
		cpu := func() time.Duration {
			var u syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
				b.Fatal(err)
			}
			return time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		size := float64(to - from)
		b.SetBytes(int64(size))
		n, before := 0, cpu()
		for b.Loop() {
			if _, err := changes.Scan(bytes.NewReader(all), changes.ScanOptions{From: from, To: to}); err != nil {
				b.Fatal(err)
			}
			n++
		}
		b.ReportMetric(size*float64(n)/1e6/(cpu()-before).Seconds(), "MB/cpu-s")
		b.ReportMetric(size/1e6, "MB")
	}
	b.Run("images", func(b *testing.B) {
		measure(b, func() {
			pgt.SQL("CHECKPOINT")
			pgt.Run("pgbench", "--client=4", "--transactions=1500", "--no-vacuum")
		})
	})
	b.Run("no images", func(b *testing.B) {
		pgt.SQL("ALTER SYSTEM SET full_page_writes = off")
		pgt.Reload()
		measure(b, func() { pgt.SQL("UPDATE pgbench_accounts SET abalance = aid") })
	})
}
