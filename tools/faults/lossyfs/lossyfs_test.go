package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// disk is a mounted lossyfs.
type disk struct {
	t        *testing.T
	at       string
	commands io.Writer
	answers  *bufio.Reader
}

func mounted(t *testing.T, strict bool) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse")
	}
	in, commands := io.Pipe()
	out, answers := io.Pipe()
	d := &disk{t: t, at: t.TempDir(), commands: commands, answers: bufio.NewReader(out)}
	backing := t.TempDir()
	ended := make(chan error, 1)
	go func() {
		err := run(backing, d.at, strict, in, answers)
		answers.CloseWithError(fmt.Errorf("lossyfs ended: %w", err))
		ended <- err
	}()
	d.answer()
	t.Cleanup(func() {
		commands.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *disk) answer() string {
	d.t.Helper()
	line, err := d.answers.ReadString('\n')
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func (d *disk) cut() string {
	d.t.Helper()
	fmt.Fprintln(d.commands, "cut")
	return d.answer()
}

func (d *disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// write writes at an offset, and syncs if told to.
func (d *disk) write(name string, off int64, data string, sync bool) {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.at, name), os.O_RDWR|os.O_CREATE, 0o600)
	d.must(err)
	_, err = f.WriteAt([]byte(data), off)
	d.must(err)
	if sync {
		d.must(f.Sync())
	}
	d.must(f.Close())
}

func (d *disk) syncDir(name string) {
	d.t.Helper()
	f, err := os.Open(filepath.Join(d.at, name))
	d.must(err)
	d.must(f.Sync())
	d.must(f.Close())
}

// tree is what is there: file contents by name, directories as "/".
func (d *disk) tree() map[string]string {
	d.t.Helper()
	out := map[string]string{}
	d.must(filepath.WalkDir(d.at, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(d.at, path)
		if err != nil || rel == "." {
			return err
		}
		if e.IsDir() {
			out[rel] = "/"
			return nil
		}
		data, err := os.ReadFile(path)
		out[rel] = string(data)
		return err
	}))
	return out
}

func (d *disk) want(want map[string]string) {
	d.t.Helper()
	if got := d.tree(); !maps.Equal(got, want) {
		d.t.Fatalf("the disk holds %q, want %q", got, want)
	}
}

