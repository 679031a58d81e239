package basebackup

import (
	"errors"
	"fmt"
	"strings"

	"github.com/walherd/walherd/engine/telemetry"
	"github.com/walherd/walherd/producer/pgconn"
)

// notFinalized leaves a backup that the server did not end: its parts stay,
// and nothing makes them visible. Of a standby's backup, which a promotion
// spoils, it stores and says all that a person needs who wants to finalize it
// by hand and understands the risk; the server itself tells nothing any more.
func (b *backup) notFinalized(stop pgconn.Stop, err error) error {
	if b.start.InRecovery {
		stop = b.remember(stop)
	}
	said := []any{
		telemetry.KeyBackup, b.name, "start_lsn", b.start.LSN, "timeline", b.start.Timeline, "stop_lsn", stop.LSN,
		"uncompressed", b.uncompressed, "compressed", b.compressed, "backup_label", stop.Label, "tablespace_map", stop.TablespaceMap,
	}
	if !b.start.InRecovery {
		b.Logger.Warn("the uploaded parts are kept but the backup is not finalized", said...)
		return fmt.Errorf("backup %s was uploaded and not finalized: %w", b.name, err)
	}
	if serr := b.storeRest(stop); serr != nil {
		b.Logger.Warn("the backup's label and list of files could not be stored", telemetry.KeyError, serr)
	}
	s := b.sentinel(stop)
	sentinel, serr := s.Encode()
	metadata, merr := s.Metadata().Encode()
	if derr := errors.Join(serr, merr); derr != nil {
		b.Logger.Warn("the documents of the backup", telemetry.KeyError, derr)
	}
	b.Logger.Warn("the uploaded parts are kept but the backup is not finalized. Who knows that all WAL from start_lsn to stop_lsn is archived "+
		"can finalize it: put metadata.json and then the sentinel into the storage, with the texts given here, and try a restore",
		append(said, "sentinel", string(sentinel), "metadata", string(metadata))...)
	return fmt.Errorf("backup %s was uploaded and not finalized: %w", b.name, err)
}

// remember makes up for what the server did not say.
func (b *backup) remember(stop pgconn.Stop) pgconn.Stop {
	if stop.LSN == 0 {
		// Behind all that the parts can hold.
		at, err := b.Conn.Position(b.run.ctx)
		if err != nil {
			b.Logger.Warn("the end of the backup is not known", telemetry.KeyError, err)
		}
		stop.LSN, stop.Timeline = at.LSN, b.start.Timeline
	}
	if stop.Label == "" {
		stop.Label = b.start.Label(b.started.String(), b.started)
		var spaces strings.Builder
		for _, t := range b.listing.Tablespaces {
			fmt.Fprintf(&spaces, "%s %s\n", t.OID, t.Location)
		}
		stop.TablespaceMap = spaces.String()
	}
	return stop
}

// storeRest stores what goes before the sentinel.
func (b *backup) storeRest(stop pgconn.Stop) error {
	if stop.Label != "" {
		if err := b.storeLabel(stop); err != nil {
			return err
		}
	}
	return b.storeFiles()
}
