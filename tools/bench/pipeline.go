package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/seal"
	"github.com/walherd/walherd/messages/transit"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/retry"
	"github.com/walherd/walherd/storage/s3"
	"github.com/walherd/walherd/storage/s3/s3test"
	"github.com/walherd/walherd/workers/intake"
)

const (
	// pipelineParts is how many transfers there are, pipelineSlots how many
	// are under way: a worker's default. The end of one upload then overlaps
	// the next part, as in a backup.
	pipelineParts = 4
	pipelineSlots = 2
	// pipelineRounds is how often all is measured, at most: a round takes a
	// minute or two.
	pipelineRounds = 3
	// pipelineWindow is what the program lets wait between reader and worker.
	pipelineWindow = 8 << 20
	// linkRate is the slow network, bytes a second.
	linkRate = 100e6
)

// combo is what is done to the bytes on their way.
type combo struct {
	method compress.Method
	sealed bool
	// times is how often the corpus is read, for what packs well to take some
	// seconds too: an upload's part must fill before anything is sent, and a
	// short run would tell of that alone. The corpus is longer than any
	// method looks back.
	times int
}

// combos are those measured.
func combos() []combo {
	var all []combo
	for _, c := range []combo{{method: compress.None, times: 1}, {method: compress.LZ4, times: 8}, {method: compress.Zstd, times: 4}} {
		all = append(all, c)
		c.sealed = true
		all = append(all, c)
	}
	return all
}

func (c combo) title() string { return titlePipeline + ": " + c.String() }

func (c combo) String() string {
	if c.sealed {
		return string(c.method) + " + libsodium"
	}
	return string(c.method)
}

// cost is what a stage, or all of them, took.
type cost struct {
	wall, cpu time.Duration // cpu: ours and the server's
}

// line is one bucket, reached over one kind of network.
type line struct {
	name   string
	bucket storage.Bucket
}

// pipe is the measurement: the corpus, mapped, and the server.
type pipe struct {
	b      *bench
	corpus []byte
	server *s3test.Server
	lines  []line
}