func TestPowerCut(t *testing.T) {
	t.Parallel()
	at := func(d *disk, name string) string { return filepath.Join(d.at, name) }
	for name, c := range map[string]struct {
		do           func(d *disk)
		want, strict map[string]string
	}{
		"a file that was not synced is gone": {
			func(d *disk) { d.write("a", 0, "one", false) }, map[string]string{}, map[string]string{},
		},
		"a synced file stays, its name only where that is the file system's way": {
			func(d *disk) { d.write("a", 0, "one", true) }, map[string]string{"a": "one"}, map[string]string{},
		},
		"file and directory synced": {
			func(d *disk) { d.write("a", 0, "one", true); d.syncDir(".") }, map[string]string{"a": "one"}, map[string]string{"a": "one"},
		},
		"a name without content": {
			func(d *disk) { d.write("a", 0, "one", false); d.syncDir(".") }, map[string]string{"a": ""}, map[string]string{"a": ""},
		},
		"an unsynced end goes, an unsynced overwriting too": {
			func(d *disk) {
				d.write("a", 0, "0123456789", true)
				d.syncDir(".")
				d.write("a", 8, "XXXX", false)
				d.write("a", 2, "YY", false)
				d.write("a", 3, "ZZ", false)
			}, map[string]string{"a": "0123456789"}, map[string]string{"a": "0123456789"},
		},
		"truncating and writing anew": {
			func(d *disk) {
				d.write("a", 0, "0123456789", true)
				d.syncDir(".")
				d.must(os.Truncate(at(d, "a"), 4))
				d.write("a", 4, "abcdefghijklmn", false)
			}, map[string]string{"a": "0123456789"}, map[string]string{"a": "0123456789"},
		},
		"replacing by rename, not synced": {
			func(d *disk) {
				d.write("a", 0, "old", true)
				d.syncDir(".")
				d.write("a.tmp", 0, "new", false)
				d.must(os.Rename(at(d, "a.tmp"), at(d, "a")))
			}, map[string]string{"a": "old"}, map[string]string{"a": "old"},
		},
		"replacing by rename, synced": {
			func(d *disk) {
				d.write("a", 0, "old", true)
				d.syncDir(".")
				d.write("a.tmp", 0, "new", true)
				d.must(os.Rename(at(d, "a.tmp"), at(d, "a")))
				d.syncDir(".")
			}, map[string]string{"a": "new"}, map[string]string{"a": "new"},
		},
		"the rename is durable, the content is not": {
			func(d *disk) {
				d.write("a.tmp", 0, "new", false)
				d.must(os.Rename(at(d, "a.tmp"), at(d, "a")))
				d.syncDir(".")
			}, map[string]string{"a": ""}, map[string]string{"a": ""},
		},
		"a removed file comes back with what was synced of it": {
			func(d *disk) {
				d.write("a", 0, "one", true)
				d.syncDir(".")
				d.write("a", 3, "two", false)
				d.must(os.Remove(at(d, "a")))
			}, map[string]string{"a": "one"}, map[string]string{"a": "one"},
		},
		"a removal that was synced stays": {
			func(d *disk) {
				d.write("a", 0, "one", true)
				d.syncDir(".")
				d.must(os.Remove(at(d, "a")))
				d.syncDir(".")
			}, map[string]string{}, map[string]string{},
		},
		"directories above a synced file": {
			func(d *disk) {
				d.must(os.MkdirAll(at(d, "x/y"), 0o700))
				d.must(os.Mkdir(at(d, "z"), 0o700))
				d.write("x/y/a", 0, "one", true)
			}, map[string]string{"x": "/", "x/y": "/", "x/y/a": "one"}, map[string]string{},
		},
		"a file made, removed and made again": {
			func(d *disk) {
				d.write("a", 0, "one", true)
				d.syncDir(".")
				d.must(os.Remove(at(d, "a")))
				d.write("a", 0, "two", false)
			}, map[string]string{"a": "one"}, map[string]string{"a": "one"},
		},
		"O_SYNC": {
			func(d *disk) {
				f, err := os.OpenFile(at(d, "a"), os.O_CREATE|os.O_WRONLY|os.O_SYNC, 0o600)
				d.must(err)
				_, err = f.WriteString("one")
				d.must(err)
				d.must(f.Close())
			}, map[string]string{"a": "one"}, map[string]string{},
		},
	} {
		for _, strict := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/strict=%t", name, strict), func(t *testing.T) {
				t.Parallel()
				d := mounted(t, strict)
				c.do(d)
				d.cut()
				if strict {
					d.want(c.strict)
				} else {
					d.want(c.want)
				}
				// The disk works after that, and a second cut finds nothing.
				if got := d.cut(); !strings.HasPrefix(got, "cut: 0 files and 0 bytes") {
					t.Errorf("a second cut: %s", got)
				}
				d.write("after", 0, "fine", true)
			})
		}
	}
}

// TestRandomWritesAgainstAModel: whatever is written and truncated between two
// syncs, a cut gives the content of the last sync.
func TestRandomWritesAgainstAModel(t *testing.T) {
	t.Parallel()
	d := mounted(t, false)
	r := rand.New(rand.NewPCG(1, 2))
	now, durable := []byte{}, []byte{}
	path := filepath.Join(d.at, "a")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	d.must(err)
	d.must(f.Sync())
	for step := range 2000 {
		switch r.IntN(20) {
		case 0:
			d.must(f.Sync())
			durable = bytes.Clone(now)
		case 1:
			size := r.IntN(5000)
			d.must(f.Truncate(int64(size)))
			if size <= len(now) {
				now = now[:size]
			} else {
				now = append(now, make([]byte, size-len(now))...)
			}
		case 2:
			if r.IntN(5) > 0 {
				continue
			}
			d.must(f.Close())
			d.cut()
			got, err := os.ReadFile(path)
			d.must(err)
			if !bytes.Equal(got, durable) {
				t.Fatalf("step %d: %d bytes after the cut, want the %d that were synced", step, len(got), len(durable))
			}
			now = bytes.Clone(durable)
			f, err = os.OpenFile(path, os.O_RDWR, 0o600)
			d.must(err)
		default:
			data := make([]byte, 1+r.IntN(700))
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			off := r.IntN(len(now) + 100)
			_, err := f.WriteAt(data, int64(off))
			d.must(err)
			if need := off + len(data); need > len(now) {
				now = append(now, make([]byte, need-len(now))...)
			}
			copy(now[off:], data)
		}
	}
	d.must(f.Close())
}
