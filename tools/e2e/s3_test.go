package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/walherd/walherd/producer/pgtest"
	"github.com/walherd/walherd/storage/s3/s3test"
)

// newS3Bench is a bench whose storage is a bucket of a real S3 server.
func newS3Bench(t *testing.T, env ...string) *bench {
	t.Helper()
	s := s3test.Start(t, s3test.Options{})
	// The empty file prefix takes the bench's own storage away.
	return newBench(t, append([]string{
		"WALG_FILE_PREFIX=", "WALG_S3_PREFIX=s3://" + s.NewBucket(t) + "/deep/main", "AWS_ENDPOINT=" + s.Endpoint,
		"AWS_S3_FORCE_PATH_STYLE=true", "AWS_ACCESS_KEY_ID=" + s.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + s.SecretAccessKey,
		"AWS_REGION=" + s.Region,
	}, env...))
}

// TestCycleS3: archive, back up, lose, restore and recover through a real S3
// server, compressed and encrypted.
func TestCycleS3(t *testing.T) {
	t.Parallel()
	b := newS3Bench(t, "WALG_COMPRESSION_METHOD=zstd", "WALG_LIBSODIUM_KEY=0123456789abcdef0123456789abcdef",
		"WALG_TAR_SIZE_THRESHOLD=10000000", "S3_MAX_PART_SIZE=5242880")
	b.c.Run("pgbench", "-i", "-q", "-s", "2", "postgres")
	b.must("backup-push", b.c.DataDir())
	b.c.Run("pgbench", "-n", "-t", "200", "postgres")
	want := b.c.SQL(bankSums)
	b.archived()
	b.c.Kill()
	r := b.restore("LATEST")
	if got := r.SQL(bankSums); got != want {
		t.Fatalf("restored sums %s, want %s", got, want)
	}
	amcheck(t, r)
	checksums(t, r)
}

// TestS3BadInput: what is wrong with the store or its settings is named.
func TestS3BadInput(t *testing.T) {
	t.Parallel()
	b := newS3Bench(t)
	seg := segmentFile(t, b)
	b.must("wal-push", seg)
	for name, tc := range map[string]struct {
		env  []string
		want string
	}{
		"wrong secret":    {[]string{"AWS_SECRET_ACCESS_KEY=wrong"}, "HTTP 403"}, // a HEAD has no body that says more
		"no such bucket":  {[]string{"WALG_S3_PREFIX=s3://no-such-bucket/x"}, "no-such-bucket"},
		"not an address":  {[]string{"WALG_S3_PREFIX=bucket"}, "WALG_S3_PREFIX"},
		"nobody's server": {[]string{"AWS_ENDPOINT=http://127.0.0.1:1", "S3_MAX_RETRIES=1"}, "127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := b.run(tc.env, "wal-fetch", filepath.Base(seg), filepath.Join(pgtest.TempDir(t), "w"))
			if r.code != 1 || !strings.Contains(r.stderr, tc.want) {
				t.Errorf("got %+v, want %s in it", r, tc.want)
			}
		})
	}
}

// TestGPGOpensWhatWasSealed: with a public key only, and gpg to read it.
func TestGPGOpensWhatWasSealed(t *testing.T) {
	t.Parallel()
	keys := pgtest.TempDir(t)
	for _, f := range []string{"pgp-public.asc", "pgp-private.asc"} {
		if out, err := exec.Command("install", "-m", "644", "testdata/"+f, filepath.Join(keys, f)).CombinedOutput(); err != nil {
			t.Fatalf("install key: %v\n%s", err, out)
		}
	}
	b := newBench(t, []string{"WALG_PGP_KEY_PATH=" + filepath.Join(keys, "pgp-public.asc")})
	seg := segmentFile(t, b)
	b.must("wal-push", seg)
	out, err := exec.Command("sh", "-ec", `
export GNUPGHOME="$1/gnupg"; mkdir -m 700 "$GNUPGHOME"
gpg --batch --quiet --import "$1/pgp-private.asc"
gpg --batch --quiet --decrypt "$2" | lz4 -dc | cmp - "$3"
gpgconf --kill all`, "sh", keys, filepath.Join(b.storage, "wal_005", filepath.Base(seg)+".lz4"), seg).CombinedOutput()
	if err != nil {
		t.Fatalf("gpg and lz4: %v\n%s", err, out)
	}
	// The public key seals; it cannot read.
	r := b.run(nil, "wal-fetch", filepath.Base(seg), filepath.Join(keys, "w"))
	if r.code != 1 || !strings.Contains(r.stderr, "public key") {
		t.Fatalf("fetch with a public key: %+v", r)
	}
	got := filepath.Join(pgtest.TempDir(t), "w")
	if r := b.run([]string{"WALG_PGP_KEY_PATH=" + filepath.Join(keys, "pgp-private.asc")}, "wal-fetch", filepath.Base(seg), got); r.code != 0 {
		t.Fatalf("fetch with the private key: %+v", r)
	}
	b.c.Run("cmp", got, seg)
}
