package broker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/topology"
)

// This test binary is also the broker process of its tests, when this variable
// says so: its value is the store directory.
const asBroker = "WALHERD_TEST_BROKER"

func TestMain(m *testing.M) {
	dir := os.Getenv(asBroker)
	switch {
	case dir == "":
		os.Exit(m.Run())
	case dir == "hungry":
		// Serve limits the memory first, then finds its address taken by
		// nobody and waits; meanwhile this eats.
		go func() {
			var all [][]byte
			for {
				b := make([]byte, 64<<20)
				for i := range b {
					b[i] = 1
				}
				all = append(all, b)
				if len(all) > 64 {
					fmt.Fprintln(os.Stderr, "ate 4 GiB")
					os.Exit(77)
				}
			}
		}()
	}
	opt := broker.Options{Listen: os.Getenv(asBroker + "_LISTEN"), StoreDir: dir, SyncAlways: true, Token: "secret", MaxMemory: 64 << 20}
	if dir == "hungry" {
		opt.StoreDir = ""
	}
	if err := broker.Serve(context.Background(), opt, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// self is this binary as a broker on a store directory. The address is found
// by the first that runs and kept by those after it.
func self(t *testing.T, dir, listen string) []string {
	t.Helper()
	return []string{"/usr/bin/env", asBroker + "=" + dir, asBroker + "_LISTEN=" + listen, os.Args[0]}
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	e, err := broker.Start(broker.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Stop()
	return strings.TrimPrefix(e.URL(), "nats://")
}

// TestABrokerThatDiesIsStartedAgain: what was acknowledged before a SIGKILL is
// there after it, at the same address.
func TestABrokerThatDiesIsStartedAgain(t *testing.T) {
	t.Parallel()
	addr := freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	up := make(chan string, 8)
	over := make(chan error, 1)
	restart := make(chan struct{})
	go func() {
		over <- broker.Supervise(ctx, broker.SuperviseOptions{
			Command: self(t, t.TempDir(), addr), Ready: func(url string) { up <- url }, Logger: slog.New(slog.DiscardHandler), Restart: restart,
		})
	}()
	url := <-up
	b, err := bus.Connect(t.Context(), bus.Options{URL: url, Login: bus.Login{Token: "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := topology.Ensure(t.Context(), b, topology.Config{Cluster: "test", MaxChunkBytes: 32 << 20, MaxWALBytes: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	seq, err := b.Publish(t.Context(), "walherd.wal.test.00000001", nil, []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	restart <- struct{}{}
	if again := <-up; again != url {
		t.Fatalf("came back at %s, was at %s", again, url)
	}
	for {
		m, err := b.Get(t.Context(), topology.StreamWAL, seq)
		if errors.Is(err, bus.ErrNoMessage) || t.Context().Err() != nil {
			t.Fatal(err)
		}
		if err != nil {
			continue // still reconnecting
		}
		if string(m.Data) != "kept" {
			t.Fatalf("got %q", m.Data)
		}
		break
	}
	if _, err := bus.Connect(t.Context(), bus.Options{URL: url, Login: bus.Login{Token: "guess"}}); !errors.Is(err, bus.ErrDenied) {
		t.Fatalf("a wrong token: %v, want ErrDenied", err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Fatal(err)
	}
}

func TestABrokerThatNeverStartsIsAnError(t *testing.T) {
	t.Parallel()
	err := broker.Supervise(t.Context(), broker.SuperviseOptions{
		Command: self(t, t.TempDir(), "192.0.2.1:1"), Ready: func(string) { t.Error("ready") }, Logger: slog.New(slog.DiscardHandler),
	})
	if !errors.Is(err, broker.ErrNotStarted) {
		t.Fatalf("got %v, want ErrNotStarted", err)
	}
}

// TestABrokerEndsWithItsParent: when the process that started it is gone, its
// end of the pipe is.
func TestABrokerEndsWithItsParent(t *testing.T) {
	t.Parallel()
	args := self(t, t.TempDir(), "127.0.0.1:0")
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestABrokerCannotEatTheMachine: one that takes memory without end dies of it
// long before the machine does.
func TestABrokerCannotEatTheMachine(t *testing.T) {
	t.Parallel()
	args := self(t, "hungry", "127.0.0.1:0")
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	if _, err := cmd.StdinPipe(); err != nil { // held open: it is not told to end
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr, cmd.Stdout = &said, io.Discard
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	err := cmd.Run()
	if err == nil || strings.Contains(said.String(), "ate 4 GiB") || !strings.Contains(said.String(), "out of memory") && !strings.Contains(said.String(), "cannot allocate memory") {
		t.Fatalf("ended with %v, said %.300s", err, said.String())
	}
}
