package sftp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/storage/sftp"
	"github.com/walherd/walherd/storage/sftp/sftptest"
	"github.com/walherd/walherd/storage/storagetest"
)

// passing tells an error that another try may mend.
func passing(err error) bool {
	if err == nil {
		return false
	}
	for _, final := range []error{storage.ErrPermanent, storage.ErrNotExist, storage.ErrExist, context.Canceled, context.DeadlineExceeded, io.EOF} {
		if errors.Is(err, final) {
			return false
		}
	}
	return true
}

func again(b storage.Bucket) storage.Bucket {
	return retry.New(b, retry.Options{Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }})
}

// upload begins a Put whose content waits for more.
func upload(t *testing.T, b storage.Bucket, name string) (more *io.PipeWriter, done chan error) {
	t.Helper()
	pr, pw := io.Pipe()
	done = make(chan error, 1)
	go func() {
		_, err := b.Put(context.WithoutCancel(t.Context()), name, pr, storage.PutOptions{})
		pr.CloseWithError(io.ErrClosedPipe)
		done <- err
	}()
	if _, err := pw.Write(storagetest.Content(1, 300_000)); err != nil {
		t.Fatal(err)
	}
	return pw, done
}

func unfinished(t *testing.T, b *sftp.Bucket) []string {
	t.Helper()
	var names []string
	for u, err := range b.Unfinished(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, u.Name)
	}
	return names
}

func TestConnectionBreaksDuringPut(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, opt sftptest.Options) {
		server := sftptest.Start(t, opt)
		b := open(t, options(server, server.Dir))
		storagetest.MustPut(t, b, "old", []byte("old"))
		for _, name := range []string{"old", "new/x"} {
			more, done := upload(t, b, name)
			server.Drop()
			for more != nil { // until it is noticed
				if _, err := more.Write(make([]byte, 100_000)); err != nil {
					more = nil
				}
			}
			if err := <-done; !passing(err) {
				t.Errorf("Put over a connection that broke: %v, want an error that may pass", err)
			}
			if got := storagetest.Names(t, again(b), "", storage.ListOptions{}); !slices.Equal(got, []string{"old"}) {
				t.Errorf("objects are %q", got)
			}
		}
		if left := unfinished(t, b); left != nil {
			t.Errorf("the new connection was not used to remove %q", left)
		}
		if got := storagetest.MustGet(t, b, "old"); string(got) != "old" {
			t.Errorf("the old object is %q", got)
		}
	})
}

func TestServerIsGoneDuringPut(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	b := open(t, options(server, server.Dir))
	more, done := upload(t, b, "d/x")
	server.Stop()
	more.Close()
	if err := <-done; !passing(err) {
		t.Errorf("Put to a server that went away: %v, want an error that may pass", err)
	}
	if _, err := b.Stat(t.Context(), "d/x"); !passing(err) {
		t.Errorf("Stat on a server that is away: %v, want an error that may pass", err)
	}
	server.Restart(t)
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); len(got) > 0 {
		t.Errorf("visible: %q", got)
	}
	left := unfinished(t, b)
	if len(left) != 1 || !strings.HasPrefix(left[0], "d/x.tmp.") {
		t.Fatalf("unfinished uploads are %q, want that of d/x", left)
	}
	if err := b.Delete(t.Context(), left...); err != nil || unfinished(t, b) != nil {
		t.Errorf("Delete of an unfinished upload: %v", err)
	}
	if _, err := os.Stat(filepath.Join(server.Dir, "d")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the empty directory is still there: %v", err)
	}
}

func TestConnectionBreaksDuringRead(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, opt sftptest.Options) {
		server := sftptest.Start(t, opt)
		b := open(t, options(server, server.Dir))
		data := storagetest.Content(1, 9<<20)
		storagetest.MustPut(t, b, "x", data)
		read := func(b storage.Bucket) ([]byte, error) {
			r, err := b.Open(t.Context(), "x", storage.Range{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			head := make([]byte, 100_000)
			if _, err := io.ReadFull(r, head); err != nil {
				t.Fatal(err)
			}
			server.Drop()
			rest, err := io.ReadAll(r)
			return append(head, rest...), err
		}
		got, err := read(b)
		if !errors.Is(err, io.ErrUnexpectedEOF) || !passing(err) {
			t.Errorf("a body that broke ends with %v", err)
		}
		if !bytes.HasPrefix(data, got) || len(got) == len(data) {
			t.Errorf("%d bytes that are not the start of the object", len(got))
		}
		if got, err := read(again(b)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("with retries: %d bytes, %v", len(got), err)
		}
	})
}

