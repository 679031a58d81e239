package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Warning is something about the configuration that is worth a log line and
// no reason to stop.
type Warning struct {
	// Setting is the name as it was written.
	Setting string
	// Text says what is the matter and what can be done.
	Text string
}

func (w Warning) String() string { return w.Setting + ": " + w.Text }

// Origin tells where a value comes from.
type Origin struct {
	// Kind is one of the Origin constants.
	Kind OriginKind
	// Name is the setting, or the alias, that was written.
	Name string
	// File is the config file, with Line from 1 if it is known.
	File string
	Line int
}

// OriginKind is a source of settings.
type OriginKind int

// The sources of settings, weakest first.
const (
	FromDefault OriginKind = iota
	FromFile
	FromEnvironment
	FromFlag
)

func (o Origin) String() string {
	switch o.Kind {
	case FromFlag:
		return "flag --" + flagName(o.Name)
	case FromEnvironment:
		return "environment variable " + o.Name
	case FromFile:
		if o.Line > 0 {
			return fmt.Sprintf("%s line %d, key %s", o.File, o.Line, o.Name)
		}
		return fmt.Sprintf("%s, key %s", o.File, o.Name)
	}
	return "default"
}

// setValue is a value somebody gave.
type setValue struct {
	text   string
	origin Origin
}

// ConfigFlag is the name of the flag that names the config file.
const ConfigFlag = "config"

// Load reads the settings: a flag wins over the environment, that over the
// config file, that over the default. An empty value counts as none.
//
// flags maps flag names (FlagValues) to values. env is as from os.Environ.
// home is the directory searched for .walg.EXT if no config file is named;
// "" searches none. readFile reads a config file, as os.ReadFile.
//
// Load depends on its arguments alone and is safe for concurrent use. It
// validates what it read (Settings.Validate).
func Load(flags map[string]string, env []string, home string, readFile func(string) ([]byte, error)) (*Settings, []Warning, error) {
	environ := make(map[string]string, len(env))
	for _, kv := range env {
		// The first of several wins, as in os.Getenv.
		if k, v, ok := strings.Cut(kv, "="); ok {
			if _, twice := environ[k]; !twice {
				environ[k] = v
			}
		}
	}
	l := loader{flags: make(map[string]string, len(flags)), env: environ, file: map[string]fileEntry{}}
	for name, value := range flags {
		if f := table().byFlag(name); f == nil && name != ConfigFlag {
			return nil, nil, fmt.Errorf("read flags: --%s is not a setting", name)
		}
		l.flags[settingName(name)] = value
	}
	if err := l.readConfig(home, readFile); err != nil {
		return nil, nil, err
	}
	l.unknownEnv()

	s := &Settings{set: make(map[string]setValue)}
	for _, f := range Fields() {
		if v, ok := l.resolve(f); ok {
			s.set[f.Setting] = v
		}
	}
	if err := decode(s, s.set); err != nil {
		return nil, l.warnings, err
	}
	s.General.ConfigPath = l.configPath
	l.adjust(s)
	return s, l.warnings, s.Validate()
}

// LoadProcess is Load with the environment of the process, the passwd home
// directory of its user and the file system. It is to be called once, at the
// start of main: it also puts the values of flags and config file into the
// process environment (Settings.Environ), since the PostgreSQL driver and
// child processes read theirs from there.
func LoadProcess(flags map[string]string) (*Settings, []Warning, error) {
	// Not $HOME: archive_command and cron often run with none or another's.
	home := ""
	if u, err := user.Current(); err == nil {
		home = u.HomeDir
	}
	s, warnings, err := Load(flags, os.Environ(), home, os.ReadFile)
	if err != nil {
		return nil, warnings, err
	}
	for _, kv := range s.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		if err := os.Setenv(k, v); err != nil {
			return nil, warnings, fmt.Errorf("export setting %s: %w", k, err)
		}
	}
	return s, warnings, nil
}

// Environ lists as NAME=value what the process environment lacks: settings
// given by flag, config file or another name. Nested settings are left out,
// as they have no form there.
func (s *Settings) Environ() []string {
	var out []string
	for _, f := range Fields() {
		v, ok := s.set[f.Setting]
		if !ok || f.nested || v.origin.Kind == FromEnvironment && v.origin.Name == f.Setting {
			continue
		}
		out = append(out, f.Setting+"="+v.text)
	}
	return out
}

// Origin tells where the value of a setting comes from.
func (s *Settings) Origin(setting string) Origin { return s.set[setting].origin }

// loader is one run of Load.
type loader struct {
	flags      map[string]string // by setting name
	env        map[string]string
	file       map[string]fileEntry // by upper-cased key
	configPath string
	warnings   []Warning
}

func (l *loader) warn(setting, format string, args ...any) {
	l.warnings = append(l.warnings, Warning{setting, fmt.Sprintf(format, args...)})
}

