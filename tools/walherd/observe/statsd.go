package observe

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"
)

// statsdLimit bounds the sending, of which only the resolving of a name can
// take long.
const statsdLimit = 500 * time.Millisecond

// Metrics is what a command tells of itself when it has succeeded.
type Metrics struct {
	// BytesRead and BytesWritten are what went over to the storages,
	// compressed and sealed.
	BytesRead, BytesWritten int64
	// Uploads is how many objects were stored, FailedUploads how many tries
	// at that failed.
	Uploads, FailedUploads int64
	// WALPush is how long a wal-push took; 0 for another command.
	WALPush time.Duration
}

// Lines are the metrics in statsd's text form, under WAL-G's names, with tags
// appended to each name as ,key=value, in the order of their keys.
func (m Metrics) Lines(tags map[string]string) []string {
	var suffix strings.Builder
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		fmt.Fprintf(&suffix, ",%s=%s", plainTag(key), plainTag(tags[key]))
	}
	line := func(name string, value int64, kind string) string {
		return fmt.Sprintf("%s%s:%d|%s", name, &suffix, value, kind)
	}
	lines := []string{
		line("walg_s3_bytes_read", m.BytesRead, "g"),
		line("walg_s3_bytes_written", m.BytesWritten, "g"),
		line("walg_uploader_uploaded_files_total", m.Uploads, "c"),
		line("walg_uploader_uploaded_files_failed_total", m.FailedUploads, "c"),
	}
	if m.WALPush > 0 {
		lines = append(lines, line("walg_s3_upload_time", m.WALPush.Milliseconds(), "ms"))
	}
	return lines
}

// plainTag is text without what would end a tag, a name or a line.
func plainTag(text string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(",=:|#\r\n", r) {
			return '_'
		}
		return r
	}, text)
}

// Send sends m to the statsd at address, host:port, in one datagram. It waits
// for no answer.
func (m Metrics) Send(ctx context.Context, address string, tags map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, statsdLimit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", address)
	if err != nil {
		return fmt.Errorf("send metrics to WALG_STATSD_ADDRESS: %w", err)
	}
	defer conn.Close()
	// Of what arrives nothing is known, and an error is one of an earlier
	// datagram.
	if _, err := conn.Write([]byte(strings.Join(m.Lines(tags), "\n") + "\n")); err != nil {
		return fmt.Errorf("send metrics to WALG_STATSD_ADDRESS: %w", err)
	}
	return nil
}
