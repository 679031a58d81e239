package sftp_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/sftp"
	"github.com/walherd/walherd/storage/sftp/sftptest"
)

// zeros is an endless reader that costs next to nothing.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// far puts a server behind a line with the given delay each way.
func far(b *testing.B, server *sftptest.Server, delay time.Duration, opt *sftp.Options) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", server.Addr())
			if err != nil {
				near.Close()
				continue
			}
			go carry(near, there, delay)
			go carry(there, near, delay)
		}
	}()
	opt.Location = "ssh://" + l.Addr().String() + server.Dir
	opt.Insecure = true
}

func carry(to, from net.Conn, delay time.Duration) {
	type piece struct {
		data []byte
		due  time.Time
	}
	pieces := make(chan piece, 4096)
	go func() {
		defer close(pieces)
		for {
			buf := make([]byte, 32<<10)
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			pieces <- piece{buf[:n], time.Now().Add(delay)}
		}
	}()
	for p := range pieces {
		<-time.After(time.Until(p.due))
		to.Write(p.data)
	}
	to.Close()
}

// BenchmarkTransfer is the throughput of one and of several transfers at once,
// with OpenSSH's server on this machine and behind a line of 20 ms round trip.
func BenchmarkTransfer(b *testing.B) {
	for _, rtt := range []time.Duration{0, 20 * time.Millisecond} {
		for _, connections := range []int{1, 2, 4} {
			for _, transfers := range []int{1, 4} {
				if transfers < connections {
					continue
				}
				bench := func(op string, run func(b *testing.B, bucket *sftp.Bucket, i int)) {
					b.Run(fmt.Sprintf("%s/rtt=%s/connections=%d/transfers=%d", op, rtt, connections, transfers), func(b *testing.B) {
						server := sftptest.Start(b, openssh(b))
						opt := options(server, server.Dir)
						opt.Connections = connections
						if rtt > 0 {
							far(b, server, rtt/2, &opt)
						}
						bucket := open(b, opt)
						for i := range transfers {
							if _, err := bucket.Put(b.Context(), fmt.Sprint("part", i), io.LimitReader(zeros{}, 16<<20), storage.PutOptions{}); err != nil {
								b.Fatal(err)
							}
						}
						b.SetBytes(int64(transfers) * 16 << 20)
						for b.Loop() {
							var all sync.WaitGroup
							for i := range transfers {
								all.Go(func() { run(b, bucket, i) })
							}
							all.Wait()
						}
					})
				}
				bench("put", func(b *testing.B, bucket *sftp.Bucket, i int) {
					if _, err := bucket.Put(b.Context(), fmt.Sprint("part", i), io.LimitReader(zeros{}, 16<<20), storage.PutOptions{}); err != nil {
						b.Error(err)
					}
				})
				bench("get", func(b *testing.B, bucket *sftp.Bucket, i int) {
					r, err := bucket.Open(b.Context(), fmt.Sprint("part", i), storage.Range{})
					if err != nil {
						b.Error(err)
						return
					}
					defer r.Close()
					if n, err := io.Copy(io.Discard, r); n != 16<<20 || err != nil {
						b.Errorf("read %d bytes: %v", n, err)
					}
				})
			}
		}
	}
}

// BenchmarkPutSegment is the latency of archiving one compressed segment.
func BenchmarkPutSegment(b *testing.B) {
	server := sftptest.Start(b, openssh(b))
	bucket := open(b, options(server, server.Dir))
	const size = 4 << 20
	b.SetBytes(size)
	var n atomic.Int64
	for b.Loop() {
		name := fmt.Sprintf("wal_005/%024X.lz4", n.Add(1))
		if _, err := bucket.Put(b.Context(), name, io.LimitReader(zeros{}, size), storage.PutOptions{IfAbsent: true}); err != nil {
			b.Fatal(err)
		}
	}
}