// pipelines measures each stage by itself and all of them together.
func (b *bench) pipelines(dir, corpus string) (err error) {
	data, unmap, err := mapFile(corpus)
	if err != nil {
		return err
	}
	defer unmap()
	server, err := s3test.Run(b.ctx, dir, s3test.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := server.MakeBucket("bench"); err != nil {
		return err
	}
	link, err := newLink(strings.TrimPrefix(server.Endpoint, "http://"), linkRate)
	if err != nil {
		return err
	}
	defer link.close()
	p := &pipe{b: b, corpus: data, server: server}
	for _, l := range []struct{ name, endpoint string }{
		{"loopback", server.Endpoint}, {fmt.Sprintf("%.0f MB/s", linkRate/1e6), "http://" + link.addr()},
	} {
		s3b, err := s3.Open(b.ctx, s3.Options{
			Bucket: "bench", Endpoint: l.endpoint, PathStyle: true, Region: server.Region,
			AccessKeyID: server.AccessKeyID, SecretAccessKey: server.SecretAccessKey,
		})
		if err != nil {
			return err
		}
		defer s3b.Close()
		p.lines = append(p.lines, line{l.name, retry.New(s3b, retry.Options{Tries: 2})})
	}
	var rows []pipelineRow
	for _, c := range combos() {
		if b.selected(c.title()) {
			rows = append(rows, slices.Repeat([]pipelineRow{{what: c}}, len(p.lines))...)
		}
	}
	// The server's first objects take longer than all others.
	b.logf("%s: warming up", titlePipeline)
	if err := p.round(filepath.Join(dir, "packed"), []pipelineRow{{what: rows[0].what}}); err != nil {
		return err
	}
	rounds := min(b.opt.runs, pipelineRounds)
	for round := range rounds {
		for i := 0; i < len(rows); i += len(p.lines) {
			b.logf("%s: round %d of %d", rows[i].what.title(), round+1, rounds)
			if err := p.round(filepath.Join(dir, "packed"), rows[i:i+len(p.lines)]); err != nil {
				return fmt.Errorf("measure %s: %w", rows[i].what.title(), err)
			}
		}
	}
	reportPipeline(b.stdout, rounds, int64(len(data)), rows)
	return nil
}

// round measures one combo on every line once; rows has one for each line.
func (p *pipe) round(packedDir string, rows []pipelineRow) error {
	what := rows[0].what
	codec := intake.Codec{Compress: compress.Options{Method: what.method, Workers: runtime.GOMAXPROCS(0)}}
	if what.sealed {
		sealer, err := seal.NewLibsodium(seal.LibsodiumOptions{Key: strings.Repeat("k", 32)})
		if err != nil {
			return err
		}
		codec.Sealer = sealer
	}
	var one pipelineSample
	var err error
	if one.source, err = p.measure(what, func(ctx context.Context, part span, n int) error {
		r, err := p.send(ctx, part, n)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = transit.Copy(ctx, io.Discard, r)
		return err
	}); err != nil {
		return err
	}
	if what.method != compress.None {
		if one.compress, err = p.measure(what, func(_ context.Context, part span, _ int) error {
			w, err := compress.NewWriter(io.Discard, codec.Compress)
			if err != nil {
				return err
			}
			return pour(w, part)
		}); err != nil {
			return err
		}
	}
	// What goes to the store, made untimed; and what is sealed, which is as
	// long but for the seal.
	defer os.RemoveAll(packedDir)
	packed, err := p.pack(packedDir, what, codec)
	if err != nil {
		return err
	}
	defer packed.unmap()
	if what.sealed {
		if one.seal, err = p.measure(what, func(ctx context.Context, _ span, n int) error {
			w, err := codec.Sealer.Seal(ctx, io.Discard)
			if err != nil {
				return err
			}
			return pour(w, span{packed.parts[n], 0, len(packed.parts[n])})
		}); err != nil {
			return err
		}
	}
	for i, l := range p.lines[:len(rows)] {
		s := one
		if s.put, err = p.store(what, l, func(ctx context.Context, _ span, n int) error {
			_, err := l.bucket.Put(ctx, objectName(n), struct{ io.Reader }{&sliceReader{packed.parts[n]}}, storage.PutOptions{})
			return err
		}); err != nil {
			return err
		}
		if s.whole, err = p.store(what, l, func(ctx context.Context, part span, n int) error {
			r, err := p.send(ctx, part, n)
			if err != nil {
				return err
			}
			defer r.Close()
			got, err := intake.Store(ctx, r, codec, func(body io.Reader) error {
				_, err := l.bucket.Put(ctx, objectName(n), body, storage.PutOptions{})
				return err
			})
			if err == nil && got != int64(part.size) {
				return fmt.Errorf("store part %d: %d bytes of %d", n, got, part.size)
			}
			return err
		}); err != nil {
			return err
		}
		rows[i].line = l.name
		rows[i].packed = packed.size
		rows[i].samples = append(rows[i].samples, s)
	}
	return nil
}

func objectName(part int) string { return "part_" + strconv.Itoa(part) }

// measure runs f on all parts, as many at a time as there are slots.
func (p *pipe) measure(what combo, f func(ctx context.Context, part span, n int) error) (cost, error) {
	syscall.Sync()
	runtime.GC()
	before, err := p.cpu()
	if err != nil {
		return cost{}, err
	}
	start := time.Now()
	group, ctx := errgroup.WithContext(p.b.ctx)
	group.SetLimit(pipelineSlots)
	for n, part := range p.parts(what) {
		group.Go(func() error { return f(ctx, part, n) })
	}
	if err := group.Wait(); err != nil {
		return cost{}, err
	}
	wall := time.Since(start)
	after, err := p.cpu()
	return cost{wall: wall, cpu: after - before}, err
}

// store is measure for what leaves objects, which it removes.
func (p *pipe) store(what combo, l line, f func(ctx context.Context, part span, n int) error) (cost, error) {
	c, err := p.measure(what, f)
	if err != nil {
		return c, err
	}
	for n := range pipelineParts {
		if err := l.bucket.Delete(p.b.ctx, objectName(n)); err != nil {
			return c, err
		}
	}
	return c, nil
}

// cpu is the processor time of this process and the server.
func (p *pipe) cpu() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read the processor time: %w", err)
	}
	theirs, err := processCPU(p.server.PID())
	return time.Duration(u.Utime.Nano()+u.Stime.Nano()) + theirs, err
}

// send is the reading side of a backup in the same process as the worker.
func (p *pipe) send(ctx context.Context, part span, n int) (transit.Receiver, error) {
	carrier := transit.NewLocal(pipelineWindow)
	s, err := carrier.Stream(ctx, transit.StreamAddress{Cluster: "bench", Run: "bench", Part: objectName(n), Attempt: 1})
	if err != nil {
		return nil, err
	}
	r, err := carrier.Open(ctx, s.Ref())
	if err != nil {
		s.Abort()
		return nil, err
	}
	go func() {
		defer s.Abort()
		for part.size > 0 {
			buf := s.Buffer()
			k := copy(buf, part.next(len(buf)))
			if s.Send(ctx, buf[:k]) != nil {
				return // the receiver knows why it went
			}
		}
		_ = s.Close(ctx) // fails only after Abort
	}()
	return r, nil
}

