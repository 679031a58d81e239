package observe

import (
	"expvar"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// DebugOptions say what the debug web server shows.
type DebugOptions struct {
	Address string // host:port; port 0 takes a free one
	Pprof   bool   // profiles, below /debug/pprof/
	Expvar  bool   // counters, at /debug/vars
}

// Debug is the running debug web server.
type Debug struct {
	listener net.Listener
	server   *http.Server
	ended    chan struct{}
}

// StartDebug listens and serves until Close. Without Pprof and Expvar it answers
// 404 to everything, which still tells that the process is there.
func StartDebug(o DebugOptions) (*Debug, error) {
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for the debug web server: %w (HTTP_LISTEN)", err)
	}
	mux := http.NewServeMux()
	if o.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	if o.Expvar {
		mux.Handle("/debug/vars", expvar.Handler())
	}
	d := &Debug{listener: l, server: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}, ended: make(chan struct{})}
	go func() {
		defer close(d.ended)
		_ = d.server.Serve(l) // ends by Close
	}()
	return d, nil
}

// Addr is where it listens.
func (d *Debug) Addr() net.Addr { return d.listener.Addr() }

// Close ends the server and the requests it answers.
func (d *Debug) Close() error {
	err := d.server.Close()
	<-d.ended
	return err
}
