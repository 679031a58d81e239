package restore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/engine/manifest"
)

// breaking is a Source whose reads fail for good once budget bytes are read.
type breaking struct {
	Source
	budget *atomic.Int64
}

func (b breaking) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := b.Source.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return brokenBody{r, b.budget}, nil
}

type brokenBody struct {
	io.ReadCloser
	budget *atomic.Int64
}

func (b brokenBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), 512)])
	if b.budget.Add(-int64(n)) < 0 {
		return 0, errNetwork
	}
	return n, err
}

// However often a restore is interrupted, and wherever, the one that ends has
// made the tree of a restore without interruption, and has not read again what
// was done.
func TestResume(t *testing.T) {
	t.Parallel()
	c := smallChain(t)
	links, sources := c.links, c.sources
	stored := int64(0)
	for _, l := range links {
		for _, o := range l.Parts {
			stored += o.Size
		}
	}
	type result map[string]string
	whole := map[int]result{}
	for n := 1; n <= len(links); n++ {
		dest := t.TempDir()
		p, err := NewChainPlan(links[:n], Request{Destination: dest, PageSize: testPage})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := RunChain(t.Context(), p, sources[:n], chainConfig()); err != nil {
			t.Fatal(err)
		}
		whole[n] = tree(t, dest)
	}
	var resumed atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		dest, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dest)
		n := rapid.IntRange(1, len(links)).Draw(rt, "backups")
		r := Request{Destination: dest, PageSize: testPage, Reverse: rapid.Bool().Draw(rt, "reverse"), SkipRedundant: rapid.Bool().Draw(rt, "skip"),
			Concurrency: rapid.IntRange(1, 3).Draw(rt, "concurrency")}
		if n == 1 && r.SkipRedundant {
			r.Keep, r.KeepText = func(string) bool { return true }, "all"
		}
		var budget atomic.Int64
		broken := make([]Source, n)
		for i := range broken {
			broken[i] = breaking{sources[i], &budget}
		}
		cfg := chainConfig()
		cfg.Retryable = func(error) bool { return false }
		for tries := 0; ; tries++ {
			budget.Store(1 << 60)
			if tries < 6 {
				budget.Store(rapid.Int64Range(0, stored/2).Draw(rt, "budget"))
			}
			cfg.Session = "one"
			if rapid.IntRange(0, 9).Draw(rt, "power") == 0 {
				cfg.Session = "other"
			}
			p, err := NewChainPlan(links[:n], r)
			if err != nil {
				rt.Fatal(err)
			}
			res, err := RunChain(t.Context(), p, broken, cfg)
			resumed.Add(int64(res.Resumed))
			if err == nil {
				break
			}
			if !errors.Is(err, errNetwork) {
				rt.Fatal(err)
			}
			marker := filepath.Join(dest, MarkerName)
			if _, err := os.Stat(filepath.Join(dest, controlPath)); err == nil {
				rt.Fatal("a control file in an unfinished restore")
			}
			// A crash cuts the last line of the journal, wherever.
			if cut := rapid.IntRange(1, 100).Draw(rt, "cut"); rapid.Bool().Draw(rt, "torn") {
				text, err := os.ReadFile(marker)
				if err != nil {
					rt.Fatal(err)
				}
				last := strings.LastIndex(string(text), "\n{") + 1
				if strings.HasPrefix(string(text[last:]), `{"begin"`) {
					continue // nothing is written before the head is
				}
				end := last + strings.Index(string(text[last:]), "\n")
				if err := os.Truncate(marker, int64(max(last, end-cut))); err != nil {
					rt.Fatal(err)
				}
			}
		}
		if got := tree(t, dest); !maps.Equal(got, whole[n]) {
			compareTrees(t, got, whole[n])
			rt.Fatal("the trees differ")
		}
	})
	if resumed.Load() == 0 {
		t.Error("nothing was ever resumed")
	}
}

