package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/walherd/walherd/engine/compress"
)

func TestReadBench(t *testing.T) {
	t.Parallel()
	const text = `goos: linux
BenchmarkStage/lz4/encode/ours         	      22	  11644193 ns/op	1440.82 MB/s	      1431 MB/core-s
BenchmarkStage/aes-256/ours-8 	 3	 1 ns/op	 2.5e+03 MB/core-s	 0 B/op
BenchmarkOther 	 3	 1 ns/op
PASS
`
	got, err := readBench(strings.NewReader(text), "MB/core-s")
	if err != nil || len(got) != 2 || got["Stage/lz4/encode/ours"] != 1431 || got["Stage/aes-256/ours"] != 2500 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"PASS\n", "BenchmarkStage 1 x MB/core-s\n"} {
		if got, err := readBench(strings.NewReader(bad), "MB/core-s"); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

func TestReportCodecs(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	// The second round was slow for both: the ratio is not moved by it.
	err := reportCodecs(&out, 2, map[string][]float64{
		"Stage/lz4/encode/ours": {100, 10}, "Stage/lz4/encode/library": {200, 20},
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "| lz4 | encode | 55 (10-100) | 110 (20-200) | 0.50 (0.50-0.50) |"; !strings.Contains(out.String(), want) {
		t.Errorf("no %q in\n%s", want, out.String())
	}
	for _, bad := range []map[string][]float64{{}, {"Stage/lz4/encode/ours": {1}}, {"Stage/lz4/encode/library": {1}}} {
		if err := reportCodecs(io.Discard, 1, bad); err == nil {
			t.Errorf("%v passes", bad)
		}
	}
}

func TestPipelineBound(t *testing.T) {
	t.Parallel()
	s := pipelineSample{
		source: cost{time.Second, time.Second}, compress: cost{3 * time.Second, 6 * time.Second},
		put: cost{2 * time.Second, 3 * time.Second}, whole: cost{6 * time.Second, 11 * time.Second},
	}
	// Ten seconds of processor time on two processors; on ten the slowest
	// stage.
	if got := s.bound(2); got != 5*time.Second {
		t.Errorf("on two processors %v", got)
	}
	if got := s.bound(10); got != 3*time.Second {
		t.Errorf("on ten processors %v", got)
	}
	var out bytes.Buffer
	reportPipeline(&out, 1, 300e6, []pipelineRow{{what: combo{method: compress.LZ4, times: 2}, line: "loopback", samples: []pipelineSample{s}}})
	for _, want := range []string{"| lz4 | loopback | 600 | 200 | - | 300 |", "| 100 (100-100) | 0.50 (0.50-0.50) |", "| 1.10 (1.10-1.10) |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestSpan(t *testing.T) {
	t.Parallel()
	p := &pipe{corpus: []byte("abcdefgh")}
	var all []byte
	for _, s := range p.parts(combo{times: 3}) {
		for s.size > 0 {
			all = append(all, s.next(5)...)
		}
	}
	if got, want := string(all), strings.Repeat("abcdefgh", 3); got != want {
		t.Errorf("parts are %q, want %q", got, want)
	}
}

func TestProcessCPU(t *testing.T) {
	t.Parallel()
	if _, err := processCPU(os.Getpid()); err != nil {
		t.Error(err)
	}
	if got, err := processCPU(0); err == nil {
		t.Errorf("no process took %v", got)
	}
}

func TestSample(t *testing.T) {
	t.Parallel()
	const piece = 1 << 20
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	var data []byte
	for i := range 8 {
		data = append(data, bytes.Repeat([]byte{byte(i)}, piece)...)
	}
	if err := os.WriteFile(from, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeSample(to, from, 4*piece); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 4*piece || got[0] != 0 || got[piece] != 2 || got[2*piece] != 4 || got[3*piece] != 6 {
		t.Errorf("%d bytes", len(got))
	}
}

// TestLinkCarries shows that the slow network changes nothing it carries, and
// ends with its connections open.
func TestLinkCarries(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body) // the client sees what is missing
	}))
	defer server.Close()
	l, err := newLink(strings.TrimPrefix(server.URL, "http://"), 1e9)
	if err != nil {
		t.Fatal(err)
	}
	idle, err := net.Dial("tcp", l.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	want := bytes.Repeat([]byte("walherd"), linkPiece/3)
	res, err := http.Post("http://"+l.addr(), "", bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes: %v", len(got), len(want), err)
	}
	l.close()
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives its link")
	}
}

func TestCounter(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	c, err := newCounter(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 2 {
		res, err := http.Get(c.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	res, err := http.Post(c.URL, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got := c.take(); got != "3 (2 GET, 1 POST)" {
		t.Errorf("counted %s", got)
	}
	if got := c.take(); got != "0 ()" {
		t.Errorf("counted %s after that", got)
	}
}
