package oracle_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walherd/walherd/tools/faults/oracle"
)

// planted is a bucket with two segments and two backups, and the truth of it.
type planted struct {
	t *testing.T
	oracle.Bucket
	truth oracle.Truth
}

func plant(t *testing.T) *planted {
	t.Helper()
	p := &planted{t: t, Bucket: oracle.Bucket{Dir: t.TempDir(), Prefix: "main"}, truth: oracle.Truth{}}
	for name, content := range map[string]string{
		"000000010000000000000001": strings.Repeat("one", 1000), "000000010000000000000002": strings.Repeat("two", 1000),
	} {
		p.lz4("wal_005/"+name+".lz4", content)
		sum := sha256.Sum256([]byte(content))
		p.truth[name] = hex.EncodeToString(sum[:])
	}
	p.write("basebackups_005/base_1"+"_backup_stop_sentinel.json", "{}")
	src := t.TempDir()
	for name, content := range map[string]string{"PG_VERSION": "15", "backup_label": "START", "global/pg_control": "control", "base/1/1": "data"} {
		f := filepath.Join(src, name)
		p.must(os.MkdirAll(filepath.Dir(f), 0o700))
		p.must(os.WriteFile(f, []byte(content), 0o600))
	}
	for part, files := range map[string][]string{"part_001": {"PG_VERSION", "base"}, "backup_label": {"backup_label"}, "pg_control": {"global/pg_control"}} {
		out, err := exec.Command("tar", append([]string{"-c", "-C", src}, files...)...).Output()
		p.must(err)
		p.lz4("basebackups_005/base_1/tar_partitions/"+part+".tar.lz4", string(out))
	}
	return p
}

func (p *planted) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *planted) at(rel string) string { return filepath.Join(p.Dir, p.Prefix, rel) }

func (p *planted) write(rel, content string) {
	p.t.Helper()
	p.must(os.MkdirAll(filepath.Dir(p.at(rel)), 0o700))
	p.must(os.WriteFile(p.at(rel), []byte(content), 0o600))
}

func (p *planted) lz4(rel, content string) {
	p.t.Helper()
	cmd := exec.Command("lz4", "-q", "-c")
	cmd.Stdin = strings.NewReader(content)
	out, err := cmd.Output()
	p.must(err)
	p.write(rel, string(out))
}

// flip changes one bit in the middle of an object.
func (p *planted) flip(rel string) {
	p.t.Helper()
	data, err := os.ReadFile(p.at(rel))
	p.must(err)
	data[len(data)/2] ^= 4
	p.write(rel, string(data))
}

const firstSegment = "wal_005/000000010000000000000001.lz4"

// TestPlantedViolations: each thing that the oracle is for is done to a good
// bucket, and found; the good bucket is found good.
func TestPlantedViolations(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil   func(p *planted)
		promise string
	}{
		"nothing":           {func(*planted) {}, ""},
		"a segment deleted": {func(p *planted) { p.must(os.Remove(p.at(firstSegment))) }, oracle.WALStored},
		"a bit flipped":     {func(p *planted) { p.flip(firstSegment) }, oracle.WALStored},
		"another content":   {func(p *planted) { p.lz4(firstSegment, "other") }, oracle.WALStored},
		"cut short":         {func(p *planted) { p.must(os.Truncate(p.at(firstSegment), 20)) }, oracle.WALStored},
		"empty":             {func(p *planted) { p.must(os.Truncate(p.at(firstSegment), 0)) }, oracle.WALStored},
		"a second object of the name with other content": {func(p *planted) { p.write("wal_005/000000010000000000000001", "x") }, oracle.WALStored},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := plant(t)
			c.spoil(p)
			findings, _, err := oracle.Segments(t.Context(), p.Bucket, p.truth)
			p.must(err)
			switch {
			case c.promise == "" && len(findings) > 0:
				t.Fatalf("found %v in a good bucket", findings)
			case c.promise != "" && (len(findings) != 1 || findings[0].Promise != c.promise):
				t.Fatalf("found %v", findings)
			}
		})
	}
}

