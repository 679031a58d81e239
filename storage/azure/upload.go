package azure

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"github.com/walherd/walherd/storage/pieces"
)

// blockPlan tells how long each block of an upload is.
func blockPlan(base, largest int64) pieces.Plan {
	return pieces.NewPlan(pieces.PlanOptions{
		Base: base, Count: maxBlocks, Largest: largest, Object: maxObject, Name: "blocks", Setting: "AZURE_BUFFER_SIZE",
	})
}

// upload is the blocks of one Put.
type upload struct {
	*put
	id     [blockID]byte // but for the block's number at its end
	blocks atomic.Int64  // begun
}

// blockID is how many bytes name a block: 64, since all uncommitted blocks of
// a blob must have names of the same length, and this is what the SDK's own
// uploads use, such as WAL-G's, which may have left some.
const blockID = 64

func newUpload(p *put) *upload {
	u := &upload{put: p}
	// The blocks of two Puts of one name lie in the same place.
	copy(u.id[:blockID-8], p.mark)
	return u
}

// blockID is the name of block n, counted from 1.
func (u *upload) blockID(n int) string {
	id := u.id
	binary.BigEndian.PutUint64(id[blockID-8:], uint64(n))
	return base64.StdEncoding.EncodeToString(id[:])
}

// ids are the names of all blocks, in order.
func (u *upload) ids() []string {
	ids := make([]string, u.blocks.Load())
	for i := range ids {
		ids[i] = u.blockID(i + 1)
	}
	return ids
}

// run uploads first and the rest of src, and waits for every block.
func (u *upload) run(ctx context.Context, first *pieces.Content, src *pieces.Source) error {
	b := u.b
	q := pieces.Queue{Pool: b.pool, Budget: b.budget, Plan: b.blocks, Most: b.opt.MaxBuffers, Send: u.block, Fail: u.fails}
	return q.Run(ctx, first, src)
}

func (u *upload) block(ctx context.Context, n int, c *pieces.Content) error {
	u.blocks.Add(1)
	body := c.Reader(0, nil)
	defer body.Close()
	_, err := u.client.StageBlock((&call{body: c}).with(ctx, u.b), u.blockID(n), body, &blockblob.StageBlockOptions{
		TransactionalValidation: sumOf(c, u.b.opt.Checksum),
	})
	if err != nil {
		return u.b.explain(ctx, fmt.Sprintf("upload block %d of", n), u.key, err)
	}
	return nil
}
