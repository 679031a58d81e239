// Package sftp is a storage.Bucket on a directory of an SSH server, reached by
// SFTP version 3 and, where the server offers them, OpenSSH's extensions
// (https://github.com/openssh/openssh-portable/blob/master/PROTOCOL, section
// 4). An object is a file whose path below the directory is the object's name;
// the names of unfinished uploads are those of storage/fs, so the directory can
// be used as such a storage too.
//
// A Put writes beside its target, has the file synced (fsync@openssh.com), and
// renames (posix-rename@openssh.com); then the directory is synced. A
// server without fsync, any but OpenSSH's, answers before the bytes are
// on its disk: a power cut there can lose what was just stored. IfAbsent is
// decided by a hard link (hardlink@openssh.com), which two uploads cannot both
// make; see upload.publish for servers that have none.
//
// The server must prove to be the one of the known_hosts file. An unknown or
// changed key is storage.ErrPermanent, as are a refused login, denied access, a
// full or read-only file system, and a missing directory, which is never
// created. Everything else may pass with another try: the call
// during which a connection breaks fails, the next one connects anew. A call
// whose context ends does not wait for the server.
//
// Names cannot lead out of the directory, but the server follows symbolic links
// in it wherever they lead. SFTP tells times in whole seconds.
package sftp

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/walherd/walherd/storage"
)

// Bucket keeps objects as files below a directory of an SSH server. Make one
// with Open. It connects when the first call needs it; Close ends that.
type Bucket struct {
	opt   Options
	place place
	login []ssh.AuthMethod
	now   func() time.Time // names unfinished uploads

	life    context.Context
	end     context.CancelFunc
	mu      sync.Mutex // the choice of a slot
	slots   []*slot
	settled settled
	chunks  sync.Pool // of *[chunkSize]byte
}

var _ storage.Bucket = (*Bucket)(nil)

// Open makes a Bucket. It reads the key and the known hosts, and does not
// connect unless Options.Validate is set: a server that is down is for the
// calls to find out. What is wrong with the options is storage.ErrPermanent.
func Open(ctx context.Context, opt Options) (*Bucket, error) {
	o, where, err := opt.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open SSH storage: %w: %w", err, storage.ErrPermanent)
	}
	b := &Bucket{opt: o, place: where, now: time.Now, slots: newSlots(o.Connections)}
	if b.login, err = login(&o); err != nil {
		return nil, fmt.Errorf("open SSH storage %s: %w: %w", where.url(""), err, storage.ErrPermanent)
	}
	if _, _, err := hostKeys(&o, where.addr); err != nil {
		return nil, fmt.Errorf("open SSH storage %s: %w", where.url(""), err)
	}
	b.life, b.end = context.WithCancel(context.Background())
	if !o.Validate {
		return b, nil
	}
	_, err = do(ctx, b, func(l *link) (struct{}, error) { return struct{}{}, b.checkRoot(l) }, nil)
	if err != nil {
		b.Close()
		return nil, b.explain(ctx, "open SSH storage", "", err)
	}
	return b, nil
}

// Stat implements storage.Bucket.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	if err := storage.CheckName(name); err != nil {
		return storage.Info{}, err
	}
	info, err := do(ctx, b, func(l *link) (storage.Info, error) {
		st, err := l.files.Stat(b.place.at(name))
		if err != nil {
			return storage.Info{}, b.absent(l, name, err)
		}
		if !st.Mode().IsRegular() || isTemp(name) {
			return storage.Info{}, storage.ErrNotExist
		}
		return storage.Info{Name: name, Size: st.Size(), Modified: st.ModTime()}, nil
	}, nil)
	if err != nil {
		return storage.Info{}, b.explain(ctx, "stat", name, err)
	}
	return info, nil
}

// settled remembers the directories whose own names are known to be durable
// up to the root, so that a Put need not sync every parent each time.
type settled struct {
	mu   sync.Mutex
	dirs map[string]struct{}
}

// settledMax bounds the memory. Forgetting costs a few syncs.
const settledMax = 4096

func (s *settled) has(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.dirs[dir]
	return ok
}

func (s *settled) add(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dirs == nil || len(s.dirs) >= settledMax {
		s.dirs = make(map[string]struct{})
	}
	s.dirs[dir] = struct{}{}
}

func (s *settled) forget(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirs, dir)
}
