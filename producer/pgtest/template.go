package pgtest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// initdb costs about a second; a copy of its result a tenth of that. So each
// kind of cluster is made once per machine and user, below templateRoot, and
// copied. The parallel processes of go test share it under a file lock.

func (o owner) templateRoot() string {
	return filepath.Join(tempRoot, fmt.Sprintf("walherd-pgtest-%d", o.uid))
}

// cloneTemplate makes the data directory data as a copy of the template of
// the given kind, making the template first if need be.
func cloneTemplate(in install, o owner, opt options, data string) error {
	root, err := o.ensureTemplateRoot()
	if err != nil {
		return err
	}
	key, err := templateKey(in, opt)
	if err != nil {
		return err
	}
	tmpl := filepath.Join(root, key)
	unlock, err := lockFile(tmpl + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(tmpl); errors.Is(err, os.ErrNotExist) {
		// initdb works on another name, and the rename is last: a test
		// killed in the middle leaves no half template under the name.
		draft := tmpl + ".draft"
		if err := os.RemoveAll(draft); err != nil {
			return fmt.Errorf("remove unfinished template: %w", err)
		}
		if err := initdb(in, o, opt, draft); err != nil {
			return err
		}
		if err := os.Rename(draft, tmpl); err != nil {
			return fmt.Errorf("keep template: %w", err)
		}
	} else if err != nil {
		return fmt.Errorf("look for template: %w", err)
	}
	return copyTree(o, tmpl, data)
}

// ensureTemplateRoot makes the directory of the templates. Its name in
// /var/tmp can be guessed: one that belongs to somebody else is refused.
func (o owner) ensureTemplateRoot() (string, error) {
	root := o.templateRoot()
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make template directory: %w", err)
	}
	fi, err := os.Lstat(root)
	if err != nil {
		return "", fmt.Errorf("check template directory: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	ours := ok && (int(st.Uid) == o.uid || int(st.Uid) == os.Geteuid())
	if !fi.IsDir() || !ours || fi.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("use template directory %s: it belongs to another user or others may write to it: remove it", root)
	}
	// Whoever comes second may find it made but not yet given over.
	if int(st.Uid) != o.uid {
		if err := os.Lchown(root, o.uid, o.gid); err != nil {
			return "", fmt.Errorf("give template directory to its user: %w", err)
		}
	}
	return root, nil
}

// templateKey names the template: the version and a digest of what initdb is
// told and of the server binary's path, size and time, so that an upgraded
// PostgreSQL gets a new one.
func templateKey(in install, opt options) (string, error) {
	bin := filepath.Join(in.bin, "postgres")
	fi, err := os.Stat(bin)
	if err != nil {
		return "", fmt.Errorf("look at server binary: %w", err)
	}
	h := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %s", bin, fi.Size(), fi.ModTime().UnixNano(), strings.Join(opt.initdbArgs(in.major), " ")))
	return fmt.Sprintf("%d-%x", in.major, h[:8]), nil
}

func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

func initdb(in install, o owner, opt options, data string) error {
	cmd := exec.Command(filepath.Join(in.bin, "initdb"), append(opt.initdbArgs(in.major), "--pgdata="+data)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	o.become(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run initdb: %w\n%s", err, out)
	}
	return nil
}

// copyTree copies a stopped data directory, sharing blocks where the file
// system can.
func copyTree(o owner, from, to string) error {
	cmd := exec.Command("cp", "-a", "--reflink=auto", from, to)
	cmd.Dir = "/"
	o.become(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w\n%s", from, err, out)
	}
	return nil
}
