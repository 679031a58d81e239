package settings

import (
	"reflect"
	"slices"
	"strings"
	"sync"
)

// Field describes one setting, as its struct tags do.
type Field struct {
	// Setting is the canonical name, as in the environment.
	Setting string
	// Aliases are further names, in order of preference.
	Aliases []string
	// Group is the title of the group the setting belongs to.
	Group string
	// Type is text, number, size, duration, yes/no or map.
	Type string
	// Default is the built-in value as text; "" is none.
	Default string
	// Unit of a number, "" if it has none.
	Unit string
	// Desc says in a sentence what the setting does.
	Desc string
	// Enum lists the accepted words; nil accepts any.
	Enum []string
	// Min and Max are inclusive bounds as text; "" is none.
	Min, Max string
	// Later names the feature that will use a setting walherd does not act
	// on yet; LaterIf limits that to some values.
	Later   string
	LaterIf []string
	// Refused tells that setting a Later field is an error, since ignoring
	// it would change where or how bytes are stored.
	Refused bool
	// Secret values are never printed.
	Secret bool

	warn, nested, secretURL bool
	index                   []int  // in Settings, for reflect
	key                     string // group and name, as envconfig composes them
}

// Flag is the name of the setting's command-line flag.
func (f *Field) Flag() string { return flagName(f.Setting) }

// names are the canonical name and the aliases.
func (f *Field) names() []string { return append([]string{f.Setting}, f.Aliases...) }

func flagName(setting string) string {
	return strings.ToLower(strings.ReplaceAll(setting, "_", "-"))
}

// Fields lists every setting in the order of the documentation. The slice is
// shared and not to be changed.
func Fields() []*Field { return table().list }

type fieldTable struct {
	list   []*Field
	byName map[string]*Field // canonical names and aliases
}

// table walks the struct once per process: settings are read by every short
// command PostgreSQL runs, so the start has to be cheap.
var table = sync.OnceValue(func() fieldTable {
	t := fieldTable{byName: make(map[string]*Field, 512)}
	root := reflect.TypeFor[Settings]()
	for g := range root.NumField() {
		group := root.Field(g)
		if !group.IsExported() {
			continue
		}
		for i := range group.Type.NumField() {
			f := newField(group, group.Type.Field(i), []int{g, i})
			t.list = append(t.list, f)
			t.byName[f.Setting] = f
			for _, a := range f.Aliases {
				t.byName[a] = f
			}
		}
	}
	return t
})

func newField(group, sf reflect.StructField, index []int) *Field {
	tag := sf.Tag
	f := &Field{
		Setting:   tag.Get("envconfig"),
		Group:     group.Tag.Get("desc"),
		Type:      typeWord(sf.Type),
		Default:   tag.Get("default"),
		Unit:      tag.Get("unit"),
		Desc:      tag.Get("desc"),
		Enum:      list(tag.Get("enum"), "|"),
		Min:       tag.Get("min"),
		Max:       tag.Get("max"),
		Aliases:   list(tag.Get("alias"), ","),
		Later:     tag.Get("later"),
		LaterIf:   list(tag.Get("laterif"), "|"),
		Refused:   tag.Get("effect") == "refuse",
		warn:      tag.Get("effect") == "warn",
		nested:    tag.Get("nested") != "",
		Secret:    tag.Get("secret") == "true",
		secretURL: tag.Get("secret") == "url",
		index:     index,
	}
	f.key = strings.ToUpper(group.Name) + "_" + f.Setting
	if tag.Get("prefixed") != "" {
		for _, n := range f.names() {
			f.Aliases = append(f.Aliases, "WALG_"+n, "WALE_"+n)
		}
	}
	return f
}

func settingName(flag string) string {
	return strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func list(s, sep string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, sep)
}

func typeWord(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[ByteSize]():
		return "size"
	case durationType:
		return "duration"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "yes/no"
	case reflect.Int, reflect.Float64:
		return "number"
	case reflect.Map:
		return "map"
	}
	return "text"
}

// suggest finds the known name nearest to an unknown one, "" if none is near.
func (t fieldTable) suggest(unknown string) string {
	best, bestDist := "", min(4, len(unknown)/3+1)
	for name := range t.byName {
		d := distance(unknown, name, bestDist)
		if d < bestDist || d == bestDist && best != "" && name < best {
			best, bestDist = name, d
		}
	}
	return best
}

// distance is the edit distance of a and b: insertions, deletions and
// substitutions. It gives up early with limit+1.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d > limit || -d > limit {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, diag+1)
		}
		if slices.Min(row) > limit {
			return limit + 1
		}
	}
	return row[len(b)]
}
