// Package oracle judges what a run has left behind, and uses nothing of
// walherd's to do it: the bucket is read as the files of the S3 server's
// directory, objects are opened by the programs lz4, zstd, brotli and xz,
// backups unpacked by tar, the broker asked by plain HTTP.
//
// A Finding is something that must not be. No findings and a count of zero
// looked at is no verdict: every check returns how much it has seen.
package oracle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// Finding is one broken promise.
type Finding struct {
	// Promise is which ("acknowledged WAL is stored").
	Promise string
	// What is the object, and what is wrong with it.
	What string
}

// String prints one line.
func (f Finding) String() string { return f.Promise + ": " + f.What }

// The promises that are judged.
const (
	WALStored     = "acknowledged WAL is in storage as PostgreSQL had it"
	Unchanged     = "an object is never changed after it was stored"
	BackupListed  = "a backup that was reported done is listed"
	BackupWhole   = "a listed backup restores to a consistent cluster"
	NothingLeft   = "nothing is left over"
	Settled       = "every job ends done or as a dead letter"
	KeepsArchived = "archiving goes on when the faults are over"
)

// Bucket is the directory of a bucket with WAL-G's layout below Prefix.
type Bucket struct {
	// Dir is the bucket's directory, Prefix the path of the cluster in it.
	Dir, Prefix string
}

func (b Bucket) path(rel ...string) string {
	return filepath.Join(append([]string{b.Dir, b.Prefix}, rel...)...)
}

// The programs that open objects, by extension.
var programs = map[string][]string{
	".lz4": {"lz4", "-d", "-q", "-c"}, ".zst": {"zstd", "-d", "-q", "-c"}, ".br": {"brotli", "-d", "-c"}, ".lzma": {"xz", "-d", "-q", "-c", "--format=lzma"}, "": {"cat"},
}

// find is the object of a name without its extension. More than one is
// reported by the caller, who must not choose.
func (b Bucket) find(folder, name string) ([]string, error) {
	var out []string
	for ext := range programs {
		p := b.path(folder, name+ext)
		switch _, err := os.Lstat(p); {
		case err == nil:
			out = append(out, p)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	slices.Sort(out)
	return out, nil
}

// open gives the plain content of an object to w.
func open(ctx context.Context, object string, w io.Writer) error {
	args, ok := programs[filepath.Ext(object)]
	if !ok {
		args = programs[""]
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	in, err := os.Open(object)
	if err != nil {
		return err
	}
	defer in.Close()
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, w, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// Truth is what PostgreSQL was told is archived: the SHA-256 of each file at
// that moment, by name.
type Truth map[string]string

// ReadTruth reads a directory of NAME.sha256 files as sha256sum writes them.
func ReadTruth(dir string) (Truth, error) {
	out := Truth{}
	files, err := filepath.Glob(filepath.Join(dir, "*.sha256"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		sum, _, _ := strings.Cut(string(data), " ")
		if len(sum) != 64 {
			return nil, fmt.Errorf("%s holds no SHA-256 but %q", f, data)
		}
		out[strings.TrimSuffix(filepath.Base(f), ".sha256")] = sum
	}
	return out, nil
}

// Segments compares everything acknowledged with what is stored.
func Segments(ctx context.Context, b Bucket, truth Truth) (findings []Finding, seen int, err error) {
	for name, want := range truth {
		found, err := b.find("wal_005", name)
		if err != nil {
			return findings, seen, err
		}
		if len(found) == 0 {
			findings = append(findings, Finding{WALStored, name + " is not there"})
			continue
		}
		for _, object := range found {
			sum := sha256.New()
			if err := open(ctx, object, sum); err != nil {
				if ctx.Err() != nil {
					return findings, seen, err
				}
				findings = append(findings, Finding{WALStored, fmt.Sprintf("%s cannot be opened: %v", filepath.Base(object), err)})
				continue
			}
			if got := hex.EncodeToString(sum.Sum(nil)); got != want {
				findings = append(findings, Finding{WALStored, fmt.Sprintf("%s holds SHA-256 %s, PostgreSQL had %s", filepath.Base(object), got, want)})
			}
			seen++
		}
	}
	sortFindings(findings)
	return findings, seen, nil
}

func sortFindings(f []Finding) {
	sort.Slice(f, func(i, j int) bool { return f[i].String() < f[j].String() })
}

const (
	backups  = "basebackups_005"
	sentinel = "_backup_stop_sentinel.json"
)

// Backups lists the backups that a reader would see.
func (b Bucket) Backups() ([]string, error) {
	files, err := filepath.Glob(b.path(backups, "*"+sentinel))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		out = append(out, strings.TrimSuffix(filepath.Base(f), sentinel))
	}
	return out, nil
}

// Unpack restores a backup into a directory that is made, control file last.
func (b Bucket) Unpack(ctx context.Context, backup, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	parts, err := filepath.Glob(b.path(backups, backup, "tar_partitions", "*"))
	if err != nil {
		return err
	}
	rank := func(p string) int {
		switch {
		case strings.Contains(filepath.Base(p), "pg_control.tar"):
			return 2
		case strings.Contains(filepath.Base(p), "backup_label.tar"):
			return 1
		}
		return 0
	}
	slices.SortStableFunc(parts, func(x, y string) int { return rank(x) - rank(y) })
	if len(parts) < 2 || rank(parts[len(parts)-1]) != 2 {
		return fmt.Errorf("%d objects and no pg_control.tar among them", len(parts))
	}
	for _, p := range parts {
		tar := exec.CommandContext(ctx, "tar", "-x", "-C", dir, "-f", "-")
		in, err := tar.StdinPipe()
		if err != nil {
			return err
		}
		var stderr bytes.Buffer
		tar.Stderr = &stderr
		if err := tar.Start(); err != nil {
			return err
		}
		oerr := open(ctx, p, in)
		in.Close()
		if err := errors.Join(oerr, tar.Wait()); err != nil {
			return fmt.Errorf("%s: %w: %s", filepath.Base(p), err, strings.TrimSpace(stderr.String()))
		}
	}
	for _, f := range []string{"backup_label", "global/pg_control", "PG_VERSION"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			return err
		}
	}
	return nil
}

// RestoreCommand is a restore_command for this bucket without walherd.
func (b Bucket) RestoreCommand() string {
	w := b.path("wal_005")
	return fmt.Sprintf(`if [ -e '%[1]s/%%f.lz4' ]; then lz4 -d -q -f '%[1]s/%%f.lz4' '%%p'; elif [ -e '%[1]s/%%f.zst' ]; then zstd -d -q -f '%[1]s/%%f.zst' -o '%%p'; else cp '%[1]s/%%f' '%%p' 2>/dev/null; fi`, w)
}

// Leftovers are unfinished uploads and temporary files in the S3 server's
// directory, and folders of backups that have no sentinel.
func (b Bucket) Leftovers() (uploads, backupsWithout []string, err error) {
	err = filepath.WalkDir(filepath.Join(b.Dir, ".sgwtmp"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			uploads = append(uploads, path)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	dirs, err := filepath.Glob(b.path(backups, "base_*"))
	if err != nil {
		return nil, nil, err
	}
	for _, d := range dirs {
		info, err := os.Stat(d)
		if err != nil || !info.IsDir() {
			continue
		}
		if _, err := os.Stat(d + sentinel); errors.Is(err, fs.ErrNotExist) {
			backupsWithout = append(backupsWithout, filepath.Base(d))
		}
	}
	return uploads, backupsWithout, nil
}
