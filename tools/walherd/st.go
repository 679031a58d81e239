package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/failover"
	"github.com/walherd/walherd/tools/walherd/transfer"
)

// everyStorage stands for all storages where one is to be named.
const everyStorage = "all"

// stOptions are the flags all storage tools share.
type stOptions struct {
	target string
	glob   bool
}

// storageTools are the commands that work on the objects themselves, whatever
// they mean.
func (a *app) storageTools() *cobra.Command {
	var st stOptions
	cmd := &cobra.Command{
		Use:   "st",
		Short: "Look at and change the objects of the storage",
		Long: "Storage tools work on objects by their names, relative to the storage's root.\n" +
			"They know nothing of what belongs together: prefer backup-list, copy and delete where those do.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVarP(&st.target, "target", "t", failover.Primary, "storage to use, by name; all: every one, which succeeds if it does in one")
	cmd.PersistentFlags().BoolVarP(&st.glob, "glob", "g", false, "take the path for a pattern (* ? [a-z], within one element)")
	check := &cobra.Command{
		Use:   "check",
		Short: "Check that the storage can be read or written",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	check.AddCommand(a.stCheckRead(&st), a.stCheckWrite(&st))
	cmd.AddCommand(a.ask(a.stList(&st)), a.ask(a.stStat(&st)), a.stCat(&st), a.stGet(&st), a.stPut(&st), a.stRemove(&st), check, a.stCopy(&st), a.stTransfer(&st))
	return cmd
}

// onTargets runs do on the storage that --target names. With "all" one success
// is enough, and the failures of the others are warnings.
func (a *app) onTargets(ctx context.Context, st *stOptions, do func(namedBucket) error) error {
	targets, err := a.targets(ctx, st.target)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range targets {
		if err := do(t); err != nil {
			errs = append(errs, fmt.Errorf("storage %s: %w", t.name, err))
		}
	}
	if len(errs) == len(targets) {
		return errors.Join(errs...)
	}
	for _, err := range errs {
		a.log.Warn(err.Error())
	}
	return nil
}

// targets are the storages a name stands for.
func (a *app) targets(ctx context.Context, name string) ([]namedBucket, error) {
	buckets, err := a.buckets(ctx, false)
	if err != nil {
		return nil, err
	}
	if name == everyStorage {
		return buckets, nil
	}
	b, err := findStorage(buckets, name)
	return []namedBucket{b}, err
}

func findStorage(buckets []namedBucket, name string) (namedBucket, error) {
	names := make([]string, len(buckets))
	for i, b := range buckets {
		if strings.EqualFold(b.name, name) {
			return b, nil
		}
		names[i] = b.name
	}
	return namedBucket{}, fmt.Errorf("unknown storage %q: configured are %s", name, strings.Join(names, ", "))
}

// objectName is the name of an object that a user wrote as a path from the
// root. What would leave the root is storage.ErrName.
func objectName(path string) (string, error) {
	name := strings.TrimPrefix(path, "/")
	return name, storage.CheckName(name)
}

// folderName is the same for a folder: it ends in a slash, or is empty for the
// root.
func folderName(path string) (string, error) {
	name := strings.Trim(path, "/")
	if name == "" {
		return "", nil
	}
	return name + "/", storage.CheckName(name)
}

// refuseVersions refuses the flags for stores that keep old versions.
func refuseVersions(cmd *cobra.Command) error {
	for _, flag := range []string{"all-versions", "version-id"} {
		if f := cmd.Flags().Lookup(flag); f != nil && f.Changed {
			return fmt.Errorf("--%s is not supported for this storage: only the newest version of an object can be reached", flag)
		}
	}
	return nil
}

func (st *stOptions) refuseGlob(what string) error {
	if st.glob {
		return fmt.Errorf("--glob is not for st %s: name one object", what)
	}
	return nil
}

func (a *app) stList(st *stOptions) *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:   "ls [path]",
		Short: "List the objects and folders in a folder",
		Long:  "Lists a folder; names are relative to it. A folder that is not there has nothing in it.",
		Args:  usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := refuseVersions(cmd); err != nil {
				return err
			}
			where := ""
			if len(args) == 1 {
				where = args[0]
			}
			folder, err := folderName(where)
			if err != nil {
				return err
			}
			return a.onTargets(cmd.Context(), st, func(b namedBucket) error {
				if st.target == everyStorage {
					fmt.Fprintf(a.stdout, "storage %s\n", b.name)
				}
				if st.glob && folder != "" {
					return a.listMatching(cmd.Context(), b.bucket, strings.TrimSuffix(folder, "/"), recursive)
				}
				return a.listFolder(cmd.Context(), b.bucket, folder, recursive)
			})
		},
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "list everything below the folder")
	cmd.Flags().Bool("all-versions", false, "list old versions too (not supported)")
	return cmd
}