// span is a part: bytes of the corpus repeated without end.
type span struct {
	corpus   []byte
	at, size int
}

// next cuts up to limit bytes off; none when the span is used up.
func (s *span) next(limit int) []byte {
	at := s.at % len(s.corpus)
	p := s.corpus[at:min(at+min(limit, s.size), len(s.corpus))]
	s.at += len(p)
	s.size -= len(p)
	return p
}

// parts cuts what a combo reads.
func (p *pipe) parts(c combo) []span {
	all := make([]span, pipelineParts)
	size := len(p.corpus) * c.times / pipelineParts
	for n := range all {
		all[n] = span{p.corpus, n * size, size}
	}
	return all
}

// packedParts is the corpus as it goes to the store.
type packedParts struct {
	parts [][]byte
	size  int64
	unmap func()
}

// pack encodes the corpus into files and maps them: in memory of ours, they
// would let garbage gather in the measured code that no worker lets gather.
func (p *pipe) pack(dir string, what combo, codec intake.Codec) (packedParts, error) {
	var out packedParts
	var all []func()
	out.unmap = func() {
		for _, f := range all {
			f()
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return out, fmt.Errorf("make packed parts: %w", err)
	}
	for n, part := range p.parts(what) {
		r, err := p.send(p.b.ctx, part, n)
		if err != nil {
			return out, err
		}
		name := filepath.Join(dir, objectName(n))
		_, err = intake.Store(p.b.ctx, r, codec, func(body io.Reader) error {
			f, err := os.Create(name)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, body)
			return errors.Join(err, f.Close())
		})
		r.Close()
		if err != nil {
			return out, err
		}
		data, unmap, err := mapFile(name)
		if err != nil {
			return out, err
		}
		all = append(all, unmap)
		out.parts = append(out.parts, data)
		out.size += int64(len(data))
	}
	return out, nil
}

// pour writes s in the carrier's chunks.
func pour(w io.WriteCloser, s span) error {
	for s.size > 0 {
		if _, err := w.Write(s.next(transit.ChunkSize)); err != nil {
			return err
		}
	}
	return w.Close()
}

// sliceReader reads and does nothing else, as the end of a pipe.
type sliceReader struct{ rest []byte }

func (r *sliceReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// mapFile maps a file and touches its pages.
func mapFile(name string) (data []byte, unmap func(), err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, fmt.Errorf("map a file: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("map a file: %w", err)
	}
	data, err = syscall.Mmap(int(f.Fd()), 0, int(fi.Size()), syscall.PROT_READ, syscall.MAP_SHARED|syscall.MAP_POPULATE)
	if err != nil {
		return nil, nil, fmt.Errorf("map %s: %w", name, err)
	}
	return data, func() { _ = syscall.Munmap(data) }, nil // it was mapped
}

// processCPU reads the processor time of another process from proc(5): fields
// 14 and 15 in ticks of 10 ms.
func processCPU(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the server's processor time: %w", err)
	}
	// The second field is the name in parentheses and may hold anything.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("read the server's processor time: %q", stat)
	}
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the server's processor time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// link is a network of a known rate in front of a server: what all its
// connections send together is held to the rate; answers pass freely.
type link struct {
	listener net.Listener
	to       string
	limit    *rate.Limiter
	running  sync.WaitGroup
	ctx      context.Context
	cancel   context.CancelFunc
}

// linkPiece is how much passes at a time: some milliseconds' worth.
const linkPiece = 256 << 10

func newLink(to string, bytesPerSecond float64) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("make a slow link: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{listener: listener, to: to, limit: rate.NewLimiter(rate.Limit(bytesPerSecond), linkPiece), ctx: ctx, cancel: cancel}
	l.running.Go(l.accept)
	return l, nil
}

func (l *link) addr() string { return l.listener.Addr().String() }

func (l *link) close() {
	l.cancel()
	l.listener.Close()
	l.running.Wait()
}

func (l *link) accept() {
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return // closed
		}
		l.running.Go(func() { l.carry(conn) })
	}
}

