package pgbackrest

import (
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/walherd/walherd/engine/compress"
	"github.com/walherd/walherd/engine/pg"
)

// sha1Len is the length of a SHA-1 in bytes.
const sha1Len = 20

// Manifest is backup.manifest: what one backup restores to, and where it is.
type Manifest struct {
	Label Label
	Type  BackupType
	// Prior is the backup that this one builds on; empty for a full one.
	Prior       Label
	Start, Stop time.Time
	// StartLSN and StopLSN are 0, and ArchiveStart is empty, for a backup
	// that was taken while the server was down (not Online).
	StartLSN, StopLSN pg.LSN
	ArchiveStart      string
	Online            bool
	// Version of PostgreSQL: 9.6, 15.
	Version  string
	SystemID pg.SystemID
	// DataDir is where the data directory was.
	DataDir     string
	Tablespaces []Tablespace
	// Links are the other links of the data directory; what they point to
	// was backed up.
	Links []Link
	// Directories and Files in the order of the document. Of the names,
	// "pg_data" stands for the data directory.
	Directories []Path
	Files       []File
	// DirectoryMode and FileMode are those that most have.
	DirectoryMode, FileMode fs.FileMode

	references []Label
	// blocks tells of files stored in blocks, which NewPlan refuses.
	blocks     bool
	method     compress.Method
	passphrase string
}

// Tablespace is a tablespace of the backed up cluster.
type Tablespace struct {
	// OID in decimal, the name of its link.
	OID string
	// Name in SQL.
	Name string
	// Location is the directory that the link pointed to.
	Location string
}

// Link is a link in the data directory, not of a tablespace.
type Link struct {
	// Name in the manifest: pg_data/pg_wal.
	Name        string
	Destination string
}

// Path is a directory.
type Path struct {
	Name string
	Mode fs.FileMode
}

// File is a file of the cluster.
type File struct {
	// Name in the manifest: pg_data/base/5/1259, pg_tblspc/16397/PG_15...
	Name string
	// Size in bytes, and Stored in the repository.
	Size, Stored int64
	Modified     int64 // in seconds since 1970
	SHA1         [sha1Len]byte
	Mode         fs.FileMode
	// reference is 1 + the index of the backup that has it; 0 is this one.
	reference int32
	// bundle that has it, from Offset; 0 is none, and the file an object of
	// its own.
	bundle int64
	offset int64
}

const (
	dataTarget       = "pg_data"
	tablespaceTarget = "pg_tblspc"
)

// fileJSON is a file in the document. Names are short since there are many.
type fileJSON struct {
	Size      *int64   `json:"size"`
	Stored    *int64   `json:"repo-size"`
	Timestamp *seconds `json:"timestamp"`
	Checksum  string   `json:"checksum"`
	Mode      string   `json:"mode"`
	Reference string   `json:"reference"`
	Bundle    int64    `json:"bni"`
	Offset    int64    `json:"bno"`
	Block     int64    `json:"bi"`
	BlockMap  int64    `json:"bim"`
}

type targetJSON struct {
	Path string `json:"path"`
	Type string `json:"type"`
	OID  string `json:"tablespace-id"`
	Name string `json:"tablespace-name"`
}

// ParseManifest reads a backup.manifest, also of a backup with files stored in
// blocks: it can be listed.
func ParseManifest(r io.Reader) (*Manifest, error) {
	p := manifestParser{m: &Manifest{method: compress.None}, references: map[string]int32{}}
	var err error
	p.m.passphrase, err = parse(r, p.value)
	if err == nil {
		err = p.finish()
	}
	if err != nil {
		return nil, err
	}
	return p.m, nil
}

type manifestParser struct {
	m          *Manifest
	references map[string]int32
	links      []Link
	// plainFiles and plainPaths are the indexes of those that have the
	// default mode, which comes after them.
	plainFiles, plainPaths []int
}

