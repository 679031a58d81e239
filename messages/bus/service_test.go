package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/walherd/walherd/messages/broker"
	"github.com/walherd/walherd/messages/bus"
	"github.com/walherd/walherd/messages/bustest"
)

func serve(t *testing.T, b *bus.Bus, handle func(context.Context, []byte, *bus.Reply) error) (stop func()) {
	t.Helper()
	end, err := b.Serve(t.Context(), bus.ServiceInfo{Name: "walherd-test", Version: "0.0.1", Alive: alive}, slog.New(slog.DiscardHandler),
		bus.Endpoint{Name: "run", Subject: "walherd.api.test.run", Handle: handle})
	if err != nil {
		t.Fatal(err)
	}
	return func() { end(t.Context()) }
}

// alive is how often the services of the tests say that they live.
const alive = 500 * time.Millisecond

func TestAnAnswerLargerThanAMessage(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	want := bytes.Repeat([]byte("0123456789"), broker.MaxPayload/5)
	stop := serve(t, b, func(_ context.Context, data []byte, r *bus.Reply) error {
		if string(data) != "please" {
			t.Errorf("asked %q", data)
		}
		if err := r.Write("stderr", []byte("a word")); err != nil {
			return err
		}
		return r.Write("stdout", want)
	})
	defer stop()
	got := map[string][]byte{}
	err := b.Ask(t.Context(), "walherd.api.test.run", []byte("please"), 20*time.Second, func(out string, data []byte) error {
		got[out] = append(got[out], data...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got["stdout"], want) || string(got["stderr"]) != "a word" {
		t.Fatalf("got %d bytes and %q, want %d", len(got["stdout"]), got["stderr"], len(want))
	}
}

// TestAnAnswerOfManyParts comes faster than it is taken.
func TestAnAnswerOfManyParts(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	const parts = 5000
	sent := make(chan struct{})
	stop := serve(t, b, func(_ context.Context, _ []byte, r *bus.Reply) error {
		defer close(sent)
		for range parts {
			if err := r.Write("stdout", []byte("a cell of a table")); err != nil {
				return err
			}
		}
		return nil
	})
	defer stop()
	got := 0
	if err := b.Ask(t.Context(), "walherd.api.test.run", nil, 20*time.Second, func(string, []byte) error {
		<-sent
		got++
		return nil
	}); err != nil || got != parts {
		t.Fatalf("got %d parts, %v", got, err)
	}
}

func TestAskNobody(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	err := b.Ask(t.Context(), "walherd.api.test.run", nil, 20*time.Second, nil)
	if !errors.Is(err, bus.ErrNobody) {
		t.Fatalf("got %v, want ErrNobody", err)
	}
}

func TestAnErrorAndAPanicAreAnswers(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	stop := serve(t, b, func(_ context.Context, data []byte, _ *bus.Reply) error {
		if len(data) == 0 {
			panic("no request")
		}
		return errors.New("no such backup")
	})
	defer stop()
	for _, data := range []string{"", "x"} {
		err := b.Ask(t.Context(), "walherd.api.test.run", []byte(data), 20*time.Second, nil)
		var answer *bus.AnswerError
		if !errors.As(err, &answer) || answer.Text == "" {
			t.Fatalf("got %v, want an AnswerError", err)
		}
	}
}

// TestStopWaitsForWhatRuns: a request that is being answered is answered to its
// end, and no other is taken; past the limit of the drain it is ended.
func TestStopWaitsForWhatRuns(t *testing.T) {
	t.Parallel()
	for _, patient := range []bool{true, false} {
		t.Run(fmt.Sprint("patient ", patient), func(t *testing.T) {
			t.Parallel()
			b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
			entered, finish := make(chan struct{}), make(chan struct{})
			stop, err := b.Serve(t.Context(), bus.ServiceInfo{Name: "walherd-test", Version: "0.0.1"}, slog.New(slog.DiscardHandler),
				bus.Endpoint{Name: "run", Subject: "walherd.api.test.run", Handle: func(ctx context.Context, _ []byte, _ *bus.Reply) error {
					close(entered)
					select {
					case <-finish:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}})
			if err != nil {
				t.Fatal(err)
			}
			answered := make(chan error, 1)
			go func() { answered <- b.Ask(t.Context(), "walherd.api.test.run", nil, 20*time.Second, nil) }()
			<-entered
			drain, cancel := context.WithCancel(t.Context())
			defer cancel()
			stopped := make(chan struct{})
			go func() { defer close(stopped); stop(drain) }()
			var answer *bus.AnswerError
			for { // until the service is gone for others
				err := b.Ask(t.Context(), "walherd.api.test.run", nil, 20*time.Second, nil)
				if errors.Is(err, bus.ErrNobody) {
					break
				}
				if !errors.As(err, &answer) {
					t.Fatalf("asked while it stops: %v", err)
				}
			}
			select {
			case err := <-answered:
				t.Fatalf("the stop ended what ran: %v", err)
			default:
			}
			if patient {
				close(finish)
			} else {
				cancel()
			}
			if err := <-answered; patient && err != nil || !patient && !errors.As(err, &answer) {
				t.Fatalf("got %v", err)
			}
			<-stopped
		})
	}
}

// TestAskNoticesADeath: an asker that would wait long for a silent service does
// not wait long for a dead one.
func TestAskNoticesADeath(t *testing.T) {
	t.Parallel()
	server := bustest.Broker(t, broker.Options{})
	b, doomed := bustest.Connect(t, server), bustest.Connect(t, server)
	stop := serve(t, doomed, func(ctx context.Context, _ []byte, r *bus.Reply) error {
		if err := r.Write("stdout", []byte("half")); err != nil {
			return err
		}
		doomed.Close() // all that a broker sees of a process that was killed
		return nil
	})
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := b.Ask(ctx, "walherd.api.test.run", nil, 10*time.Minute, func(string, []byte) error { return nil })
	if !errors.Is(err, bus.ErrUnavailable) || ctx.Err() != nil {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
}

// TestAskWaitsForTheSilent: work that says nothing for longer than an asker would
// wait is waited for.
func TestAskWaitsForTheSilent(t *testing.T) {
	t.Parallel()
	b := bustest.Connect(t, bustest.Broker(t, broker.Options{}))
	stop := serve(t, b, func(ctx context.Context, _ []byte, r *bus.Reply) error {
		select {
		case <-time.After(7 * alive): // the work itself takes this long
		case <-ctx.Done():
		}
		return r.Write("stdout", []byte("done"))
	})
	defer stop()
	var got []byte
	if err := b.Ask(t.Context(), "walherd.api.test.run", nil, 5*alive, func(out string, data []byte) error {
		if out != "stdout" {
			t.Errorf("got a part of %q", out)
		}
		got = append(got, data...)
		return nil
	}); err != nil || string(got) != "done" {
		t.Fatalf("got %q, %v", got, err)
	}
}

// TestAnswersGoToInboxesOnly: whoever may ask cannot have the answer published
// as something else, with the rights of the one that answers.
func TestAnswersGoToInboxesOnly(t *testing.T) {
	t.Parallel()
	server := bustest.Broker(t, broker.Options{})
	b := bustest.Connect(t, server)
	asked := make(chan string, 2)
	stop, err := b.Serve(t.Context(), bus.ServiceInfo{Name: "test", Version: "1.0.0"}, slog.New(slog.DiscardHandler), bus.Endpoint{
		Name: "echo", Subject: "walherd.api.test.echo",
		Handle: func(_ context.Context, data []byte, _ *bus.Reply) error { asked <- string(data); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop(t.Context())
	heard := make(chan error, 1)
	unhear, err := b.Listen(t.Context(), "walherd.run.test.x", func(m bus.Incoming) { heard <- m.Respond([]byte("yes")) })
	if err != nil {
		t.Fatal(err)
	}
	defer unhear()
	nc, err := nats.Connect("", nats.InProcessServer(server))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	forged, err := nc.SubscribeSync("walherd.event.test.wal.stored")
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"walherd.api.test.echo", "walherd.run.test.x"} {
		if err := nc.PublishRequest(subject, "walherd.event.test.wal.stored", []byte("forged")); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-heard; err == nil {
		t.Error("responded to a subject that is no inbox")
	}
	if err := b.Ask(t.Context(), "walherd.api.test.echo", []byte("honest"), time.Minute, func(string, []byte) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got := <-asked; got != "honest" {
		t.Errorf("answered the request %q", got)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := forged.Pending(); n != 0 {
		t.Errorf("%d answers were published as events", n)
	}
}
