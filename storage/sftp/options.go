package sftp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/storage"
)

// Options describe a directory on an SSH server and how to get there. Location
// is the one field without a default, and Password or PrivateKeyPath must be
// set. The names in brackets are the settings that the hints in errors speak
// of.
type Options struct {
	// Location is ssh://host[:port]/path; see ParsePrefix [WALG_SSH_PREFIX].
	Location string
	// Port of the server where Location names none; 0 is 22 [SSH_PORT].
	Port int
	// User to log in as; empty is the user this process runs as
	// [SSH_USERNAME].
	User string
	// Password of the user, also given to a server that asks for it
	// interactively [SSH_PASSWORD].
	Password string
	// PrivateKeyPath is a file with a private key in OpenSSH's or a PEM
	// format [SSH_PRIVATE_KEY_PATH]. It is tried before the password.
	PrivateKeyPath string
	// Passphrase of the private key; empty is for a key that is not
	// encrypted [SSH_PRIVATE_KEY_PASSPHRASE].
	Passphrase string

	// KnownHosts is the file with the keys of servers, in OpenSSH's format;
	// empty is ~/.ssh/known_hosts [SSH_KNOWN_HOSTS]. It is read for each new
	// connection.
	KnownHosts string
	// Insecure talks to whoever answers, whatever its key is. Who is between
	// this machine and the server can then read and change everything,
	// the password too [SSH_INSECURE_HOST_KEY].
	Insecure bool

	// ConnectTimeout bounds the making of a connection, until the server is
	// ready for requests; 0 is 30 s.
	ConnectTimeout time.Duration
	// StallTimeout ends a connection on which nothing arrived for that long
	// though the server was asked for a sign of life; 0 is a minute.
	StallTimeout time.Duration
	// Connections is how many there are at most; 0 is 4. Another one is made
	// when all are busy: a server works through the requests of one in turn,
	// so that a sync to its disk holds up all behind it, and SSH lets only
	// 2 MiB be under way in each (BenchmarkTransfer shows what that costs on
	// a long line).
	Connections int
	// Validate connects in Open and looks for the directory, so that a wrong
	// key or password shows there.
	Validate bool
}

// ParsePrefix takes "ssh://host[:port]/path" apart. port is 0 when there is
// none; path is absolute, clean, and "/" for the server's root.
func ParsePrefix(s string) (host string, port int, dir string, err error) {
	fail := func(format string, args ...any) (string, int, string, error) {
		return "", 0, "", fmt.Errorf("parse SSH prefix: "+format, args...)
	}
	const want = "want ssh://host/path"
	rest, ok := strings.CutPrefix(s, "ssh://")
	if !ok {
		return fail("%q: %s", s, want)
	}
	authority, dir, ok := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		// Not shown: a password may be in it.
		return fail("it holds a user before host %q: %s, and the user in SSH_USERNAME", authority[at+1:], want)
	}
	if !ok {
		return fail("%q names no path: %s (ssh://host/ is the root of the server)", s, want)
	}
	host = authority
	if colon := strings.LastIndexByte(authority, ':'); colon > strings.LastIndexByte(authority, ']') {
		if strings.IndexByte(authority, ':') != colon && authority[0] != '[' {
			return fail("%q: want an IPv6 address in brackets: ssh://[::1]/path", s)
		}
		host = authority[:colon]
		port, err = strconv.Atoi(authority[colon+1:])
		if err != nil || port < 1 || port > 65535 {
			return fail("%q: port %q: want 1 to 65535", s, authority[colon+1:])
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok || net.ParseIP(host) == nil {
			return fail("%q: %q is no IPv6 address", s, inner)
		}
	}
	if host == "" {
		return fail("%q names no host: %s", s, want)
	}
	if strings.ContainsAny(host, " \t\n[]?#%\\\"") {
		return fail("%q: host %q holds a character no host name has", s, host)
	}
	if dir = strings.Trim(dir, "/"); dir == "" {
		return host, port, "/", nil
	}
	if err := storage.CheckName(dir); err != nil {
		return fail("%q: %w", s, err)
	}
	return host, port, "/" + dir, nil
}

// place is where the objects are.
type place struct {
	host string
	addr string // host:port
	dir  string // absolute
}

// at is the path of an object or directory; "." and "" are the root.
func (p *place) at(name string) string { return path.Join(p.dir, name) }

func (p *place) url(name string) string {
	host := p.host
	if strings.IndexByte(host, ':') >= 0 {
		host = "[" + host + "]"
	}
	return "ssh://" + host + path.Join(p.dir, name)
}

// withDefaults is o with its zero values replaced and the place it names, or
// the reason it cannot be used.
func (o Options) withDefaults() (Options, place, error) {
	host, port, dir, err := ParsePrefix(o.Location)
	if err != nil {
		return o, place{}, fmt.Errorf("%w; check WALG_SSH_PREFIX", err)
	}
	if port == 0 {
		port = o.Port
	}
	if port == 0 {
		port = 22
	}
	if port < 1 || port > 65535 {
		return o, place{}, fmt.Errorf("port %d: set SSH_PORT to 1 to 65535", port)
	}
	if o.Password == "" && o.PrivateKeyPath == "" {
		return o, place{}, errors.New("nothing to log in with: set SSH_PRIVATE_KEY_PATH or SSH_PASSWORD")
	}
	if o.User == "" {
		me, err := user.Current()
		if err != nil {
			return o, place{}, fmt.Errorf("find the name to log in with, set SSH_USERNAME: %w", err)
		}
		o.User = me.Username
	}
	if o.KnownHosts == "" && !o.Insecure {
		home, err := os.UserHomeDir()
		if err != nil {
			return o, place{}, fmt.Errorf("find the file of known hosts, set SSH_KNOWN_HOSTS: %w", err)
		}
		o.KnownHosts = filepath.Join(home, ".ssh", "known_hosts")
	}
	if o.Connections < 0 {
		return o, place{}, fmt.Errorf("%d connections: want 1 or more", o.Connections)
	}
	if o.Connections == 0 {
		o.Connections = 4
	}
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 30 * time.Second
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = time.Minute
	}
	return o, place{host: host, addr: net.JoinHostPort(host, strconv.Itoa(port)), dir: dir}, nil
}
