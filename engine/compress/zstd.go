package compress

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// zstdMaxWindow is the largest window a reader accepts: what the zstd command
// takes without --long or --memory, and all that `zstd --ultra -22` writes.
const zstdMaxWindow = 128 << 20

// With two or more workers the library cuts a frame into jobs of four windows
// and holds workers+3 of them, so the window decides about memory and about
// how evenly a 16 MiB WAL segment spreads. With two workers at the default
// level, windows of 8, 2 and 1 MiB pack a pgbench cluster 17.90, 17.59 and
// 17.58 times, its WAL 9.78, 9.77 and 9.78 times, and the WAL at 631, 891 and
// 854 MB/s. Packing 1.6 GB of a cluster's tar on two cores, seven paired runs,
// the medians are, for 1 MiB, 2 MiB and `zstd -3 -T2`: wall 3.32, 3.35 and
// 2.99 s, CPU with tar's 5.33, 5.66 and 4.49 s. The two slow levels look further
// back and keep 2 MiB, which costs them 0 to 1.5 % against one worker.
const (
	zstdJobWindow     = 1 << 20
	zstdJobWindowSlow = 2 << 20
)

// zstdProbe is how much of a stream is looked at before it is cut into jobs.
//
// Jobs cannot win where hardly anything compresses, for the encoder skips
// through that as fast as memory goes, and they lose: the library makes room
// for half of each job's bytes and then grows it, 100 MiB of fresh memory a
// stream, which doubles the CPU time. Streams of 16 MiB of noise at the default
// level, two cores: one worker 1190 to 1690 MB/s, two 550 to 570; with the
// machine busy with other work 570 to 780 against 140 to 200. The other levels
// differ alike, and so does what zstd has packed before (ratio 1.16).
const zstdProbe = 256 << 10

// zstdDense reports whether lz4 saves less than an eighth of head: a trial of
// 0.15 to 0.3 ms that tells packed or encrypted data from all other.
func zstdDense(head []byte) bool {
	var c lz4.Compressor
	n, err := c.CompressBlock(head, make([]byte, len(head)-len(head)/8))
	return n == 0 || err != nil // it did not fit
}

// zstdWriter writes one frame with a checksum.
//
// One frame, not concatenated frames of independent blocks, although those
// are as easy to make in parallel: a stream cut between two frames would read
// as whole, and the blocks lose the context of the ones before. On a pgbench
// cluster with two workers: one frame of overlapping jobs 1259 to 1340 MB/s
// at ratio 17.6 to 17.9, frames of 4 MiB 1405 MB/s at 17.55, and the library's
// older pipeline (concurrency without jobs) 1122 MB/s at 17.90.
type zstdWriter struct {
	w    io.Writer
	o    Options
	head []byte        // with several workers, until enc is chosen
	enc  *zstd.Encoder // nil until then
	state
}

func newZstdWriter(w io.Writer, o Options) (Writer, error) {
	z := &zstdWriter{w: w, o: o}
	if o.Workers > 1 {
		return z, nil
	}
	return z, z.start(1)
}

func (z *zstdWriter) start(workers int) error {
	opts := []zstd.EOption{
		zstd.WithEncoderLevel(z.o.Level.zstd()),
		zstd.WithEncoderConcurrency(workers),
		zstd.WithEncoderCRC(true),
		zstd.WithZeroFrames(true), // an empty stream is a frame too
	}
	if workers > 1 {
		window := zstdJobWindow
		if z.o.Level == LevelBetter || z.o.Level == LevelBest {
			window = zstdJobWindowSlow
		}
		opts = append(opts, zstd.WithConcurrentBlocks(true), zstd.WithWindowSize(window))
	}
	var err error
	if z.enc, err = zstd.NewWriter(z.w, opts...); err != nil {
		return fmt.Errorf("set up zstd: %w", err)
	}
	return nil
}

