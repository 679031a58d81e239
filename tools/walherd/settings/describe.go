package settings

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Flag is the command-line form of a setting.
type Flag struct {
	// Name without dashes in front, walg-file-prefix.
	Name string
	// Setting is the canonical setting the flag gives, even if Name is
	// made from an alias.
	Setting string
	// Usage is a sentence.
	Usage string
	// Default is the value without the flag, as text.
	Default string
	// Secret values should not be given as a flag: others see them.
	Secret bool
}

// Flags lists the flags of all settings, those of aliases included.
func Flags() []Flag {
	flags := make([]Flag, 0, len(table().byName))
	for _, f := range Fields() {
		for _, name := range f.names() {
			flags = append(flags, Flag{flagName(name), f.Setting, f.Desc, f.Default, f.Secret})
		}
	}
	return flags
}

// RegisterFlags adds every setting to fs as a hidden flag that takes a string.
// A name fs has already is left alone.
func RegisterFlags(fs *pflag.FlagSet) {
	flags := Flags()
	values := make([]string, len(flags))
	for i, f := range flags {
		if fs.Lookup(f.Name) != nil {
			continue
		}
		fs.StringVar(&values[i], f.Name, "", f.Usage)
		fs.Lookup(f.Name).Hidden = true
	}
}

// RegisterGivenFlags is RegisterFlags for the settings that args, a command
// line, names; the others would not be given. It is for commands that are run
// often: cobra copies every flag into the set of the command, which for all
// settings is some 40 page faults of a start.
func RegisterGivenFlags(fs *pflag.FlagSet, args []string) {
	for _, arg := range args {
		name, long := strings.CutPrefix(arg, "--")
		name, _, _ = strings.Cut(name, "=")
		if !long || name == "" || fs.Lookup(name) != nil {
			continue
		}
		// A flag that is no setting, or the value of another: not ours to judge.
		if f := table().byFlag(name); f != nil && f.hasFlag(name) {
			fs.String(name, "", f.Desc)
			fs.Lookup(name).Hidden = true
		}
	}
}

// hasFlag reports whether name is a flag of f, to the letter.
func (f *Field) hasFlag(name string) bool {
	return slices.ContainsFunc(f.names(), func(n string) bool { return flagName(n) == name })
}

// FlagValues collects for Load the flags of fs that were given and are
// settings, and ConfigFlag.
func FlagValues(fs *pflag.FlagSet) map[string]string {
	given := map[string]string{}
	fs.Visit(func(f *pflag.Flag) {
		if f.Name == ConfigFlag || table().byFlag(f.Name) != nil {
			given[f.Name] = f.Value.String()
		}
	})
	return given
}

// byFlag finds the setting of a flag, nil if there is none.
func (t fieldTable) byFlag(name string) *Field {
	return t.byName[settingName(name)]
}

// Value is a setting in effect.
type Value struct {
	Setting string
	// Text is the value, with secrets replaced by ***.
	Text   string
	Origin Origin
}

// Effective lists the settings that have a value, secrets hidden, for a log
// of what the process runs with.
func (s *Settings) Effective() []Value {
	var out []Value
	for _, f := range Fields() {
		text := f.Default
		given, ok := s.set[f.Setting]
		if ok {
			text = given.text
		}
		if text != "" {
			out = append(out, Value{f.Setting, f.redact(text), given.origin})
		}
	}
	return out
}

const hidden = "***"

// redact is text as it may be printed.
func (f *Field) redact(text string) string {
	switch {
	case f.Secret:
		return hidden
	case f.secretURL:
		return redactURLs(text)
	}
	return text
}

// redactURLs hides what is between :// and @ in each of a list of addresses.
func redactURLs(text string) string {
	urls := strings.Split(text, ",")
	for i, u := range urls {
		at := strings.LastIndexByte(u, '@')
		if at < 0 {
			continue
		}
		start := 0
		if p := strings.Index(u, "://"); p >= 0 && p < at {
			start = p + len("://")
		}
		urls[i] = u[:start] + hidden + u[at:]
	}
	return strings.Join(urls, ",")
}

// Describe writes the documentation of every setting as Markdown: a table per
// group.
func Describe(w io.Writer) error {
	b := bufio.NewWriter(w)
	group := ""
	for _, f := range Fields() {
		if f.Group != group {
			if group != "" {
				fmt.Fprintln(b)
			}
			group = f.Group
			fmt.Fprintf(b, "## %s\n\n| Setting | Default | Values | Meaning |\n|---|---|---|---|\n", group)
		}
		def := ""
		if f.Default != "" {
			def = "`" + f.Default + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", f.Setting, def, cell(f.values()), cell(f.meaning()))
	}
	return b.Flush()
}

// cell keeps text from ending a table cell.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// DescribeFlags writes every setting as a flag, for a terminal.
func DescribeFlags(w io.Writer) error {
	b := bufio.NewWriter(w)
	group := ""
	for _, f := range Fields() {
		if f.Group != group {
			if group != "" {
				fmt.Fprintln(b)
			}
			group = f.Group
			fmt.Fprintf(b, "%s:\n", group)
		}
		fmt.Fprintf(b, "  --%s (%s)\n", f.Flag(), f.values())
		fmt.Fprintf(b, "        %s", f.meaning())
		if f.Default != "" {
			fmt.Fprintf(b, " (default %s)", f.Default)
		}
		fmt.Fprintln(b)
	}
	return b.Flush()
}

// values says what may be written: type, words, bounds, unit.
func (f *Field) values() string {
	if f.Enum != nil {
		return strings.Join(f.Enum, ", ")
	}
	text := f.Type
	if f.Unit != "" {
		text += " in " + f.Unit
	}
	switch {
	case f.Min != "" && f.Max != "":
		text += fmt.Sprintf(", %s to %s", f.Min, f.Max)
	case f.Min != "" && f.Min != "0" && f.Min != "0s":
		text += ", at least " + f.Min
	case f.Max != "":
		text += ", at most " + f.Max
	}
	return text
}

// meaning is the description and what else there is to know.
func (f *Field) meaning() string {
	text := f.Desc + "."
	if f.Aliases != nil {
		text += " Also " + strings.Join(f.Aliases, ", ") + "."
	}
	if f.Secret {
		text += " Secret."
	}
	what := f.Later
	if what == "" {
		return text
	}
	switch {
	case f.Refused && f.LaterIf != nil:
		return text + " Not supported yet, refused: " + what + "."
	case f.Refused:
		return text + " Not supported yet, refused (" + what + ")."
	}
	return text + " Not supported yet, ignored (" + what + ")."
}
