// Package sftptest runs SSH servers with SFTP for tests: the SSH part in this
// process, the SFTP part either in this process too (github.com/pkg/sftp) or
// OpenSSH's own sftp-server program, of Debian's package openssh-sftp-server.
// It fails the test that starts it.
package sftptest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// Program is the path of OpenSSH's sftp-server, or empty when it is not
// installed.
func Program() string {
	for _, dir := range []string{"/usr/lib/openssh", "/usr/libexec/openssh", "/usr/lib/ssh", "/usr/libexec"} {
		file := filepath.Join(dir, "sftp-server")
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() {
			return file
		}
	}
	return ""
}

// Options tune a server. The zero value is ready for use.
type Options struct {
	// Program answers the requests; empty is the server in this process. Args
	// are its arguments, see sftp-server(8).
	Program string
	Args    []string
	// HostKeys of the server; empty is a new ed25519 key.
	HostKeys []ssh.Signer
	// NoPassword lets nobody in with a password, Interactive asks for it by
	// keyboard-interactive only.
	NoPassword  bool
	Interactive bool
	// NoSFTP refuses the subsystem.
	NoSFTP bool
}

// Server is a running server. It ends with its test.
type Server struct {
	// Host and Port it listens on.
	Host string
	Port int
	// User that can log in with Password, or with the key in the file
	// PrivateKeyPath.
	User           string
	Password       string
	PrivateKeyPath string
	// KnownHosts is a file with the server's keys.
	KnownHosts string
	// Dir is an empty directory.
	Dir string
	// HostKeys it has.
	HostKeys []ssh.Signer
	// Questions tells of each keepalive that a client sent, unless nobody
	// hears it for long.
	Questions chan struct{}

	opt    Options
	config *ssh.ServerConfig

	mu       sync.Mutex
	listener net.Listener
	conns    map[*gate]bool
	accepted int
	frozen   bool
	all      sync.WaitGroup
}

// Start runs a server for a test.
func Start(t testing.TB, opt Options) *Server {
	t.Helper()
	s := &Server{
		Host: "127.0.0.1", User: "backup", Password: "correct horse", Dir: t.TempDir(),
		HostKeys: opt.HostKeys, opt: opt, conns: map[*gate]bool{},
		Questions: make(chan struct{}, 100),
	}
	if len(s.HostKeys) == 0 {
		s.HostKeys = []ssh.Signer{NewKey(t)}
	}
	if err := s.prepare(t.TempDir()); err != nil {
		t.Fatalf("start an SSH server: %v", err)
	}
	t.Cleanup(s.Stop)
	return s
}

// NewKey is a new ed25519 key.
func NewKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func (s *Server) prepare(dir string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	mine, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(key, "test")
	if err != nil {
		return err
	}
	s.PrivateKeyPath = filepath.Join(dir, "id_ed25519")
	if err := os.WriteFile(s.PrivateKeyPath, pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	s.config = &ssh.ServerConfig{
		PublicKeyCallback: func(who ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if who.User() == s.User && string(key.Marshal()) == string(mine.PublicKey().Marshal()) {
				return nil, nil
			}
			return nil, errors.New("not this key")
		},
	}
	right := func(user, password string) (*ssh.Permissions, error) {
		if user == s.User && password == s.Password {
			return nil, nil
		}
		return nil, errors.New("not this password")
	}
	switch {
	case s.opt.NoPassword:
	case s.opt.Interactive:
		s.config.KeyboardInteractiveCallback = func(who ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "", []string{"Password: "}, []bool{false})
			if err != nil || len(answers) != 1 {
				return nil, errors.New("no answer")
			}
			return right(who.User(), answers[0])
		}
	default:
		s.config.PasswordCallback = func(who ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			return right(who.User(), string(password))
		}
	}
	for _, key := range s.HostKeys {
		s.config.AddHostKey(key)
	}
	if err := s.listen(); err != nil {
		return err
	}
	var lines string
	for _, key := range s.HostKeys {
		lines += knownhosts.Line([]string{s.Addr()}, key.PublicKey()) + "\n"
	}
	s.KnownHosts = filepath.Join(dir, "known_hosts")
	return os.WriteFile(s.KnownHosts, []byte(lines), 0o600)
}

// Addr is host:port.
func (s *Server) Addr() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// Location is the URL of a directory of this machine on the server.
func (s *Server) Location(dir string) string { return "ssh://" + s.Addr() + filepath.ToSlash(dir) }

