package pack

import (
	"fmt"
	"io/fs"
	"reflect"
	"testing"

	"github.com/walherd/walherd/engine/cluster"
	"pgregory.net/rapid"
)

func tree(names ...string) []cluster.Entry {
	var out []cluster.Entry
	for _, n := range names {
		e := cluster.Entry{Name: n, Size: 10}
		if n[len(n)-1] == '/' {
			e = cluster.Entry{Name: n[:len(n)-1], Mode: fs.ModeDir}
		}
		out = append(out, e)
	}
	return out
}

func entriesOf(parts []Part) (out [][]int32) {
	for _, p := range parts {
		out = append(out, p.Entries)
	}
	return out
}

func TestDatabaseKeepsDatabasesApart(t *testing.T) {
	t.Parallel()
	entries := tree("/", "/PG_VERSION", "/base/", "/base/1/", "/base/1/1259", "/base/5/", "/base/5/1", "/base/5/2", "/base/5/3",
		"/base/stray", "/pg_tblspc/9/PG_15_1/5/77")
	got := entriesOf(Database(entries, 15)(Items(entries)))
	want := [][]int32{{0, 2, 3, 5}, {1, 9}, {10}, {4}, {6, 7}, {8}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRatingPutsTheChangingApart(t *testing.T) {
	t.Parallel()
	entries := tree("/", "/a", "/b", "/c", "/d", "/e")
	ratings := []uint64{0, 7, 0, 1, 0, 100}
	rating := func(i int32) uint64 { return ratings[i] }
	for name, c := range map[string]struct {
		threshold int64
		want      [][]int32
	}{
		"one each":     {0, [][]int32{{0, 2, 4}, {3, 1, 5}}},
		"of two files": {20, [][]int32{{0, 2, 4}, {3, 1}, {5}}},
		"of no file":   {1, [][]int32{{0, 2}, {4}, {3}, {1}, {5}}},
	} {
		if got := entriesOf(Rating(entries, rating, c.threshold)(Items(entries))); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if got := Rating(nil, rating, 1)(Items(nil)); got != nil {
		t.Errorf("nothing gives %v", got)
	}
}

// Whatever the composer: every item is in exactly one part, no part is empty,
// numbers rise from 1, sizes are right, and no part is above its threshold by
// more than its last file, or, rated, at all if it has more than one.
func TestComposersProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var entries []cluster.Entry
		var ratings []uint64
		for i := range rapid.IntRange(0, 60).Draw(t, "entries") {
			name := rapid.SampledFrom([]string{"/base/1", "/base/5", "/base/99", "/global", "/pg_tblspc/7/PG_15_2/5", ""}).Draw(t, "dir")
			e := cluster.Entry{Name: fmt.Sprintf("%s/%d", name, i), Size: rapid.Int64Range(0, 300).Draw(t, "size")}
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				e.Size, e.Mode = 0, fs.ModeDir
			}
			entries = append(entries, e)
			ratings = append(ratings, rapid.SampledFrom([]uint64{0, 0, 1, 5, 1 << 63}).Draw(t, "rating"))
		}
		threshold := rapid.Int64Range(1, 1000).Draw(t, "threshold")
		rated := rapid.Bool().Draw(t, "rated")
		composer := Database(entries, threshold)
		if rated {
			composer = Rating(entries, func(i int32) uint64 { return ratings[i] }, threshold)
		}
		parts := composer(Items(entries))
		if again := composer(Items(entries)); !reflect.DeepEqual(parts, again) {
			t.Fatal("two plans of the same entries differ")
		}
		seen := make([]int, len(entries))
		highest := uint64(0)
		for n, p := range parts {
			if p.Number != n+1 || len(p.Entries) == 0 {
				t.Fatalf("part %d is %+v", n, p)
			}
			var sum, files int64
			zero, more := false, false
			dirs := map[string]bool{}
			for _, i := range p.Entries {
				if !rated && sum > threshold {
					t.Fatalf("part %d went on above the threshold", p.Number)
				}
				seen[i]++
				sum += entries[i].Size
				if entries[i].IsDir() {
					if n != 0 {
						t.Fatalf("a directory is in part %d", p.Number)
					}
					continue
				}
				files++
				dirs[databaseDir(entries[i].Name)] = true
				if rated && ratings[i] < highest {
					t.Fatalf("part %d: rating %d after %d", p.Number, ratings[i], highest)
				}
				highest = max(highest, ratings[i])
				zero, more = zero || ratings[i] == 0, more || ratings[i] > 0
			}
			switch {
			case sum != p.Size:
				t.Fatalf("part %d: size %d, want %d", p.Number, p.Size, sum)
			case rated && zero && more:
				t.Fatalf("part %d mixes what changes with what does not", p.Number)
			case !rated && len(dirs) > 1:
				t.Fatalf("part %d mixes databases: %v", p.Number, dirs)
			}
			if rated && sum > threshold {
				first := entries[p.Entries[len(p.Entries)-1]].Size
				if sum != first {
					t.Fatalf("part %d of %d files has %d bytes", p.Number, files, sum)
				}
			}
		}
		for i, n := range seen {
			if n != 1 {
				t.Fatalf("entry %d is in %d parts", i, n)
			}
		}
	})
}
