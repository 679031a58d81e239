package bus

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// InProcess is a broker inside this process (messages/broker).
type InProcess interface {
	InProcessConn() (net.Conn, error)
}

// Options of Connect.
type Options struct {
	// URL of the broker, several separated by commas: nats://, tls:// or
	// wss://, with user and password if need be. Ignored with InProcess.
	URL string
	// InProcess, if set, is used instead of URL, without a socket.
	InProcess InProcess
	// Login is who this process is to the broker.
	Login Login
	// TLS of the connection; the zero value is what the URL's scheme says.
	TLS TLSFiles
	// Inbox is the subject below which this connection gets its answers,
	// such as "_INBOX.producer.main". A broker can then keep one role from
	// listening to the answers meant for another. Empty is _INBOX.
	Inbox string
	// Name of this connection, shown by the broker's monitoring.
	Name   string
	Logger *slog.Logger
	// ConnectTimeout bounds Connect. 0 is 10 s.
	ConnectTimeout time.Duration
}

// Login is one way to prove an identity: the first that is set is used.
type Login struct {
	// CredsFile holds a user's JWT and seed, as nsc writes it.
	CredsFile string
	// NKeyFile holds a user's NKey seed.
	NKeyFile string
	Token    string
	User     string
	Password string
}

// TLSFiles are PEM files. CA verifies the broker in place of the system's
// authorities; Cert and Key prove this process to a broker that asks.
type TLSFiles struct{ CA, Cert, Key string }

// ErrUnavailable marks a broker that cannot be reached or does not answer.
var ErrUnavailable = errors.New("message broker unavailable")

// ErrDenied marks what the broker's permissions do not let this process do,
// or that it does not know this process at all. No retry will mend it.
var ErrDenied = errors.New("the message broker does not allow this")

// Connect dials the broker. The caller closes the bus.
func Connect(ctx context.Context, opt Options) (*Bus, error) {
	b := &Bus{log: cmp.Or(opt.Logger, slog.New(slog.DiscardHandler)), back: make(chan struct{}, 1)}
	options, err := b.natsOptions(ctx, opt)
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(opt.URL, options...)
	if err != nil {
		return nil, connectError(opt.URL, err)
	}
	if err := ctx.Err(); err != nil {
		nc.Close()
		return nil, err
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(30*time.Second))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	b.nc, b.js = nc, js
	return b, nil
}

func connectError(where string, err error) error {
	kind, hint := ErrUnavailable, "check WALHERD_NATS_URL"
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked), errors.Is(err, nats.ErrAccountAuthExpired):
		kind, hint = ErrDenied, "check WALHERD_NATS_USER and WALHERD_NATS_PASSWORD, WALHERD_NATS_CREDS, WALHERD_NATS_NKEY or WALHERD_NATS_TOKEN"
	case errors.Is(err, nats.ErrSecureConnRequired), strings.Contains(err.Error(), "x509:"), strings.Contains(err.Error(), "tls:"):
		hint = "check WALHERD_NATS_CA, WALHERD_NATS_CERT and WALHERD_NATS_KEY, and that the server's certificate names the host of WALHERD_NATS_URL"
	}
	return fmt.Errorf("connect to message broker %s: %w: %w (%s)", redact(where), kind, err, hint)
}

// redact drops user and password from each URL of a list.
func redact(list string) string {
	parts := strings.Split(list, ",")
	for i, p := range parts {
		if u, err := url.Parse(strings.TrimSpace(p)); err == nil && u.User != nil {
			u.User = url.User("xxxxx")
			parts[i] = u.String()
		}
	}
	return strings.Join(parts, ",")
}

func (b *Bus) natsOptions(ctx context.Context, opt Options) ([]nats.Option, error) {
	options := []nats.Option{
		nats.Name(opt.Name),
		nats.Timeout(cmp.Or(opt.ConnectTimeout, 10*time.Second)),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		// A host that vanished without a word is noticed in a minute, not in
		// the library's four.
		nats.PingInterval(20 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				b.log.Warn("lost the message broker, reconnecting", "error", err)
			}
		}),
		// Credentials are read anew at every try, so that those that ran out can
		// be replaced without a restart.
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.denials.hear()
			b.log.Info("message broker is back", "url", nc.ConnectedUrlRedacted())
			select {
			case b.back <- struct{}{}:
			default: // nobody has looked since the last time
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if subject, ok := deniedSubject(err); ok && b.denials.refuse(subject) {
				return // whoever waits for it says so
			}
			if subject, ok := deniedSubscription(err); ok && strings.HasPrefix(subject, cmp.Or(opt.Inbox, nats.InboxPrefix[:len(nats.InboxPrefix)-1])+".") {
				b.denials.deafen(subject)
				return
			}
			b.log.Warn("message broker reported an error", "error", err)
		}),
	}
	if opt.InProcess != nil {
		return append(options, nats.InProcessServer(opt.InProcess)), nil
	}
	if opt.Inbox != "" {
		options = append(options, nats.CustomInboxPrefix(opt.Inbox))
	}
	login, err := opt.Login.options()
	if err != nil {
		return nil, err
	}
	options = append(options, login...)
	encryption, err := opt.TLS.options()
	if err != nil {
		return nil, err
	}
	return append(options, encryption...), nil
}

func (l Login) options() ([]nats.Option, error) {
	switch {
	case l.CredsFile != "":
		if _, err := os.Stat(l.CredsFile); err != nil {
			return nil, fmt.Errorf("setting WALHERD_NATS_CREDS: %w", err)
		}
		return []nats.Option{nats.UserCredentials(l.CredsFile)}, nil
	case l.NKeyFile != "":
		o, err := nats.NkeyOptionFromSeed(l.NKeyFile)
		if err != nil {
			return nil, fmt.Errorf("setting WALHERD_NATS_NKEY: read %s: %w (want a file that holds a user's seed, SU...)", l.NKeyFile, err)
		}
		return []nats.Option{o}, nil
	case l.Token != "":
		return []nats.Option{nats.Token(l.Token)}, nil
	case l.User != "":
		return []nats.Option{nats.UserInfo(l.User, l.Password)}, nil
	}
	return nil, nil
}

func (f TLSFiles) options() ([]nats.Option, error) {
	var options []nats.Option
	if f.CA != "" {
		if _, err := os.Stat(f.CA); err != nil {
			return nil, fmt.Errorf("setting WALHERD_NATS_CA: %w", err)
		}
		options = append(options, nats.RootCAs(f.CA))
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("settings WALHERD_NATS_CERT and WALHERD_NATS_KEY: set both or neither")
	}
	if f.Cert != "" {
		if _, err := tls.LoadX509KeyPair(f.Cert, f.Key); err != nil {
			return nil, fmt.Errorf("settings WALHERD_NATS_CERT and WALHERD_NATS_KEY: %w", err)
		}
		options = append(options, nats.ClientCert(f.Cert, f.Key))
	}
	return options, nil
}
