package archive_library

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/walherd/walherd/producer/daemon/client"
	"github.com/walherd/walherd/producer/pgtest"
)

// BenchmarkArchiver archives 60 waiting segments of 16 MiB, almost empty ones,
// into a file storage: through the module, through archive_command with the
// small client, and with walherd itself for each. The time is the archiver's,
// from the server's start until nothing waits.
func BenchmarkArchiver(b *testing.B) {
	const segments = 60
	build := pgtest.TempDir(b)
	for _, tool := range []string{"walherd", "daemonclient"} {
		cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(build, tool), "../"+tool)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("build %s: %v\n%s", tool, err, out)
		}
	}
	for _, way := range []string{"module", "client", "wal-push", "true"} {
		b.Run(way, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s := &setup{t: b, c: pgtest.New(b, pgtest.WithConf("archive_mode = on")), archive: pgtest.TempDir(b)}
				socket := filepath.Join(s.archive, "s")
				env := []string{"WALG_FILE_PREFIX=" + s.archive, "WALG_LOG_LEVEL=ERROR"}
				s.segments(segments)
				s.c.Stop(pgtest.Fast)
				switch way {
				case "module":
					s.c.AppendConf("archive_library = '"+compile(b, s.c, s.c.Dir())+"'", "walherd_archive.socket = '"+socket+"'")
				case "client":
					s.c.AppendConf(fmt.Sprintf("archive_command = '%s %s wal-push %%f'", filepath.Join(build, "daemonclient"), socket))
				case "wal-push":
					s.c.AppendConf(fmt.Sprintf("archive_command = 'HOME=%s %s %s %s wal-push %%p'", s.c.Dir(), env[0], env[1], filepath.Join(build, "walherd")))
				case "true":
					s.c.AppendConf("archive_command = '/bin/true'")
				}
				if way == "module" || way == "client" {
					cmd := s.c.Command(context.Background(), filepath.Join(build, "walherd"), "daemon", socket)
					cmd.Env = append(cmd.Env, env...)
					if err := cmd.Start(); err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
					if err := (&client.Client{Socket: socket, ConnectTimeout: time.Minute}).Check(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				s.c.Start()
				tick := time.NewTicker(2 * time.Millisecond)
				for {
					waiting, err := filepath.Glob(filepath.Join(s.c.WALDir(), "archive_status", "*.ready"))
					if err != nil {
						b.Fatal(err)
					}
					if len(waiting) == 0 {
						break
					}
					<-tick.C
				}
				tick.Stop()
				b.StopTimer()
				s.c.Stop(pgtest.Fast)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N)/segments, "ms/segment")
		})
	}
}
