package retain

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/catalog"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
)

// bigStore lists 10,000 backups of 20 parts, every tenth a full one, and a
// million segments, of which every gap-th is missing, in two timelines.
func bigStore(b *testing.B, gap int) *catalog.Inventory {
	const backups, segments = 10_000, 1_000_000
	inv, err := catalog.NewInventory(size)
	if err != nil {
		b.Fatal(err)
	}
	line := func(n int) pg.Timeline {
		if n >= segments/2 {
			return 2
		}
		return 1
	}
	var parent *catalog.Details
	var parentName pg.BackupName
	for i := range backups {
		n := i * (segments / backups)
		modified := epoch.Add(time.Duration(i) * time.Hour)
		d := catalog.Details{Read: true, Permanent: i%100 == 0, StartLSN: lsn(n, 0x28), FinishLSN: lsn(n+2, 0x28), StartTime: modified, FinishTime: modified}
		name := pg.FullBackupName(segment(line(n), n))
		if i%10 != 0 && line(n) == line(n-segments/backups) {
			name = pg.IncrementName(segment(line(n), n), parentName)
			d.Increment = &manifest.Increment{Parent: parentName, ParentLSN: parent.StartLSN}
		}
		id := catalog.BackupID{Storage: "default", Folder: catalog.BaseBackups, Name: name}
		inv.Add("default", id.Key(catalog.MetadataObject, ""), modified)
		inv.Add("default", id.Key(catalog.FilesObject, ""), modified)
		for p := range 20 {
			inv.Add("default", id.Key(catalog.PartObject, fmt.Sprintf("part_%03d.tar.lz4", p+1)), modified)
		}
		inv.Add("default", id.Key(catalog.SentinelObject, ""), modified)
		inv.Describe(id, d)
		inv.Add("default", fmt.Sprintf("%s%s.%08X.backup.lz4", catalog.WALFolder, segment(line(n), n), 0x28+i%7), modified)
		parent, parentName = &d, name
	}
	for n := range segments {
		if gap > 0 && n%gap == 0 {
			continue
		}
		inv.Add("default", string(catalog.WALFolder)+segment(line(n), n).String()+".lz4", epoch)
	}
	return inv
}

// BenchmarkScale measures a listing of 1.2 million objects and a plan for it.
// The time to list holds the making of the keys; heap-MB is what the inventory
// and the plan keep alive.
func BenchmarkScale(b *testing.B) {
	for _, gap := range []int{0, 2} {
		now := epoch.Add(10_001 * time.Hour)
		b.Run(fmt.Sprintf("gap=%d/list", gap), func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var inv *catalog.Inventory
			for b.Loop() {
				inv = bigStore(b, gap)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "heap-MB")
			runtime.KeepAlive(inv)
		})
		inv := bigStore(b, gap)
		for _, p := range []Policy{Retain{Count: 100, Mode: Full}, Garbage{}, Window{Length: 14 * 24 * time.Hour}} {
			b.Run(fmt.Sprintf("gap=%d/plan=%T", gap, p), func(b *testing.B) {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				var pl *Plan
				for b.Loop() {
					var err error
					if pl, err = NewPlan(inv, p, Options{}, now); err != nil {
						b.Fatal(err)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "heap-MB")
				b.ReportMetric(float64(len(pl.WAL)), "wal-rows")
				runtime.KeepAlive(pl)
			})
		}
		pl, err := NewPlan(inv, Retain{Count: 100, Mode: Full}, Options{}, now)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("gap=%d/steps", gap), func(b *testing.B) {
			n := 0
			for b.Loop() {
				n = 0
				for range pl.Steps() {
					n++
				}
			}
			b.ReportMetric(float64(n), "steps")
		})
	}
}