// configExtensions are the formats, in the order they are looked for.
var configExtensions = [...]string{"json", "yaml", "yml", "toml", "env"}

// readConfig finds and reads the config file, if there is one.
func (l *loader) readConfig(home string, readFile func(string) ([]byte, error)) error {
	path, source := l.flags[settingName(ConfigFlag)], "--"+ConfigFlag
	if path == "" {
		path, source = l.flags["WALG_CONFIG_PATH"], "--walg-config-path"
	}
	if path == "" {
		path, source = l.env["WALG_CONFIG_PATH"], "WALG_CONFIG_PATH"
	}
	var data []byte
	if path = strings.TrimRight(path, "\r\n"); path != "" {
		var err error
		if data, err = readFile(path); err != nil {
			return fmt.Errorf("read config file named by %s: %w", source, err)
		}
	} else if home != "" {
		var found []string
		for _, ext := range configExtensions {
			p := filepath.Join(home, ".walg."+ext)
			d, err := readFile(p)
			// The home of nobody may be /dev/null.
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read config file: %w; name another with --%s or WALG_CONFIG_PATH", err, ConfigFlag)
			}
			found = append(found, p)
			data = d
		}
		if len(found) > 1 {
			// WAL-G takes whichever it finds first; the other may name
			// another bucket.
			return fmt.Errorf("choose config file: %s are all there; keep one, or name one with --%s",
				strings.Join(found, " and "), ConfigFlag)
		}
		if len(found) == 1 {
			path = found[0]
		}
	}
	l.configPath = path
	if path == "" {
		return nil
	}

	entries, err := parseFile(path, data)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := strings.ToUpper(e.key)
		if before, twice := l.file[name]; twice {
			return fmt.Errorf("read config file %s: key %s%s is there before as %s%s; letter case does not count",
				path, e.key, e.at(), before.key, before.at())
		}
		f := table().byName[name]
		switch {
		case f == nil:
			l.warn(e.key, "unknown key in %s%s%s", path, e.at(), didYouMean(name))
			continue
		case name == "WALG_CONFIG_PATH":
			l.warn(e.key, "has no effect inside a config file (%s%s)", path, e.at())
			continue
		case e.nested && !f.nested:
			return fmt.Errorf("read config file %s: key %s%s is a map or list, want a single value", path, e.key, e.at())
		}
		l.file[name] = e
	}
	return nil
}

// resolve finds the value of f in the strongest source that has one. Within a
// source the canonical name goes before the aliases.
func (l *loader) resolve(f *Field) (setValue, bool) {
	sources := [...]func(name string) (string, Origin){
		func(name string) (string, Origin) {
			return l.flags[name], Origin{Kind: FromFlag, Name: name}
		},
		func(name string) (string, Origin) {
			return l.env[name], Origin{Kind: FromEnvironment, Name: name}
		},
		func(name string) (string, Origin) {
			e := l.file[name]
			return e.text, Origin{Kind: FromFile, Name: e.key, File: l.configPath, Line: e.line}
		},
	}
	for _, source := range sources {
		var found setValue
		lookup := func(name string) {
			text, origin := source(name)
			// Secrets mounted as files and CRLF config files leave line
			// ends behind, which no setting means.
			text = strings.TrimRight(text, "\r\n")
			if f.Type != "text" {
				text = strings.TrimSpace(text)
			}
			switch {
			case text == "":
			case found.text == "":
				found = setValue{text, origin}
			case found.text != text:
				l.warn(origin.Name, "differs from %s, which is used", found.origin)
			}
		}
		lookup(f.Setting)
		for _, a := range f.Aliases {
			lookup(a)
		}
		if found.text != "" {
			return found, true
		}
	}
	return setValue{}, false
}

// unknownEnv warns of environment variables that look like settings.
func (l *loader) unknownEnv() {
	var unknown []string
	for name := range l.env {
		for _, prefix := range [...]string{"WALG_", "WALE_", "WALHERD_"} {
			if strings.HasPrefix(name, prefix) && table().byName[name] == nil {
				unknown = append(unknown, name)
			}
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		l.warn(name, "unknown environment variable%s", didYouMean(name))
	}
}

// adjust settles values that have a meaning of their own.
func (l *loader) adjust(s *Settings) {
	if s.General.DownloadConcurrency == 0 {
		// WAL-G complains and goes on, so must a restore_command.
		l.warn("WALG_DOWNLOAD_CONCURRENCY", "0 counts as 1")
		s.General.DownloadConcurrency = 1
	}
	if s.S3.UploadConcurrency == 0 {
		s.S3.UploadConcurrency = s.General.UploadConcurrency
	}
	if t := s.General.SerializerType; t != "" && t != "json_streamed" {
		l.warn("WALG_SERIALIZER_TYPE", "%s is retired, json_streamed is used", t)
	}
}

func didYouMean(name string) string {
	if near := table().suggest(name); near != "" {
		return "; did you mean " + near + "?"
	}
	return ""
}
