package sftp

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/walherd/walherd/storage"
)

// hostKeyError is a server that did not prove to be the one meant.
type hostKeyError struct{ text string }

func (e *hostKeyError) Error() string { return e.text }
func (e *hostKeyError) Unwrap() error { return storage.ErrPermanent }

// hostKeys is how to check the key of the server at addr, and the kinds of key
// to ask it for, best first.
func hostKeys(opt *Options, addr string) (ssh.HostKeyCallback, []string, error) {
	if opt.Insecure {
		return ssh.InsecureIgnoreHostKey(), nil, nil
	}
	check, err := knownhosts.New(opt.KnownHosts)
	switch {
	case errors.Is(err, os.ErrNotExist):
		// No file is one that knows nobody. The error for that shows the
		// key, which this one could not.
		check = func(string, net.Addr, ssh.PublicKey) error { return &knownhosts.KeyError{} }
	case err != nil:
		return nil, nil, fmt.Errorf("read known hosts: %w: mend the file, or set SSH_KNOWN_HOSTS to another: %w", err, storage.ErrPermanent)
	}
	known, err := knownKeys(check, addr)
	if err != nil {
		return nil, nil, fmt.Errorf("look for %s in %s: %w", addr, opt.KnownHosts, err)
	}
	judge := func(host string, remote net.Addr, key ssh.PublicKey) error {
		return judgeKey(check(host, remote, key), opt.KnownHosts, addr, key)
	}
	return judge, algorithms(known), nil
}

func judgeKey(err error, file, addr string, key ssh.PublicKey) error {
	if err == nil {
		return nil
	}
	got := key.Type() + " " + ssh.FingerprintSHA256(key)
	fail := func(format string, args ...any) error { return &hostKeyError{fmt.Sprintf(format, args...)} }
	var revoked *knownhosts.RevokedError
	var mismatch *knownhosts.KeyError
	switch {
	case errors.As(err, &revoked):
		return fail("the host key of %s, %s, is revoked in %s, line %d: give the server a new key",
			addr, got, revoked.Revoked.Filename, revoked.Revoked.Line)
	case errors.As(err, &mismatch) && len(mismatch.Want) == 0:
		return fail("the host key of %s, %s, is not in %s: compare it with what the server's console shows (ssh-keygen -lf /etc/ssh/ssh_host_..._key.pub), "+
			"then add the line %q, or set SSH_KNOWN_HOSTS to a file that has it", addr, got, file, knownhosts.Line([]string{addr}, key))
	case errors.As(err, &mismatch):
		var want []string
		for _, k := range mismatch.Want {
			want = append(want, fmt.Sprintf("%s %s (line %d)", k.Key.Type(), ssh.FingerprintSHA256(k.Key), k.Line))
		}
		return fail("the host key of %s is %s, but %s has %s: the server was set up anew, or somebody is between it and this machine: "+
			"find out which; then remove the old key (ssh-keygen -R %q -f %s) and add the new one",
			addr, got, file, strings.Join(want, ", "), knownhosts.Normalize(addr), file)
	}
	return fail("the host key of %s, %s, is not good: %v: mend %s", addr, got, err, file)
}

// noKey is a key that no server has.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// knownKeys are the keys the file has for addr. The library tells them only in
// the error about another key.
func knownKeys(check ssh.HostKeyCallback, addr string) ([]knownhosts.KnownKey, error) {
	err := check(addr, &net.TCPAddr{IP: net.IPv4zero}, noKey{})
	var mismatch *knownhosts.KeyError
	if !errors.As(err, &mismatch) {
		return nil, err
	}
	return mismatch.Want, nil
}

// algorithms are those that prove one of the known keys. A server with several
// keys would otherwise show another one, which then looks changed. For an
// unknown host it is nil: the library's choice.
func algorithms(known []knownhosts.KnownKey) []string {
	var list []string
	for _, k := range known {
		if isAuthority(k) {
			// It may sign a host key of any kind.
			list = append(list, ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
				ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01)
			continue
		}
		switch kind := k.Key.Type(); kind {
		case ssh.KeyAlgoRSA:
			list = append(list, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		default:
			list = append(list, kind)
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	slices.SortStableFunc(list, func(a, b string) int { return rank(a) - rank(b) })
	return list
}

// rank prefers short and modern keys.
func rank(algorithm string) int {
	for i, part := range []string{"ed25519", "ecdsa", "rsa"} {
		if strings.Contains(algorithm, part) {
			return i
		}
	}
	return 3
}

// isAuthority looks the line up: the library does not tell the two apart.
func isAuthority(k knownhosts.KnownKey) bool {
	f, err := os.Open(k.Filename)
	if err != nil {
		return false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if n == k.Line {
			return strings.HasPrefix(strings.TrimSpace(lines.Text()), "@cert-authority")
		}
	}
	return false
}