// carry ends both connections when either ends: HTTP closes no half.
func (l *link) carry(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", l.to)
	if err != nil {
		return // the client sees its connection close
	}
	defer server.Close()
	over := context.AfterFunc(l.ctx, func() { client.Close(); server.Close() })
	defer over()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(client, server) // an end like any other
		client.Close()
	})
	buf := make([]byte, linkPiece)
	for {
		n, err := client.Read(buf)
		if n > 0 {
			if l.limit.WaitN(l.ctx, n) != nil {
				break
			}
			if _, err := server.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	server.Close()
	back.Wait()
}

// pipelineSample is one round of one row. A stage that is not there has no
// wall time.
type pipelineSample struct {
	source, compress, seal, put, whole cost
}

// slowest is the time of the slowest stage.
func (s pipelineSample) slowest() time.Duration {
	return max(s.source.wall, s.compress.wall, s.seal.wall, s.put.wall)
}

// bound is the shortest time the whole can take on so many processors: that of
// its slowest stage, or the processor time of all stages shared out evenly.
func (s pipelineSample) bound(processors int) time.Duration {
	return max(s.slowest(), s.stagesCPU()/time.Duration(processors))
}

// stagesCPU is the processor time of all stages alone.
func (s pipelineSample) stagesCPU() time.Duration {
	return s.source.cpu + s.compress.cpu + s.seal.cpu + s.put.cpu
}

// pipelineRow is what was measured of one combo on one line.
type pipelineRow struct {
	what    combo
	line    string
	packed  int64
	samples []pipelineSample
}

func reportPipeline(w io.Writer, rounds int, size int64, rows []pipelineRow) {
	t := table.NewWriter()
	t.AppendHeader(table.Row{"encoding", "network", "source", "compress", "seal", "put", "processors' bound", "whole (min-max)", "whole / slowest stage", "whole / bound", "CPU s, whole / stages"})
	for _, row := range rows {
		over := func(pick func(pipelineSample) float64) spread {
			v := make([]float64, len(row.samples))
			for i, s := range row.samples {
				v[i] = pick(s)
			}
			return spreadOf(v)
		}
		mbps := func(pick func(pipelineSample) time.Duration) spread {
			return over(func(s pipelineSample) float64 {
				return float64(size) * float64(row.what.times) / 1e6 / pick(s).Seconds()
			})
		}
		stage := func(pick func(pipelineSample) cost) string {
			if pick(row.samples[0]).wall == 0 {
				return "-"
			}
			return fmt.Sprintf("%.0f", mbps(func(s pipelineSample) time.Duration { return pick(s).wall }).median)
		}
		t.AppendRow(table.Row{
			row.what.String(), row.line,
			stage(func(s pipelineSample) cost { return s.source }), stage(func(s pipelineSample) cost { return s.compress }),
			stage(func(s pipelineSample) cost { return s.seal }), stage(func(s pipelineSample) cost { return s.put }),
			fmt.Sprintf("%.0f", mbps(func(s pipelineSample) time.Duration {
				return max(1, s.stagesCPU()/time.Duration(runtime.NumCPU()))
			}).median),
			mbps(func(s pipelineSample) time.Duration { return s.whole.wall }).format("%.0f"),
			over(func(s pipelineSample) float64 { return s.slowest().Seconds() / s.whole.wall.Seconds() }).format("%.2f"),
			over(func(s pipelineSample) float64 {
				return s.bound(runtime.NumCPU()).Seconds() / s.whole.wall.Seconds()
			}).format("%.2f"),
			over(func(s pipelineSample) float64 { return s.whole.cpu.Seconds() / s.stagesCPU().Seconds() }).format("%.2f"),
		})
	}
	fmt.Fprintf(w, "\n### %s (%d rounds)\n\n%s\n\n"+
		"MB of plain data by second of wall time: %d MB (8 times with lz4, 4 times with zstd) in %d parts, %d at a time, to versitygw on\n"+
		"the same machine. Each stage alone does with the same bytes, and as many at a time, what it does in the whole: source hands buffers\n"+
		"of the carrier over, compress and seal write to nowhere, put sends what was packed before. The server runs on the same processors:\n"+
		"alone, each stage has them all, together they share them. So no pipeline can be faster than the processors' bound: the processor\n"+
		"time that the stages and the server took alone, spread evenly over %d processors. The bound of \"whole / bound\" is the lower one of\n"+
		"that and the slowest stage. The network of %.0f MB/s (a TCP proxy in this process that holds back what is sent) is the case in which\n"+
		"the store is slow and the processors are not. The last column does not depend on what else the machine does: above 1 the whole\n"+
		"costs more processor time than its stages.\n",
		titlePipeline, rounds, t.RenderMarkdown(), size/1e6, pipelineParts, pipelineSlots, runtime.NumCPU(), linkRate/1e6)
}
