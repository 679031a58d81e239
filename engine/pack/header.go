package pack

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/walherd/walherd/engine/cluster"
)

// A tar consists of blocks; two zero ones end it.
const (
	blockSize   = 512
	trailerSize = 2 * blockSize
)

// padded rounds up to whole blocks.
func padded(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// OwnerNames gives the names of a user and a group, "" for one that has none.
// It is called once per entry, from any goroutine.
type OwnerNames func(uid, gid uint32) (user, group string)

// SystemOwners looks names up in the system's databases, each id once.
func SystemOwners() OwnerNames {
	var mu sync.Mutex
	users, groups := map[uint32]string{}, map[uint32]string{}
	return func(uid, gid uint32) (string, string) {
		mu.Lock()
		defer mu.Unlock()
		u, ok := users[uid]
		if !ok {
			if found, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
				u = found.Username
			}
			users[uid] = u
		}
		g, ok := groups[gid]
		if !ok {
			if found, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10)); err == nil {
				g = found.Name
			}
			groups[gid] = g
		}
		return u, g
	}
}

// headers renders tar headers, one at a time, into a buffer of its own.
type headers struct {
	owners OwnerNames
	out    bytes.Buffer
	fresh  *tar.Writer // never written to
	w      tar.Writer
}

func newHeaders(owners OwnerNames) *headers {
	h := &headers{owners: owners}
	if h.owners == nil {
		h.owners = func(uint32, uint32) (string, string) { return "", "" }
	}
	h.fresh = tar.NewWriter(&h.out)
	return h
}

// entry renders the header of e with a body of size bytes. The result holds
// until the next call.
func (h *headers) entry(e *cluster.Entry, size int64) ([]byte, error) {
	hdr := tar.Header{
		Typeflag: tar.TypeReg, Name: e.Name, Size: size,
		Mode: int64(e.Mode & fs.ModePerm), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: time.Unix(0, e.MTime),
	}
	if e.IsDir() {
		hdr.Typeflag = tar.TypeDir
	}
	hdr.Uname, hdr.Gname = h.owners(e.UID, e.GID)
	return h.render(&hdr)
}

// render leaves the format to archive/tar, which then rounds the time to
// whole seconds and takes PAX records only for what does not fit.
func (h *headers) render(hdr *tar.Header) ([]byte, error) {
	// A Writer wants the body before the next header. Bodies never pass
	// through here, so each header gets an untouched Writer; copying one is
	// cheaper than making one.
	h.w = *h.fresh
	h.out.Reset()
	if err := h.w.WriteHeader(hdr); err != nil {
		return nil, fmt.Errorf("write tar header of %q: %w", hdr.Name, err)
	}
	return h.out.Bytes(), nil
}