func (p *manifestParser) value(section, key string, value []byte) error {
	switch section {
	case "backup":
		return p.backup(key, value)
	case "backup:db":
		return p.database(key, value)
	case "backup:option":
		return p.option(key, value)
	case "backup:target":
		return p.target(key, value)
	case "target:file":
		return p.file(key, value)
	case "target:path":
		return p.path(key, value)
	case "target:link":
		var l struct {
			Destination string `json:"destination"`
		}
		p.links = append(p.links, Link{Name: key})
		err := decode(value, &l)
		p.links[len(p.links)-1].Destination = l.Destination
		return err
	case "target:file:default":
		return defaultMode(key, value, &p.m.FileMode)
	case "target:path:default":
		return defaultMode(key, value, &p.m.DirectoryMode)
	}
	return nil
}

func (p *manifestParser) backup(key string, value []byte) error {
	var text string
	var at seconds
	switch key {
	case "backup-label":
		return decode(value, &p.m.Label)
	case "backup-prior":
		return decode(value, &p.m.Prior)
	case "backup-type":
		return decode(value, &p.m.Type)
	case "backup-archive-start":
		return decode(value, &p.m.ArchiveStart)
	case "backup-lsn-start", "backup-lsn-stop":
		if err := decode(value, &text); err != nil {
			return err
		}
		l, err := pg.ParseLSN(text)
		if err != nil {
			return corrupt("%s: %w", key, err)
		}
		if key == "backup-lsn-start" {
			p.m.StartLSN = l
		} else {
			p.m.StopLSN = l
		}
	case "backup-timestamp-start":
		err := decode(value, &at)
		p.m.Start = at.time()
		return err
	case "backup-timestamp-stop":
		err := decode(value, &at)
		p.m.Stop = at.time()
		return err
	case "backup-block-incr", "backup-bundle-raw":
		var on bool
		err := decode(value, &on)
		p.m.blocks = p.m.blocks || on
		return err
	}
	return nil
}

// errBlocks is what to do about block incremental backups.
var errBlocks = fmt.Errorf("it is a block incremental backup (repo-block=y), which pgbackrest restore has to restore: %w", ErrUnsupported)

func (p *manifestParser) database(key string, value []byte) error {
	switch key {
	case "db-system-id":
		return decode(value, &p.m.SystemID)
	case "db-version":
		return decode(value, &p.m.Version)
	}
	return nil
}

func (p *manifestParser) option(key string, value []byte) (err error) {
	switch key {
	case "option-online":
		return decode(value, &p.m.Online)
	case "option-compress-type":
		var name string
		if err := decode(value, &name); err != nil {
			return err
		}
		if p.m.method, err = methodOf(name); err != nil {
			return err
		}
	case "option-compress":
		// Before 2.27 there was gzip, or nothing. The type comes behind this
		// in the document where there is one.
		var on bool
		if err := decode(value, &on); err != nil {
			return err
		}
		if on {
			p.m.method = compress.Gzip
		}
	}
	return nil
}

// methodOf is the method of a compress-type.
func methodOf(name string) (compress.Method, error) {
	if name == "none" {
		return compress.None, nil
	}
	m, err := compress.ByExtension(name)
	if err != nil || name == "" {
		return "", fmt.Errorf("compress-type %.20q (want none, gz, lz4, zst or bz2): %w", name, ErrUnsupported)
	}
	return m, nil
}

func (p *manifestParser) target(key string, value []byte) error {
	var t targetJSON
	if err := decode(value, &t); err != nil {
		return err
	}
	switch {
	case key == dataTarget:
		p.m.DataDir = t.Path
	case t.OID != "":
		if key != tablespaceTarget+"/"+t.OID {
			return corrupt("tablespace %.20q is called %.80q", t.OID, key)
		}
		p.m.Tablespaces = append(p.m.Tablespaces, Tablespace{OID: t.OID, Name: t.Name, Location: t.Path})
	}
	return nil
}

