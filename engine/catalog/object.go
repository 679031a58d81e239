package catalog

import (
	"strings"

	"github.com/walherd/walherd/engine/pg"
)

// Folder is a top folder of the storage, with the slash.
type Folder string

// The folders. The first two hold backups, in the same layout.
const (
	BaseBackups Folder = "basebackups_005/" // backup-push
	Catchups    Folder = "catchup_005/"     // catchup-push
	WALFolder   Folder = "wal_005/"         // all that is archived
)

// ProbeName is the object that the check of a storage writes and removes; one
// that stays is left over from a check that was cut.
const ProbeName = "wal-g_storage_check"

// BulkSpan is how many segments one object of bulk WAL metadata describes:
// those whose names differ in the last digit only. A map of changed blocks
// covers as many, counted from the beginning of the WAL.
const BulkSpan = 16

// Kind tells what an object is to a cluster's backups.
type Kind int

// The kinds of object. All kinds of WAL that belong to a segment live and die
// with it.
const (
	// Foreign is anything not written by a backup tool under a name we know:
	// it is nobody's to touch.
	Foreign         Kind = iota
	SentinelObject       // basebackups_005/BACKUP_backup_stop_sentinel.json
	MetadataObject       // .../metadata.json
	FilesObject          // .../files_metadata.json
	PartObject           // .../tar_partitions/PART
	SegmentObject        // wal_005/SEG.EXT
	CompanionObject      // what else begins with SEG: partial, backup history, delta, changes, metadata
	BulkObject           // wal_005/SEG without its last digit.json: metadata of BulkSpan segments
	DeltaObject          // wal_005/SEG_delta.EXT: what BulkSpan segments from SEG on change
	HistoryObject        // wal_005/TIMELINE.history.EXT
	ProbeObject          // ProbeName
)

// Object is what an object's name tells.
type Object struct {
	Kind Kind
	// Folder and Backup are set for an object of a backup, Part for a
	// PartObject: the file's name.
	Folder Folder
	Backup pg.BackupName
	Part   string
	// Segment is what a segment and its companions belong to; of a
	// BulkObject, the first one described.
	Segment pg.SegmentName
	// Timeline is that of a HistoryObject or of the segment.
	Timeline pg.Timeline
	// Suffix is what follows the digits in a WAL object's name, with its
	// dot.
	Suffix string
}

// Classify tells what an object is by its name under the storage's prefix.
// Names that are not exactly of a known form are Foreign, even those that hold
// a segment's name somewhere, or that a lenient reader would take.
func Classify(key string) Object {
	switch {
	case key == ProbeName:
		return Object{Kind: ProbeObject}
	case strings.HasPrefix(key, string(WALFolder)):
		return classifyWAL(key[len(WALFolder):])
	case strings.HasPrefix(key, string(BaseBackups)):
		return classifyBackup(BaseBackups, key[len(BaseBackups):])
	case strings.HasPrefix(key, string(Catchups)):
		return classifyBackup(Catchups, key[len(Catchups):])
	}
	return Object{}
}

func classifyBackup(f Folder, rest string) Object {
	name, inside, nested := strings.Cut(rest, "/")
	o := Object{Folder: f}
	if !nested {
		stem, ok := strings.CutSuffix(rest, SentinelSuffix)
		if !ok {
			return Object{}
		}
		name, o.Kind = stem, SentinelObject
	}
	backup, err := pg.ParseBackupName(name)
	if err != nil {
		return Object{}
	}
	o.Backup = backup
	if !nested {
		return o
	}
	switch {
	case inside == "metadata.json":
		o.Kind = MetadataObject
	case inside == "files_metadata.json":
		o.Kind = FilesObject
	default:
		// Whatever lies among the parts is the backup's: restore unpacks it.
		part, ok := strings.CutPrefix(inside, "tar_partitions/")
		if !ok || part == "" || strings.ContainsRune(part, '/') {
			return Object{}
		}
		o.Kind, o.Part = PartObject, part
	}
	return o
}

func classifyWAL(name string) Object {
	if len(name) >= pg.SegmentNameLen {
		if seg, err := pg.ParseSegmentName(name[:pg.SegmentNameLen]); err == nil && seg.Timeline != 0 {
			return classifySegment(seg, name[pg.SegmentNameLen:])
		}
	}
	const bulkLen = pg.SegmentNameLen - 1
	if len(name) == bulkLen+len(".json") && name[bulkLen:] == ".json" {
		if seg, err := pg.ParseSegmentName(name[:bulkLen] + "0"); err == nil && seg.Timeline != 0 {
			return Object{Kind: BulkObject, Segment: seg, Timeline: seg.Timeline, Suffix: ".json"}
		}
	}
	if len(name) >= 8 {
		suffix := name[8:]
		rest, ok := strings.CutPrefix(suffix, ".history")
		if kind, _ := pg.ClassifyWALFile(name[:8] + ".history"); ok && kind == pg.TimelineHist && (isExtension(rest) || rest == ".json") {
			// The name is eight hexadecimal digits, so the segment of that
			// timeline reads.
			if seg, err := pg.ParseSegmentName(name[:8] + "0000000000000000"); err == nil && seg.Timeline != 0 {
				return Object{Kind: HistoryObject, Timeline: seg.Timeline, Suffix: suffix}
			}
		}
	}
	return Object{}
}

func classifySegment(seg pg.SegmentName, suffix string) Object {
	o := Object{Kind: CompanionObject, Segment: seg, Timeline: seg.Timeline, Suffix: suffix}
	if isExtension(suffix) {
		o.Kind = SegmentObject
		return o
	}
	// WAL-G counts SEG.json as the segment itself, and so hides a gap.
	rest := suffix
	if r, ok := strings.CutPrefix(rest, ".partial"); ok {
		rest = r
	} else if r, ok := strings.CutPrefix(rest, "_delta"); ok {
		// Work in progress has "_part" too, in the host's directory; who
		// syncs that directory to the storage has it here.
		rest, _ = strings.CutPrefix(r, "_part")
	} else if r, ok := strings.CutPrefix(rest, "_changes"); ok {
		rest = r // walherd's change map of the segment
	} else if len(rest) > len(".00000028.backup")-1 && rest[0] == '.' {
		const end = len(".00000028.backup")
		if kind, _ := pg.ClassifyWALFile("000000010000000000000001" + rest[:end]); kind != pg.BackupFile {
			return Object{}
		}
		rest = rest[end:]
	}
	if isExtension(rest) || rest == ".json" {
		return o
	}
	return Object{}
}

// isExtension reports whether s is what a compression method adds to a name:
// nothing, a dot alone (a reader's quirk for no compression), or a known
// extension.
func isExtension(s string) bool {
	switch s {
	case "", ".", ".lz4", ".lzma", ".zst", ".br", ".gz", ".lzo":
		return true
	}
	return false
}

// Key is the name of the object under the storage's prefix.
func (id BackupID) Key(o Kind, part string) string {
	base := string(id.Folder) + string(id.Name)
	switch o {
	case SentinelObject:
		return base + SentinelSuffix
	case MetadataObject:
		return base + "/metadata.json"
	case FilesObject:
		return base + "/files_metadata.json"
	}
	return base + "/tar_partitions/" + part
}
