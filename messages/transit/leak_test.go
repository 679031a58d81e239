package transit_test

import (
	"bytes"
	"io"
	"sync"
	"testing"

	"github.com/walherd/walherd/messages/bustest"
	"github.com/walherd/walherd/messages/topology"
	"github.com/walherd/walherd/messages/transit"
)

func TestRefusedDepositsLeaveNothing(t *testing.T) {
	t.Parallel()
	b := bustest.New(t, topology.Config{MaxWALBytes: 6 << 20})
	q := transit.NewQueue(b, transit.QueueOptions{})
	data := make([]byte, 4<<20)
	for range 5 {
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				ref, err := q.Deposit(t.Context(), transit.DepositAddress{Cluster: bustest.Cluster, Timeline: 1}, int64(len(data)),
					func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
				if err == nil {
					_ = q.Discard(t.Context(), ref)
				}
			})
		}
		all.Wait()
		n, err := b.Depth(t.Context(), topology.StreamWAL)
		if err != nil || n != 0 {
			t.Errorf("%d chunks are left, %v", n, err)
		}
	}
}
