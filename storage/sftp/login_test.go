package sftp_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/sftp"
	"github.com/walherd/walherd/storage/sftp/sftptest"
)

func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]struct {
		host string
		port int
		dir  string
	}{
		"ssh://h/a":                {"h", 0, "/a"},
		"ssh://h.example:2222/a/b": {"h.example", 2222, "/a/b"},
		"ssh://10.0.0.1/a//":       {"10.0.0.1", 0, "/a"},
		"ssh://[::1]:22/a":         {"::1", 22, "/a"},
		"ssh://[fe80::1]/":         {"fe80::1", 0, "/"},
		"ssh://h/with space/ü":     {"h", 0, "/with space/ü"},
	} {
		host, port, dir, err := sftp.ParsePrefix(in)
		if err != nil || host != want.host || port != want.port || dir != want.dir {
			t.Errorf("ParsePrefix(%q) = %q, %d, %q, %v; want %+v", in, host, port, dir, err, want)
		}
	}
	for in, part := range map[string]string{
		"":                 "want ssh://host/path",
		"s3://h/a":         "want ssh://host/path",
		"ssh://h":          "names no path",
		"ssh:///a":         "names no host",
		"ssh://h:x/a":      "port",
		"ssh://h:0/a":      "port",
		"ssh://h:65536/a":  "port",
		"ssh://::1/a":      "brackets",
		"ssh://[::1/a":     "IPv6",
		"ssh://[host]/a":   "IPv6",
		"ssh://h/a/../b":   "..",
		"ssh://h/a//b":     "slash",
		"ssh://me@h/a":     "SSH_USERNAME",
		"ssh://me:pw@h/a":  "SSH_USERNAME",
		"ssh://h?q/a":      "character",
		"ssh://h/a\x00b":   "zero byte",
		"ssh://a:1:2:22/x": "brackets",
	} {
		_, _, _, err := sftp.ParsePrefix(in)
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("ParsePrefix(%q): %v, want an error with %q", in, err, part)
		} else if strings.Contains(err.Error(), "pw") {
			t.Errorf("ParsePrefix(%q) shows the password: %v", in, err)
		}
	}
}

func FuzzParsePrefix(f *testing.F) {
	f.Add("ssh://h:22/a/b")
	f.Add("ssh://[::1]/")
	f.Fuzz(func(t *testing.T, s string) {
		host, port, dir, err := sftp.ParsePrefix(s)
		if err != nil {
			return
		}
		if host == "" || port < 0 || port > 65535 || !strings.HasPrefix(dir, "/") || dir != "/" && storage.CheckName(dir[1:]) != nil {
			t.Errorf("ParsePrefix(%q) = %q, %d, %q", s, host, port, dir)
		}
	})
}

// first is the error of the first call.
func first(t *testing.T, opt sftp.Options) error {
	t.Helper()
	b, err := sftp.Open(t.Context(), opt)
	if err != nil {
		return err
	}
	defer b.Close()
	_, err = b.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{})
	return err
}

// wantPermanent wants an error that holds each of the parts.
func wantPermanent(t *testing.T, err error, parts ...string) {
	t.Helper()
	if !errors.Is(err, storage.ErrPermanent) || errors.Is(err, storage.ErrNotExist) {
		t.Errorf("error %v, want a permanent one that is not a missing object", err)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not tell %q", err, part)
		}
	}
}

