package catalog

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/manifest"
	"github.com/walherd/walherd/engine/pg"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const (
	first  = "base_000000010000000000000002"
	second = "base_000000010000000000000004"
	third  = "base_000000010000000000000006_D_000000010000000000000004"
)

func entry(name string, minutes int, storage string) Entry {
	return Entry{Object: name + SentinelSuffix, Modified: noon.Add(time.Duration(minutes) * time.Minute), Storage: storage}
}

func withMetadata(e Entry, startMinutes int, userData string) Entry {
	u, err := manifest.ParseUserData(userData)
	if err != nil {
		panic(err)
	}
	e.Metadata = &manifest.Metadata{StartTime: noon.Add(time.Duration(startMinutes) * time.Minute), UserData: u}
	return e
}

func names(bs []Backup) (out []string) {
	for _, b := range bs {
		out = append(out, string(b.Name)+"@"+b.Storage)
	}
	return out
}

func TestBuildTakesSentinelsOnly(t *testing.T) {
	t.Parallel()
	c := Build([]Entry{
		entry(first, 1, "default"),
		{Object: first + "/"},
		{Object: first + "/metadata.json"},
		{Object: "stream_20261122T120000Z" + SentinelSuffix},
		{Object: first + SentinelSuffix + ".tmp.20261122T161847Z-e1871ab0d324b6a6"},
		entry(third, 2, "default"),
		entry("base_000000010000000000000008_00000040", 3, "default"),
	})
	got := c.ByModified()
	if want := []string{first + "@default", third + "@default", "base_000000010000000000000008_00000040@default"}; !slices.Equal(names(got), want) {
		t.Fatalf("got %v, want %v", names(got), want)
	}
	if want := (pg.SegmentName{Timeline: 1, Seg: 6}); got[1].Segment != want || c.Len() != 3 {
		t.Errorf("segment %v, want %v; %d backups", got[1].Segment, want, c.Len())
	}
}

func TestOrderAndLatest(t *testing.T) {
	t.Parallel()
	c := Build([]Entry{
		withMetadata(entry(first, 9, "a"), 2, ""),
		withMetadata(entry(second, 5, "a"), 3, ""),
		withMetadata(entry(first, 9, "b"), 1, ""),
	})
	if got, want := names(c.ByModified()), []string{second + "@a", first + "@a", first + "@b"}; !slices.Equal(got, want) {
		t.Errorf("by modified: %v, want %v", got, want)
	}
	if got, want := names(c.ByStart()), []string{first + "@b", first + "@a", second + "@a"}; !slices.Equal(got, want) {
		t.Errorf("by start: %v, want %v", got, want)
	}
	for _, find := range []func() (Backup, error){c.Latest, func() (Backup, error) { return c.Find("LATEST") }} {
		if got, err := find(); err != nil || string(got.Name) != first || got.Storage != "b" {
			t.Errorf("latest: %+v, %v", got, err)
		}
	}
	if got, err := c.Find(first); err != nil || got.Storage != "a" {
		t.Errorf("by name: %+v, %v", got, err)
	}

	without := Build([]Entry{withMetadata(entry(first, 9, "a"), 1, ""), entry(second, 5, "a")})
	if got, want := names(without.ByStart()), []string{second + "@a", first + "@a"}; !slices.Equal(got, want) {
		t.Errorf("by start, one unknown: %v, want %v", got, want)
	}
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	empty := Build(nil)
	if _, err := empty.Latest(); !errors.Is(err, ErrNotFound) {
		t.Errorf("latest of none: %v", err)
	}
	if got := empty.ByStart(); len(got) != 0 {
		t.Errorf("by start: %v", got)
	}
	_, err := Build([]Entry{entry(first, 1, "default")}).Find(second)
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), second) || !strings.Contains(err.Error(), "backup-list") {
		t.Errorf("unknown name: %v", err)
	}
}

func TestFindByUserData(t *testing.T) {
	t.Parallel()
	data := func(s string) manifest.UserData {
		u, err := manifest.ParseUserData(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	c := Build([]Entry{
		withMetadata(entry(first, 1, "a"), 1, `{"x":[3],"y":4}`),
		withMetadata(entry(second, 2, "a"), 1, `"weekly"`),
		withMetadata(entry(third, 3, "a"), 1, `"weekly"`),
		withMetadata(entry(first, 4, "b"), 1, `{"y":4,"x":[3]}`),
		withMetadata(entry("base_000000010000000000000009", 5, "a"), 1, ""),
		entry("base_00000001000000000000000A", 6, "a"),
	})
	if got, err := c.FindByUserData(data(`{"y":4.0,"x":[3]}`)); err != nil || string(got.Name) != first || got.Storage != "a" {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err := c.FindByUserData(data(`"weekly"`))
	if !errors.Is(err, ErrAmbiguous) || !strings.Contains(err.Error(), second) || !strings.Contains(err.Error(), third) {
		t.Errorf("ambiguous: %v", err)
	}
	_, err = c.FindByUserData(data(`"daily"`))
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "1 without readable metadata") {
		t.Errorf("no match: %v", err)
	}
	if _, err = c.FindByUserData(nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("no user data asked for: %v", err)
	}
}

func TestLatestIsLastByModified(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var entries []Entry
		for i, m := range rapid.SliceOfN(rapid.IntRange(0, 3), 1, 20).Draw(t, "modified") {
			segment := pg.SegmentName{Timeline: 1, Seg: uint32(i)}
			entries = append(entries, entry(string(pg.FullBackupName(segment)), m, "s"))
		}
		c := Build(entries)
		got, err := c.Latest()
		if err != nil {
			t.Fatal(err)
		}
		sorted := c.ByModified()
		for i, b := range sorted {
			if b.Modified.After(got.Modified) {
				t.Fatalf("%s is newer than the latest", b.Name)
			}
			if b.Modified.Equal(got.Modified) && b.Segment.Compare(got.Segment) > 0 {
				t.Fatalf("%s is listed after the latest", b.Name)
			}
			if i > 0 && sorted[i-1].Modified.Equal(b.Modified) && sorted[i-1].Segment.Compare(b.Segment) > 0 {
				t.Fatal("the order is not stable")
			}
		}
	})
}