// Settings are those of a storage in Dir, by name.
func (s *Server) Settings() map[string]string {
	return map[string]string{
		"WALG_SSH_PREFIX": "ssh://" + s.Host + filepath.ToSlash(s.Dir), "SSH_PORT": strconv.Itoa(s.Port),
		"SSH_USERNAME": s.User, "SSH_PASSWORD": s.Password, "SSH_PRIVATE_KEY_PATH": s.PrivateKeyPath, "SSH_KNOWN_HOSTS": s.KnownHosts,
	}
}

// Accepted is how many connections there were so far.
func (s *Server) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Drop breaks all connections.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Freeze makes the server deaf and mute, with its connections open, until
// they are closed. New ones are accepted and get no answer, until Thaw.
func (s *Server) Freeze() { s.freeze(true) }

// Thaw ends a Freeze for new connections.
func (s *Server) Thaw() { s.freeze(false) }

func (s *Server) freeze(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = on
	if on {
		for c := range s.conns {
			c.freeze()
		}
	}
}

// Stop closes all connections and listens no more. Restart undoes it.
func (s *Server) Stop() {
	s.mu.Lock()
	if s.listener != nil {
		s.listener.Close()
		s.listener = nil
	}
	s.mu.Unlock()
	s.Drop()
	s.all.Wait()
}

// Restart listens at the same address again.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	if err := s.listen(); err != nil {
		t.Fatalf("start the SSH server again: %v", err)
	}
}

func (s *Server) listen() error {
	l, err := net.Listen("tcp", s.Addr())
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.Port = l.Addr().(*net.TCPAddr).Port
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	s.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g := &gate{Conn: c, ended: make(chan struct{}), shut: make(chan struct{})}
			s.mu.Lock()
			if s.listener != l {
				c.Close()
			}
			s.conns[g] = true
			s.accepted++
			if s.frozen {
				g.freeze()
			}
			s.mu.Unlock()
			s.all.Go(func() {
				s.serve(g)
				g.Close()
				s.mu.Lock()
				delete(s.conns, g)
				s.mu.Unlock()
			})
		}
	})
	return nil
}

func (s *Server) serve(c net.Conn) {
	conn, channels, requests, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		return
	}
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer conn.Close()
	sessions.Go(func() {
		for r := range requests {
			if r.WantReply {
				_ = r.Reply(false, nil)
			}
			select {
			case s.Questions <- struct{}{}:
			default:
			}
		}
	})
	for offered := range channels {
		if offered.ChannelType() != "session" {
			_ = offered.Reject(ssh.UnknownChannelType, "sessions only")
			continue
		}
		ch, requests, err := offered.Accept()
		if err != nil {
			return
		}
		sessions.Go(func() {
			for r := range requests {
				ok := r.Type == "subsystem" && string(r.Payload[4:]) == "sftp" && !s.opt.NoSFTP
				_ = r.Reply(ok, nil)
				if ok {
					sessions.Go(func() { s.answer(ch) })
				}
			}
		})
	}
}

// answer serves one SFTP session.
func (s *Server) answer(ch ssh.Channel) {
	defer ch.Close()
	if s.opt.Program == "" {
		server, err := sftp.NewServer(ch)
		if err != nil {
			return
		}
		_ = server.Serve()
		server.Close()
		return
	}
	cmd := exec.Command(s.opt.Program, s.opt.Args...)
	cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
	stdin, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	var copying sync.WaitGroup
	copying.Go(func() {
		_, _ = io.Copy(stdin, ch)
		stdin.Close()
	})
	_ = cmd.Wait()
	ch.Close()
	copying.Wait()
}

// gate is a connection that can be made to stand still.
type gate struct {
	net.Conn
	once, cold  sync.Once
	ended, shut chan struct{}
}

func (g *gate) freeze() { g.cold.Do(func() { close(g.shut) }) }

func (g *gate) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	select {
	case <-g.shut:
		<-g.ended
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (g *gate) Write(p []byte) (int, error) {
	select {
	case <-g.shut:
		<-g.ended
		return 0, net.ErrClosed
	default:
		return g.Conn.Write(p)
	}
}

func (g *gate) Close() error {
	g.once.Do(func() { close(g.ended) })
	return g.Conn.Close()
}
