package messages_test

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/walherd/walherd/messages"
)

const segment = "000000010000000000000007"

func TestHonestJobsPass(t *testing.T) {
	t.Parallel()
	const c = messages.Cluster("main")
	for _, err := range []error{
		messages.ArchiveJob{Name: segment, Reply: messages.ReplySubject(c, "ABC"), Bytes: messages.Ref{Size: 16 << 20}}.Check(c),
		messages.ArchiveJob{Name: "00000002.history"}.Check(c),
		messages.PartJob{Backup: "base_" + segment, Part: "part_001.tar", Run: messages.RunSubject(c, "ABC")}.Check(c),
		messages.PartJob{Backup: "base_" + segment, Part: messages.FilesMetadata, Run: messages.RunSubject(c, "ABC")}.Check(c),
		messages.CommitJob{Backup: "base_" + segment, Run: messages.RunSubject(c, "A"), Objects: []messages.StoredObject{{Name: "part_001.tar.lz4", Size: 1}}}.Check(c),
		messages.Ref{ID: messages.ChunkSubject(c, "run", "part_001.tar", 2)}.CheckStream(c),
		messages.Ref{ID: "local-7"}.CheckStream(c),
	} {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestHostileJobsDoNot(t *testing.T) {
	t.Parallel()
	const c = messages.Cluster("main")
	var names []string
	names = append(names, "", ".", "..", "../x", "a/b", "/etc/passwd", "a\x00b", `..\x`, "a\nb", strings.Repeat("x", 300))
	for _, n := range names {
		for what, err := range map[string]error{
			"WAL":  messages.ArchiveJob{Name: n}.Check(c),
			"part": messages.PartJob{Backup: "base_" + segment, Part: n, Run: messages.RunSubject(c, "A")}.Check(c),
			"copy": messages.PartJob{Backup: "base_" + segment, Part: "p", Run: messages.RunSubject(c, "A"),
				Copy: &messages.PartSource{Backup: "base_" + segment, Object: n}}.Check(c),
			"copied backup": messages.PartJob{Backup: "base_" + segment, Part: "p", Run: messages.RunSubject(c, "A"),
				Copy: &messages.PartSource{Backup: "../x", Object: "part_001.tar"}}.Check(c),
			"backup": messages.PartJob{Backup: "base_00000001000000000000000/..", Part: "p", Run: messages.RunSubject(c, "A")}.Check(c),
			"object": messages.CommitJob{Backup: "base_" + segment, Run: messages.RunSubject(c, "A"), Objects: []messages.StoredObject{{Name: n}}}.Check(c),
		} {
			if !errors.Is(err, messages.ErrMalformed) {
				t.Errorf("%s name %q: %v", what, n, err)
			}
		}
	}
	for _, s := range []string{
		"", "$JS.API.STREAM.DELETE.WALHERD_WAL", "walherd.run.other.A", "walherd.run.main.>", "walherd.run.main.*", "walherd.run.main.", "walherd.run.main.A.B",
		"walherd.reply.other.A", "walherd.chunk.other.r.p.1", "walherd.chunk.main.>", "walherd.chunk.main.r.*.1", "walherd.event.main.wal.stored",
	} {
		for what, err := range map[string]error{
			"run":   messages.PartJob{Backup: "base_" + segment, Part: "p", Run: s}.Check(c),
			"run2":  messages.CommitJob{Backup: "base_" + segment, Run: s}.Check(c),
			"reply": messages.ArchiveJob{Name: segment, Reply: s}.Check(c),
			"chunk": messages.Ref{ID: s}.CheckStream(c),
		} {
			if s == "" && (what == "reply" || what == "chunk") || what == "chunk" && !strings.HasPrefix(s, "walherd.") {
				continue // none, or no subject at all
			}
			if !errors.Is(err, messages.ErrMalformed) {
				t.Errorf("%s subject %q: %v", what, s, err)
			}
		}
	}
	for _, size := range []int64{-1, 2 << 30} {
		if err := (messages.ArchiveJob{Name: segment, Bytes: messages.Ref{Size: size}}).Check(c); !errors.Is(err, messages.ErrMalformed) {
			t.Errorf("a WAL file of %d bytes: %v", size, err)
		}
	}
}

// TestNoSubjectOfAnotherCluster: whatever a job says, a worker is never made to
// speak outside of its cluster's own subjects.
func TestNoSubjectOfAnotherCluster(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(
			rapid.String(),
			rapid.StringMatching(`walherd\.(run|reply|chunk)\.(main|other)(\.[a-zA-Z0-9*>_-]{0,4}){0,4}`),
		).Draw(t, "subject")
		if (messages.PartJob{Backup: "base_" + segment, Part: "p", Run: s}).Check("main") == nil {
			if !strings.HasPrefix(s, "walherd.run.main.") || strings.ContainsAny(s, "*>") {
				t.Fatalf("run %q passed", s)
			}
		}
		if s != "" && (messages.ArchiveJob{Name: segment, Reply: s}).Check("main") == nil && !strings.HasPrefix(s, "walherd.reply.main.") {
			t.Fatalf("reply %q passed", s)
		}
	})
}
