package e2e

import (
	"compress/gzip"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// receiver is an OTLP collector that keeps the names of spans by trace.
type receiver struct {
	mu     sync.Mutex
	traces map[string][]string
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var body io.Reader = req.Body
	if req.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if body, err = gzip.NewReader(req.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	data, err := io.ReadAll(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var export collector.ExportTraceServiceRequest
	if err := protojson.Unmarshal(data, &export); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range export.ResourceSpans {
		for _, scope := range resource.ScopeSpans {
			for _, span := range scope.Spans {
				// OTLP writes ids in hexadecimal, which protobuf's decoder
				// takes for base64.
				id := base64.StdEncoding.EncodeToString(span.TraceId)
				r.traces[id] = append(r.traces[id], span.Name)
			}
		}
	}
}

// TestOneTracePerBackup: the producer and two worker processes each report to
// the collector, and all of a backup is one trace.
func TestOneTracePerBackup(t *testing.T) {
	t.Parallel()
	got := &receiver{traces: map[string][]string{}}
	server := httptest.NewServer(got)
	t.Cleanup(server.Close)
	f := newFleet(t)
	f.env = append(f.env, "OTEL_EXPORTER_OTLP_ENDPOINT="+server.URL)
	a, _ := f.worker("a")
	b, _ := f.worker("b")
	push, out := f.producer(t.Context(), []string{"WALG_TAR_SIZE_THRESHOLD=5000000"}, "backup-push", f.c.DataDir())
	if err := push.Run(); err != nil {
		t.Fatalf("backup-push: %v\n%s", err, out.String())
	}
	for _, w := range []*exec.Cmd{a, b} {
		if err := w.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(); err != nil { // spans are sent by then
			t.Fatal(err)
		}
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	for _, spans := range got.traces {
		all := strings.Join(spans, ",")
		if !strings.Contains(all, "backup-push") {
			continue
		}
		// Several parts, the control file, the label, the list of files.
		if parts := strings.Count(all, "job part"); parts < 6 {
			t.Errorf("%d part jobs in the trace: %s", parts, all)
		}
		if strings.Count(all, "job commit") != 1 {
			t.Errorf("no commit in the trace: %s", all)
		}
		return
	}
	t.Fatalf("no trace of a backup-push: %v", got.traces)
}
