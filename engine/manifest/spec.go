package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// TablespaceSpec tells where a cluster's tablespaces are. It is the Spec of a
// sentinel and, in the same form, the file given to --restore-spec.
type TablespaceSpec struct {
	// BasePrefix is the data directory, absolute, without trailing slash.
	BasePrefix string
	// Tablespaces are in the order of the document; their names are unique.
	Tablespaces []Tablespace
}

// Tablespace is one tablespace.
type Tablespace struct {
	// OID is the tablespace's OID in decimal, the name of its link.
	OID string
	// Location is the absolute directory the link points to, without
	// trailing slash.
	Location string
	// Link is the link's path in the data directory: pg_tblspc/<OID>.
	Link string
}

// NewTablespace is the tablespace oid at location.
func NewTablespace(oid, location string) Tablespace {
	return Tablespace{OID: oid, Location: location, Link: "pg_tblspc/" + oid}
}

// tablespaceMember is the stored form of one tablespace.
type tablespaceMember struct {
	Location string `json:"loc"`
	Link     string `json:"link"`
}

const (
	basePrefixKey  = "base_prefix"
	tablespacesKey = "tablespaces"
)

// ParseTablespaceSpec reads a restore spec and validates it.
func ParseTablespaceSpec(document []byte) (*TablespaceSpec, error) {
	s := new(TablespaceSpec)
	if err := json.Unmarshal(document, s); err != nil {
		return nil, fmt.Errorf("parse tablespace spec: %w", err)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// Get returns the tablespace with the given OID.
func (s *TablespaceSpec) Get(oid string) (Tablespace, bool) {
	if s == nil {
		return Tablespace{}, false
	}
	i := slices.IndexFunc(s.Tablespaces, func(t Tablespace) bool { return t.OID == oid })
	if i < 0 {
		return Tablespace{}, false
	}
	return s.Tablespaces[i], true
}

// Validate reports whether the spec can be restored: absolute clean paths,
// OIDs as names, links where PostgreSQL looks for them, and no directory used
// twice. Reading a sentinel does not validate, because a listing must not fail
// on an odd one; whoever writes to the paths must.
func (s *TablespaceSpec) Validate() error {
	if err := cleanAbsolute(s.BasePrefix); err != nil {
		return fmt.Errorf("check tablespace spec: base_prefix: %w", err)
	}
	oids := make(map[string]bool, len(s.Tablespaces))
	places := make(map[string]string, len(s.Tablespaces))
	for _, t := range s.Tablespaces {
		if !isOID(t.OID) {
			return fmt.Errorf("check tablespace spec: %q is not the OID of a tablespace", t.OID)
		}
		if oids[t.OID] {
			return fmt.Errorf("check tablespace spec: tablespace %s is listed twice", t.OID)
		}
		oids[t.OID] = true
		if want := "pg_tblspc/" + t.OID; t.Link != want {
			return fmt.Errorf("check tablespace spec: link of tablespace %s is %q, want %q", t.OID, t.Link, want)
		}
		if err := cleanAbsolute(t.Location); err != nil {
			return fmt.Errorf("check tablespace spec: loc of tablespace %s: %w", t.OID, err)
		}
		if other, taken := places[t.Location]; taken {
			return fmt.Errorf("check tablespace spec: tablespaces %s and %s share the directory %s", other, t.OID, t.Location)
		}
		places[t.Location] = t.OID
	}
	return nil
}

func cleanAbsolute(p string) error {
	switch {
	case p == "":
		return errors.New("path is empty")
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("path %q holds a NUL byte", p)
	case !filepath.IsAbs(p):
		return fmt.Errorf("path %q is not absolute", p)
	case filepath.Clean(p) != p:
		return fmt.Errorf("path %q is not clean (want %q)", p, filepath.Clean(p))
	}
	return nil
}

func isOID(s string) bool {
	if len(s) == 0 || len(s) > 10 {
		return false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s[0] != '0'
}

// MarshalJSON writes the members in the order of their names, as WAL-G does:
// OIDs, base_prefix, tablespaces.
func (s TablespaceSpec) MarshalJSON() ([]byte, error) {
	names := make([]string, 0, len(s.Tablespaces))
	doc := make(map[string]any, len(s.Tablespaces)+2)
	for _, t := range s.Tablespaces {
		if _, taken := doc[t.OID]; taken || t.OID == basePrefixKey || t.OID == tablespacesKey {
			return nil, fmt.Errorf("write tablespace spec: tablespace name %q is taken", t.OID)
		}
		names = append(names, t.OID)
		doc[t.OID] = tablespaceMember{Location: t.Location, Link: t.Link}
	}
	doc[basePrefixKey] = s.BasePrefix
	doc[tablespacesKey] = names
	return json.Marshal(doc)
}

// UnmarshalJSON reads the document; every listed tablespace must have its
// member, members that are not listed are ignored.
func (s *TablespaceSpec) UnmarshalJSON(b []byte) error {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	var prefix *string
	if err := json.Unmarshal(orNull(doc[basePrefixKey]), &prefix); err != nil || prefix == nil {
		return errors.New("tablespace spec: base_prefix is not a string")
	}
	var names []string
	if err := json.Unmarshal(orNull(doc[tablespacesKey]), &names); err != nil {
		return fmt.Errorf("tablespace spec: tablespaces: %w", err)
	}
	out := TablespaceSpec{BasePrefix: *prefix}
	for _, name := range names {
		raw, ok := doc[name]
		if !ok || name == basePrefixKey || name == tablespacesKey {
			return fmt.Errorf("tablespace spec: tablespace %q is listed but not described", name)
		}
		var m *tablespaceMember
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("tablespace spec: tablespace %q: %w", name, err)
		}
		if m == nil {
			return fmt.Errorf("tablespace spec: tablespace %q is null", name)
		}
		out.Tablespaces = append(out.Tablespaces, Tablespace{OID: name, Location: m.Location, Link: m.Link})
	}
	*s = out
	return nil
}

func orNull(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return json.RawMessage("null")
	}
	return raw
}
