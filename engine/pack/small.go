package pack

import (
	"archive/tar"
	"errors"
	"time"

	"github.com/walherd/walherd/engine/cluster"
)

// Names of the tars and entries that are not parts.
const (
	ControlTarName = "pg_control.tar"
	LabelTarName   = "backup_label.tar"
	// LabelName and TablespaceMapName have no leading slash, unlike all
	// other entries of a local backup.
	LabelName         = "backup_label"
	TablespaceMapName = "tablespace_map"
)

// ControlTar is the tar that holds the control file alone. control is the
// walk's entry of it; content is stored whatever size the walk saw, and
// should be what cluster.ReadControl checked.
func ControlTar(control cluster.Entry, content []byte, owners OwnerNames) ([]byte, error) {
	if control.Name != cluster.ControlName {
		return nil, errors.New("build " + ControlTarName + ": entry is named " + control.Name)
	}
	h := newHeaders(owners)
	head, err := h.entry(&control, int64(len(content)))
	if err != nil {
		return nil, err
	}
	return append(appendFile(nil, head, content), make([]byte, trailerSize)...), nil
}

// LabelTar is the tar that holds the texts which the server returned when the
// backup was stopped. Both entries are always there; the map may be empty.
func LabelTar(label, tablespaceMap []byte) ([]byte, error) {
	h := newHeaders(nil)
	var out []byte
	for _, f := range []struct {
		name    string
		content []byte
	}{{LabelName, label}, {TablespaceMapName, tablespaceMap}} {
		head, err := h.render(&tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.content)), Mode: 0o600, ModTime: time.Unix(0, 0),
		})
		if err != nil {
			return nil, err
		}
		out = appendFile(out, head, f.content)
	}
	return append(out, make([]byte, trailerSize)...), nil
}

func appendFile(out, head, content []byte) []byte {
	out = append(append(out, head...), content...)
	return append(out, make([]byte, padded(int64(len(content)))-int64(len(content)))...)
}
