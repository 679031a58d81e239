package messages

import (
	"fmt"
	"slices"
	"strings"

	"github.com/walherd/walherd/engine/pg"
)

// Subjects. Every name begins with walherd.; cluster and timeline are tokens,
// segment and chunk numbers are not: a live subject per segment would make
// the broker keep an index entry for each.

// WorkSubject is where jobs of one kind for one cluster are published.
func WorkSubject(k Kind, c Cluster) string { return fmt.Sprintf("walherd.work.%s.%s", k, c) }

// WorkConsumer names the durable consumer of WorkSubject. Each cluster has its
// own: a worker stores into one storage location, which belongs to one
// cluster, and the WAL of two clusters has the same names.
func WorkConsumer(k Kind, c Cluster) string { return fmt.Sprintf("%s-%s", k, c) }

// WALSubject is where the chunks of one transfer of an archived WAL file are
// kept: one call removes them.
func WALSubject(c Cluster, tl pg.Timeline, transfer string) string {
	return fmt.Sprintf("walherd.wal.%s.%s.%s", c, tl, transfer)
}

// WALSubjects matches WALSubject for every transfer of a cluster.
func WALSubjects(c Cluster) string { return fmt.Sprintf("walherd.wal.%s.*.*", c) }

// IsWALSubject reports whether s names one transfer, and no wildcard.
func IsWALSubject(s string) bool {
	t := strings.Split(s, ".")
	return len(t) == 5 && t[0] == "walherd" && t[1] == "wal" && !slices.Contains(t, "") && !strings.ContainsAny(s, "*> \t\r\n")
}

// ChunkSubject is where the chunks of one attempt at one part are published.
func ChunkSubject(c Cluster, run, part string, attempt int) string {
	return fmt.Sprintf("walherd.chunk.%s.%s.%s.%d", c, run, token(part), attempt)
}

// ChunkSubjects matches ChunkSubject for every backup of a cluster.
func ChunkSubjects(c Cluster) string { return fmt.Sprintf("walherd.chunk.%s.>", c) }

// RunOfChunks is the RunSubject of the backup whose chunks are published on a
// ChunkSubject; ok is false for what is none.
func RunOfChunks(chunkSubject string) (run string, ok bool) {
	t := strings.Split(chunkSubject, ".")
	if len(t) != 6 || t[0] != "walherd" || t[1] != "chunk" {
		return "", false
	}
	return RunSubject(Cluster(t[2]), t[3]), true
}

// CreditSubject is where the receiver of ChunkSubject reports what it took.
func CreditSubject(chunkSubject string) string {
	return "walherd.credit." + strings.TrimPrefix(chunkSubject, "walherd.chunk.")
}

// RunSubject is where the producer of one running backup answers.
func RunSubject(c Cluster, run string) string { return fmt.Sprintf("walherd.run.%s.%s", c, run) }

// ReplySubject is where one wal-push awaits its outcome.
func ReplySubject(c Cluster, id string) string { return fmt.Sprintf("walherd.reply.%s.%s", c, id) }

// EventSubject is where a fact is published.
func EventSubject(c Cluster, e EventName) string { return fmt.Sprintf("walherd.event.%s.%s", c, e) }

// WALEvents matches EventSubject for WALStored and WALFailed.
func WALEvents(c Cluster) string { return fmt.Sprintf("walherd.event.%s.wal.*", c) }

// DeadSubject is where the jobs of one kind that were given up are kept.
func DeadSubject(c Cluster, k Kind) string { return fmt.Sprintf("walherd.dead.%s.%s", c, k) }

// DeadSubjects matches DeadSubject for every kind.
func DeadSubjects(c Cluster) string { return fmt.Sprintf("walherd.dead.%s.*", c) }

// APISubject is where a cluster's workers and agents answer requests.
func APISubject(c Cluster, verb string) string { return fmt.Sprintf("walherd.api.%s.%s", c, verb) }

// token makes one subject token of a name.
func token(s string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.', '*', '>', ' ', '/':
			return '-'
		}
		return r
	}, s)
}
