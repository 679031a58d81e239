package delta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/walherd/walherd/engine/cluster"
	"github.com/walherd/walherd/engine/page"
	"github.com/walherd/walherd/engine/pg"
)

// TestMarkedPages: a page that is all visible is in an increment if its page of
// the visibility map has changed, although its own LSN has not; unless such
// marks are logged.
func TestMarkedPages(t *testing.T) {
	t.Parallel()
	visible := func(lsn pg.LSN, fill byte) []byte {
		p := heap(lsn, fill)
		binary.LittleEndian.PutUint16(p[10:], page.AllVisible)
		return p
	}
	disk := file(heap(1, 1), visible(2, 2), heap(20, 3), visible(21, 4))
	const fileBlocks = 4
	const per = (size - page.HeaderSize) * 4 // heap pages to a page of the map
	zeros := make([]byte, size)
	for _, c := range []struct {
		what    string
		segment int
		vm      string // the map's file
		pages   []byte
		logged  bool
		want    []uint32
	}{
		{"no map", 0, "_other", heap(50, 0), false, []uint32{2, 3}},
		{"old map", 0, "_vm", heap(9, 0), false, []uint32{2, 3}},
		{"changed map", 0, "_vm", heap(10, 0), false, []uint32{1, 2, 3}},
		{"changed map, marks logged", 0, "_vm", heap(10, 0), true, []uint32{2, 3}},
		{"map written without WAL", 0, "_vm", heap(0, 0), false, []uint32{1, 2, 3}},
		{"new page", 0, "_vm", zeros, false, []uint32{2, 3}},
		{"second page of the map", per / fileBlocks, "_vm", file(heap(9, 0), heap(10, 0)), false, []uint32{1, 2, 3}},
		{"first page of the map only", per / fileBlocks, "_vm", file(heap(10, 0), heap(9, 0)), false, []uint32{2, 3}},
		{"short map", per / fileBlocks, "_vm", heap(10, 0), false, []uint32{2, 3}},
		{"second file of the map", per, "_vm.1", heap(10, 0), false, []uint32{1, 2, 3}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			name := relFile
			if c.segment > 0 {
				name += fmt.Sprintf(".%d", c.segment)
			}
			if err := os.MkdirAll(filepath.Dir(root+relFile), 0o700); err != nil {
				t.Fatal(err)
			}
			for path, b := range map[string][]byte{root + name: disk, root + relFile + c.vm: c.pages} {
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			o, err := NewOpener(Options{Root: root, Actions: []Action{Increment}, Since: 10, PageSize: size, FileBlocks: fileBlocks, HintsLogged: c.logged})
			if err != nil {
				t.Fatal(err)
			}
			body, err := o.Open(0, &cluster.Entry{Name: name, Size: int64(len(disk))})
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			if err != nil {
				t.Fatal(err)
			}
			var pages [][]byte
			for _, n := range c.want {
				pages = append(pages, disk[n*size:][:size])
			}
			if !bytes.Equal(got, encode(uint64(len(disk)), c.want, pages...)) {
				t.Errorf("%d bytes, want the pages %v", len(got), c.want)
			}
		})
	}
}
