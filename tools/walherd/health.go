package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/walherd/walherd/engine/service"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/workers/runner"
)

// health tells an orchestrator over HTTP how this process is.
//
//	/livez   200 while the process runs
//	/readyz  200 when it can do its work, else 503 and the reason
//	/queue   the cluster's backlog as JSON, for what scales workers
//
// It is for the orchestrator's network: it shows names, never contents.
type health struct {
	service.Base
	addr    string
	app     *app
	cluster messages.Cluster
	bus     *bus.Bus
	// storages, if the process uses any, must have one that takes writes.
	storages *storages
	// gate, of a process that works, must not know that it cannot.
	gate *runner.Gate

	listener net.Listener
}

// healthLimit bounds the looking at things that a probe makes.
const healthLimit = 5 * time.Second

// backlog is what /queue prints.
type backlog struct {
	Cluster string                    `json:"cluster"`
	Jobs    map[messages.Kind]waiting `json:"jobs"`
	// Jobs of all kinds, waiting or worked on.
	Total int `json:"total"`
}

type waiting struct {
	Waiting       uint64  `json:"waiting"`
	Working       int     `json:"working"`
	OldestSeconds float64 `json:"oldest_seconds"`
}

// Start implements service.Service.
func (h *health) Start(ctx context.Context) error {
	return h.Launch(ctx, func(ctx context.Context) (err error) {
		var lc net.ListenConfig
		if h.listener, err = lc.Listen(ctx, "tcp", h.addr); err != nil {
			return fmt.Errorf("setting WALHERD_HEALTH_LISTEN: %w", err)
		}
		return nil
	}, func(fetch, work context.Context) error {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
		mux.HandleFunc("GET /readyz", h.ready)
		mux.HandleFunc("GET /queue", h.queue)
		srv := &http.Server{Handler: mux, ReadHeaderTimeout: healthLimit, WriteTimeout: 2 * healthLimit}
		ended := make(chan error, 1)
		go func() { ended <- srv.Serve(h.listener) }()
		select {
		case err := <-ended:
			return fmt.Errorf("serve health: %w", err)
		case <-fetch.Done():
		}
		drain, cancel := context.WithTimeout(work, time.Second)
		defer cancel()
		if err := srv.Shutdown(drain); err != nil {
			_ = srv.Close()
		}
		<-ended
		return nil
	})
}

func (h *health) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthLimit)
	defer cancel()
	err := h.check(ctx)
	if err != nil {
		h.app.log.Warn("not ready", telemetry.KeyError, err)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (h *health) check(ctx context.Context) error {
	if _, err := h.bus.Last(ctx, topology.StreamEvent, messages.EventSubject(h.cluster, messages.WorkerJoined)); err != nil && !errors.Is(err, bus.ErrNoMessage) {
		return fmt.Errorf("broker: %w", err)
	}
	if err := h.gate.Unfit(); err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	if h.storages == nil {
		return nil
	}
	if _, err := h.storages.writer(ctx); err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	return nil
}

func (h *health) queue(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthLimit)
	defer cancel()
	jobs, err := readJobs(ctx, h.bus, h.cluster)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	out := backlog{Cluster: string(h.cluster), Jobs: map[messages.Kind]waiting{}}
	for _, j := range jobs {
		entry := waiting{Waiting: j.Waiting, Working: j.Working}
		if j.Oldest != nil {
			entry.OldestSeconds = time.Since(*j.Oldest).Seconds()
		}
		out.Jobs[j.Kind] = entry
		out.Total += int(j.Waiting) + j.Working
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // the asker is gone if this fails
}

// healthCommand asks a process on this host what an orchestrator would: an
// image with nothing in it but this program has no other way.
func (a *app) healthCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Ask the worker, agent or serve at WALHERD_HEALTH_LISTEN whether it is ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.start(cmd.Context(), cmd); err != nil {
				return err
			}
			if a.set.Walherd.HealthListen == "" {
				return errors.New("health: set WALHERD_HEALTH_LISTEN to the address that the worker, agent or serve was given (127.0.0.1:8321)")
			}
			host, port, err := net.SplitHostPort(a.set.Walherd.HealthListen)
			if err != nil {
				return fmt.Errorf("setting WALHERD_HEALTH_LISTEN: %w", err)
			}
			if host == "" || net.ParseIP(host).IsUnspecified() {
				host = "127.0.0.1"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*healthLimit)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
			if err != nil {
				return err
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return fmt.Errorf("ask for health: %w", err)
			}
			defer res.Body.Close()
			text, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
			if err != nil {
				return fmt.Errorf("ask for health: %w", err)
			}
			if res.StatusCode != http.StatusOK {
				return fmt.Errorf("not ready: %s", strings.TrimSpace(string(text)))
			}
			return nil
		},
	}
}
