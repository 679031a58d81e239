package restore

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/walherd/walherd/engine/manifest"
)

func objects(names ...string) (out []Object) {
	for _, n := range names {
		out = append(out, Object{Name: n, Size: 10})
	}
	return out
}

func objectNames(objects []Object) (out []string) {
	for _, o := range objects {
		out = append(out, o.Name)
	}
	return out
}

func TestPlanSortsParts(t *testing.T) {
	t.Parallel()
	p, err := NewPlan(objects("pg_control.tar.lz4", "part_003.tar.lz4", "part_001.tar.lz4", "backup_label.tar.lz4", "copy_0.tar.lz4", "part_1000.tar.lz4", "xpg_control.tarry"),
		Request{Sentinel: &manifest.Sentinel{}, Destination: "/d/", Expected: []string{"part_001.tar.lz4", "backup_label.tar.lz4"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := objectNames(p.Data), []string{"copy_0.tar.lz4", "part_001.tar.lz4", "part_003.tar.lz4", "part_1000.tar.lz4", "xpg_control.tarry"}; !slices.Equal(got, want) {
		t.Errorf("data %v, want %v", got, want)
	}
	if got := objectNames(p.Label); !slices.Equal(got, []string{"backup_label.tar.lz4"}) {
		t.Errorf("label %v", got)
	}
	if got := objectNames(p.Control); !slices.Equal(got, []string{"pg_control.tar.lz4"}) {
		t.Errorf("control %v", got)
	}
	if p.Concurrency != 5 || p.StoredBytes() != 70 || p.Destination != "/d" {
		t.Errorf("concurrency %d, stored %d, destination %s", p.Concurrency, p.StoredBytes(), p.Destination)
	}
}

func TestPlanConcurrency(t *testing.T) {
	t.Parallel()
	var names []string
	for _, a := range "abcdefghijklmnop" {
		names = append(names, string(a)+".tar")
	}
	names = append(names, "pg_control.tar")
	for asked, want := range map[int]int{0: 10, -1: 10, 1: 1, 12: 12, 99: 16} {
		p, err := NewPlan(objects(names...), Request{Sentinel: &manifest.Sentinel{}, Destination: "/d", Concurrency: asked})
		if err != nil {
			t.Fatal(err)
		}
		if p.Concurrency != want {
			t.Errorf("asked for %d: %d, want %d", asked, p.Concurrency, want)
		}
	}
}

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	full := objects("part_001.tar.lz4", "pg_control.tar.lz4")
	sentinel := &manifest.Sentinel{}
	for name, tt := range map[string]struct {
		parts   []Object
		request Request
		want    error
		says    string
	}{
		"an increment": {full, Request{Destination: "/d", Sentinel: &manifest.Sentinel{Increment: &manifest.Increment{
			Parent: "base_000000010000000000000002", Root: "base_000000010000000000000001", Count: 2}}}, ErrIncrement, "without its chain"},
		"a catch-up backup":      {full, Request{Destination: "/d", Sentinel: &manifest.Sentinel{Increment: &manifest.Increment{Count: 1}}}, ErrIncrement, ""},
		"nothing":                {nil, Request{Destination: "/d", Sentinel: sentinel}, ErrIncomplete, ""},
		"no data":                {objects("pg_control.tar"), Request{Destination: "/d", Sentinel: sentinel}, ErrIncomplete, "data part"},
		"neither label, control": {objects("part_001.tar"), Request{Destination: "/d", Sentinel: sentinel}, ErrIncomplete, "neither"},
		"a lost part":            {full, Request{Destination: "/d", Sentinel: sentinel, Expected: []string{"part_001.tar.lz4", "part_002.tar.lz4"}}, ErrIncomplete, "part_002.tar.lz4"},
		"a part twice":           {objects("part_001.tar", "part_001.tar", "pg_control.tar"), Request{Destination: "/d", Sentinel: sentinel}, nil, "twice"},
		"a relative destination": {full, Request{Destination: "d", Sentinel: sentinel}, nil, "absolute"},
		"no sentinel":            {full, Request{Destination: "/d"}, nil, "sentinel"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := NewPlan(tt.parts, tt.request)
			if err == nil {
				t.Fatal("planned")
			}
			if tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
		})
	}
}

func TestPlanTakesOneOfLabelAndControl(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		backup string
		other  string
	}{
		{backupName, "pg_control.tar"}, {backupName, "backup_label.tar.br"}, {"base_000000010000000000000002_00000040", "part_002.tar"},
	} {
		if _, err := tryPlan(t, &memory{objects: map[string][]byte{"part_001.tar": nil, tt.other: nil}}, Request{Destination: "/d"}); (err == nil) != (tt.other != "part_002.tar") {
			t.Errorf("%s with %s: %v", tt.backup, tt.other, err)
		}
	}
	if _, err := NewPlan(objects("part_00000000.tar.lzo"), Request{Backup: "base_000000010000000000000002_00000040", Sentinel: &manifest.Sentinel{}, Destination: "/d"}); err != nil {
		t.Errorf("WAL-E backup: %v", err)
	}
}

