package sftp_test

import (
	"testing"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/sftp"
	"github.com/walherd/walherd/storage/sftp/sftptest"
	"github.com/walherd/walherd/storage/storagetest"
)

// options are those to reach dir on the server.
func options(s *sftptest.Server, dir string) sftp.Options {
	return sftp.Options{Location: s.Location(dir), User: s.User, PrivateKeyPath: s.PrivateKeyPath, KnownHosts: s.KnownHosts}
}

func open(t testing.TB, opt sftp.Options) *sftp.Bucket {
	t.Helper()
	b, err := sftp.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// eachServer runs a test against the server of the library and OpenSSH's.
func eachServer(t *testing.T, test func(t *testing.T, opt sftptest.Options)) {
	t.Helper()
	t.Run("library", func(t *testing.T) {
		t.Parallel()
		test(t, sftptest.Options{})
	})
	t.Run("openssh", func(t *testing.T) {
		t.Parallel()
		test(t, openssh(t))
	})
}

func openssh(t testing.TB, args ...string) sftptest.Options {
	t.Helper()
	program := sftptest.Program()
	if program == "" {
		t.Skip("OpenSSH's sftp-server is not installed: apt-get install openssh-sftp-server")
	}
	return sftptest.Options{Program: program, Args: args}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, opt sftptest.Options) {
		server := sftptest.Start(t, opt)
		storagetest.Run(t, func(t *testing.T) storage.Bucket { return open(t, options(server, t.TempDir())) })
	})
}
