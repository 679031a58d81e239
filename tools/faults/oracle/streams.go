package oracle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Stream is what a server's monitoring says of one stream.
type Stream struct {
	Messages uint64
	Bytes    uint64
	First    uint64
	Last     uint64
}

// Streams asks nats-servers' monitoring ports (host:port) for the streams; of
// several answers for one stream, its leader's counts.
func Streams(ctx context.Context, monitors []string) (map[string]Stream, error) {
	out, led := map[string]Stream{}, map[string]bool{}
	var errs []error
	for _, m := range monitors {
		got, err := jsz(ctx, m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, a := range got.Accounts {
			for _, s := range a.Streams {
				leads := s.Cluster == nil || s.Cluster.Leader == got.Server.Name || len(monitors) == 1
				if _, ok := out[s.Name]; ok && (led[s.Name] || !leads) {
					continue
				}
				led[s.Name] = leads
				out[s.Name] = Stream{Messages: s.State.Messages, Bytes: s.State.Bytes, First: s.State.First, Last: s.State.Last}
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(append(errs, errors.New("no server tells of any stream"))...)
	}
	return out, nil
}

// Deliveries is how often a consumer has handed a message out; of several
// servers' answers the highest, since only its leader counts at once.
func Deliveries(ctx context.Context, monitors []string, stream, consumer string) (n uint64, err error) {
	found := false
	for _, m := range monitors {
		got, merr := jsz(ctx, m)
		err = errors.Join(err, merr)
		for _, a := range got.Accounts {
			for _, s := range a.Streams {
				for _, c := range s.Consumers {
					if s.Name == stream && c.Name == consumer {
						n, found = max(n, c.Delivered.Deliveries), true
					}
				}
			}
		}
	}
	if !found {
		return 0, errors.Join(err, fmt.Errorf("no server tells of consumer %s of %s", consumer, stream))
	}
	return n, nil
}

type jszAnswer struct {
	Server struct {
		Name string
	}
	Accounts []struct {
		Streams []struct {
			Name    string `json:"name"`
			Cluster *struct {
				Leader string `json:"leader"`
			} `json:"cluster"`
			State struct {
				Messages uint64 `json:"messages"`
				Bytes    uint64 `json:"bytes"`
				First    uint64 `json:"first_seq"`
				Last     uint64 `json:"last_seq"`
			} `json:"state"`
			Consumers []struct {
				Name      string `json:"name"`
				Delivered struct {
					Deliveries uint64 `json:"consumer_seq"`
				} `json:"delivered"`
			} `json:"consumer_detail"`
		} `json:"stream_detail"`
	} `json:"account_details"`
}

func jsz(ctx context.Context, monitor string) (out jszAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for path, into := range map[string]any{"/varz": &struct {
		Name *string `json:"server_name"`
	}{&out.Server.Name}, "/jsz?accounts=true&streams=true&consumers=true": &out} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+monitor+path, nil)
		if err != nil {
			return out, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return out, err
		}
		err = json.NewDecoder(res.Body).Decode(into)
		res.Body.Close()
		if err != nil {
			return out, fmt.Errorf("read %s of %s: %w", path, monitor, err)
		}
	}
	return out, nil
}

// Healthy tells whether a server says it is well, its streams caught up.
func Healthy(ctx context.Context, monitor string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+monitor+"/healthz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}