func write(t testing.TB, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestHostKey(t *testing.T) {
	t.Parallel()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(long)
	if err != nil {
		t.Fatal(err)
	}
	other := sftptest.NewKey(t).PublicKey()
	server := sftptest.Start(t, sftptest.Options{HostKeys: []ssh.Signer{signer, short}})
	addr := server.Addr()
	line := func(key ssh.PublicKey) string { return knownhosts.Line([]string{addr}, key) + "\n" }
	print := ssh.FingerprintSHA256
	for _, tc := range []struct {
		name, known string
		insecure    bool
		want        []string // nil is success
	}{
		{name: "right", known: line(short.PublicKey()) + line(signer.PublicKey())},
		{name: "only ed25519", known: line(short.PublicKey())},
		{name: "only rsa", known: line(signer.PublicKey())},
		{name: "hashed", known: knownhosts.HashHostname(knownhosts.Normalize(addr)) + strings.TrimPrefix(line(short.PublicKey()), knownhosts.Normalize(addr))},
		{name: "one of two", known: line(other) + line(short.PublicKey())},
		{name: "unknown", known: knownhosts.Line([]string{"elsewhere"}, other) + "\n", want: []string{addr, "SHA256:", "is not in", "SSH_KNOWN_HOSTS", "add the line"}},
		{name: "other port", known: knownhosts.Line([]string{server.Host}, short.PublicKey()) + "\n", want: []string{addr, "is not in"}},
		{name: "changed", known: line(other), want: []string{addr, print(other), print(short.PublicKey()), "(line 1)", "ssh-keygen -R"}},
		{name: "revoked", known: "@revoked * " + strings.SplitN(line(short.PublicKey()), " ", 2)[1], want: []string{addr, "revoked", print(short.PublicKey())}},
		{name: "changed but insecure", known: line(other), insecure: true},
		{name: "damaged", known: "what is this\n", want: []string{"known_hosts", "SSH_KNOWN_HOSTS"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if tc.name == "revoked" {
				tc.known += line(short.PublicKey())
			}
			opt := options(server, t.TempDir())
			opt.KnownHosts = write(t, filepath.Join(t.TempDir(), "known_hosts"), tc.known)
			opt.Insecure = tc.insecure
			err := first(t, opt)
			if tc.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantPermanent(t, err, tc.want...)
			if tc.name != "damaged" && !strings.Contains(err.Error(), opt.KnownHosts) {
				t.Errorf("%q does not name %s", err, opt.KnownHosts)
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		t.Parallel()
		opt := options(server, t.TempDir())
		opt.KnownHosts = filepath.Join(t.TempDir(), "none")
		err := first(t, opt)
		wantPermanent(t, err, addr, "is not in", opt.KnownHosts)
		// The line it tells to add is the right one, and is seen at once.
		b := open(t, opt)
		_, quoted, _ := strings.Cut(err.Error(), `add the line "`)
		line, _, _ := strings.Cut(quoted, `"`)
		write(t, opt.KnownHosts, line+"\n")
		if _, err := b.Put(t.Context(), "x", strings.NewReader("x"), storage.PutOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("authority", func(t *testing.T) {
		t.Parallel()
		authority := sftptest.NewKey(t)
		cert := &ssh.Certificate{
			Key: short.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"127.0.0.1"},
			ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		}
		if err := cert.SignCert(rand.Reader, authority); err != nil {
			t.Fatal(err)
		}
		certified, err := ssh.NewCertSigner(cert, short)
		if err != nil {
			t.Fatal(err)
		}
		server := sftptest.Start(t, sftptest.Options{HostKeys: []ssh.Signer{signer, certified}})
		opt := options(server, server.Dir)
		opt.KnownHosts = write(t, filepath.Join(t.TempDir(), "known_hosts"),
			"@cert-authority "+knownhosts.Line([]string{server.Addr()}, authority.PublicKey())+"\n")
		if err := first(t, opt); err != nil {
			t.Error(err)
		}
	})
}

func TestLogin(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keyFile := func(name, passphrase string) string {
		block, err := ssh.MarshalPrivateKey(key, "")
		if passphrase != "" {
			block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
		}
		if err != nil {
			t.Fatal(err)
		}
		return write(t, filepath.Join(dir, name), string(pem.EncodeToMemory(block)))
	}
	wrong, encrypted := keyFile("wrong", ""), keyFile("encrypted", "secret")
	public := write(t, filepath.Join(dir, "public"), string(ssh.MarshalAuthorizedKey(sftptest.NewKey(t).PublicKey())))
	for name, tc := range map[string]struct {
		change func(*sftp.Options)
		want   []string
	}{
		"key":              {func(*sftp.Options) {}, nil},
		"password":         {func(o *sftp.Options) { o.PrivateKeyPath, o.Password = "", server.Password }, nil},
		"password behind":  {func(o *sftp.Options) { o.PrivateKeyPath, o.Password = wrong, server.Password }, nil},
		"wrong password":   {func(o *sftp.Options) { o.PrivateKeyPath, o.Password = "", "pa55" }, []string{"SSH_PASSWORD", "SSH_USERNAME", server.Addr()}},
		"wrong key":        {func(o *sftp.Options) { o.PrivateKeyPath = wrong }, []string{wrong, "authorized_keys", "SSH_USERNAME"}},
		"wrong user":       {func(o *sftp.Options) { o.User = "nobody-here" }, []string{"nobody-here", "SSH_USERNAME"}},
		"default user":     {func(o *sftp.Options) { o.User = "" }, []string{"SSH_USERNAME"}},
		"encrypted key":    {func(o *sftp.Options) { o.PrivateKeyPath = encrypted }, []string{encrypted, "SSH_PRIVATE_KEY_PASSPHRASE", "ssh-keygen -p"}},
		"wrong passphrase": {func(o *sftp.Options) { o.PrivateKeyPath, o.Passphrase = encrypted, "pa55" }, []string{encrypted, "check SSH_PRIVATE_KEY_PASSPHRASE"}},
		"right passphrase": {func(o *sftp.Options) { o.PrivateKeyPath, o.Passphrase = encrypted, "secret" }, []string{"authorized_keys"}},
		"public key":       {func(o *sftp.Options) { o.PrivateKeyPath = public }, []string{public, "not the public one"}},
		"no key file":      {func(o *sftp.Options) { o.PrivateKeyPath = dir + "/none" }, []string{dir + "/none", "SSH_PRIVATE_KEY_PATH"}},
		"nothing":          {func(o *sftp.Options) { o.PrivateKeyPath = "" }, []string{"SSH_PRIVATE_KEY_PATH or SSH_PASSWORD"}},
		"bad location":     {func(o *sftp.Options) { o.Location = "host/path" }, []string{"WALG_SSH_PREFIX"}},
		"bad port":         {func(o *sftp.Options) { o.Location, o.Port = "ssh://h/x", 70000 }, []string{"SSH_PORT"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opt := options(server, t.TempDir())
			tc.change(&opt)
			err := first(t, opt)
			if tc.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantPermanent(t, err, tc.want...)
			if strings.Contains(err.Error(), "pa55") {
				t.Errorf("%q shows a secret", err)
			}
		})
	}
	t.Run("interactive", func(t *testing.T) {
		t.Parallel()
		server := sftptest.Start(t, sftptest.Options{Interactive: true})
		opt := options(server, server.Dir)
		opt.PrivateKeyPath, opt.Password = "", server.Password
		if err := first(t, opt); err != nil {
			t.Error(err)
		}
		opt.Password = "pa55"
		wantPermanent(t, first(t, opt), "SSH_PASSWORD")
	})
	t.Run("no SFTP", func(t *testing.T) {
		t.Parallel()
		server := sftptest.Start(t, sftptest.Options{NoSFTP: true})
		wantPermanent(t, first(t, options(server, server.Dir)), "Subsystem sftp")
	})
}

func TestOpenValidates(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, sftptest.Options{})
	opt := options(server, server.Dir)
	opt.Validate = true
	open(t, opt)
	for name, change := range map[string]func(*sftp.Options){
		"does not exist":  func(o *sftp.Options) { o.Location = server.Location(server.Dir + "/none") },
		"is no directory": func(o *sftp.Options) { o.Location = server.Location(write(t, server.Dir+"/file", "")) },
		"authorized_keys": func(o *sftp.Options) { o.User = "nobody-here" },
	} {
		opt := opt
		change(&opt)
		_, err := sftp.Open(t.Context(), opt)
		wantPermanent(t, err, name)
	}
}
