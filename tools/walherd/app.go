package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/term"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/tools/walherd/progress"
	"github.com/walherd/walherd/tools/walherd/settings"
)

// app is one run of the program.
type app struct {
	name   string
	stdout io.Writer
	stderr *os.File

	set   *settings.Settings
	turbo bool
	level slog.Level
	log   *slog.Logger
	// screen is where log lines and progress bars share the terminal.
	screen   io.Writer
	tel      *telemetry.Telemetry
	tracer   trace.Tracer
	logFile  *os.File
	observed observed
	// remote is a command that this process runs for another host.
	remote bool
	// settingFlags are the settings given as flags, for processes that this
	// one starts.
	settingFlags []string
	// opened are the stores that hold connections until the command ends.
	opened []io.Closer
}

// closeStores ends the connections of the stores that were opened.
func (a *app) closeStores() {
	for _, c := range a.opened {
		if err := c.Close(); err != nil {
			a.log.Debug("close storage", telemetry.KeyError, err)
		}
	}
	a.opened = nil
}

// telemetryFlush bounds how long a finished command waits for a collector.
const telemetryFlush = 5 * time.Second

// run parses the command line and executes one command.
func (a *app) run(ctx context.Context, args []string) error {
	a.screen = progress.NewScreen(a.stderr)
	a.log = slog.New(telemetry.NewHandler(a.screen, slog.LevelInfo))
	root := a.commands(args)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	a.closeStores()
	a.unobserve(ctx, cmd.Name(), err != nil)
	if a.tel != nil {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), telemetryFlush)
		defer cancel()
		a.tel.Shutdown(flush)
	}
	var usage *usageError
	switch {
	case err == nil:
	case errors.As(err, &usage):
		fmt.Fprintf(a.stderr, "Error: %v\n%s", err, usage.text)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		a.log.Error(fmt.Sprintf("interrupted by a signal: %v", err))
	default:
		a.log.Error(err.Error())
	}
	if a.logFile != nil {
		if cerr := a.logFile.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("write log: %w", cerr)
		}
	}
	return err
}

// usageError is a wrong command line; text is the command's usage.
type usageError struct {
	err  error
	text string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// start reads the settings and sets up logging and tracing; it runs before
// every command that does something. It does nothing the second time.
func (a *app) start(ctx context.Context, cmd *cobra.Command) error {
	if a.set != nil {
		return nil
	}
	set, warnings, err := settings.LoadProcess(settings.FlagValues(cmd.Flags()))
	for _, w := range warnings {
		a.log.Warn(w.String())
	}
	if err != nil {
		return err
	}
	a.set = set
	cmd.Root().PersistentFlags().Visit(func(f *pflag.Flag) {
		a.settingFlags = append(a.settingFlags, "--"+f.Name+"="+f.Value.String())
	})
	level, err := telemetry.ParseLogLevel(set.General.LogLevel)
	if err != nil {
		return err
	}
	if dest := set.General.LogDestination; dest != "" && dest != "stderr" {
		f, err := os.OpenFile(dest, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("open log: %w (WALG_LOG_DESTINATION is stderr or a file)", err)
		}
		a.logFile, a.screen = f, f
	}
	a.level, a.log = level, slog.New(telemetry.NewHandler(a.screen, level))
	later, err := set.Later()
	for _, w := range append(set.Unused(), later...) {
		a.log.Warn(w.String())
	}
	if err != nil {
		return err
	}
	for _, v := range set.Effective() {
		a.log.Debug("setting", "name", v.Setting, "value", v.Text, "from", v.Origin)
	}
	a.tel, err = telemetry.Start(ctx, telemetry.Options{
		ServiceName: set.Monitoring.OTelServiceName, Version: version, Logger: a.log,
		Endpoint: cmp.Or(set.Monitoring.OTLPTracesEndpoint, set.Monitoring.OTLPEndpoint),
		Headers:  cmp.Or(set.Monitoring.OTLPTracesHeaders, set.Monitoring.OTLPHeaders),
		TLS: telemetry.TLSFiles{
			CA: set.Monitoring.OTLPCertificate, Certificate: set.Monitoring.OTLPClientCert, Key: set.Monitoring.OTLPClientKey,
		},
	})
	if err != nil {
		return err
	}
	a.tracer = a.tel.TracerProvider().Tracer("walherd")
	a.observe()
	// GOMAXPROCS is read by the runtime before any setting of a config file.
	if n := set.General.GoMaxProcs; n > 0 && !a.turbo {
		runtime.GOMAXPROCS(n)
	}
	return nil
}

// collect sets how much garbage may gather, in percent of the live heap, unless
// GOGC says so. Commands that move a backup collect often, since their buffers
// are few and long-lived and the process shall stay small; those that move one
// segment not at all, since they end before it matters.
func (a *app) collect(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// holdMemory asks the collector to stay near what streams parts stored side by
// side need, unless GOMEMLIMIT says so: the zstd library makes new buffers for
// every few megabytes, and a large database would gather them up to twice the
// live heap. It is no hard limit. The slow zstd levels need several times as
// much and are left alone.
func (a *app) holdMemory(streams int) {
	if os.Getenv("GOMEMLIMIT") != "" || a.set.General.ZstdLevel == "better" || a.set.General.ZstdLevel == "best" {
		return
	}
	const base, each = 32 << 20, 64 << 20
	debug.SetMemoryLimit(base + each*int64(streams))
}

const (
	collectOften  = 50
	collectRarely = 800
)

// interactive reports whether progress bars may be drawn.
func (a *app) interactive() bool {
	return a.logFile == nil && !a.remote && term.IsTerminal(int(a.stderr.Fd()))
}

// progress starts the display of long work. The caller finishes it.
func (a *app) progress(title string, total int64) *progress.Tracker {
	return progress.New(progress.Options{Out: a.screen, IsTTY: a.interactive(), Logger: a.log, Total: total, Title: title})
}
