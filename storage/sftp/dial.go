package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/walherd/walherd/storage"
)

// perFile is how many requests of up to 32 KiB one transfer has under way: as
// many as fit the 2 MiB that SSH lets be sent without an answer.
const perFile = 64

// login are the ways to prove who we are.
func login(opt *Options) ([]ssh.AuthMethod, error) {
	var methods []ssh.AuthMethod
	if opt.PrivateKeyPath != "" {
		signer, err := privateKey(opt.PrivateKeyPath, opt.Passphrase)
		if err != nil {
			return nil, err
		}
		methods = append(methods, ssh.PublicKeys(signer))
	}
	if opt.Password != "" {
		methods = append(methods, ssh.Password(opt.Password),
			// Servers with PAM often ask for the password this way only.
			ssh.KeyboardInteractive(func(_, _ string, questions []string, echo []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i := range answers {
					if echo[i] {
						return nil, fmt.Errorf("the server asks %q: only a password is known", questions[i])
					}
					answers[i] = opt.Password
				}
				return answers, nil
			}))
	}
	return methods, nil
}

func privateKey(file, passphrase string) (ssh.Signer, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w: check SSH_PRIVATE_KEY_PATH and that this user may read the file", err)
	}
	signer, err := ssh.ParsePrivateKey(text)
	var encrypted *ssh.PassphraseMissingError
	if errors.As(err, &encrypted) {
		if passphrase == "" {
			return nil, fmt.Errorf("read private key %s: it is encrypted: set SSH_PRIVATE_KEY_PASSPHRASE, or take the passphrase off (ssh-keygen -p -f %s)", file, file)
		}
		if signer, err = ssh.ParsePrivateKeyWithPassphrase(text, []byte(passphrase)); err != nil {
			return nil, fmt.Errorf("read private key %s: %w: check SSH_PRIVATE_KEY_PASSPHRASE", file, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read private key %s: %w: SSH_PRIVATE_KEY_PATH wants the private key (id_ed25519), not the public one", file, err)
	}
	return signer, nil
}

// dial makes a connection.
func (b *Bucket) dial(ctx context.Context) (*link, error) {
	check, algorithms, err := hostKeys(&b.opt, b.place.addr)
	if err != nil {
		return nil, err
	}
	raw, err := (&net.Dialer{Timeout: b.opt.ConnectTimeout}).DialContext(ctx, "tcp", b.place.addr)
	if err != nil {
		return nil, b.dialError(ctx, err, false)
	}
	conn := newHeard(raw)
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	raw.SetDeadline(time.Now().Add(b.opt.ConnectTimeout))

	asked := false // the server is the right one and wants to know who we are
	transport, channels, requests, err := ssh.NewClientConn(conn, b.place.addr, &ssh.ClientConfig{
		User: b.opt.User, Auth: b.login, HostKeyCallback: check, HostKeyAlgorithms: algorithms,
		AuthCallback: func(*ssh.ClientAuthContext) (ssh.AuthMethod, error) {
			asked = true
			return nil, nil
		},
	})
	if err != nil {
		raw.Close()
		return nil, b.dialError(ctx, err, asked)
	}
	client := ssh.NewClient(transport, channels, requests)
	files, err := sftp.NewClient(client, sftp.MaxConcurrentRequestsPerFile(perFile))
	if err == nil && !stop() {
		files.Close()
		err = ctx.Err()
	}
	if err != nil {
		client.Close()
		if !broken(err) && ctx.Err() == nil {
			return nil, fmt.Errorf("start SFTP on %s: %w: the server must offer it to user %q (Subsystem sftp in its sshd_config): %w",
				b.place.addr, err, b.opt.User, storage.ErrPermanent)
		}
		return nil, b.dialError(ctx, err, false)
	}
	raw.SetDeadline(time.Time{})
	return newLink(client, files, conn, b.opt.StallTimeout), nil
}

// dialError says why there is no connection. asked tells that the server got
// as far as to the login.
func (b *Bucket) dialError(ctx context.Context, err error, asked bool) error {
	var key *hostKeyError
	var none *ssh.AlgorithmNegotiationError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &key):
		return fmt.Errorf("connect to %s: %w", b.place.addr, key)
	case errors.As(err, &none):
		return fmt.Errorf("connect to %s: %w: if the server has changed its host key, compare and replace the one in %s: %w",
			b.place.addr, err, b.opt.KnownHosts, storage.ErrPermanent)
	case asked && !broken(err):
		var with []string
		if b.opt.PrivateKeyPath != "" {
			with = append(with, "the key "+b.opt.PrivateKeyPath+" (its public half must be in the server's authorized_keys)")
		}
		if b.opt.Password != "" {
			with = append(with, "the password (SSH_PASSWORD)")
		}
		return fmt.Errorf("log in to %s as %q: %w: check SSH_USERNAME and %s: %w",
			b.place.addr, b.opt.User, err, strings.Join(with, " and "), storage.ErrPermanent)
	}
	return fmt.Errorf("connect to %s: %w", b.place.addr, opaque(err))
}

// broken tells a connection that failed from a server that said no.
func broken(err error) bool {
	var netErr net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.As(err, &netErr) || errors.Is(err, sftp.ErrSSHFxConnectionLost)
}
