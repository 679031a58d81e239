package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/deadletter"
	"github.com/walherd/walherd/messages/topology"
)

// The names of the services that processes offer.
const (
	serviceWorker = "walherd-worker"
	serviceAgent  = "walherd-agent"
)

// answerQuiet is how long status waits for one more process to say that it is
// there.
const answerQuiet = 300 * time.Millisecond

// status is the state of one cluster's queue. Its JSON is an interface.
type status struct {
	Cluster string `json:"cluster"`
	// SetUp tells whether the broker has what the cluster needs.
	SetUp bool `json:"set_up"`
	// Others are the clusters of which workers or agents answer besides.
	Others      []string      `json:"other_clusters"`
	At          time.Time     `json:"at"`
	Workers     []member      `json:"workers"`
	Agents      []member      `json:"agents"`
	Jobs        []jobState    `json:"jobs"`
	Streams     []streamState `json:"streams"`
	OldestWAL   *statusEvent  `json:"oldest_unstored_wal,omitempty"`
	LastWAL     *statusEvent  `json:"last_stored_wal,omitempty"`
	LastBackup  *statusEvent  `json:"last_backup,omitempty"`
	LastFailure *statusEvent  `json:"last_failed_backup,omitempty"`
	LastPassed  *statusEvent  `json:"last_passed_verification,omitempty"`
	LastFound   *statusEvent  `json:"last_failed_verification,omitempty"`
	DeadLetters int           `json:"dead_letters"`
}

type member struct {
	ID       string            `json:"id"`
	Version  string            `json:"version"`
	Metadata map[string]string `json:"metadata"`
}

type jobState struct {
	Kind    messages.Kind `json:"kind"`
	Waiting uint64        `json:"waiting"`
	Working int           `json:"working"`
	// Again counts those handed out more than once.
	Again  int        `json:"again"`
	Oldest *time.Time `json:"oldest,omitempty"`
}

