package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/deadletter"
	"github.com/walherd/walherd/messages/topology"
)

// operating connects a command to the configured broker as one that looks
// after the queue.
func (a *app) operating(cmd *cobra.Command, do func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error) error {
	ctx := cmd.Context()
	if err := a.start(ctx, cmd); err != nil {
		return err
	}
	if a.set.Walherd.NATSURL == "" {
		return fmt.Errorf("%s is about a broker: set WALHERD_NATS_URL (without one, every command works its own jobs and nothing is queued)", cmd.CommandPath())
	}
	cluster, err := messages.ParseCluster(a.set.Walherd.Cluster)
	if err != nil {
		return err
	}
	b, err := a.join(ctx, roleOperator, cluster)
	if err != nil {
		return err
	}
	defer b.Close()
	return do(ctx, b, cluster)
}

// inspecting is operating at a broker that has been set up.
func (a *app) inspecting(cmd *cobra.Command, do func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error) error {
	return a.operating(cmd, func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error {
		if _, found, err := b.Stream(ctx, topology.StreamWork); err == nil && !found {
			return fmt.Errorf("the broker is not set up: run `%s queue setup`, or start a worker that may create streams", a.name)
		}
		return do(ctx, b, cluster)
	})
}

func (a *app) queue() *cobra.Command {
	cmd := group(&cobra.Command{Use: "queue", Short: "Set the broker up for a cluster"})
	cmd.AddCommand(&cobra.Command{
		Use:   "setup",
		Short: "Create the streams, consumers and leases that are missing, and say what differs",
		Long: "Creates at the broker what the cluster WALHERD_CLUSTER needs and is not there. What is there is never changed;\n" +
			"where it differs from what is declared, that is said, and it is an error if a promise depends on it.\n" +
			"Workers do the same when they start, if the broker lets them.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.operating(cmd, func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error {
				if err := a.ensure(ctx, b, cluster, roleOperator); err != nil {
					return err
				}
				a.log.Info("the broker is set up for cluster " + string(cluster))
				return nil
			})
		},
	})
	return cmd
}

func (a *app) deadLetters() *cobra.Command {
	cmd := group(&cobra.Command{Use: "deadletter", Short: "Jobs that were given up: list, show, try again, drop"})
	var asJSON bool
	list := &cobra.Command{
		Use: "ls", Short: "List the jobs that were given up", Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.inspecting(cmd, func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error {
				letters, err := deadletter.List(ctx, b, cluster)
				if err != nil {
					return err
				}
				return a.printLetters(letters, asJSON)
			})
		},
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	one := func(use, short string, do func(ctx context.Context, b *bus.Bus, l deadletter.Letter) error) *cobra.Command {
		return &cobra.Command{
			Use: use + " id...", Short: short, Args: usageArgs(cobra.MinimumNArgs(1)),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.inspecting(cmd, func(ctx context.Context, b *bus.Bus, cluster messages.Cluster) error {
					for _, arg := range args {
						id, err := strconv.ParseUint(arg, 10, 64)
						if err != nil {
							return fmt.Errorf("dead letter %q: want the number that `deadletter ls` shows", arg)
						}
						l, err := deadletter.Get(ctx, b, cluster, id)
						if err == nil {
							err = do(ctx, b, l)
						}
						if err != nil {
							return err
						}
					}
					return nil
				})
			},
		}
	}
	cmd.AddCommand(list,
		one("show", "Print a job that was given up", func(_ context.Context, _ *bus.Bus, l deadletter.Letter) error {
			return a.printLetter(l)
		}),
		one("retry", "Queue a job anew", func(ctx context.Context, b *bus.Bus, l deadletter.Letter) error {
			if err := deadletter.Retry(ctx, b, l); err != nil {
				return err
			}
			a.log.Info(fmt.Sprintf("queued again: %s %s", l.Kind, l.Object))
			return nil
		}),
		one("drop", "Forget a job for good", func(ctx context.Context, b *bus.Bus, l deadletter.Letter) error {
			if err := deadletter.Drop(ctx, b, l); err != nil {
				return err
			}
			a.log.Info(fmt.Sprintf("dropped: %s %s", l.Kind, l.Object))
			return nil
		}),
	)
	return cmd
}

// letterJSON is a dead letter for programs.
type letterJSON struct {
	ID       uint64          `json:"id"`
	Cluster  string          `json:"cluster"`
	Kind     string          `json:"kind"`
	Object   string          `json:"object"`
	Reason   string          `json:"reason"`
	Worker   string          `json:"worker,omitempty"`
	Attempts int             `json:"attempts"`
	At       time.Time       `json:"at"`
	Stuck    bool            `json:"stuck,omitempty"`
	Message  json.RawMessage `json:"message,omitempty"`
}

func toJSON(l deadletter.Letter) letterJSON {
	return letterJSON{
		ID: l.ID, Cluster: string(l.Cluster), Kind: string(l.Kind), Object: l.Object, Reason: l.Reason,
		Worker: l.Worker, Attempts: l.Attempts, At: l.At.UTC(), Stuck: l.Stuck,
	}
}

func (a *app) printLetters(letters []deadletter.Letter, asJSON bool) error {
	if asJSON {
		out := make([]letterJSON, len(letters))
		for i, l := range letters {
			out[i] = toJSON(l)
		}
		return json.NewEncoder(a.stdout).Encode(out)
	}
	if len(letters) == 0 {
		a.log.Info("No dead letters")
		return nil
	}
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "id\tkind\tobject\tage\ttries\treason\n")
	for _, l := range letters {
		fmt.Fprintf(tw, "%d\t%s\t%s\t%s\t%d\t%s\n", l.ID, printable(string(l.Kind)), printable(l.Object), age(l.At), l.Attempts, printable(l.Reason))
	}
	return tw.Flush()
}

func (a *app) printLetter(l deadletter.Letter) error {
	out := toJSON(l)
	if json.Valid(l.Data) {
		out.Message = l.Data
	} else if len(l.Data) > 0 {
		// What is no JSON is why it is here.
		text, err := json.Marshal(string(l.Data))
		if err != nil {
			return errors.Join(errors.New("print dead letter"), err)
		}
		out.Message = text
	}
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "    ")
	return enc.Encode(out)
}

// printable makes text that came over the queue safe for a terminal and for a
// column: whoever may publish a job chooses the words that an operator reads.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// age is how long ago something was, for people.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return humanize.RelTime(t, time.Now(), "ago", "ahead")
}