func spec(prefix string, oidAndLocation ...string) *manifest.TablespaceSpec {
	s := &manifest.TablespaceSpec{BasePrefix: prefix}
	for i := 0; i < len(oidAndLocation); i += 2 {
		s.Tablespaces = append(s.Tablespaces, manifest.NewTablespace(oidAndLocation[i], oidAndLocation[i+1]))
	}
	return s
}

func TestPlanPlacesTablespaces(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		original, wanted *manifest.TablespaceSpec
		want             []Placement
		drop             bool
		note             string
	}{
		"none":                  {},
		"none, remote":          {original: spec("/old")},
		"to where it was":       {original: spec("/d", "5", "/t5"), want: []Placement{{"5", "/t5"}}},
		"elsewhere":             {original: spec("/old", "5", "/t5", "6", "/t6"), want: []Placement{{"5", "/d/tablespaces/5"}, {"6", "/d/tablespaces/6"}}, drop: true, note: "/t5"},
		"as wanted":             {original: spec("/old", "5", "/t5"), wanted: spec("/d", "5", "/new/5"), want: []Placement{{"5", "/new/5"}}, drop: true},
		"as wanted, same place": {original: spec("/d", "5", "/t5"), wanted: spec("/d", "5", "/new/5"), want: []Placement{{"5", "/new/5"}}, drop: true},
		"as wanted, inside":     {original: spec("/old", "5", "/t5"), wanted: spec("/d", "5", "/d/ts/5"), want: []Placement{{"5", "/d/ts/5"}}, drop: true},
		"other prefix":          {original: spec("/old", "5", "/t5"), wanted: spec("/old", "5", "/new/5"), want: []Placement{{"5", "/new/5"}}, drop: true, note: "base_prefix is /old"},
		"one more than needed":  {original: spec("/old", "5", "/t5"), wanted: spec("/d", "5", "/new/5", "6", "/new/6"), want: []Placement{{"5", "/new/5"}, {"6", "/new/6"}}, drop: true, note: "6"},
		"sentinel without any":  {wanted: spec("/d", "5", "/new/5"), want: []Placement{{"5", "/new/5"}}, drop: true, note: "5"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := tryPlan(t, backup(t), Request{Destination: "/d", Sentinel: &manifest.Sentinel{Spec: tt.original}, Spec: tt.wanted})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(p.Tablespaces, tt.want) || p.DropTablespaceMap != tt.drop {
				t.Errorf("tablespaces %v, map dropped %v; want %v, %v", p.Tablespaces, p.DropTablespaceMap, tt.want, tt.drop)
			}
			if notes := strings.Join(p.Notes, "\n"); !strings.Contains(notes, tt.note) || (tt.note == "") != (notes == "") {
				t.Errorf("notes %q, want %q in them", notes, tt.note)
			}
		})
	}
}

func TestPlanRefusesTablespaces(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		original, wanted *manifest.TablespaceSpec
		says             string
	}{
		"spec lacks one":              {original: spec("/old", "5", "/t5", "6", "/t6"), wanted: spec("/d", "5", "/n"), says: "tablespace 6"},
		"spec is not valid":           {wanted: spec("/d", "5", "n"), says: "absolute"},
		"sentinel's is not valid":     {original: spec("/old", "../5", "/t5"), says: "--restore-spec"},
		"tablespace is destination":   {wanted: spec("/d", "5", "/d"), says: "holds the destination"},
		"tablespace around it":        {original: spec("/d", "5", "/"), says: "holds the destination"},
		"sentinel's path is relative": {original: spec("/d", "5", "../../etc"), says: "absolute"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := tryPlan(t, backup(t), Request{Destination: "/d", Sentinel: &manifest.Sentinel{Spec: tt.original}, Spec: tt.wanted})
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want it to say %q", err, tt.says)
			}
		})
	}
}

func TestMaskFilter(t *testing.T) {
	t.Parallel()
	f, err := MaskFilter("base/*/PG_VERSION")
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{"base/1/PG_VERSION": true, "PG_VERSION": false, "base/1/2/PG_VERSION": false, "global/pg_control": false} {
		if f.wants(p) != want {
			t.Errorf("%s: %v", p, !want)
		}
	}
	if _, err := MaskFilter("base/[1"); err == nil {
		t.Error("a malformed pattern was accepted")
	}
	if f, err := MaskFilter(""); err != nil || !f.wants("x") {
		t.Errorf("no mask: %v", err)
	}
}
