package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/producer/schedule"
	"github.com/walherd/walherd/workers/runner"
)

// verbVerify is the subject's last token of requests to verify a server's WAL:
// an agent's, which knows the server.
const verbVerify = "verify"

// verifyBySchedule is the agent's work of WALHERD_VERIFY_SCHEDULE; false
// without one.
func (a *app) verifyBySchedule(f *fleet) (schedule.Work, bool, error) {
	text := a.set.Walherd.VerifySchedule
	if text == "" {
		return schedule.Work{}, false, nil
	}
	times, err := schedule.Parse(text)
	if err != nil {
		return schedule.Work{}, false, fmt.Errorf("setting WALHERD_VERIFY_SCHEDULE: %w", err)
	}
	return schedule.Work{Name: "verify", Times: times, Do: func(ctx context.Context) error {
		return a.verifyAndTell(ctx, f, io.Discard, a.screen)
	}}, true, nil
}

// verifyRequest verifies for whoever asks.
func (a *app) verifyRequest(f *fleet) bus.Endpoint {
	return bus.Endpoint{Name: verbVerify, Subject: messages.APISubject(f.cluster, verbVerify), Handle: func(ctx context.Context, _ []byte, reply *bus.Reply) error {
		return a.verifyAndTell(ctx, f, replyWriter{reply, "stdout"}, replyWriter{reply, "stderr"})
	}}
}

// verifyAndTell makes both checks of wal-verify for this host's server, and an
// event of the result. That the checks could not be made is a failure too:
// nobody looks at what is silent.
func (a *app) verifyAndTell(ctx context.Context, f *fleet, stdout, stderr io.Writer) error {
	found, err := a.verifyHere(ctx, stdout, stderr)
	e := messages.Event{What: messages.VerifyPassed, Cluster: f.cluster, Object: "WAL of " + a.processName()}
	if err != nil {
		e.What, e.Error = messages.VerifyFailed, err.Error()
		if found != "" {
			e.Error += ": " + found
		}
	}
	if perr := runner.PublishEvent(ctx, f.bus, e); perr != nil {
		a.log.Warn("publish event", "event", e.What, telemetry.KeyError, perr)
	}
	return err
}

// verifyHere runs wal-verify as this host's command line would; found is what
// it found in short.
func (a *app) verifyHere(ctx context.Context, stdout, stderr io.Writer) (found string, err error) {
	at, err := a.position(ctx)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	err = a.runFor(ctx, askable, []string{
		"wal-verify", checkIntegrity, checkTimeline, "--json", "--exit-code",
		fmt.Sprintf("--timeline=%d", uint32(at.Timeline)), "--lsn=" + at.LSN.String(),
	}, &out, stderr)
	var checks map[string]struct{ Status string }
	if jerr := json.Unmarshal(out.Bytes(), &checks); jerr == nil {
		var words []string
		for _, name := range slices.Sorted(maps.Keys(checks)) {
			words = append(words, name+" "+checks[name].Status)
		}
		found = strings.Join(words, ", ")
	}
	if _, werr := fmt.Fprintf(stdout, "%s\n", out.Bytes()); werr != nil && err == nil {
		err = werr
	}
	return found, err
}