// choose starts the encoder that suits the stream's first bytes. A stream that
// is no longer than them is none to share out.
func (z *zstdWriter) choose() error {
	workers := z.o.Workers
	if len(z.head) < zstdProbe || zstdDense(z.head) {
		workers = 1
	}
	if z.err = z.start(workers); z.err != nil {
		return z.err
	}
	_, err := z.enc.Write(z.head)
	z.head = nil
	return z.fail(err)
}

func (l Level) zstd() zstd.EncoderLevel {
	switch l {
	case LevelFastest:
		return zstd.SpeedFastest
	case LevelBetter:
		return zstd.SpeedBetterCompression
	case LevelBest:
		return zstd.SpeedBestCompression
	}
	return zstd.SpeedDefault
}

func (z *zstdWriter) Write(p []byte) (int, error) {
	if err := z.writable(); err != nil {
		return 0, err
	}
	n := 0
	if z.enc == nil {
		n = min(len(p), zstdProbe-len(z.head))
		z.head = append(z.head, p[:n]...)
		if len(z.head) < zstdProbe {
			return n, nil
		}
		if err := z.choose(); err != nil {
			return 0, err
		}
	}
	k, err := z.enc.Write(p[n:])
	return n + k, z.fail(err)
}

// fail keeps the first error and ends the encoder's goroutines, which only
// Close and Reset of the library do.
func (z *zstdWriter) fail(err error) error {
	if err != nil {
		z.err = fmt.Errorf("compress zstd: %w", err)
		z.enc.Reset(nil)
	}
	return z.err
}

func (z *zstdWriter) Close() error {
	if z.ended || z.err != nil {
		z.ended = true
		return z.err
	}
	z.ended = true
	if z.enc == nil {
		if err := z.choose(); err != nil {
			return err
		}
	}
	return z.fail(z.enc.Close())
}

func (z *zstdWriter) Abort() {
	if z.abort() && z.enc != nil {
		z.enc.Reset(nil)
	}
}

// zstdReader reads standard frames with or without checksum.
type zstdReader struct {
	src *source
	dec *zstd.Decoder
	err error
}

func newZstdReader(r io.Reader, workers int) (io.ReadCloser, error) {
	src := &source{r: r}
	dec, err := newZstdDecoder(src, workers)
	if err != nil {
		return nil, err
	}
	return &zstdReader{src: src, dec: dec}, nil
}

func newZstdDecoder(r io.Reader, workers int) (*zstd.Decoder, error) {
	dec, err := zstd.NewReader(r,
		zstd.WithDecoderConcurrency(workers),
		zstd.WithDecoderMaxWindow(zstdMaxWindow),
		// The default of 64 GiB also bounds the size a frame's header may
		// tell; the window is the bound on memory.
		zstd.WithDecoderMaxMemory(1<<62),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("set up zstd: %w", err)
	}
	return dec, nil
}

func (z *zstdReader) Read(p []byte) (int, error) {
	if z.err != nil {
		return 0, z.err
	}
	n, err := z.dec.Read(p)
	z.err = z.explain(err)
	return n, z.err
}

// WriteTo hands the decoded blocks to w without a copy; io.Copy finds it.
func (z *zstdReader) WriteTo(w io.Writer) (int64, error) {
	if z.err != nil {
		if z.err == io.EOF {
			return 0, nil
		}
		return 0, z.err
	}
	out := &sink{w: w}
	n, err := z.dec.WriteTo(out)
	if out.err != nil {
		z.err = errReaderClosed
		return n, out.err
	}
	if err == nil {
		err = io.EOF
	}
	if z.err = z.explain(err); z.err == io.EOF {
		return n, nil
	}
	return n, z.err
}

// sink remembers the writer's error, to tell it from the decoder's.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}

func (z *zstdReader) explain(err error) error {
	if err == nil || err == io.EOF && z.src.read > 0 {
		return err
	}
	return z.src.explain(Zstd, err)
}

// Close ends the reader; see NewReader.
func (z *zstdReader) Close() error {
	if z.err == nil {
		z.err = errReaderClosed
	}
	z.dec.Close()
	return nil
}