func (a *app) listFolder(ctx context.Context, b storage.Bucket, folder string, recursive bool) error {
	return a.printInfos(b.List(ctx, folder, storage.ListOptions{Shallow: !recursive}), folder)
}

func (a *app) listMatching(ctx context.Context, b storage.Bucket, pattern string, recursive bool) error {
	objects, folders, err := match(ctx, b, pattern)
	if err != nil {
		return err
	}
	if len(objects) > 0 || len(folders) == 0 {
		err = a.printInfos(func(yield func(storage.Info, error) bool) {
			for _, o := range objects {
				if !yield(o, nil) {
					return
				}
			}
		}, "")
	}
	for _, f := range folders {
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "%s:\n", f)
		err = a.listFolder(ctx, b, f, recursive)
	}
	return err
}

// printInfos prints one row each, as WAL-G does but for two columns that it
// leaves empty.
func (a *app) printInfos(infos iter.Seq2[storage.Info, error], below string) error {
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 1, ' ', 0)
	fmt.Fprint(tw, "type\tsize\tlast modified\tname\n")
	var failed error
	rows := 0
	for info, err := range infos {
		if err != nil {
			failed = err // what was listed before is shown all the same
			break
		}
		// The writer keeps every row until it knows the widths.
		if rows++; rows%1000 == 0 {
			if err := tw.Flush(); err != nil {
				return err
			}
		}
		kind := "obj"
		if info.Dir {
			kind = "dir"
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", kind, info.Size, info.Modified.UTC(), strings.TrimPrefix(info.Name, below))
	}
	return errors.Join(failed, tw.Flush())
}

