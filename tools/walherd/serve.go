package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/durable"
	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
)

// runBroker is the broker's process.
func (a *app) runBroker(ctx context.Context, parent io.Reader, ready io.Writer) error {
	w := &a.set.Walherd
	token, err := serveToken(w.ServeDir)
	if err != nil {
		return err
	}
	return broker.Serve(ctx, broker.Options{
		Listen: w.ServeListen, StoreDir: filepath.Join(w.ServeDir, "jetstream"), SyncAlways: true, Token: token,
		MaxMemory: int64(w.ServeMemory), MaxStore: int64(w.MaxWALBytes) + 4<<30, Logger: a.log,
	}, parent, ready)
}

// serveToken is the secret between the broker and those who may speak to it:
// whoever can read the file. It is made by the first who asks.
func serveToken(dir string) (string, error) {
	path := filepath.Join(dir, "token")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = durable.WriteFile(path, 0o600, func(w io.Writer) error {
			_, err := io.WriteString(w, rand.Text()+"\n")
			return err
		}, durable.Options{NoReplace: true})
		if err == nil || errors.Is(err, fs.ErrExist) {
			data, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return "", fmt.Errorf("setting WALHERD_SERVE_DIR: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if len(token) < 16 {
		return "", fmt.Errorf("the token in %s has %d characters: remove the file and a new one is made", path, len(token))
	}
	return token, nil
}

// runServe brings the broker up, then everything that uses it.
func (a *app) runServe(ctx context.Context, limit time.Duration) error {
	w := &a.set.Walherd
	switch {
	case w.NATSURL != "":
		return errors.New("serve brings its own broker: unset WALHERD_NATS_URL, or run worker and agent beside the one there is")
	case w.ServeDir == "":
		return errors.New("serve: set WALHERD_SERVE_DIR to a directory on a disk of this host; it keeps what is not stored yet")
	}
	if err := os.MkdirAll(w.ServeDir, 0o700); err != nil {
		return fmt.Errorf("setting WALHERD_SERVE_DIR: %w", err)
	}
	token, err := serveToken(w.ServeDir)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program to run the broker with: %w", err)
	}
	command := []string{self, "broker-process"}
	command = append(command, a.settingFlags...)
	// Everything else stops before the broker does.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	up := make(chan string, 1)
	restart := make(chan struct{})
	supervised := make(chan error, 1)
	go func() {
		supervised <- broker.Supervise(life, broker.SuperviseOptions{
			Command: command, Logger: a.log, Restart: restart,
			Ready: func(url string) {
				select {
				case up <- url:
				default:
				}
			},
		})
	}()
	defer func() { end(); <-supervised }()
	select {
	case w.NATSURL = <-up:
	case err := <-supervised:
		supervised <- nil
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	w.NATSToken = token
	w.MaxChunkBytes = min(w.MaxChunkBytes, w.ServeMemory/2)
	work, err := a.openWorker(ctx)
	if err != nil {
		return err
	}
	defer work.close()
	services := append(work.services(), newTask("watch over the broker", a, func(ctx context.Context) error {
		return a.watchBroker(ctx, work.fleet, restart)
	}))
	if a.set.Postgres.Data != "" {
		g, err := a.openAgent(ctx, work.fleet)
		if err != nil {
			return err
		}
		defer g.close()
		services = append(services, g.services...)
	}
	return a.live(ctx, limit, work.fleet, work.wal, services...)
}

// watchBroker writes to the broker again and again; one that lives and does
// not take writes (its disk was full, it lost its store) is replaced.
func (a *app) watchBroker(ctx context.Context, f *fleet, restart chan<- struct{}) error {
	key := string(f.cluster) + ".serve"
	for failing := 0; ; {
		try, cancel := context.WithTimeout(ctx, brokerProbe)
		err := probe(try, f.bus, key, a.processName())
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if failing++; err == nil {
			failing = 0
		} else {
			a.log.Warn("the broker takes no writes", telemetry.KeyError, err, "times", failing)
		}
		if failing >= brokerPatience {
			select {
			case restart <- struct{}{}:
				failing = 0
			case <-time.After(brokerProbe): // it is being started already
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case <-time.After(brokerProbe):
		case <-ctx.Done():
			return nil
		}
	}
}

// How often the broker is tried, and how many failures are too many: a store
// that is large takes a while to be read after a restart.
const (
	brokerProbe    = 10 * time.Second
	brokerPatience = 6
)

// probe takes and gives up a lease, which are two writes.
func probe(ctx context.Context, b *bus.Bus, key, holder string) error {
	l, err := b.Acquire(ctx, key, holder, time.Minute)
	if errors.Is(err, bus.ErrHeld) {
		return nil // written a moment ago, and not by us alone
	}
	if err != nil {
		return err
	}
	return l.Release(ctx)
}
