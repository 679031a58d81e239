package gcs_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// kind is what a request is for.
type kind string

const (
	single kind = "single" // an object in one request
	begin  kind = "begin"  // a session's
	chunk  kind = "chunk"  // not the last
	last   kind = "last"   // the last chunk
	ask    kind = "ask"    // how far a session is
	cancel kind = "cancel" // a session
	media  kind = "media"
	stat   kind = "stat"
	list   kind = "list"
	remove kind = "remove"
)

func kindOf(r *http.Request) kind {
	upload := strings.HasPrefix(r.URL.Path, "/upload/")
	q := r.URL.Query()
	rng := r.Header.Get("Content-Range")
	switch {
	case upload && q.Get("uploadType") == "multipart":
		return single
	case upload && r.Method == http.MethodPost:
		return begin
	case upload && r.Method == http.MethodDelete:
		return cancel
	case upload && strings.HasPrefix(rng, "bytes */"):
		return ask
	case upload && strings.HasSuffix(rng, "/*"):
		return chunk
	case upload:
		return last
	case r.Method == http.MethodDelete:
		return remove
	case q.Get("alt") == "media":
		return media
	case strings.HasSuffix(r.URL.Path, "/o"):
		return list
	}
	return stat
}

// fault is what the front does to one request.
type fault string

const (
	pass    fault = ""
	busy    fault = "busy"    // 503 by itself
	slow    fault = "slow"    // 429 with Retry-After
	limited fault = "limited" // 403 rateLimitExceeded
	reset   fault = "reset"   // cuts the connection after half of the request's body
	lose    fault = "lose"    // does it, then cuts the connection
	stall   fault = "stall"   // never answers
	shrink  fault = "shrink"  // keeps half of a chunk and says so
	expire  fault = "expire"  // forgets the session
	cut     fault = "cut"     // cuts the answer's body in its middle
	damage  fault = "damage"  // changes a byte on the way to the reader
	liar    fault = "liar"    // tells another CRC32C than it should
	denied  fault = "denied"  // 403
	unknown fault = "unknown" // 401
	corrupt fault = "corrupt" // changes a byte on the way to the store
)

// script says what happens to the nth request of a kind, counted from 1.
type script func(k kind, nth int) fault

func never(kind, int) fault { return pass }

// first spoils the first n requests of a kind.
func first(n int, of kind, f fault) script {
	return func(k kind, nth int) fault {
		if k == of && nth <= n {
			return f
		}
		return pass
	}
}

// front is a server in front of the emulator that keeps upload sessions by
// Google's manual, which the emulator does not, and that spoils requests as a
// script tells it to.
type front struct {
	*httptest.Server
	script  script
	back    string
	client  *http.Client
	forward *httputil.ReverseProxy
	closing chan struct{}

	mu       sync.Mutex
	counts   map[kind]int
	sessions map[string]*upload
	made     int
	cancels  int
	headers  []http.Header // of all requests for objects
	queries  []url.Values
}

// upload is a session.
type upload struct {
	query    url.Values
	resource map[string]any
	data     []byte
	done     []byte // the answer that made the object
}

func newFront(t testing.TB, backend string, tls bool, s script) *front {
	t.Helper()
	target, err := url.Parse("http://" + backend)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	f := &front{
		script: s, back: target.String(), client: &http.Client{Transport: transport}, closing: make(chan struct{}),
		counts: map[kind]int{}, sessions: map[string]*upload{},
	}
	f.forward = &httputil.ReverseProxy{
		Transport: transport, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = target.Host
		},
		ModifyResponse: func(res *http.Response) error {
			if res.Header.Get("X-Goog-Generation") != "" {
				res.Header.Set("X-Goog-Metageneration", "1")
			}
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	if tls {
		f.StartTLS()
	} else {
		f.Start()
	}
	t.Cleanup(func() {
		close(f.closing)
		f.CloseClientConnections()
		f.Close()
		transport.CloseIdleConnections()
	})
	return f
}

// seen is how many requests of a kind came.
func (f *front) seen(k kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[k]
}

// open is how many sessions are neither finished nor cancelled.
func (f *front) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, u := range f.sessions {
		if u.done == nil {
			n++
		}
	}
	return n
}

