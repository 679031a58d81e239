package archive_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/repo"
)

// jsonObjects are the metadata objects of the archive with their contents.
func (b *handlerBench) jsonObjects() map[string]map[string]map[string]string {
	b.t.Helper()
	where, err := b.h.Choose(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]map[string]map[string]string{}
	for info, err := range where.Bucket().List(b.t.Context(), repo.WALFolder, storage.ListOptions{}) {
		if err != nil {
			b.t.Fatal(err)
		}
		name, isJSON := strings.CutSuffix(strings.TrimPrefix(info.Name, repo.WALFolder), ".json")
		if !isJSON {
			continue
		}
		body, err := where.OpenObject(b.t.Context(), info.Name, storage.Range{})
		if err != nil {
			b.t.Fatal(err)
		}
		data, err := io.ReadAll(body)
		body.Close()
		content := map[string]map[string]string{}
		if err = errors.Join(err, json.Unmarshal(data, &content)); err != nil {
			b.t.Fatalf("%s: %v", info.Name, err)
		}
		out[name] = content
	}
	return out
}

func TestMetadataOfEachFile(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	at := time.Date(2026, 2, 3, 4, 5, 6, 789, time.FixedZone("", 3600))
	for _, name := range []string{segment, "00000002.history"} {
		if err := b.try(messages.ArchiveJob{Name: name, Bytes: b.deposit("x"), Metadata: messages.WALMetadataEach, Created: at}, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.try(messages.ArchiveJob{Name: strings.Replace(segment, "01", "0A", 1), Bytes: b.deposit("x"), Created: at}, 1); err != nil {
		t.Fatal(err)
	}
	got := b.jsonObjects()
	if len(got) != 2 {
		t.Fatalf("there are %v", got)
	}
	for _, name := range []string{segment, "00000002.history"} {
		one := got[name][name]
		if one["created_time"] != "2026-02-03T03:05:06.000000789Z" || one["date_fmt"] != "%Y-%m-%dT%H:%M:%S.%fZ" {
			t.Errorf("%s.json holds %v", name, got[name])
		}
	}
}

// TestBulkMetadataLosesNothing stores the 16 files of a group in any order, the
// one that ends it twice, and then some again: each file is told of once or, if
// it came after the end, at least once.
func TestBulkMetadataLosesNothing(t *testing.T) {
	t.Parallel()
	b := newHandlerBench(t)
	const group = "00000001000000000000001"
	names := make([]string, 16)
	for i := range names {
		names[i] = fmt.Sprintf("%s%X", group, i)
	}
	push := func(name string) {
		t.Helper()
		if err := b.try(messages.ArchiveJob{Name: name, Bytes: b.deposit(name), Metadata: messages.WALMetadataBulk, Created: time.Now()}, 1); err != nil {
			t.Fatal(err)
		}
	}
	told := func() (all []string) {
		t.Helper()
		for _, content := range b.jsonObjects() {
			for name := range content {
				all = append(all, name)
			}
		}
		slices.Sort(all)
		return all
	}
	for _, i := range rand.Perm(16) {
		push(names[i])
	}
	if got := slices.Compact(told()); !slices.Equal(got, names) {
		t.Fatalf("told are %v", got)
	}
	push(names[15])
	if got := b.jsonObjects(); len(got) != 1 || len(got[group]) != 16 {
		t.Fatalf("there are %v", got)
	}
	push(names[3])
	if got := slices.Compact(told()); !slices.Equal(got, names) {
		t.Fatalf("after another push, told are %v", got)
	}
}

// meanwhile is a bucket that does something after its nth Open.
type meanwhile struct {
	storage.Bucket
	n     int
	do    func()
	opens int
}

func (m *meanwhile) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, error) {
	r, err := m.Bucket.Open(ctx, name, rng)
	if m.opens++; m.opens == m.n {
		m.do()
	}
	return r, err
}

// TestTwoWorkersGather the same group: the job of the file that ends it was
// handed out twice, and the second is done amid the first.
func TestTwoWorkersGather(t *testing.T) {
	t.Parallel()
	const group = "00000001000000000000001"
	for _, n := range []int{1, 2, 9, 16, 17} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			b := newHandlerBench(t)
			store := mem.New()
			plain, hooked := repo.New(store, "default"), repo.New(&meanwhile{Bucket: store, n: n}, "default")
			use := plain
			b.h.Choose = func(context.Context) (*repo.Repo, error) { return use, nil }
			push := func(i int) {
				t.Helper()
				name := fmt.Sprintf("%s%X", group, i)
				if err := b.try(messages.ArchiveJob{Name: name, Bytes: b.deposit(name), Metadata: messages.WALMetadataBulk, Created: time.Now()}, 1); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 15 {
				push(i)
			}
			met := false
			hooked.Bucket().(*meanwhile).do = func() { met, use = true, plain; push(15) }
			use = hooked
			push(15)
			use = plain
			told := map[string]bool{}
			for _, content := range b.jsonObjects() {
				for name := range content {
					told[name] = true
				}
			}
			if len(told) != 16 || !met {
				t.Errorf("told are %d of 16 files: %v", len(told), told)
			}
		})
	}
}