type streamState struct {
	Name     string `json:"name"`
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"bytes"`
	MaxBytes int64  `json:"max_bytes"`
	Replicas int    `json:"replicas"`
	Current  int    `json:"current_replicas"`
}

// statusEvent is a thing and when it was.
type statusEvent struct {
	Object string    `json:"object"`
	At     time.Time `json:"at"`
	Error  string    `json:"error,omitempty"`
}

func (a *app) status() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show a cluster's queue: workers, jobs, what is not stored yet, the last backup",
		Long: "Asks the broker at WALHERD_NATS_URL about the cluster WALHERD_CLUSTER. The exit code is 0 if it could be asked,\n" +
			"however bad the news is.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.inspecting(cmd, func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error {
				s, err := readStatus(ctx, b, cluster)
				if err != nil {
					return err
				}
				if !s.SetUp {
					a.log.Warn(fmt.Sprintf("the broker is not set up for cluster %s: correct WALHERD_CLUSTER, or run `%s queue setup`", cluster, a.name))
				}
				if asJSON {
					return json.NewEncoder(a.stdout).Encode(s)
				}
				return s.print(a.stdout)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func readStatus(ctx context.Context, b *bus.Bus, cluster messages.Cluster) (*status, error) {
	s := &status{Cluster: string(cluster), At: time.Now().UTC()}
	others := map[string]bool{}
	var err error
	if s.Workers, err = members(ctx, b, serviceWorker, cluster, others); err != nil {
		return nil, err
	}
	if s.Agents, err = members(ctx, b, serviceAgent, cluster, others); err != nil {
		return nil, err
	}
	s.Others = append([]string{}, slices.Sorted(maps.Keys(others))...)
	if _, s.SetUp, err = b.ConsumerState(ctx, topology.StreamWork, messages.WorkConsumer(messages.KindArchive, cluster)); err != nil {
		return nil, err
	}
	if s.Jobs, err = readJobs(ctx, b, cluster); err != nil {
		return nil, err
	}
	oldest, err := b.GetNext(ctx, topology.StreamWork, messages.WorkSubject(messages.KindArchive, cluster), 1)
	switch {
	case err == nil:
		s.OldestWAL = &statusEvent{At: oldest.Time.UTC()}
		if env, err := messages.Decode(oldest.Data); err == nil {
			if job, err := messages.Unpack[messages.ArchiveJob](env); err == nil {
				s.OldestWAL.Object = job.Name
			}
		}
	case !errors.Is(err, bus.ErrNoMessage):
		return nil, err
	}
	for _, name := range []string{topology.StreamWAL, topology.StreamChunk, topology.StreamWork, topology.StreamEvent, topology.StreamDead} {
		st, err := b.StreamState(ctx, name)
		if err != nil {
			return nil, err
		}
		s.Streams = append(s.Streams, streamState{
			Name: name, Messages: st.Messages, Bytes: st.Bytes, MaxBytes: st.MaxBytes, Replicas: st.Replicas, Current: st.Current,
		})
	}
	for what, into := range map[messages.EventName]**statusEvent{
		messages.WALStored: &s.LastWAL, messages.BackupFinished: &s.LastBackup, messages.BackupFailed: &s.LastFailure,
		messages.VerifyPassed: &s.LastPassed, messages.VerifyFailed: &s.LastFound,
	} {
		m, err := b.Last(ctx, topology.StreamEvent, messages.EventSubject(cluster, what))
		if errors.Is(err, bus.ErrNoMessage) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// Whoever may publish an event may publish nonsense, and status is
		// how that comes to light.
		var e messages.Event
		if err := json.Unmarshal(m.Data, &e); err != nil {
			e = messages.Event{At: m.Time.UTC(), Error: fmt.Sprintf("unreadable event: %v", err)}
		}
		*into = &statusEvent{Object: e.Object, At: e.At, Error: e.Error}
	}
	letters, err := deadletter.List(ctx, b, cluster)
	s.DeadLetters = len(letters)
	return s, err
}

// readJobs looks at the backlog of every kind of job.
func readJobs(ctx context.Context, b *bus.Bus, cluster messages.Cluster) ([]jobState, error) {
	var out []jobState
	for _, k := range messages.Kinds() {
		c, _, err := b.ConsumerState(ctx, topology.StreamWork, messages.WorkConsumer(k, cluster))
		if err != nil {
			return nil, err
		}
		j := jobState{Kind: k, Waiting: c.Pending, Working: c.Working, Again: c.Redelivered}
		oldest, err := b.GetNext(ctx, topology.StreamWork, messages.WorkSubject(k, cluster), 1)
		if err == nil {
			at := oldest.Time.UTC()
			j.Oldest = &at
		} else if !errors.Is(err, bus.ErrNoMessage) {
			return nil, err
		}
		out = append(out, j)
	}
	return out, nil
}

// members are the processes of a cluster that offer a service. The clusters of
// other processes that do are put into others.
func members(ctx context.Context, b *bus.Bus, service string, cluster messages.Cluster, others map[string]bool) ([]member, error) {
	found, err := b.Services(ctx, service, answerQuiet)
	if err != nil {
		return nil, err
	}
	out := []member{}
	for _, f := range found {
		if of := f.Metadata["cluster"]; of == string(cluster) {
			out = append(out, member{ID: f.ID, Version: f.Version, Metadata: f.Metadata})
		} else if of != "" {
			others[of] = true
		}
	}
	return out, nil
}

func (s *status) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "cluster\t%s\n", s.Cluster)
	if len(s.Others) > 0 {
		fmt.Fprintf(tw, "other clusters\t%s\n", printable(strings.Join(s.Others, ", ")))
	}
	for _, row := range []struct {
		name string
		e    *statusEvent
		none string
	}{
		{"last backup", s.LastBackup, "none in the last 7 days"},
		{"last failed backup", s.LastFailure, "none in the last 7 days"},
		{"last stored WAL", s.LastWAL, "none in the last 7 days"},
		{"last passed verification", s.LastPassed, "none in the last 7 days"},
		{"last failed verification", s.LastFound, "none in the last 7 days"},
		{"oldest WAL not stored", s.OldestWAL, "none"},
	} {
		if row.e == nil {
			fmt.Fprintf(tw, "%s\t%s\n", row.name, row.none)
			continue
		}
		fmt.Fprintf(tw, "%s\t%s, %s %s\n", row.name, printable(row.e.Object), age(row.e.At), printable(row.e.Error))
	}
	fmt.Fprintf(tw, "dead letters\t%d\n", s.DeadLetters)
	for _, m := range []struct {
		what string
		list []member
	}{{"workers", s.Workers}, {"agents", s.Agents}} {
		fmt.Fprintf(tw, "%s\t%d\n", m.what, len(m.list))
		for _, w := range m.list {
			fmt.Fprintf(tw, "\t%s, version %s\n", printable(w.Metadata["name"]), printable(w.Metadata["version"]))
		}
	}
	fmt.Fprint(tw, "\njobs\twaiting\tworking\tagain\toldest\n")
	for _, j := range s.Jobs {
		oldest := "-"
		if j.Oldest != nil {
			oldest = age(*j.Oldest)
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%s\n", j.Kind, j.Waiting, j.Working, j.Again, oldest)
	}
	fmt.Fprint(tw, "\nstream\tmessages\tbytes\troom\treplicas\n")
	for _, st := range s.Streams {
		room := "no limit"
		if st.MaxBytes > 0 {
			room = humanize.IBytes(uint64(st.MaxBytes))
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%d of %d\n", st.Name, st.Messages, humanize.IBytes(st.Bytes), room, st.Current, st.Replicas)
	}
	return tw.Flush()
}
