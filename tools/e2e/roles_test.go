package e2e

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// refusals: what a role may not do fails with ErrDenied. A time-out would be
// another error.
func (f *natsFleet) refusals(t *testing.T) {
	const wal, chunk, work = topology.StreamWAL, topology.StreamChunk, topology.StreamWork
	publish := func(subject string) func(*testing.T, *bus.Bus) error {
		return func(t *testing.T, b *bus.Bus) error {
			_, err := b.Publish(t.Context(), subject, nil, []byte("{}"))
			return err
		}
	}
	listen := func(subject string) func(*testing.T, *bus.Bus) error {
		return func(t *testing.T, b *bus.Bus) error {
			stop, err := b.Listen(t.Context(), subject, func(bus.Incoming) {})
			if err == nil {
				stop()
			}
			return err
		}
	}
	lease := func(key string) func(*testing.T, *bus.Bus) error {
		return func(t *testing.T, b *bus.Bus) error {
			_, err := b.Acquire(t.Context(), key, "nobody", time.Minute)
			return err
		}
	}
	type act struct {
		what string
		do   func(*testing.T, *bus.Bus) error
	}
	readWAL := []act{
		{"read WAL", func(t *testing.T, b *bus.Bus) error { _, err := b.Get(t.Context(), wal, 1); return err }},
		{"read the last WAL", func(t *testing.T, b *bus.Bus) error {
			_, err := b.Last(t.Context(), wal, messages.WALSubject("main", 1, "x"))
			return err
		}},
		{"find WAL", func(t *testing.T, b *bus.Bus) error {
			_, err := b.GetNext(t.Context(), wal, messages.WALSubjects("main"), 1)
			return err
		}},
		{"follow WAL", func(t *testing.T, b *bus.Bus) error {
			l, err := b.OpenLog(t.Context(), wal, messages.WALSubjects("main"), bus.LogOptions{})
			if err == nil {
				l.Close()
			}
			return err
		}},
		{"read chunks", func(t *testing.T, b *bus.Bus) error {
			tail, err := b.OpenTail(t.Context(), chunk, "walherd.chunk.main.>", 1<<20)
			if err == nil {
				tail.Close(t.Context())
			}
			return err
		}},
		{"remove WAL", func(t *testing.T, b *bus.Bus) error { return b.Remove(t.Context(), wal, 1<<40) }},
		{"purge WAL", func(t *testing.T, b *bus.Bus) error { return b.Purge(t.Context(), wal, "walherd.wal.main.FFFFFFFF.x") }},
		{"purge chunks", func(t *testing.T, b *bus.Bus) error { return b.Purge(t.Context(), chunk, "walherd.chunk.main.x") }},
	}
	create := []act{
		{"create a stream", func(t *testing.T, b *bus.Bus) error {
			return b.CreateStream(t.Context(), topology.Stream{Name: "MINE", Subjects: []string{"mine"}})
		}},
		{"create a consumer of jobs", func(t *testing.T, b *bus.Bus) error {
			return b.CreateConsumer(t.Context(), topology.Consumer{Stream: work, Name: "mine", Filter: "walherd.work.mine.main"})
		}},
		{"remove a job", func(t *testing.T, b *bus.Bus) error { return b.Remove(t.Context(), work, 1<<40) }},
	}
	takeJobs := []act{
		{"take a job", func(t *testing.T, b *bus.Bus) error {
			d, err := b.Next(t.Context(), work, messages.WorkConsumer(messages.KindArchive, "main"))
			if err == nil {
				_ = d.GiveBack()
			}
			return err
		}},
	}
	fromProducers := append([]act{
		{"say that WAL is stored", publish(messages.EventSubject("main", messages.WALStored))},
		{"say that a part is stored", publish(messages.EventSubject("main", messages.PartStored))},
		{"say that another cluster's WAL is whole", publish(messages.EventSubject("other", messages.VerifyPassed))},
		{"leave a dead letter", publish(messages.DeadSubject("main", messages.KindArchive))},
		{"publish another cluster's WAL", publish(messages.WALSubject("other", 1, "x"))},
		{"queue another cluster's job", publish(messages.WorkSubject(messages.KindArchive, "other"))},
		{"have something deleted", publish(messages.WorkSubject(messages.KindExpire, "main"))},
		{"say that something was deleted", publish(messages.EventSubject("main", messages.ExpireDone))},
		{"answer commands", listen(messages.APISubject("main", "run"))},
		{"mark backups", publish(messages.APISubject("main", "mark"))},
		{"take the lease of deletions", lease("main.expire")},
		{"hear a worker's answers", listen("_INBOX.worker.main.>")},
		{"hear an operator's answers", listen("_INBOX.operator.main.>")},
		{"hear everything", listen(">")},
		{"hear chunks", listen("walherd.chunk.main.>")},
		{"hear another cluster's outcomes", listen(messages.ReplySubject("other", "x"))},
		{"take the lease of another cluster", lease("other.backup")},
	}, takeJobs...)
	for role, acts := range map[string][]act{
		"producer": append(append(append([]act{
			{"take the lease of backups", lease("main.backup")},
			{"offer to take backups", func(t *testing.T, b *bus.Bus) error {
				stop, err := b.Serve(t.Context(), bus.ServiceInfo{Name: "walherd-agent", Version: "0.0.0"}, slog.New(slog.DiscardHandler),
					bus.Endpoint{Name: "push", Subject: messages.APISubject("main", "push")})
				if err == nil {
					stop(t.Context())
				}
				return err
			}},
		}, fromProducers...), readWAL...), create...),
		"agent": append(append(append([]act(nil), fromProducers...), readWAL...), create...),
		"worker": append([]act{
			{"publish WAL", publish(messages.WALSubject("main", 1, "x"))},
			{"publish a chunk", publish(messages.ChunkSubject("main", "run", "part", 1))},
			{"queue a part", publish(messages.WorkSubject(messages.KindPart, "main"))},
			{"queue a commit", publish(messages.WorkSubject(messages.KindCommit, "main"))},
			{"say that a backup started", publish(messages.EventSubject("main", messages.BackupStarted))},
			{"be a producer", listen(messages.RunSubject("main", "x"))},
			{"hear a push's outcome", listen(messages.ReplySubject("main", "x"))},
			{"hear a producer's answers", listen("_INBOX.producer.main.>")},
			{"hear everything", listen(">")},
			{"take backups", listen(messages.APISubject("main", "push"))},
			{"take the lease of backups", lease("main.backup")},
			{"remove other messages of the WAL stream", func(t *testing.T, b *bus.Bus) error { return b.Remove(t.Context(), wal, 1<<40) }},
		}, create...),
		"operator": append(append([]act{
			{"publish WAL", publish(messages.WALSubject("main", 1, "x"))},
			{"say that WAL is stored", publish(messages.EventSubject("main", messages.WALStored))},
			{"create a stream", create[0].do},
			{"hear everything", listen(">")},
		}, readWAL...), takeJobs...),
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			for _, a := range acts {
				t.Run(strings.ReplaceAll(a.what, " ", "-"), func(t *testing.T) {
					t.Parallel()
					// A connection of its own: what was refused on one is
					// remembered for a while.
					if err := a.do(t, f.connect(t, "main", role)); !errors.Is(err, bus.ErrDenied) {
						t.Errorf("%s may %s: %v", role, a.what, err)
					}
				})
			}
		})
	}
}

