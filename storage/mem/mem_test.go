package mem_test

import (
	"testing"
	"time"

	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/mem"
	"github.com/walherd/walherd/storage/storagetest"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	storagetest.Run(t, func(*testing.T) storage.Bucket { return mem.New() })
}

func TestNewAt(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 16, 18, 47, 0, time.UTC)
	b := mem.NewAt(func() time.Time { return at })
	if info := storagetest.MustPut(t, b, "x", nil); !info.Modified.Equal(at) {
		t.Errorf("Modified is %v, want the clock's %v", info.Modified, at)
	}
}