func (p *manifestParser) file(name string, value []byte) error {
	var j fileJSON
	if err := decode(value, &j); err != nil {
		return err
	}
	if j.Size == nil || j.Timestamp == nil {
		return corrupt("file %.200q has no size or no time", name)
	}
	p.m.blocks = p.m.blocks || j.Block != 0 || j.BlockMap != 0
	f := File{Name: name, Size: *j.Size, Stored: *j.Size, Modified: int64(*j.Timestamp), bundle: j.Bundle, offset: j.Offset}
	if j.Stored != nil {
		f.Stored = *j.Stored
	}
	if f.Size < 0 || f.Stored < 0 || f.bundle < 0 || f.offset < 0 || f.offset+f.Stored < 0 {
		return corrupt("file %.200q has a negative number", name)
	}
	if f.Size > 0 {
		sum, err := hex.DecodeString(j.Checksum)
		if err != nil || len(sum) != sha1Len {
			return corrupt("file %.200q has no SHA-1 but %.80q", name, j.Checksum)
		}
		f.SHA1 = [sha1Len]byte(sum)
	}
	if j.Reference != "" {
		i, err := p.reference(j.Reference)
		if err != nil {
			return err
		}
		f.reference = i
	}
	if j.Mode == "" {
		p.plainFiles = append(p.plainFiles, len(p.m.Files))
	} else if err := parseMode(j.Mode, &f.Mode); err != nil {
		return err
	}
	p.m.Files = append(p.m.Files, f)
	return nil
}

// reference is 1 + the index of a backup among those referred to.
func (p *manifestParser) reference(name string) (int32, error) {
	if i, ok := p.references[name]; ok {
		return i, nil
	}
	label, err := ParseLabel(name)
	if err != nil {
		return 0, corrupt("%w", err)
	}
	p.m.references = append(p.m.references, label)
	i := int32(len(p.m.references))
	p.references[name] = i
	return i, nil
}

func (p *manifestParser) path(name string, value []byte) error {
	var j struct {
		Mode string `json:"mode"`
	}
	if err := decode(value, &j); err != nil {
		return err
	}
	d := Path{Name: name}
	if j.Mode == "" {
		p.plainPaths = append(p.plainPaths, len(p.m.Directories))
	} else if err := parseMode(j.Mode, &d.Mode); err != nil {
		return err
	}
	p.m.Directories = append(p.m.Directories, d)
	return nil
}

func defaultMode(key string, value []byte, to *fs.FileMode) error {
	var mode string
	if key != "mode" {
		return nil
	}
	if err := decode(value, &mode); err != nil {
		return err
	}
	return parseMode(mode, to)
}

// parseMode reads permissions in octal: 0600.
func parseMode(text string, to *fs.FileMode) error {
	n, err := strconv.ParseUint(text, 8, 32)
	if err != nil || n > 0o7777 {
		return corrupt("%.20q are no permissions", text)
	}
	*to = fs.FileMode(n).Perm()
	return nil
}

// finish checks what must be there and fills in what comes late.
func (p *manifestParser) finish() error {
	m := p.m
	switch {
	case m.Label == "" || m.Type == "":
		return corrupt("it names no backup")
	case m.DataDir == "" || !slices.ContainsFunc(m.Directories, func(d Path) bool { return d.Name == dataTarget }):
		return corrupt("it has no data directory")
	case m.FileMode == 0 && len(p.plainFiles) > 0, m.DirectoryMode == 0 && len(p.plainPaths) > 0:
		return corrupt("it has no default mode")
	}
	for _, i := range p.plainFiles {
		m.Files[i].Mode = m.FileMode
	}
	for _, i := range p.plainPaths {
		m.Directories[i].Mode = m.DirectoryMode
	}
	for _, l := range p.links {
		oid, ok := strings.CutPrefix(l.Name, dataTarget+"/"+tablespaceTarget+"/")
		if !ok || !m.hasTablespace(oid) {
			m.Links = append(m.Links, l)
		}
	}
	return nil
}

func (m *Manifest) hasTablespace(oid string) bool {
	return slices.ContainsFunc(m.Tablespaces, func(t Tablespace) bool { return t.OID == oid })
}

// has is the backup whose folder has the file.
func (m *Manifest) has(f *File) Label {
	if f.reference == 0 {
		return m.Label
	}
	return m.references[f.reference-1]
}
