// Command lossyfs is a file system that can lose its power. It shows a backing
// directory at a mount point and remembers how to undo everything that was not
// synced; on "cut" it undoes it, as a machine does whose page cache is gone.
//
// It reads commands from its standard input, a line each, and answers each
// with a line: "cut" takes the mount away, undoes, and mounts again (whoever
// had files open is to be killed first); "dirty" tells what would be lost. At
// the end of the input it unmounts and ends. It needs root and /dev/fuse.
//
// It models one disk: all that is not synced is lost, at once. Real ones may
// keep some of it, or tear a block.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	backing := flag.String("backing", "", "directory that holds the files")
	at := flag.String("mount", "", "directory to show them at")
	strict := flag.Bool("strict", false, "a file's name is durable only when its directory was synced")
	flag.Parse()
	if err := run(*backing, *at, *strict, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lossyfs:", err)
		os.Exit(1)
	}
}

func run(backing, at string, strict bool, commands io.Reader, answers io.Writer) error {
	j, err := newJournal(backing, strict)
	if err != nil {
		return err
	}
	m, err := mount(j, at)
	if err != nil {
		return err
	}
	fmt.Fprintln(answers, "mounted")
	lines := bufio.NewScanner(commands)
	for lines.Scan() {
		switch lines.Text() {
		case "cut":
			// Mounted again rather than changed in place: no cache of the
			// kernel survives a power cut either.
			if err := unmount(m, at); err != nil {
				return err
			}
			gone, err := j.cut()
			if err != nil {
				return err
			}
			if m, err = mount(j, at); err != nil {
				return err
			}
			fmt.Fprintf(answers, "cut: %d files and %d bytes went back, %d changes of names undone, %d kept by later ones\n", gone.Files, gone.Bytes, gone.Names, gone.Skipped)
		case "dirty":
			j.mu.Lock()
			fmt.Fprintf(answers, "dirty: %d files, %d changes of names\n", len(j.files), len(j.names))
			j.mu.Unlock()
		default:
			fmt.Fprintf(answers, "unknown command %q\n", lines.Text())
		}
	}
	return unmount(m, at)
}

func mount(j *journal, at string) (*fuse.Server, error) {
	root, err := newRoot(j)
	if err != nil {
		return nil, err
	}
	var none time.Duration
	m, err := fs.Mount(at, root, &fs.Options{
		EntryTimeout: &none, AttrTimeout: &none, NegativeTimeout: &none,
		MountOptions: fuse.MountOptions{FsName: "lossyfs", Name: "lossyfs", AllowOther: true, DirectMountStrict: true, DisableSplice: true, MaxWrite: 1 << 20},
	})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", at, err)
	}
	return m, nil
}

// unmount waits for those who were killed to be gone.
func unmount(m *fuse.Server, at string) (err error) {
	for range 100 {
		if err = m.Unmount(); err == nil {
			m.Wait()
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = syscall.Unmount(at, syscall.MNT_DETACH)
	return fmt.Errorf("unmount %s: %w", at, err)
}
