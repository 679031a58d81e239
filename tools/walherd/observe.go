package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/meter"
	"github.com/walherd/walherd/tools/walherd/observe"
)

// observed is what a command shows of itself, where the settings ask for it.
type observed struct {
	since   time.Time
	meters  []*meter.Bucket
	profile *observe.Profile
	debug   *observe.Debug
}

// observe starts what looks on while the command runs. Nothing of it fails the
// command: an archive_command shall not stop because two of them cannot share
// the address of a debug server.
func (a *app) observe() {
	m := &a.set.Monitoring
	a.observed.since = time.Now()
	var err error
	if m.HTTPListen != "" {
		a.observed.debug, err = observe.StartDebug(observe.DebugOptions{Address: m.HTTPListen, Pprof: m.HTTPExposePprof, Expvar: m.HTTPExposeExpvar})
		if err != nil {
			a.log.Warn("the debug web server does not run", telemetry.KeyError, err)
		}
	}
	if rand.Float64() < m.ProfileRatio {
		a.observed.profile, err = observe.StartProfile(m.ProfileMode, m.ProfilePath)
		if err != nil {
			a.log.Warn("no profile is taken", telemetry.KeyError, err)
		} else {
			a.log.Info("profile is taken", "mode", m.ProfileMode, "path", a.observed.profile.Path)
		}
	}
}

// metered counts what goes over to a storage, if somebody will be told.
func (a *app) metered(b storage.Bucket) storage.Bucket {
	if a.set.Monitoring.StatsdAddress == "" {
		return b
	}
	m := meter.New(b)
	a.observed.meters = append(a.observed.meters, m)
	return m
}

// unobserve ends what observe started, and tells statsd of a command that
// succeeded.
func (a *app) unobserve(ctx context.Context, command string, failed bool) {
	o := &a.observed
	if o.profile != nil {
		if err := o.profile.Stop(); err != nil {
			a.log.Warn("the profile is lost", telemetry.KeyError, err)
		}
	}
	if o.debug != nil {
		_ = o.debug.Close() // nothing is lost with it
	}
	if a.set == nil || failed || a.set.Monitoring.StatsdAddress == "" {
		return
	}
	var told observe.Metrics
	for _, m := range o.meters {
		s := m.Snapshot()
		told.BytesRead += s.Open.Bytes
		told.BytesWritten += s.Put.Bytes
		told.Uploads += s.Put.Requests - s.Put.Errors
		told.FailedUploads += s.Put.Errors
	}
	if command == "wal-push" {
		told.WALPush = max(time.Since(o.since), time.Millisecond)
	}
	if err := told.Send(ctx, a.set.Monitoring.StatsdAddress, a.set.Monitoring.StatsdExtraTags); err != nil {
		a.log.Warn("metrics are not sent", telemetry.KeyError, err)
	}
}
