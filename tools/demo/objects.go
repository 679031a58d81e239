package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/walherd/walherd/engine/pg"
)

// proveObjects reads what is stored with others' programs alone, while the
// server still runs: the backup unpacks to a data directory of this cluster,
// and WAL segments are the server's own, byte for byte. segment is one that
// must be among them.
func (d *demo) proveObjects(segment string) error {
	unpack, ext, err := unpacker(d.opt.compression)
	if err != nil {
		return err
	}
	parts, err := filepath.Glob(filepath.Join(d.storage, "basebackups_005", "base_*", "tar_partitions", "*.tar"+ext))
	if err != nil || len(parts) == 0 {
		return fmt.Errorf("find the backup's parts (*.tar%s) in %s: found %d (%v)", ext, d.storage, len(parts), err)
	}
	pipe := cmp.Or(d.decrypt, "cat") + " < %s | " + unpack
	target := filepath.Join(d.root, "unpacked")
	d.c.Run("mkdir", target)
	for _, part := range parts {
		// Tablespaces stay out: nothing may be written through their links.
		if _, err := d.shell(fmt.Sprintf(pipe+" | tar -xC %s --exclude='pg_tblspc/*'", part, target)); err != nil {
			return fmt.Errorf("unpack %s without walherd: %w", filepath.Base(part), err)
		}
		if d.decrypt == "" {
			continue
		}
		if _, err := d.shell(fmt.Sprintf("%s < %s | tar -t", unpack, part)); err == nil {
			return fmt.Errorf("read %s without its key: it can be read", filepath.Base(part))
		}
	}
	if err := d.checkUnpacked(target); err != nil {
		return err
	}
	d.say("without walherd: "+pipe+" | tar -x", "OBJECT")
	d.say("%d parts of the backup unpack to a data directory of this cluster", len(parts))
	same, err := d.compareSegments(pipe, ext)
	if err != nil {
		return err
	}
	if !same[segment] {
		return fmt.Errorf("compare segments: %s is not stored, or no longer in pg_wal", segment)
	}
	d.say("%d WAL segments are, byte for byte, the server's own (cmp), %s among them", len(same), segment)
	if d.decrypt != "" {
		d.say("without the key none of the parts can be read")
	}
	if err := os.RemoveAll(target); err != nil {
		return fmt.Errorf("remove what was unpacked: %w", err)
	}
	return nil
}

// checkUnpacked holds an unpacked data directory against the running cluster.
func (d *demo) checkUnpacked(dir string) error {
	control, err := d.c.RunErr("pg_controldata", "-D", dir)
	if err != nil {
		return err
	}
	id := d.c.SQL("SELECT system_identifier FROM pg_control_system()")
	if got := controlField(control, "Database system identifier"); got != id {
		return fmt.Errorf("read the unpacked pg_control: system identifier %q, want %s", got, id)
	}
	label, err := os.ReadFile(filepath.Join(dir, "backup_label"))
	if err != nil || !strings.HasPrefix(string(label), "START WAL LOCATION: ") {
		return fmt.Errorf("read the unpacked backup_label: %q, %w", label, cmp.Or(err, errors.New("it has no start")))
	}
	version, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if want := fmt.Sprint(d.c.Major()); err != nil || strings.TrimSpace(string(version)) != want {
		return fmt.Errorf("read the unpacked PG_VERSION: %q, want %s (%v)", version, want, err)
	}
	return nil
}

// controlField is a line of pg_controldata's output, "Name:   value".
func controlField(output, name string) string {
	for line := range strings.Lines(output) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// compareSegments compares every stored segment that the server still has
// under its name. (One that is recycled gets another name.)
func (d *demo) compareSegments(pipe, ext string) (same map[string]bool, err error) {
	objects, err := os.ReadDir(filepath.Join(d.storage, "wal_005"))
	if err != nil {
		return nil, fmt.Errorf("list the stored segments: %w", err)
	}
	same = map[string]bool{}
	for _, o := range objects {
		name, ok := strings.CutSuffix(o.Name(), ext)
		if kind, _ := pg.ClassifyWALFile(name); !ok || kind != pg.SegmentFile {
			continue
		}
		server := filepath.Join(d.c.WALDir(), name)
		if _, err := os.Stat(server); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if _, err := d.shell(fmt.Sprintf(pipe+" | cmp - %s", filepath.Join(d.storage, "wal_005", o.Name()), server)); err != nil {
			return nil, fmt.Errorf("compare segment %s with the server's: %w", name, err)
		}
		same[name] = true
	}
	return same, nil
}
