package compress

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// zstdMaxWindow is the largest window a reader accepts: what the zstd command
// takes without --long or --memory, and all that `zstd --ultra -22` writes.
const zstdMaxWindow = 128 << 20

// With two or more workers the library cuts a frame into jobs of four windows
// and holds workers+3 of them, so the window decides about memory and about
// how evenly a 16 MiB WAL segment spreads. With two workers at the default
// level, windows of 8, 2 and 1 MiB pack a pgbench cluster 17.90, 17.59 and
// 17.58 times, its WAL 9.78, 9.77 and 9.78 times, and the WAL at 631, 891 and
// 854 MB/s. The two slow levels look further back and keep 2 MiB, which costs
// them 0 to 1.5 % against one worker.
const (
	zstdJobWindow     = 1 << 20
	zstdJobWindowSlow = 2 << 20
)

// zstdWriter writes one frame with a checksum.
//
// One frame, not concatenated frames of independent blocks, although those
// are as easy to make in parallel: a stream cut between two frames would read
// as whole, and the blocks lose the context of the ones before. On a pgbench
// cluster with two workers: one frame of overlapping jobs 1259 to 1340 MB/s
// at ratio 17.6 to 17.9, frames of 4 MiB 1405 MB/s at 17.55, and the library's
// older pipeline (concurrency without jobs) 1122 MB/s at 17.90.
type zstdWriter struct {
	enc *zstd.Encoder
	state
}

func newZstdWriter(w io.Writer, o Options) (Writer, error) {
	opts := []zstd.EOption{
		zstd.WithEncoderLevel(o.Level.zstd()),
		zstd.WithEncoderConcurrency(o.Workers),
		zstd.WithEncoderCRC(true),
		zstd.WithZeroFrames(true), // an empty stream is a frame too
	}
	if o.Workers > 1 {
		window := zstdJobWindow
		if o.Level == LevelBetter || o.Level == LevelBest {
			window = zstdJobWindowSlow
		}
		opts = append(opts, zstd.WithConcurrentBlocks(true), zstd.WithWindowSize(window))
	}
	enc, err := zstd.NewWriter(w, opts...)
	if err != nil {
		return nil, fmt.Errorf("set up zstd: %w", err)
	}
	return &zstdWriter{enc: enc}, nil
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
	n, err := z.enc.Write(p)
	return n, z.fail(err)
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
	return z.fail(z.enc.Close())
}

func (z *zstdWriter) Abort() {
	if z.abort() {
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
	dec, err := zstd.NewReader(src,
		zstd.WithDecoderConcurrency(workers),
		zstd.WithDecoderMaxWindow(zstdMaxWindow),
		// The default of 64 GiB also bounds the size a frame's header may
		// tell; the window is the bound on memory.
		zstd.WithDecoderMaxMemory(1<<62),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("set up zstd: %w", err)
	}
	return &zstdReader{src: src, dec: dec}, nil
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
