package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/walherd/walherd/messages"
	"github.com/walherd/walherd/storage"
	"github.com/walherd/walherd/storage/repo"
)

// fileMetadata is what the JSON object of an archived file tells, in WAL-G's
// form: an object keyed by the file's name.
type fileMetadata struct {
	Created time.Time `json:"created_time"`
	DateFmt string    `json:"date_fmt"` // always dateFmt, whatever the time's form
}

const dateFmt = "%Y-%m-%dT%H:%M:%S.%fZ"

// metadataMax is far more than a document of 16 files needs.
const metadataMax = 64 << 10

// putMetadata writes the JSON object of a stored file, if the job asks for it.
//
// A file's own object always comes first. With WALMetadataBulk the 16 of a group
// are then gathered into one when the file that ends the group is stored, and
// only what the gathered one holds is removed: whichever workers store the
// files, in whatever order, no entry is ever lost. What is stored after the last
// of its group keeps its own object.
func putMetadata(ctx context.Context, where *repo.Repo, aj messages.ArchiveJob) error {
	if aj.Metadata == "" {
		return nil
	}
	entry, err := json.Marshal(map[string]fileMetadata{aj.Name: {aj.Created.UTC(), dateFmt}})
	if err == nil {
		_, err = where.PutWAL(ctx, aj.Name+".json", bytes.NewReader(entry), storage.PutOptions{})
	}
	if err == nil && aj.Metadata == messages.WALMetadataBulk && strings.HasSuffix(aj.Name, "F") {
		err = gatherMetadata(ctx, where, strings.TrimSuffix(aj.Name, "F"))
	}
	if err != nil {
		return fmt.Errorf("store metadata of WAL file %s: %w", aj.Name, err)
	}
	return nil
}

// gatherMetadata makes group.json of the objects group0.json to groupF.json, and
// of what it holds already: a second try finds some gathered. It is read last:
// what another worker, with the same job, gathers meanwhile is gone from its own
// object only when group.json has it.
func gatherMetadata(ctx context.Context, where *repo.Repo, group string) error {
	all := map[string]json.RawMessage{}
	var gathered []string
	for _, last := range append(strings.Split("0123456789ABCDEF", ""), "") {
		key := repo.WALKey(group + last + ".json")
		one, err := readMetadata(ctx, where, key)
		if errors.Is(err, storage.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for name, entry := range one {
			if _, newer := all[name]; !newer {
				all[name] = entry
			}
		}
		if last != "" {
			gathered = append(gathered, key)
		}
	}
	document, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if _, err := where.PutWAL(ctx, group+".json", bytes.NewReader(document), storage.PutOptions{}); err != nil {
		return err
	}
	return where.Bucket().Delete(ctx, gathered...)
}

func readMetadata(ctx context.Context, where *repo.Repo, key string) (map[string]json.RawMessage, error) {
	body, err := where.OpenObject(ctx, key, storage.Range{})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, metadataMax))
	if err != nil {
		return nil, err
	}
	one := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &one); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", key, err, storage.ErrPermanent)
	}
	return one, nil
}
