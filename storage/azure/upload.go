package azure

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"github.com/walherd/walherd/storage"
)

// blockPlan tells how long each block of an upload of unknown length is. The
// first tenth of the blocks has the base size, so that an ordinary object
// costs little memory; then they grow by the same step each, just enough for
// an object of maxObject bytes.
type blockPlan struct {
	base    int64
	largest int64
	step    int64
}

func newBlockPlan(base, largest int64) blockPlan {
	p := blockPlan{base: base, largest: largest}
	if base >= maxObject/maxBlocks+1 {
		return p
	}
	// maxObject <= base*maxBlocks + step*(1+2+...+growing)
	const growing = int64(maxBlocks - maxBlocks/10)
	p.step = (maxObject-base*maxBlocks)/(growing*(growing+1)/2) + 1
	return p
}

// size of block n, counted from 1, in bytes.
func (p blockPlan) size(n int) int64 {
	grown := int64(n - maxBlocks/10)
	if grown <= 0 {
		return p.base
	}
	return min(p.base+grown*p.step, p.largest)
}

// check refuses the block behind the last one.
func (p blockPlan) check(n int) error {
	if n <= maxBlocks {
		return nil
	}
	return fmt.Errorf("%w: the object is larger than %d blocks from %d bytes on hold: split it, or raise AZURE_BUFFER_SIZE",
		storage.ErrPermanent, maxBlocks, p.base)
}

// upload is a queue of blocks under way and the buffers they use. One
// goroutine drives it.
//
// The first buffer is the Put's own. More are taken while the Bucket's budget
// has room, never waited for: whoever waits for the budget waits for others,
// whose readers may wait for him. Without room the upload goes on with the
// buffers it has, as they come back.
type upload struct {
	*put
	id     [blockID]byte // but for the block's number at its end
	blocks int
	done   chan sent // a block that was sent, or failed
	flying int       // blocks under way
}

// blockID is how many bytes name a block: 64, since all uncommitted blocks of
// a blob must have names of the same length, and this is what the SDK's own
// uploads use, such as WAL-G's, which may have left some.
const blockID = 64

type sent struct {
	content *content
	err     error
}

func newUpload(p *put) *upload {
	u := &upload{put: p, done: make(chan sent, p.b.opt.MaxBuffers)}
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
	ids := make([]string, u.blocks)
	for i := range ids {
		ids[i] = u.blockID(i + 1)
	}
	return ids
}

// run uploads first and the rest of src, and waits for every block.
func (u *upload) run(ctx context.Context, first *content, src *source) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := u.send(ctx, first, src)
	for u.flying > 0 {
		if err != nil {
			cancel()
		}
		c, failed := u.land(first)
		if failed == nil {
			u.drop(c, first)
		} else if err == nil {
			err = failed
		}
	}
	return err
}

// send cuts src into blocks and starts their uploads; it returns with some
// under way.
func (u *upload) send(ctx context.Context, first *content, src *source) error {
	c, more := first, true
	for n := 1; ; n++ {
		if n > 1 {
			var err error
			if c, err = u.buffer(n, first); err != nil {
				return err
			}
			if more, err = c.fill(src, u.b.blocks.size(n)); err != nil {
				u.drop(c, first)
				return u.readError(err)
			}
			if ctx.Err() != nil {
				u.drop(c, first)
				return u.b.explain(ctx, "put", u.key, ctx.Err())
			}
		}
		u.flying++
		u.blocks = n
		go func(c *content) { u.done <- u.block(ctx, n, c) }(c)
		if !more {
			return nil
		}
	}
}

// buffer is an empty content for block n.
func (u *upload) buffer(n int, first *content) (*content, error) {
	if err := u.b.blocks.check(n); err != nil {
		return nil, fmt.Errorf("put %s: %w", u.b.where(u.key), err)
	}
	size := u.b.blocks.size(n)
	for {
		// What has come back is used before more is taken, unless nothing
		// has.
		if len(u.done) == 0 && u.flying < u.b.opt.MaxBuffers && u.b.budget.TryAcquire(size) {
			return &content{pool: &u.b.pool, credit: size}, nil
		}
		c, err := u.land(first)
		if err != nil {
			return nil, err
		}
		// Later blocks are larger: a buffer on credit grows if there is more.
		if c == first || c.credit >= size || u.grow(c, size) {
			return c, nil
		}
		u.drop(c, first)
	}
}

func (u *upload) grow(c *content, size int64) bool {
	if !u.b.budget.TryAcquire(size - c.credit) {
		return false
	}
	c.credit = size
	return true
}

// land waits for a block under way and takes its buffer back, empty. After a
// failure the buffer is given up.
func (u *upload) land(first *content) (*content, error) {
	s := <-u.done
	u.flying--
	if s.err != nil {
		u.drop(s.content, first)
		return nil, s.err
	}
	s.content.size = 0
	return s.content, nil
}

// drop gives a buffer back. The first one stays the Put's.
func (u *upload) drop(c, first *content) {
	if c == first {
		return
	}
	c.release()
	u.b.budget.Release(c.credit)
}

func (u *upload) block(ctx context.Context, n int, c *content) sent {
	body := c.reader()
	defer body.Close()
	_, err := u.client.StageBlock((&call{body: c}).with(ctx, u.b), u.blockID(n), body, &blockblob.StageBlockOptions{
		TransactionalValidation: c.sum(u.b.opt.Checksum),
	})
	if err != nil {
		err = u.b.explain(ctx, fmt.Sprintf("upload block %d of", n), u.key, err)
	}
	return sent{content: c, err: err}
}