// rawRefusals asks the broker itself, as a client would that is none of ours.
func (f *natsFleet) rawRefusals(t *testing.T) {
	api := func(what ...string) (out []string) {
		for _, w := range what {
			out = append(out, "$JS.API."+w)
		}
		return out
	}
	manage := api("STREAM.CREATE.X", "STREAM.UPDATE.WALHERD_WAL", "STREAM.DELETE.WALHERD_WAL", "STREAM.DELETE.KV_walherd_lease",
		"STREAM.PURGE.WALHERD_WORK", "STREAM.MSG.DELETE.WALHERD_WAL", "STREAM.SNAPSHOT.WALHERD_WAL", "STREAM.RESTORE.WALHERD_WAL",
		"STREAM.PEER.REMOVE.WALHERD_WAL", "STREAM.LEADER.STEPDOWN.WALHERD_WAL", "META.LEADER.STEPDOWN", "ACCOUNT.PURGE.main",
		"CONSUMER.CREATE.WALHERD_WAL", "CONSUMER.CREATE.WALHERD_WAL.x", "CONSUMER.CREATE.WALHERD_CHUNK.x", "CONSUMER.CREATE.WALHERD_EVENT.x",
		"CONSUMER.DURABLE.CREATE.WALHERD_WAL.x", "CONSUMER.DELETE.WALHERD_WORK.archive-main", "CONSUMER.PAUSE.WALHERD_WORK.archive-main")
	// A bare message goes wherever the asker wants, as if the broker said it.
	manage = append(manage, "$JS.API.DIRECT.GET.KV_walherd_lease", "$JS.API.DIRECT.GET.KV_walherd_lease.$KV.walherd_lease.main.sweep",
		"$JS.API.DIRECT.GET.KV_walherd_lease.$KV.walherd_lease.main.backup")
	takeOut := append(api("STREAM.MSG.GET.WALHERD_WAL", "STREAM.PURGE.WALHERD_WAL", "STREAM.MSG.DELETE.WALHERD_WORK", "DIRECT.GET.WALHERD_WAL",
		"CONSUMER.MSG.NEXT.WALHERD_WORK.archive-main", "CONSUMER.CREATE.WALHERD_WAL.x.walherd.wal.main.*.*", "CONSUMER.CREATE.WALHERD_CHUNK.x.walherd.chunk.main.>",
		"CONSUMER.CREATE.WALHERD_EVENT.x.walherd.event.>", "STREAM.PURGE.WALHERD_CHUNK"),
		"$JS.ACK.WALHERD_WORK.archive-main.1.1.1.1.0", "$KV.walherd_lease.main.sweep.x")
	fakes := []string{
		"walherd.reply.main.x", "walherd.event.main.wal.stored", "walherd.event.main.worker.left", "walherd.run.main.x", "walherd.credit.main.x.y.1",
		"walherd.wal.other.00000001.x", "walherd.work.archive.other", "walherd.chunk.other.x.y.1", "walherd.event.other.backup.failed", "walherd.api.other.run", "walherd.api.other.mark",
		"_INBOX.worker.main.x", "_INBOX.producer.main.x", "_INBOX.operator.main.x", "$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.main.CONNZ",
	}
	for role, c := range map[string]struct {
		publish, hear   []string
		mayPub, mayHear string // what shows that a refusal means something
	}{
		"producer": {
			append(append(append([]string{"$KV.walherd_lease.main.backup", "walherd.api.main.push"}, manage...), takeOut...), fakes...),
			[]string{"_INBOX.>", "_INBOX.worker.main.x", "walherd.>", "walherd.reply.>", "walherd.reply.other.x", "walherd.wal.main.>", "walherd.api.main.*", "walherd.event.>", "$JS.>", "$SYS.>", "$SRV.PING"},
			"walherd.api.main.run", "walherd.reply.main.x",
		},
		"agent": {
			append(append(append([]string{"$KV.walherd_lease.other.backup", "walherd.api.main.push"}, manage...), takeOut...), fakes...),
			[]string{"_INBOX.>", "_INBOX.worker.main.x", "walherd.>", "walherd.reply.>", "walherd.api.main.run", "walherd.wal.main.>", "$JS.>"},
			"walherd.api.main.run", "walherd.api.main.push",
		},
		"worker": {
			append([]string{
				"walherd.wal.main.00000001.x", "walherd.chunk.main.x.y.1", "walherd.work.part.main", "walherd.work.commit.main", "walherd.work.archive.other",
				"walherd.event.main.backup.started", "walherd.api.main.push", "walherd.reply.other.x", "walherd.run.other.x",
				"$KV.walherd_lease.main.backup", "$JS.API.STREAM.MSG.DELETE.WALHERD_WORK", "$JS.API.CONSUMER.MSG.NEXT.WALHERD_WORK.archive-other", "$SYS.REQ.SERVER.PING.JSZ", "_INBOX.producer.main.x",
			}, manage...),
			[]string{"_INBOX.>", "_INBOX.producer.main.x", "walherd.run.main.*", "walherd.reply.main.*", "walherd.wal.main.>", "walherd.credit.>", "walherd.api.main.push", "$JS.>"},
			"walherd.credit.main.nobody", "walherd.api.main.run",
		},
		"operator": {
			append(append([]string{"walherd.wal.main.00000001.x", "$SYS.REQ.SERVER.PING.JSZ"}, manage...), fakes...),
			[]string{"_INBOX.>", "_INBOX.worker.main.x", "walherd.>", "walherd.run.main.*", "$JS.>", "$SYS.>"},
			"walherd.api.main.nobody", "_INBOX.operator.main.x",
		},
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			user := "main-" + role
			nc, err := nats.Connect(f.nats.URL(), nats.RootCAs(f.nats.CA), nats.UserInfo(user, password(user)),
				nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			// The broker complains before it answers the flush.
			refused := func(verb, subject string) bool {
				if err := nc.FlushTimeout(time.Minute); err != nil {
					t.Fatal(err)
				}
				err := nc.LastError()
				return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), fmt.Sprintf("%s %q", verb, subject))
			}
			publish := func(subject string) bool {
				if err := nc.Publish(subject, nil); err != nil {
					t.Fatal(err)
				}
				return refused("Publish to", subject)
			}
			hear := func(subject string) bool {
				sub, err := nc.SubscribeSync(subject)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = sub.Unsubscribe() }()
				return refused("Subscription to", subject)
			}
			if publish(c.mayPub) || hear(c.mayHear) {
				t.Errorf("%s is refused what it needs: %v", role, nc.LastError())
			}
			for _, s := range c.publish {
				if !publish(s) {
					t.Errorf("%s may publish %s", role, s)
				}
			}
			for _, s := range c.hear {
				if !hear(s) {
					t.Errorf("%s may hear %s", role, s)
				}
			}
		})
	}
}

// wrongRole: a process that is given another role's user ends at once, and
// says what is wrong.
func (f *natsFleet) wrongRole(t *testing.T) {
	for name, c := range map[string]struct {
		role string
		args []string
		env  []string
		says string
	}{
		"Setup":      {"producer", []string{"queue", "setup"}, nil, "_INBOX.operator.main"},
		"Worker":     {"producer", []string{"worker"}, []string{"WALG_FILE_PREFIX=" + t.TempDir()}, "_INBOX.worker.main"},
		"BackupList": {"worker", []string{"backup-list"}, nil, "_INBOX.producer.main"},
		"Cluster":    {"operator", []string{"status"}, []string{"WALHERD_CLUSTER=other"}, "_INBOX.operator.other"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := f.run(t, append(f.as("main", c.role), c.env...), c.args...)
			// A warning of the connection may come behind the error.
			_, message, _ := strings.Cut(r.stderr, "ERROR: ")
			message, _, _ = strings.Cut(message, "\n")
			if r.code != 1 || !strings.Contains(message, c.says) || !strings.Contains(message, bus.ErrDenied.Error()) {
				t.Errorf("got %+v, want an error that names %s", r, c.says)
			}
		})
	}
}