func TestResumeRefusals(t *testing.T) {
	t.Parallel()
	unfinished := func(t *testing.T) (*memory, string) {
		src := backup(t, entry{name: "a", body: "x"}, entry{name: "b", body: "y"})
		src.open = func(_ context.Context, name string, _ int, stored []byte) (io.ReadCloser, error) {
			if name == "pg_control.tar" {
				return nil, errNetwork
			}
			return io.NopCloser(bytes.NewReader(stored)), nil
		}
		dest := filepath.Join(t.TempDir(), "data")
		if _, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, chainConfig()); err == nil {
			t.Fatal("the restore did not fail")
		}
		src.open = nil
		return src, dest
	}
	refuse := func(name string, want error, says string, change func(*Request, *memory)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, dest := unfinished(t)
			r := Request{Destination: dest}
			change(&r, src)
			before := tree(t, dest)
			_, err := Run(t.Context(), plan(t, src, r), src, chainConfig())
			if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
				t.Errorf("error %v, want %v saying %q", err, want, says)
			}
			compareTrees(t, tree(t, dest), before)
		})
	}
	refuse("another backup", ErrUnfinished, backupName, func(r *Request, _ *memory) { r.Backup = "base_000000010000000000000009" })
	refuse("a mask", ErrUnfinished, "other options", func(r *Request, _ *memory) {
		r.Keep, r.KeepText = func(string) bool { return true }, "mask *"
	})
	refuse("another object", ErrUnfinished, "not what they were", func(_ *Request, m *memory) { m.objects["part_002.tar"] = tarOf(t) })

	t.Run("at work", func(t *testing.T) {
		t.Parallel()
		src, dest := unfinished(t)
		at := make(chan struct{})
		src.open = func(ctx context.Context, name string, n int, stored []byte) (io.ReadCloser, error) {
			close(at) // the label: the part is done
			return blocking{ctx}, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		p := plan(t, src, Request{Destination: dest})
		go func() {
			defer close(done)
			_, _ = Run(ctx, p, src, chainConfig())
		}()
		<-at
		_, err := Run(t.Context(), p, src, chainConfig())
		if !errors.Is(err, ErrUnfinished) || !strings.Contains(err.Error(), "at work") {
			t.Errorf("a second restore at the same time: %v", err)
		}
		cancel()
		<-done
	})
	t.Run("no journal", func(t *testing.T) {
		t.Parallel()
		src, dest := unfinished(t)
		if err := os.WriteFile(filepath.Join(dest, MarkerName), []byte("of an older program\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, chainConfig())
		if !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), "earlier restore") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a strange tablespace", func(t *testing.T) {
		t.Parallel()
		// Interrupted before the link was made; meanwhile the directory was
		// taken for something else.
		space := t.TempDir()
		src := backup(t, entry{name: "a", body: "x"})
		src.open = func(context.Context, string, int, []byte) (io.ReadCloser, error) { return nil, errNetwork }
		dest := filepath.Join(t.TempDir(), "data")
		r := Request{Destination: dest, Spec: &manifest.TablespaceSpec{BasePrefix: dest, Tablespaces: []manifest.Tablespace{{OID: "16400", Location: space, Link: "pg_tblspc/16400"}}}}
		if _, err := Run(t.Context(), plan(t, src, r), src, chainConfig()); err == nil {
			t.Fatal("the restore did not fail")
		}
		if err := os.Remove(filepath.Join(dest, "pg_tblspc", "16400")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(space, "theirs"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		src.open = nil
		if _, err := Run(t.Context(), plan(t, src, r), src, chainConfig()); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("error %v", err)
		}
	})
}

// A file that occurs twice is found also by a restore that goes on with another.
func TestResumeFindsDuplicates(t *testing.T) {
	t.Parallel()
	src := backup(t, entry{name: "a", body: "x"})
	src.objects["part_002.tar"] = tarOf(t, entry{name: "a", body: "y"})
	src.open = func(context.Context, string, int, []byte) (io.ReadCloser, error) { return nil, errNetwork }
	dest := t.TempDir()
	for range 2 {
		_, err := Run(t.Context(), plan(t, src, Request{Destination: dest}), src, chainConfig())
		if err == nil {
			t.Fatal("restored")
		}
		if src.open == nil && !errors.Is(err, ErrArchive) {
			t.Errorf("error %v", err)
		}
		src.open = nil
	}
}

// stuck is a Source of which one object cannot be opened.
type stuck struct {
	Source
	name string
}

func (s stuck) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if name == s.name {
		return nil, errNetwork
	}
	return s.Source.Open(ctx, name)
}

// A restore in reverse order that was interrupted behind its last data part,
// when the states of pages are dropped already, goes on, and again.
func TestResumeBehindThePages(t *testing.T) {
	t.Parallel()
	c := smallChain(t)
	dest := filepath.Join(t.TempDir(), "data")
	restore := func(sources []Source) (Result, error) {
		p, err := NewChainPlan(c.links, Request{Destination: dest, PageSize: testPage, Reverse: true})
		if err != nil {
			t.Fatal(err)
		}
		cfg := chainConfig()
		cfg.Session, cfg.Retryable = "one", func(error) bool { return false }
		return RunChain(t.Context(), p, sources, cfg)
	}
	broken := append([]Source(nil), c.sources...)
	last := len(broken) - 1
	broken[last] = stuck{broken[last], "pg_control.tar"}
	for range 2 {
		if _, err := restore(broken); !errors.Is(err, errNetwork) {
			t.Fatalf("got %v", err)
		}
		if _, err := os.Stat(filepath.Join(dest, scratchName)); err == nil {
			t.Error("the states of pages are still there")
		}
	}
	res, err := restore(c.sources)
	if err != nil || res.Resumed == 0 {
		t.Fatalf("%d objects were there, error %v", res.Resumed, err)
	}
}
