package restore

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/goleak"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/manifest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// entry is one entry of a tar to build; a file unless kind says otherwise.
type entry struct {
	name, body string
	kind       byte
	mode       int64
	link       string
}

func dir(name string) entry { return entry{name: name, kind: tar.TypeDir, mode: 0o700} }

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Linkname: e.link, Size: int64(len(e.body))}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o600
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func compressed(t testing.TB, m compress.Method, plain []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := compress.NewWriter(&buf, compress.Options{Method: m})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// memory is a Source; open, if set, replaces the reader of the n-th opening
// of an object, counted from 1.
type memory struct {
	objects map[string][]byte
	open    func(ctx context.Context, name string, n int, stored []byte) (io.ReadCloser, error)

	mu     sync.Mutex
	opened map[string]int
}

func (m *memory) Parts(context.Context) ([]Object, error) {
	var out []Object
	for name, b := range m.objects {
		out = append(out, Object{Name: name, Size: int64(len(b))})
	}
	return out, nil
}

func (m *memory) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	b, ok := m.objects[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	m.mu.Lock()
	if m.opened == nil {
		m.opened = map[string]int{}
	}
	m.opened[name]++
	n := m.opened[name]
	m.mu.Unlock()
	if m.open != nil {
		return m.open(ctx, name, n, b)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func decompress(object string, stored io.Reader) (io.ReadCloser, error) {
	ext := strings.TrimPrefix(path.Ext(object), ".")
	if ext == "tar" {
		ext = ""
	}
	m, err := compress.ByExtension(ext)
	if err != nil {
		return nil, err
	}
	return compress.NewReader(stored, m, 1)
}

func config() Config {
	return Config{
		Decompress: decompress,
		Attempts:   3,
		Backoff:    func() backoff.BackOff { return &backoff.ZeroBackOff{} },
	}
}

// backup is the objects of a small backup that restores: one part of the
// given entries, the label and the control file.
func backup(t testing.TB, entries ...entry) *memory {
	t.Helper()
	return &memory{objects: map[string][]byte{
		"part_001.tar":     tarOf(t, entries...),
		"backup_label.tar": tarOf(t, entry{name: "backup_label", body: "label"}, entry{name: "tablespace_map"}),
		"pg_control.tar":   tarOf(t, entry{name: "/global/pg_control", body: "control"}),
	}}
}

const backupName = "base_000000010000000000000002"

func plan(t testing.TB, src Source, r Request) *Plan {
	t.Helper()
	p, err := tryPlan(t, src, r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tryPlan(t testing.TB, src Source, r Request) (*Plan, error) {
	t.Helper()
	parts, err := src.Parts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Backup == "" {
		r.Backup = backupName
	}
	if r.Sentinel == nil {
		r.Sentinel = &manifest.Sentinel{}
	}
	return NewPlan(parts, r)
}

// tree describes what is below dir: "path mode content" for a file, the target
// for a link.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			out[rel] = "-> " + target
		case d.IsDir():
			out[rel] = fmt.Sprintf("%04o/", info.Mode().Perm())
		default:
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			out[rel] = fmt.Sprintf("%04o %s", info.Mode().Perm(), b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// expectUnfinished checks what every failure must leave: the marker and no
// control file.
func expectUnfinished(t testing.TB, dest, reason string) {
	t.Helper()
	marker, err := os.ReadFile(filepath.Join(dest, MarkerName))
	if err != nil {
		t.Errorf("no marker: %v", err)
	}
	if !strings.Contains(string(marker), reason) {
		t.Errorf("the marker does not say %q:\n%s", reason, marker)
	}
	if _, err := os.Lstat(filepath.Join(dest, "global", "pg_control")); err == nil {
		t.Error("global/pg_control is there")
	}
}

// blocking is a reader that ends when its context does.
type blocking struct{ ctx context.Context }

func (b blocking) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}
func (blocking) Close() error { return nil }

// within fails a test that would hang.
func within(t testing.TB, d time.Duration, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s: not within %s", what, d)
	}
}