func TestReconnects(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	b := open(t, options(server, server.Dir))
	for range 3 {
		storagetest.MustPut(t, again(b), "x", []byte("x"))
		server.Drop()
	}
	storagetest.MustPut(t, again(b), "x", []byte("x"))
	if n := server.Accepted(); n != 4 {
		t.Errorf("%d connections for calls in turn, want one after each break: 4", n)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	opt := options(server, server.Dir)
	opt.Connections = 3
	b := open(t, opt)
	var puts []chan error
	var ends []*io.PipeWriter
	for i := range 8 {
		more, done := upload(t, b, fmt.Sprint("x", i))
		ends, puts = append(ends, more), append(puts, done)
	}
	for i := range puts {
		ends[i].Close()
		if err := <-puts[i]; err != nil {
			t.Error(err)
		}
	}
	if n := server.Accepted(); n != 3 {
		t.Errorf("%d connections for 8 uploads at once, want 3", n)
	}
}

func TestCancelDoesNotWaitForTheServer(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	b := open(t, options(server, server.Dir))
	storagetest.MustPut(t, b, "x", storagetest.Content(1, 9<<20))
	body, err := b.Open(t.Context(), "x", storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	server.Freeze()
	for name, call := range map[string]func(ctx context.Context) error{
		"Stat": func(ctx context.Context) error { _, err := b.Stat(ctx, "x"); return err },
		"Open": func(ctx context.Context) error { _, err := b.Open(ctx, "x", storage.Range{}); return err },
		"List": func(ctx context.Context) error {
			for _, err := range b.List(ctx, "", storage.ListOptions{}) {
				return err
			}
			return nil
		},
		"Delete": func(ctx context.Context) error { return b.Delete(ctx, "x") },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want the context's error", name, err)
		}
		cancel()
	}
	// A Read that waits ends with Close.
	var reading sync.WaitGroup
	reading.Go(func() {
		if n, err := io.Copy(io.Discard, body); err == nil {
			t.Errorf("read %d bytes from a server that is frozen", n)
		}
	})
	body.Close()
	reading.Wait()
}

func TestSilentServerIsNoticed(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	opt := options(server, server.Dir)
	opt.StallTimeout, opt.ConnectTimeout = 300*time.Millisecond, 300*time.Millisecond
	b := open(t, opt)
	storagetest.MustPut(t, again(b), "x", []byte("x"))
	server.Freeze()
	if _, err := b.Stat(t.Context(), "x"); !passing(err) {
		t.Errorf("a server that went silent: %v, want an error that may pass", err)
	}
	// And so is one that never says a word.
	if _, err := b.Stat(t.Context(), "x"); !passing(err) || !strings.Contains(err.Error(), server.Addr()) {
		t.Errorf("a server that does not answer: %v, want an error that may pass", err)
	}
	server.Thaw()
	if _, err := again(b).Stat(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

// A content that comes slowly is no silent server: it answers questions.
func TestIdleConnectionIsKept(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	opt := options(server, server.Dir)
	opt.StallTimeout = 2 * time.Second
	b := open(t, opt)
	more, done := upload(t, b, "x")
	for range 2 { // the second comes after the timeout
		<-server.Questions
	}
	more.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	b := open(t, options(server, server.Dir))
	more, done := upload(t, b, "x")
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	more.Close()
	if err := <-done; err == nil {
		t.Error("a Put outlived Close")
	}
	if _, err := b.Stat(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("Stat after Close: %v", err)
	}
}

// An error that only wraps io.EOF is no end of the content.
func TestContentThatFailsWithEOF(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	b := open(t, options(server, server.Dir))
	lost := fmt.Errorf("the tape tore: %w", io.EOF)
	pr, pw := io.Pipe()
	go func() {
		pw.Write([]byte("half of it"))
		pw.CloseWithError(lost)
	}()
	if _, err := b.Put(t.Context(), "x", pr, storage.PutOptions{}); !errors.Is(err, lost) {
		t.Errorf("Put: %v, want the reader's error", err)
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); len(got) > 0 {
		t.Errorf("stored: %q", got)
	}
}

func TestMissingRoot(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, o sftptest.Options) {
		server := sftptest.Start(t, o)
		root := filepath.Join(server.Dir, "root")
		b := open(t, options(server, root))
		ctx := t.Context()
		_, put := b.Put(ctx, "x", strings.NewReader("x"), storage.PutOptions{})
		_, deep := b.Put(ctx, "d/e/x", strings.NewReader("x"), storage.PutOptions{IfAbsent: true})
		_, get := b.Open(ctx, "x", storage.Range{})
		_, stat := b.Stat(ctx, "d/x")
		var list error
		for _, err := range b.List(ctx, "a/", storage.ListOptions{}) {
			list = err
		}
		for op, err := range map[string]error{"Put": put, "deep Put": deep, "Open": get, "Stat": stat, "List": list, "Delete": b.Delete(ctx, "x")} {
			t.Log(op)
			wantPermanent(t, err, root, "create it", "WALG_SSH_PREFIX")
		}
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		storagetest.MustPut(t, b, "d/e/x", []byte("x"))
	})
}

func TestReadOnlyServer(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, openssh(t, "-R"))
	b := open(t, options(server, server.Dir))
	if err := os.Mkdir(filepath.Join(server.Dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(server.Dir, "d", "x"), "x")
	_, put := b.Put(t.Context(), "d/y", strings.NewReader("x"), storage.PutOptions{})
	_, mkdir := b.Put(t.Context(), "e/y", strings.NewReader("x"), storage.PutOptions{})
	for op, err := range map[string]error{"Put": put, "Put in a new directory": mkdir, "Delete": b.Delete(t.Context(), "d/x")} {
		t.Log(op)
		wantPermanent(t, err, server.User, "access")
	}
	if got := storagetest.MustGet(t, b, "d/x"); string(got) != "x" {
		t.Errorf("read %q", got)
	}
}

func TestObjectAndDirectoryOfOneName(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, o sftptest.Options) {
		server := sftptest.Start(t, o)
		b := open(t, options(server, server.Dir))
		storagetest.MustPut(t, b, "a/b", []byte("x"))
		_, over := b.Put(t.Context(), "a", strings.NewReader("x"), storage.PutOptions{})
		_, below := b.Put(t.Context(), "a/b/c", strings.NewReader("x"), storage.PutOptions{})
		_, deep := b.Put(t.Context(), "a/b/c/d", strings.NewReader("x"), storage.PutOptions{})
		for op, err := range map[string]error{"over": over, "below": below, "deep": deep} {
			t.Log(op)
			wantPermanent(t, err, "move")
		}
		if got := unfinished(t, b); got != nil {
			t.Errorf("left over: %q", got)
		}
	})
}