// match finds what a pattern stands for, element by element, so that only the
// folders that match are listed. Folders end in a slash.
func match(ctx context.Context, b storage.Bucket, pattern string) (objects []storage.Info, folders []string, err error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, nil, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	if err := storage.CheckName(pattern); err != nil {
		return nil, nil, err
	}
	folders = []string{""}
	elements := strings.Split(pattern, "/")
	for i, element := range elements {
		last := i == len(elements)-1
		var next []string
		for _, folder := range folders {
			literal, _, _ := strings.Cut(element, "*")
			if at := strings.IndexAny(literal, `?[\`); at >= 0 {
				literal = literal[:at]
			}
			for info, err := range b.List(ctx, folder+literal, storage.ListOptions{Shallow: true}) {
				if err != nil {
					return nil, nil, err
				}
				name := strings.TrimSuffix(strings.TrimPrefix(info.Name, folder), "/")
				if ok, err := path.Match(element, name); err != nil || !ok {
					continue // the pattern as a whole is well formed
				}
				switch {
				case info.Dir:
					next = append(next, info.Name)
				case last:
					objects = append(objects, info)
				}
			}
		}
		folders = next
	}
	return objects, folders, nil
}

func (a *app) stStat(st *stOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "stat path",
		Short: "Show one object's size and time",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := st.refuseGlob("stat"); err != nil {
				return err
			}
			name, err := objectName(args[0])
			if err != nil {
				return err
			}
			return a.onTargets(cmd.Context(), st, func(b namedBucket) error {
				info, err := b.bucket.Stat(cmd.Context(), name)
				if err != nil {
					return err
				}
				return a.printInfos(func(yield func(storage.Info, error) bool) { yield(info, nil) }, "")
			})
		},
	}
}

// pick are the objects a path stands for: itself, or those matching it.
func (st *stOptions) pick(ctx context.Context, b storage.Bucket, name string) ([]string, error) {
	if !st.glob {
		return []string{name}, nil
	}
	objects, _, err := match(ctx, b, name)
	if err != nil {
		return nil, err
	}
	if len(objects) == 0 {
		return nil, fmt.Errorf("pattern %q: %w", name, storage.ErrNotExist)
	}
	names := make([]string, len(objects))
	for i, o := range objects {
		names[i] = o.Name
	}
	return names, nil
}

// decoding says what is undone of an object on its way out.
type decoding struct{ decrypt, decompress bool }

// open opens an object. Without an extension of a known compression it is not
// decompressed. What the reader gives is unproven until io.EOF.
func (a *app) open(ctx context.Context, b storage.Bucket, name string, d decoding) (io.ReadCloser, error) {
	body, err := b.Open(ctx, name, storage.Range{})
	if err != nil || !d.decrypt && !d.decompress {
		return body, err
	}
	plain, err := a.decode(ctx, name, body, d)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, errors.Join(err, body.Close()))
	}
	return &decoded{ReadCloser: plain, name: name, body: body}, nil
}

func (a *app) decode(ctx context.Context, name string, body io.Reader, d decoding) (io.ReadCloser, error) {
	codec, err := a.codec(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case !d.decrypt:
		codec.Sealer = nil
	case codec.Sealer != nil:
		if err := codec.Sealer.CanOpen(); err != nil {
			return nil, err
		}
	}
	ext := ""
	if d.decompress {
		if ext = strings.TrimPrefix(path.Ext(name), "."); ext != "" {
			if _, err := compress.ByExtension(ext); err != nil {
				a.log.Warn(fmt.Sprintf("%s is not decompressed: %v", name, err))
				ext = ""
			}
		}
	}
	return codec.Open(ctx, body, ext)
}

// decoded names the object in the errors of its content.
type decoded struct {
	io.ReadCloser
	name string
	body io.Closer
}

func (d *decoded) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read %s: %w", d.name, err)
	}
	return n, err
}

func (d *decoded) Close() error { return errors.Join(d.ReadCloser.Close(), d.body.Close()) }

func (a *app) stCat(st *stOptions) *cobra.Command {
	var d decoding
	cmd := &cobra.Command{
		Use:   "cat path",
		Short: "Print an object's content",
		Long: "Prints an object as it is stored; --decrypt and --decompress undo what was done to it.\n" +
			"With --target all it is the first storage's that has it. Only exit code 0 says that what was printed is whole.",
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			name, err := objectName(args[0])
			if err != nil {
				return err
			}
			if d.decrypt {
				if s, err := a.sealer(cmd.Context()); err != nil {
					return err
				} else if s == nil {
					return errors.New("--decrypt: no key is configured (walherd flags lists the settings)")
				}
			}
			printed := false
			var failed error // of what was printed: no other storage mends it
			return a.onTargets(cmd.Context(), st, func(b namedBucket) error {
				if printed {
					return failed
				}
				names, err := st.pick(cmd.Context(), b.bucket, name)
				if err != nil {
					return err
				}
				for _, n := range names {
					r, err := a.open(cmd.Context(), b.bucket, n, d)
					if err != nil {
						return err
					}
					printed = true
					_, err = io.Copy(a.stdout, r)
					if failed = errors.Join(err, r.Close()); failed != nil {
						return failed
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&d.decrypt, "decrypt", false, "decrypt with the configured key")
	cmd.Flags().BoolVar(&d.decompress, "decompress", false, "decompress as the extension says")
	return cmd
}

// downloaded is the mode of what st get makes.
const downloaded = 0o640

func (a *app) stGet(st *stOptions) *cobra.Command {
	var stored struct{ encrypted, compressed bool }
	cmd := &cobra.Command{
		Use:   "get path destination",
		Short: "Download an object",
		Long: "Downloads an object to a file that must not exist, or into a directory. It is decrypted with the\n" +
			"configured key, and decompressed as its extension says, which the name of a file in a directory loses.\n" +
			"The JSON documents of backups and WAL are stored in plain and left as they are.",
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if st.target == everyStorage {
				return errors.New("st get: --target all names no storage to read from: name one")
			}
			name, err := objectName(args[0])
			if err != nil {
				return err
			}
			d := decoding{decrypt: !stored.encrypted, decompress: !stored.compressed}
			return a.onTargets(cmd.Context(), st, func(b namedBucket) error {
				names, err := st.pick(cmd.Context(), b.bucket, name)
				if err != nil {
					return err
				}
				dir, err := os.Stat(args[1])
				into := err == nil && dir.IsDir()
				if len(names) > 1 && !into {
					return fmt.Errorf("st get: %d objects match: name a directory to put them in", len(names))
				}
				for _, n := range names {
					to := args[1]
					if into {
						to = filepath.Join(to, localName(n, d))
					}
					if err := a.download(cmd.Context(), b.bucket, n, to, d); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&stored.encrypted, "no-decrypt", false, "leave it encrypted")
	cmd.Flags().BoolVar(&stored.compressed, "no-decompress", false, "leave it compressed")
	return cmd
}

// localName is the name of an object's file in a directory.
func localName(name string, d decoding) string {
	base := path.Base(name)
	if ext := path.Ext(base); d.decompress && ext != "" && ext != base {
		if _, err := compress.ByExtension(ext[1:]); err == nil {
			return strings.TrimSuffix(base, ext)
		}
	}
	return base
}

// download writes a file whole or not at all: what is decrypted is only known
// to be good at its end.
func (a *app) download(ctx context.Context, b storage.Bucket, name, to string, d decoding) error {
	if _, err := os.Lstat(to); err == nil {
		return fmt.Errorf("get %s: %s: %w: it must not exist", name, to, os.ErrExist)
	}
	if transfer.IsDocument(name) {
		d = decoding{}
	}
	r, err := a.open(ctx, b, name, d)
	if err != nil {
		return err
	}
	defer r.Close()
	return durable.WriteFile(to, downloaded, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	}, durable.Options{NoReplace: true})
}

func (a *app) stPut(st *stOptions) *cobra.Command {
	var opt putOptions
	cmd := &cobra.Command{
		Use:   "put local_path destination | put --read-stdin destination",
		Short: "Upload a file or the standard input",
		Long: "Uploads a file, compressed and encrypted as configured; the extension of the compression is appended\n" +
			"to the destination's name. An object of the very name that is written is only replaced with --force.",
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			want := 2
			if opt.stdin {
				want = 1
			}
			if len(args) != want {
				return &usageError{errors.New("give a local path and a destination, or --read-stdin and a destination"), cmd.UsageString()}
			}
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := st.refuseGlob("put"); err != nil {
				return err
			}
			if st.target == everyStorage && opt.stdin {
				return errors.New("st put: the standard input can be read once: name one storage with --target")
			}
			name, err := objectName(args[want-1])
			if err != nil {
				return err
			}
			return a.onTargets(cmd.Context(), st, func(b namedBucket) error {
				if opt.stdin {
					return a.upload(cmd.Context(), b, name, interruptible(cmd.Context(), os.Stdin), opt)
				}
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				return a.upload(cmd.Context(), b, name, f, opt)
			})
		},
	}
	cmd.Flags().BoolVarP(&opt.force, "force", "f", false, "replace an object that exists")
	cmd.Flags().BoolVarP(&opt.stdin, "read-stdin", "s", false, "read the standard input instead of a file")
	cmd.Flags().BoolVar(&opt.plain, "no-compress", false, "do not compress; the name stays as given")
	cmd.Flags().BoolVar(&opt.clear, "no-encrypt", false, "do not encrypt")
	return cmd
}

// interruptible ends with the context also while r waits for somebody to type.
// The Read under way is left behind: nothing ends it, and the process does soon.
func interruptible(ctx context.Context, r io.Reader) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		_, err := io.Copy(pw, r)
		pw.CloseWithError(err) // nil is io.EOF
	}()
	context.AfterFunc(ctx, func() { pw.CloseWithError(ctx.Err()) })
	return pr
}

type putOptions struct{ force, stdin, plain, clear bool }

func (a *app) upload(ctx context.Context, b namedBucket, name string, r io.Reader, opt putOptions) error {
	codec, err := a.codec(ctx)
	if err != nil {
		return err
	}
	if opt.clear {
		codec.Sealer = nil
	}
	if !opt.plain {
		name += codec.Extension()
	}
	if codec.Sealer != nil {
		if transfer.IsDocument(name) {
			return fmt.Errorf("put %s: the documents of backups and WAL are read in plain: give --no-encrypt", name)
		}
		if err := codec.Sealer.CanSeal(); err != nil {
			return err
		}
	}
	if !opt.force {
		// Put would tell only after the whole upload.
		if _, err := b.bucket.Stat(ctx, name); err == nil {
			return fmt.Errorf("put %s: %w: give --force to replace it", name, storage.ErrExist)
		} else if !errors.Is(err, storage.ErrNotExist) {
			return err
		}
	}
	if !opt.plain && codec.Compress.Method != compress.None {
		packed := transfer.Through(r, func(w io.Writer) (transfer.Stage, error) { return compress.NewWriter(w, codec.Compress) })
		defer packed.Close()
		r = packed
	}
	if codec.Sealer != nil {
		sealed := transfer.Through(r, func(w io.Writer) (transfer.Stage, error) { return codec.Sealer.Seal(ctx, w) })
		defer sealed.Close()
		r = sealed
	}
	info, err := b.bucket.Put(ctx, name, r, storage.PutOptions{IfAbsent: !opt.force})
	if err != nil {
		return err
	}
	a.log.Info(fmt.Sprintf("Stored %s in storage %s", name, b.name), "bytes", info.Size)
	return nil
}

func (a *app) stRemove(st *stOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rm path",
		Short: "Remove an object, or everything in a folder",
		Long: "Removes the object of that name or, if there is none, everything below the folder of that name.\n" +
			"A slash at the end is a folder. It asks nothing and looks at nothing: to delete backups there is delete.",
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := refuseVersions(cmd); err != nil {
				return err
			}
			folder, err := folderName(args[0])
			if err != nil {
				return err
			}
			if folder == "" {
				return errors.New("st rm: this is the whole storage: delete everything does that, and keeps what is permanent")
			}
			return a.onTargets(cmd.Context(), st, func(b namedBucket) error {
				return a.remove(cmd.Context(), b, strings.TrimSuffix(folder, "/"), strings.HasSuffix(args[0], "/"), st.glob)
			})
		},
	}
	cmd.Flags().Bool("all-versions", false, "remove old versions too (not supported)")
	cmd.Flags().String("version-id", "", "remove one version (not supported)")
	cmd.MarkFlagsMutuallyExclusive("all-versions", "version-id")
	return cmd
}

func (a *app) remove(ctx context.Context, b namedBucket, name string, isFolder, glob bool) error {
	var names []string
	folders := []string{name + "/"}
	if glob {
		objects, matching, err := match(ctx, b.bucket, name)
		if err != nil {
			return err
		}
		for _, o := range objects {
			names = append(names, o.Name)
		}
		folders = matching
		if isFolder {
			names = nil
		}
	} else if !isFolder {
		_, err := b.bucket.Stat(ctx, name)
		if err == nil {
			names, folders = []string{name}, nil
		} else if !errors.Is(err, storage.ErrNotExist) {
			return err
		}
	}
	for _, f := range folders {
		for info, err := range b.bucket.List(ctx, f, storage.ListOptions{}) {
			if err != nil {
				return err
			}
			names = append(names, info.Name)
		}
	}
	if len(names) == 0 && !glob {
		return fmt.Errorf("remove %s: %w", name, storage.ErrNotExist)
	}
	if err := transfer.Remove(ctx, b.bucket, names); err != nil {
		return err
	}
	a.log.Info(fmt.Sprintf("Removed %d objects from storage %s", len(names), b.name))
	return nil
}

func (a *app) stCheckRead(st *stOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "read [name...]",
		Short: "Check that the storage can be listed and has the named objects",
		Args:  usageArgs(cobra.ArbitraryArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := st.refuseGlob("check read"); err != nil {
				return err
			}
			var names []string
			for _, arg := range args {
				name, err := objectName(arg)
				if err != nil {
					return err
				}
				names = append(names, name)
			}
			return a.onTargets(cmd.Context(), st, func(b namedBucket) error {
				for _, err := range b.bucket.List(cmd.Context(), "", storage.ListOptions{Shallow: true}) {
					if err != nil {
						return fmt.Errorf("read check: %w", err)
					}
				}
				var missing []error
				for _, name := range names {
					if _, err := b.bucket.Stat(cmd.Context(), name); err != nil {
						missing = append(missing, err)
					}
				}
				if err := errors.Join(missing...); err != nil {
					return fmt.Errorf("read check: %w", err)
				}
				a.log.Info("Read check OK", "storage", b.name)
				return nil
			})
		},
	}
}

func (a *app) stCheckWrite(st *stOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "write",
		Short: "Check that the storage can be written, with an object that is removed again",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if err := st.refuseGlob("check write"); err != nil {
				return err
			}
			return a.onTargets(cmd.Context(), st, func(b namedBucket) error {
				if err := checkWrite(cmd.Context(), b.bucket); err != nil {
					return fmt.Errorf("write check: %w", err)
				}
				a.log.Info("Write check OK", "storage", b.name)
				return nil
			})
		},
	}
}

// cleanupTime bounds how long an interrupted check may take to tidy up.
const cleanupTime = 10 * time.Second

// checkWrite stores an object of a name nobody uses, and removes it whatever
// came of that.
func checkWrite(ctx context.Context, b storage.Bucket) error {
	name := "walherd_check_" + rand.Text()
	text := rand.Text() + rand.Text()[:6] // 32 characters
	_, err := b.Put(ctx, name, strings.NewReader(text), storage.PutOptions{IfAbsent: true})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return errors.Join(err, b.Delete(ctx, name))
}