func TestWatchSeesChanges(t *testing.T) {
	t.Parallel()
	part := "basebackups_005/base_1/tar_partitions/part_001.tar.lz4"
	for name, c := range map[string]struct {
		change func(p *planted)
		want   int
	}{
		"nothing": {func(*planted) {}, 0},
		"written anew with the same": {func(p *planted) {
			data, _ := os.ReadFile(p.at(part))
			p.must(os.Remove(p.at(part)))
			p.write(part, string(data))
		}, 0},
		"a part of a listed backup":    {func(p *planted) { p.write(part, "other") }, 1},
		"a part of a listed one gone":  {func(p *planted) { p.must(os.Remove(p.at(part))) }, 1},
		"a segment":                    {func(p *planted) { p.flip(firstSegment) }, 1},
		"a segment gone":               {func(p *planted) { p.must(os.Remove(p.at(firstSegment))) }, 1},
		"a part of an unlisted backup": {func(p *planted) { p.write("basebackups_005/base_2/tar_partitions/part_001.tar.lz4", "second") }, 0},
		"a new object is not a change": {func(p *planted) { p.write("wal_005/000000010000000000000003.lz4", "new") }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := plant(t)
			p.write("basebackups_005/base_2/tar_partitions/part_001.tar.lz4", "first")
			w := oracle.NewWatch(p.Bucket)
			p.must(w.Look(false))
			if w.Objects() != 7 {
				t.Fatalf("saw %d objects", w.Objects())
			}
			c.change(p)
			p.must(w.Look(true))
			if got := w.Findings(); len(got) != c.want {
				t.Fatalf("found %v", got)
			}
		})
	}
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(p *planted)
		ok    bool
	}{
		"whole":           {func(*planted) {}, true},
		"no control file": {func(p *planted) { p.must(os.Remove(p.at("basebackups_005/base_1/tar_partitions/pg_control.tar.lz4"))) }, false},
		"no label": {func(p *planted) {
			p.must(os.Remove(p.at("basebackups_005/base_1/tar_partitions/backup_label.tar.lz4")))
		}, false},
		"a part cut short": {func(p *planted) {
			p.must(os.Truncate(p.at("basebackups_005/base_1/tar_partitions/part_001.tar.lz4"), 100))
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := plant(t)
			c.spoil(p)
			list, err := p.Backups()
			p.must(err)
			if len(list) != 1 || list[0] != "base_1" {
				t.Fatalf("backups %v", list)
			}
			dir := filepath.Join(t.TempDir(), "restored")
			err = p.Unpack(context.Background(), "base_1", dir)
			if (err == nil) != c.ok {
				t.Fatalf("unpacked with %v", err)
			}
			if data, _ := os.ReadFile(filepath.Join(dir, "base/1/1")); c.ok && string(data) != "data" {
				t.Fatalf("data is %q", data)
			}
		})
	}
}

func TestLeftovers(t *testing.T) {
	t.Parallel()
	p := plant(t)
	uploads, without, err := p.Leftovers()
	p.must(err)
	if len(uploads)+len(without) != 0 {
		t.Fatalf("left over: %v, %v", uploads, without)
	}
	p.write("../.sgwtmp/multipart/abc/def/1", "part")
	p.write("basebackups_005/base_2/tar_partitions/part_001.tar.lz4", "x")
	uploads, without, err = p.Leftovers()
	p.must(err)
	if len(uploads) != 1 || len(without) != 1 || without[0] != "base_2" {
		t.Fatalf("left over: %v, %v", uploads, without)
	}
}

func TestReadTruth(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out, err := exec.Command("sh", "-c", `cd "$1" && printf content > seg && sha256sum seg > seg.sha256`, "sh", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	truth, err := oracle.ReadTruth(dir)
	sum := sha256.Sum256([]byte("content"))
	if err != nil || len(truth) != 1 || truth["seg"] != hex.EncodeToString(sum[:]) {
		t.Fatalf("truth %v, %v", truth, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.sha256"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := oracle.ReadTruth(dir); err == nil {
		t.Fatal("an empty sum was taken for one")
	}
}
