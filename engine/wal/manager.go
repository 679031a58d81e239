package wal

import "fmt"

// Manager is the number of the resource manager a record belongs to: RmgrId,
// the order of src/include/access/rmgrlist.h, the same in 13 to 18.
type Manager uint8

// The resource managers of PostgreSQL itself.
const (
	XLog Manager = iota
	Transaction
	Storage
	CLog
	Database
	Tablespace
	MultiXact
	RelMap
	Standby
	Heap2
	Heap
	Btree
	Hash
	Gin
	Gist
	Sequence
	SPGist
	BRIN
	CommitTs
	ReplicationOrigin
	Generic
	LogicalMessage
	numManagers = iota
)

// firstCustom is where the numbers of extensions begin (PostgreSQL 15 and
// later; src/include/access/rmgr.h).
const firstCustom Manager = 128

// String is the name pg_waldump gives it.
func (m Manager) String() string {
	if int(m) < numManagers {
		return [numManagers]string{
			"XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby",
			"Heap2", "Heap", "Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs",
			"ReplicationOrigin", "Generic", "LogicalMessage",
		}[m]
	}
	if m >= firstCustom {
		return fmt.Sprintf("custom%03d", uint8(m))
	}
	return fmt.Sprintf("rmgr%d", uint8(m))
}

// known reports whether a server of the given major version writes it.
func (m Manager) known(major int) bool {
	return int(m) < numManagers || m >= firstCustom && major >= 15
}
