package manifest

import "time"

// File is what files_metadata.json says of one entry of the data directory.
// Its name is the entry's name in the tar, letter for letter.
type File struct {
	// IsIncremented: the tar holds an increment of the file.
	IsIncremented bool `json:"IsIncremented"`
	// IsSkipped: the tars do not hold the file, the parent backup does. Never
	// together with IsIncremented.
	IsSkipped bool `json:"IsSkipped"`
	// MTime is the modification time the walk saw, to the nanosecond. The
	// next increment skips a file whose time is the same instant.
	MTime time.Time `json:"MTime"`
	// CorruptBlocks is nil when no page failed its check.
	CorruptBlocks *CorruptBlocks `json:"CorruptBlocks,omitempty"`
	// UpdatesCount is the tuples written to the file's relation, filled in
	// by the rating composer only.
	UpdatesCount uint64 `json:"UpdatesCount"`
}

// CorruptBlocks counts the pages of a file that failed their check.
type CorruptBlocks struct {
	Count int `json:"CorruptBlocksCount"`
	// Some are the first of the bad block numbers, or all of them if the
	// backup was told to store all.
	Some []uint32 `json:"SomeCorruptBlocks"`
}

// Table is one relation with storage, or a partitioned table.
type Table struct {
	OID uint32 `json:"oid"`
	// RelFileNode names the files; 0 for a partitioned table.
	RelFileNode uint32 `json:"relfilenode"`
	// Owner is the OID of the table that an index, a TOAST table or a sequence
	// belongs to; 0 if none, or if WAL-G took the backup: the member is our own,
	// and passed over by its reader.
	Owner uint32 `json:"owner,omitempty"`
	// Subtables are all descendants by inheritance or partition, whatever
	// their depth, by schema.relation.
	Subtables map[string]Table `json:"subtables,omitempty"`
}

// Members of files_metadata.json, in the order in which they are written.
const (
	filesKey       = "Files"
	tarFileSetsKey = "TarFileSets"
	databasesKey   = "DatabasesByNames"
	oidKey         = "oid"
	tablesKey      = "tables_new"
)
