package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// A host without a storage asks the workers of its cluster: a read-only
// command is run there, by the same code, and its output comes back. Only the
// command's own flags travel. Settings do not: with one a host could have a
// worker read any bucket, or any directory, that the worker can.

// askable marks a command that workers run for others.
const askable = "walherd.askable"

// answerSilence is how long a worker may say nothing. Listing a large bucket
// yields no output until it is done.
const answerSilence = 10 * time.Minute

// apiRequest is the body of a request to run a command.
type apiRequest struct {
	Version int      `json:"v"`
	Args    []string `json:"args"`
}

// verbRun is the subject's last token for such requests.
const verbRun = "run"

// ask makes a read-only command one that workers answer, where this host has
// a broker and no storage.
func (a *app) ask(cmd *cobra.Command) *cobra.Command {
	cmd.Annotations = map[string]string{askable: "yes"}
	here := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := a.start(cmd.Context(), cmd); err != nil {
			return err
		}
		if _, err := a.set.Storage(); !errors.Is(err, settings.ErrNoStorage) || a.set.Walherd.NATSURL == "" {
			return here(cmd, args)
		}
		return a.askWorkers(cmd.Context(), commandLine(cmd, args))
	}
	return cmd
}

// commandLine is a command with its own flags, as words.
func commandLine(cmd *cobra.Command, args []string) []string {
	words := strings.Fields(cmd.CommandPath())[1:]
	common := cmd.Root().PersistentFlags()
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if common.Lookup(f.Name) == nil {
			words = append(words, "--"+f.Name+"="+f.Value.String())
		}
	})
	return append(append(words, "--"), args...)
}

// askWorkers has a worker of the cluster run a command.
func (a *app) askWorkers(ctx context.Context, args []string) error {
	cluster, err := messages.ParseCluster(a.set.Walherd.Cluster)
	if err != nil {
		return err
	}
	b, err := a.joinToAsk(ctx, cluster)
	if err != nil {
		return err
	}
	defer b.Close()
	err = a.askFor(ctx, b, cluster, verbRun, args)
	if errors.Is(err, bus.ErrNobody) {
		return fmt.Errorf("no storage is configured here, and no worker of cluster %s answers: start one, or set WALG_FILE_PREFIX or another storage: %w", cluster, err)
	}
	return err
}

// joinToAsk connects as a producer, or as an operator where the login is one:
// whoever decides what is deleted or marked has to see first what there is. It
// is found out before anything is asked, since a worker would do the work also
// for an answer that nobody may hear.
func (a *app) joinToAsk(ctx context.Context, cluster messages.Cluster) (*bus.Bus, error) {
	b, err := a.join(ctx, roleProducer, cluster)
	if err != nil {
		return nil, err
	}
	if _, _, err := b.Stream(ctx, topology.StreamWork); !errors.Is(err, bus.ErrDenied) {
		return b, nil
	}
	o, err := a.join(ctx, roleOperator, cluster)
	if err != nil {
		return b, nil // which will say what is wrong
	}
	if _, _, err := o.Stream(ctx, topology.StreamWork); err != nil {
		o.Close()
		return b, nil
	}
	b.Close()
	return o, nil
}

// askFor sends a request and prints its answer as if it had been done here.
func (a *app) askFor(ctx context.Context, b *bus.Bus, cluster messages.Cluster, verb string, args []string) error {
	data, err := json.Marshal(apiRequest{Version: messages.Version, Args: args})
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return b.Ask(ctx, messages.APISubject(cluster, verb), data, answerSilence, func(out string, data []byte) error {
		w := a.stdout
		if out == "stderr" {
			w = a.screen
		}
		_, err := w.Write(data)
		return err
	})
}

func readRequest(data []byte) (apiRequest, error) {
	var req apiRequest
	if err := json.Unmarshal(data, &req); err != nil {
		return req, fmt.Errorf("unreadable request: %w", err)
	}
	if req.Version != messages.Version {
		return req, fmt.Errorf("request of version %d: %w (this is walherd %s, which speaks %d)", req.Version, messages.ErrVersion, version, messages.Version)
	}
	return req, nil
}

// answering is the endpoint that runs commands for others.
func (a *app) answering(cluster messages.Cluster) bus.Endpoint {
	return bus.Endpoint{Name: verbRun, Subject: messages.APISubject(cluster, verbRun), Handle: func(ctx context.Context, data []byte, reply *bus.Reply) error {
		req, err := readRequest(data)
		if err != nil {
			return err
		}
		// A table is written cell by cell, and each write is a message.
		out := bufio.NewWriterSize(replyWriter{reply, "stdout"}, 64<<10)
		err = a.runFor(ctx, askable, req.Args, out, replyWriter{reply, "stderr"})
		return cmp.Or(err, out.Flush())
	}}
}

// replyWriter is one stream of an answer.
type replyWriter struct {
	reply *bus.Reply
	out   string
}

func (w replyWriter) Write(p []byte) (int, error) {
	if err := w.reply.Write(w.out, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// runFor runs a command that bears a mark, with the settings of this process.
func (a *app) runFor(ctx context.Context, mark string, args []string, stdout, stderr io.Writer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("a command run for another host panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("the command panicked: %v", p)
		}
	}()
	set := *a.set // a command folds its flags in
	other := &app{name: a.name, stdout: stdout, stderr: os.Stderr, set: &set, screen: stderr, level: a.level, tracer: a.tracer, remote: true}
	other.log = slog.New(telemetry.NewHandler(stderr, a.level))
	defer other.closeStores()
	root := other.commands(nil)
	cmd, _, err := root.Find(args)
	if err != nil {
		return err
	}
	if cmd.Annotations[mark] == "" {
		return fmt.Errorf("%q is not answered over the queue", strings.Join(args[:min(len(args), 2)], " "))
	}
	for _, f := range []string{settings.ConfigFlag, "turbo", "help"} {
		if strings.Contains(strings.Join(args, "\x00")+"\x00", "--"+f) {
			return fmt.Errorf("--%s is not answered over the queue", f)
		}
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}
