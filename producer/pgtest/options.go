package pgtest

import "fmt"

// Option tunes a cluster made by New, NewStandby or Open.
type Option func(*options)

type options struct {
	binDir      string
	segmentMB   int
	checksums   bool
	fsync       bool
	ownSystemID bool
	stopped     bool
	conf        []string
	hba         []string
	listen      string
}

// WithBinDir runs the server binaries of dir instead of the found ones.
func WithBinDir(dir string) Option { return func(o *options) { o.binDir = dir } }

// WithSegmentSize sets the size of a WAL segment in MiB: a power of two from
// 1 to 1024. The default is 16.
func WithSegmentSize(mib int) Option { return func(o *options) { o.segmentMB = mib } }

// WithoutChecksums makes a cluster whose data pages have no checksums.
func WithoutChecksums() Option { return func(o *options) { o.checksums = false } }

// WithFsync lets the server sync its files, which it does not by default:
// for benchmarks, and for tests that cut the power rather than the process.
func WithFsync() Option { return func(o *options) { o.fsync = true } }

// WithOwnSystemID runs initdb for this cluster alone. Without it, clusters of
// one kind are copies of one template and share one system identifier.
func WithOwnSystemID() Option { return func(o *options) { o.ownSystemID = true } }

// WithConf appends lines to postgresql.conf ("wal_keep_size = 64MB").
func WithConf(lines ...string) Option {
	return func(o *options) { o.conf = append(o.conf, lines...) }
}

// WithArchiveCommand turns archive_mode on with the given shell command, in
// which %p and %f mean what PostgreSQL says they mean.
func WithArchiveCommand(command string) Option {
	return WithConf("archive_mode = on", "archive_command = "+quoteConf(command))
}

// WithHBA replaces pg_hba.conf, which trusts everybody, by the given lines.
func WithHBA(lines ...string) Option { return func(o *options) { o.hba = append(o.hba, lines...) } }

// WithListen has the server take TCP connections at an address of this host,
// which no other cluster may have: all have one port.
func WithListen(address string) Option { return func(o *options) { o.listen = address } }

// Stopped prepares the cluster without starting it.
func Stopped() Option { return func(o *options) { o.stopped = true } }

func collect(opts []Option) options {
	o := options{segmentMB: 16, checksums: true}
	for _, f := range opts {
		f(&o)
	}
	return o
}

// quoteConf quotes a value for postgresql.conf.
func quoteConf(s string) string {
	q := make([]byte, 0, len(s)+2)
	q = append(q, '\'')
	for i := range len(s) {
		if s[i] == '\'' || s[i] == '\\' {
			q = append(q, s[i])
		}
		q = append(q, s[i])
	}
	return string(append(q, '\''))
}

// initdbArgs are the arguments that make a cluster what it is; the template
// cache is keyed by them.
func (o options) initdbArgs(major int) []string {
	args := []string{"--auth=trust", "--username=postgres", "--locale=C", "--encoding=UTF8", "--no-sync",
		fmt.Sprintf("--wal-segsize=%d", o.segmentMB)}
	switch {
	case o.checksums:
		args = append(args, "--data-checksums")
	case major >= 18: // where they are the default
		args = append(args, "--no-data-checksums")
	}
	return args
}
