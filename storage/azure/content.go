package azure

import (
	"crypto/md5"
	"hash/crc64"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"github.com/walherd/walherd/storage/pieces"
)

// nvme is the polynomial of Azure's CRC64.
var nvme = crc64.MakeTable(0x9a6c9329ac4bc9b5)

// newPool holds the buffers of all uploads; small ones are of one chunk.
func newPool(size int64, buffers int) *pieces.Pool {
	chunk := min(pieces.MaxChunk, size)
	return pieces.NewPool(pieces.PoolOptions{Chunk: chunk, Keep: int(int64(buffers) * (size + chunk - 1) / chunk)})
}

// sumOf is what the store is to hold the content against.
func sumOf(c *pieces.Content, kind Checksum) blob.TransferValidationType {
	if kind == ChecksumMD5 {
		h := md5.New()
		c.WriteTo(h) // a hash takes all
		return blob.TransferValidationTypeMD5(h.Sum(nil))
	}
	h := crc64.New(nvme)
	c.WriteTo(h)
	return blob.TransferValidationTypeCRC64(h.Sum64())
}
