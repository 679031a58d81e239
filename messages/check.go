package messages

import (
	"fmt"
	"strings"

	"github.com/walherd/walherd/engine/pg"
)

// What a job says is not trusted: whoever may publish for one cluster could
// otherwise have a worker, which may do far more, send to a subject of the
// broker's own interface, empty another cluster's stream, or write beside its
// prefix. The checks return ErrMalformed.

// maxWALFile is the largest file that is WAL: PostgreSQL's largest segment.
const maxWALFile = 1 << 30

// MaxObject is the largest object of a backup in bytes, that of S3.
const MaxObject = 5 << 40

// Check holds a job against the cluster whose worker got it.
func (j ArchiveJob) Check(c Cluster) error {
	switch {
	case !isElement(j.Name):
		return fmt.Errorf("%w: WAL file name %q", ErrMalformed, j.Name)
	case j.Bytes.Size < 0 || j.Bytes.Size > maxWALFile:
		return fmt.Errorf("%w: WAL file %s of %d bytes", ErrMalformed, j.Name, j.Bytes.Size)
	case j.Metadata != "" && j.Metadata != WALMetadataEach && j.Metadata != WALMetadataBulk:
		return fmt.Errorf("%w: WAL metadata %q", ErrMalformed, j.Metadata)
	case j.Reply != "":
		return checkSubject("reply", j.Reply, ReplySubject(c, ""), 1)
	}
	return nil
}

// Check holds a job against the cluster whose worker got it.
func (j PartJob) Check(c Cluster) error {
	if _, err := pg.ParseBackupName(string(j.Backup)); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !isElement(j.Part) {
		return fmt.Errorf("%w: part name %q", ErrMalformed, j.Part)
	}
	if c := j.Copy; c != nil {
		if _, err := pg.ParseBackupName(string(c.Backup)); err != nil {
			return fmt.Errorf("%w: copy of %w", ErrMalformed, err)
		}
		if !isElement(c.Object) {
			return fmt.Errorf("%w: copy of %q", ErrMalformed, c.Object)
		}
	}
	return checkSubject("run", j.Run, RunSubject(c, ""), 1)
}

// Check holds a job against the cluster whose worker got it.
func (j CommitJob) Check(c Cluster) error {
	if _, err := pg.ParseBackupName(string(j.Backup)); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	for _, o := range j.Objects {
		if !isElement(o.Name) || o.Size < 0 {
			return fmt.Errorf("%w: object %q of %d bytes", ErrMalformed, o.Name, o.Size)
		}
	}
	return checkSubject("run", j.Run, RunSubject(c, ""), 1)
}

// CheckStream holds the place of a part's chunks, which a producer names,
// against the cluster.
func (r Ref) CheckStream(c Cluster) error {
	if !strings.HasPrefix(r.ID, "walherd.") {
		return nil // a slot in this process's memory
	}
	return checkSubject("chunk", r.ID, fmt.Sprintf("walherd.chunk.%s.", c), 3)
}

// checkSubject demands the prefix and so many tokens behind it, without
// wildcards.
func checkSubject(what, subject, prefix string, tokens int) error {
	rest, ok := strings.CutPrefix(subject, prefix)
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != tokens {
		return fmt.Errorf("%w: %s subject %q", ErrMalformed, what, subject)
	}
	for _, p := range parts {
		if p == "" || strings.ContainsAny(p, "*> \t\r\n") {
			return fmt.Errorf("%w: %s subject %q", ErrMalformed, what, subject)
		}
	}
	return nil
}

// isElement reports whether s is one element of an object's name.
func isElement(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && !strings.ContainsAny(s, "/\\\x00\r\n")
}
