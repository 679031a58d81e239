package delta

import (
	"fmt"
	"io/fs"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pack"
)

// listed replays an earlier backup's list of files, tars first if wanted.
type listed struct {
	files     map[string]manifest.File
	tars      map[string][]string
	tarsFirst bool
}

func (l listed) read(v manifest.FilesVisitor) error {
	files := func() error {
		for name, f := range l.files {
			if err := v.File(name, f); err != nil {
				return err
			}
		}
		return nil
	}
	tars := func() error {
		for tar, names := range l.tars {
			if err := v.Tar(tar); err != nil {
				return err
			}
			for _, n := range names {
				if err := v.TarEntry(tar, n); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if l.tarsFirst {
		if err := tars(); err != nil {
			return err
		}
		return files()
	}
	if err := files(); err != nil {
		return err
	}
	return tars()
}

func TestPlanCopies(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	old, late := start.Add(-time.Hour), start.Add(-Clock)
	entry := func(name string, at time.Time) cluster.Entry {
		return cluster.Entry{Name: name, Size: 10, MTime: at.UnixNano()}
	}
	entries := []cluster.Entry{
		{Name: "/base", Mode: fs.ModeDir, MTime: old.UnixNano()}, entry("/base/1", old), entry("/base/2", old),
		entry("/base/3", late), entry("/base/4", start.Add(time.Hour)), entry("/base/5", old), entry("/new", old), entry("/gone", old),
	}
	l := listed{
		files: map[string]manifest.File{
			"/base": {MTime: old}, "/base/1": {MTime: old, CorruptBlocks: &manifest.CorruptBlocks{Count: 1, Some: []uint32{3}}},
			"/base/2": {MTime: old}, "/base/3": {MTime: late}, "/base/4": {MTime: old}, "/base/5": {MTime: old}, "/dropped": {MTime: old},
		},
		tars: map[string][]string{
			"part_001.tar.lz4":     {"/base", "/base/1"},
			"part_002.tar.lz4":     {"/base/2", "/base/3"},  // too late to be believed
			"part_003.tar.lz4":     {"/base/4"},             // changed
			"part_004.tar.lz4":     {"/base/5", "/dropped"}, // one is gone
			"part_005.tar.lz4":     {"/gone"},               // had vanished then
			"part_006.tar.lz4":     {"/base/2"},             // fine
			"part_007.tar.lz4":     {"/base/2"},             // is in another
			"part_008.tar.lz4":     {},                      // nothing
			"backup_label.tar.lz4": {"tablespace_map", "backup_label"},
		},
	}
	want := []Copy{
		{Number: 0, Source: "part_001.tar.lz4", Part: pack.Part{Entries: []int32{0, 1}, Size: 10}, Damage: []pack.Damage{{Index: 1, Corrupt: 1, Blocks: []uint32{3}}}},
		{Number: 1, Source: "part_006.tar.lz4", Part: pack.Part{Entries: []int32{2}, Size: 10}},
	}
	for _, l.tarsFirst = range []bool{false, true} {
		got, err := PlanCopies(entries, start, l.read)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	if got := want[1].Name(); got != "copy_1.tar" {
		t.Errorf("the name is %s", got)
	}
	l.files["/base/1"] = manifest.File{IsSkipped: true}
	if _, err := PlanCopies(entries, start, l.read); err == nil {
		t.Error("tars of an increment are copied")
	}
}

// A copy holds what the walk saw and nothing else: each entry once at most, all
// unchanged, all of its tar.
func TestPlanCopiesProperty(t *testing.T) {
	t.Parallel()
	start := time.Unix(1e9, 0)
	rapid.Check(t, func(t *rapid.T) {
		var entries []cluster.Entry
		l := listed{files: map[string]manifest.File{}, tars: map[string][]string{}, tarsFirst: rapid.Bool().Draw(t, "order")}
		same := map[int32]bool{}
		for i := range rapid.IntRange(0, 30).Draw(t, "files") {
			name := fmt.Sprintf("/f%d", i)
			at, then := start.Add(-time.Duration(rapid.IntRange(-3, 60).Draw(t, "now"))*time.Second), start.Add(-time.Minute)
			if rapid.Bool().Draw(t, "same") {
				then = at
			}
			same[int32(i)] = at.Equal(then) && at.Before(start.Add(-Clock))
			entries = append(entries, cluster.Entry{Name: name, Size: int64(i), MTime: at.UnixNano()})
			l.files[name] = manifest.File{MTime: then}
			tar := fmt.Sprintf("part_%03d.tar", rapid.IntRange(1, 8).Draw(t, "tar"))
			l.tars[tar] = append(l.tars[tar], name)
		}
		copies, err := PlanCopies(entries, start, l.read)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for n, c := range copies {
			var size int64
			var names []string
			for _, i := range c.Part.Entries {
				if !same[i] {
					t.Fatalf("%s holds %s, which changed", c.Source, entries[i].Name)
				}
				size += entries[i].Size
				names = append(names, entries[i].Name)
			}
			if c.Number != n || size != c.Part.Size || !reflect.DeepEqual(names, l.tars[c.Source]) {
				t.Fatalf("copy %d: %+v of %v", n, c, l.tars[c.Source])
			}
			seen[c.Source] = true
		}
		for tar, names := range l.tars {
			all := true
			for _, name := range names {
				var i int32
				fmt.Sscanf(name, "/f%d", &i)
				all = all && same[i]
			}
			if all != seen[tar] {
				t.Fatalf("%s: copied %t, want %t", tar, seen[tar], all)
			}
		}
	})
}
