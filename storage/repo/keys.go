package repo

import (
	"fmt"
	"path"
	"strings"

	"github.com/walherd/walherd/engine/pg"
)

// WALFolder holds everything archived: segments, history files, and what
// belongs to them.
const WALFolder = "wal_005/"

// SentinelSuffix ends the name of the object whose existence is the backup.
const SentinelSuffix = "_backup_stop_sentinel.json"

const (
	metadataName      = "/metadata.json"
	filesMetadataName = "/files_metadata.json"
	partsName         = "/tar_partitions/"
)

// Folder is a top folder that holds backups. The layout below is the same in
// each.
type Folder string

// The folders of backups.
const (
	BaseBackups Folder = "basebackups_005/" // backup-push
	Catchups    Folder = "catchup_005/"     // catchup-push
)

// SentinelKey is the name of a backup's sentinel.
func (f Folder) SentinelKey(backup pg.BackupName) string {
	return string(f) + string(backup) + SentinelSuffix
}

// MetadataKey is the name of a backup's metadata.json.
func (f Folder) MetadataKey(backup pg.BackupName) string {
	return string(f) + string(backup) + metadataName
}

// FilesMetadataKey is the name of a backup's files_metadata.json.
func (f Folder) FilesMetadataKey(backup pg.BackupName) string {
	return string(f) + string(backup) + filesMetadataName
}

// PartKey is the name of a backup's part; part includes the extension
// ("part_001.tar.lz4").
func (f Folder) PartKey(backup pg.BackupName, part string) string {
	return f.partsPrefix(backup) + part
}

func (f Folder) partsPrefix(backup pg.BackupName) string {
	return string(f) + string(backup) + partsName
}

// SentinelKey is the name of a base backup's sentinel.
func SentinelKey(backup pg.BackupName) string { return BaseBackups.SentinelKey(backup) }

// MetadataKey is the name of a base backup's metadata.json.
func MetadataKey(backup pg.BackupName) string { return BaseBackups.MetadataKey(backup) }

// FilesMetadataKey is the name of a base backup's files_metadata.json.
func FilesMetadataKey(backup pg.BackupName) string { return BaseBackups.FilesMetadataKey(backup) }

// PartKey is the name of a base backup's part; part includes the extension
// ("part_001.tar.lz4").
func PartKey(backup pg.BackupName, part string) string { return BaseBackups.PartKey(backup, part) }

// WALKey is the name of an archived file; name includes the extension
// ("000000010000000000000003.lz4").
func WALKey(name string) string { return WALFolder + name }

// checkElement refuses a name that would change the key's shape.
func checkElement(what, name string) error {
	if name == "" || strings.ContainsRune(name, '/') || name == "." || name == ".." {
		return fmt.Errorf("invalid %s name %q: want a file name without a slash", what, name)
	}
	return nil
}

// checkPartKey refuses a key that is not PartKey's: restore unpacks whatever
// it finds among the parts, and nothing may slip past the sentinel's order.
func checkPartKey(key string) error {
	for _, f := range []Folder{BaseBackups, Catchups} {
		if rest, ok := strings.CutPrefix(key, string(f)); ok {
			if backup, part, ok := strings.Cut(rest, partsName); ok && checkElement("backup", backup) == nil && checkElement("part", part) == nil {
				return nil
			}
		}
	}
	return fmt.Errorf("put part: %q is not the name of a part (as in %s)", key, path.Join(string(BaseBackups), "base_...", partsName, "part_001.tar.lz4"))
}