// Without OpenSSH's extensions all holds but the replacing of objects.
func TestServerWithoutExtensions(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, openssh(t, "-P", "posix-rename,hardlink,fsync,statvfs"))
	b := open(t, options(server, server.Dir))
	ctx := t.Context()
	storagetest.MustPut(t, b, "d/x", []byte("1"))
	_, err := b.Put(ctx, "d/x", strings.NewReader("2"), storage.PutOptions{})
	wantPermanent(t, err, "posix-rename@openssh.com")
	var wins, losses int
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			_, err := b.Put(ctx, "d/y", strings.NewReader("3"), storage.PutOptions{IfAbsent: true})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				wins++
			case errors.Is(err, storage.ErrExist):
				losses++
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if wins != 1 || losses != 7 {
		t.Errorf("%d won, %d lost, want 1 and 7", wins, losses)
	}
	if got := storagetest.Names(t, b, "", storage.ListOptions{}); !slices.Equal(got, []string{"d/x", "d/y"}) || unfinished(t, b) != nil {
		t.Errorf("objects are %q, unfinished %q", got, unfinished(t, b))
	}
	if got := storagetest.MustGet(t, b, "d/x"); string(got) != "1" {
		t.Errorf("the object was changed to %q", got)
	}
}

func TestListingOfWhatOthersPutThere(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, o sftptest.Options) {
		server := sftptest.Start(t, o)
		b := open(t, options(server, server.Dir))
		dir := func(elements ...string) string {
			name := filepath.Join(append([]string{server.Dir}, elements...)...)
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				t.Fatal(err)
			}
			return name
		}
		const temp = ".tmp.20261122T161847Z-e1871ab0d324b6a6"
		write(t, dir("a", "x"), "x")
		write(t, dir("lost+found", "x"), "x")
		// More unfinished uploads than a server tells at a time.
		for i := range 250 {
			write(t, dir("many", fmt.Sprintf("%03d%s", i, temp)), "")
		}
		write(t, dir("onlytemp", "y"+temp), "")
		dir("empty", "below", "x")
		for name, target := range map[string]string{"link": "a/x", "linkdir": "a", "nowhere": "gone", "circle": "circle"} {
			if err := os.Symlink(target, dir(name)); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := storagetest.Names(t, b, "", storage.ListOptions{}), []string{"a/x", "link", "linkdir/x"}; !slices.Equal(got, want) {
			t.Errorf("objects are %q, want %q", got, want)
		}
		shallow := storage.ListOptions{Shallow: true}
		if got, want := storagetest.Names(t, b, "", shallow), []string{"a/", "link", "linkdir/"}; !slices.Equal(got, want) {
			t.Errorf("shallow: %q, want %q", got, want)
		}
		write(t, dir("many", "zzz"), "")
		if got, want := storagetest.Names(t, b, "m", shallow), []string{"many/"}; !slices.Equal(got, want) {
			t.Errorf("shallow: %q, want %q", got, want)
		}
		if got := unfinished(t, b); len(got) != 251 || got[250] != "onlytemp/y"+temp {
			t.Errorf("%d unfinished uploads, the last %q", len(got), got[len(got)-1])
		}
		if _, err := b.Stat(t.Context(), "onlytemp/y"+temp); !errors.Is(err, storage.ErrNotExist) {
			t.Errorf("Stat of an unfinished upload: %v", err)
		}
		if _, err := b.Put(t.Context(), "y"+temp, strings.NewReader(""), storage.PutOptions{}); !errors.Is(err, storage.ErrName) {
			t.Errorf("Put of the name of an unfinished upload: %v", err)
		}
		// Removing through a link to a directory leaves the link.
		if err := b.Delete(t.Context(), "linkdir/x", "link"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(dir("linkdir")); err != nil {
			t.Errorf("the link was pruned: %v", err)
		}
	})
}