func refuse(w http.ResponseWriter, status int, reason string) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"code":%d,"message":"made by the test","errors":[{"reason":%q,"domain":"global"}]}}`, status, reason)
}

func (f *front) serve(w http.ResponseWriter, r *http.Request) {
	k := kindOf(r)
	f.mu.Lock()
	f.counts[k]++
	nth := f.counts[k]
	if k != list {
		f.headers = append(f.headers, r.Header.Clone())
	}
	f.queries = append(f.queries, r.URL.Query())
	f.mu.Unlock()
	what := f.script(k, nth)
	switch what {
	case busy:
		refuse(w, http.StatusServiceUnavailable, "backendError")
	case slow:
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusTooManyRequests, "rateLimitExceeded")
	case limited:
		refuse(w, http.StatusForbidden, "rateLimitExceeded")
	case denied:
		refuse(w, http.StatusForbidden, "forbidden")
	case unknown:
		refuse(w, http.StatusUnauthorized, "authError")
	case stall:
		io.Copy(io.Discard, r.Body)
		select {
		case <-f.closing:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case lose:
		f.handle(k, what, httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	default:
		f.handle(k, what, w, r)
	}
}

func (f *front) handle(k kind, what fault, w http.ResponseWriter, r *http.Request) {
	switch k {
	case begin:
		if what == reset {
			panic(http.ErrAbortHandler)
		}
		f.begin(w, r)
	case chunk, last, ask:
		f.push(k, what, w, r)
	case cancel:
		f.mu.Lock()
		f.cancels++
		delete(f.sessions, r.URL.Query().Get("upload_id"))
		f.mu.Unlock()
		w.WriteHeader(499)
	case single:
		if what == reset {
			io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			panic(http.ErrAbortHandler)
		}
		if what != corrupt && what != liar {
			f.forward.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		if what == corrupt {
			body[len(body)-100] ^= 1
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		rec := httptest.NewRecorder()
		f.forward.ServeHTTP(rec, r)
		f.answer(w, rec.Code, lie(rec.Body.Bytes(), what))
	case media:
		f.read(what, w, r)
	default:
		if what == reset || what == cut {
			panic(http.ErrAbortHandler)
		}
		f.forward.ServeHTTP(w, r)
	}
}

func (f *front) answer(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	w.Write(body)
}

// lie changes the CRC32C of an object resource.
func lie(resource []byte, what fault) []byte {
	var o map[string]any
	if what != liar || json.Unmarshal(resource, &o) != nil {
		return resource
	}
	o["crc32c"] = "AAAAAA=="
	resource, _ = json.Marshal(o)
	return resource
}

func (f *front) read(what fault, w http.ResponseWriter, r *http.Request) {
	if what == reset {
		panic(http.ErrAbortHandler)
	}
	rec := httptest.NewRecorder()
	f.forward.ServeHTTP(rec, r)
	body := rec.Body.Bytes()
	maps.Copy(w.Header(), rec.Header())
	if what == damage {
		body[len(body)/2] ^= 1
	}
	w.WriteHeader(rec.Code)
	if what == cut {
		w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	w.Write(body)
}

func (f *front) begin(w http.ResponseWriter, r *http.Request) {
	u := &upload{query: r.URL.Query()}
	if err := json.NewDecoder(r.Body).Decode(&u.resource); err != nil {
		refuse(w, http.StatusBadRequest, "invalid")
		return
	}
	res, err := f.client.Get(f.back + strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/upload"), "/o"))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		refuse(w, http.StatusNotFound, "notFound")
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made++
	id := strconv.Itoa(f.made)
	f.sessions[id] = u
	w.Header().Set("Location", f.URL+r.URL.Path+"?uploadType=resumable&upload_id="+id)
}

// keep is what the store keeps of a chunk that broke off.
const keep = 256 << 10

func (f *front) push(k kind, what fault, w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	id := r.URL.Query().Get("upload_id")
	u := f.sessions[id]
	if what == expire {
		delete(f.sessions, id)
		u = nil
	}
	f.mu.Unlock()
	if u == nil {
		refuse(w, http.StatusNotFound, "notFound")
		return
	}
	if u.done != nil {
		f.answer(w, http.StatusOK, u.done)
		return
	}
	// One request at a time speaks to a session, unless the client is wrong.
	place, total, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Content-Range"), "bytes "), "/")
	if k != ask {
		var from, to int
		if _, err := fmt.Sscanf(place, "%d-%d", &from, &to); err != nil || from > len(u.data) || int64(to-from+1) != r.ContentLength ||
			k == chunk && (to+1-from)%keep != 0 {
			refuse(w, http.StatusBadRequest, "invalid")
			return
		}
		u.data = u.data[:from]
		body := io.Reader(r.Body)
		if what == reset || what == shrink {
			body = io.LimitReader(r.Body, max(r.ContentLength/2, 1)/keep*keep)
		}
		data, err := io.ReadAll(body)
		if what == corrupt && len(data) > 0 {
			data[len(data)/2] ^= 1
		}
		if err != nil {
			data = data[:len(data)/keep*keep]
		}
		u.data = append(u.data, data...)
		if what == shrink {
			io.Copy(io.Discard, r.Body)
		}
		if what == reset {
			panic(http.ErrAbortHandler)
		}
	}
	if total == strconv.Itoa(len(u.data)) {
		f.finish(u, what, w, r)
		return
	}
	if len(u.data) > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(u.data)-1))
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

// finish makes the object of a session.
func (f *front) finish(u *upload, what fault, w http.ResponseWriter, r *http.Request) {
	sum := crc32.Checksum(u.data, crc32.MakeTable(crc32.Castagnoli))
	if told := r.Header.Get("X-Goog-Hash"); told != "crc32c="+base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum)) && what != liar {
		refuse(w, http.StatusBadRequest, "invalid")
		return
	}
	resource, _ := json.Marshal(u.resource)
	var body bytes.Buffer
	fmt.Fprintf(&body, "--xyz\r\nContent-Type: application/json\r\n\r\n%s\r\n--xyz\r\nContent-Type: application/octet-stream\r\n\r\n", resource)
	body.Write(u.data)
	body.WriteString("\r\n--xyz--\r\n")
	query := url.Values{"uploadType": {"multipart"}}
	if v := u.query.Get("ifGenerationMatch"); v != "" {
		query.Set("ifGenerationMatch", v)
	}
	res, err := f.client.Post(f.back+r.URL.Path+"?"+query.Encode(), "multipart/related; boundary=xyz", &body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if res.StatusCode == http.StatusOK {
		answer = lie(answer, what)
		u.done, u.data = answer, nil
	}
	f.answer(w, res.StatusCode, answer)
}
