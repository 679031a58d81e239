package settings

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrNoStorage is the error of Settings.Storage when no storage is configured.
var ErrNoStorage = errors.New("failed to find any configured storage: set WALG_FILE_PREFIX (a directory), WALG_S3_PREFIX, WALG_GS_PREFIX, WALG_AZ_PREFIX, WALG_SWIFT_PREFIX or WALG_SSH_PREFIX")

// isWord reports whether s is made of letters, digits, _ and what extra
// holds, and is not empty. No regular expression: compiling one is felt at the
// start of a command PostgreSQL runs for every segment.
func isWord(s, extra string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_':
		case strings.IndexByte(extra, c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// Validate checks the bounds of every field and the rules between fields that
// hold for every command. It reports everything that is wrong, joined.
func (s *Settings) Validate() error {
	var errs []error
	fail := func(setting, format string, args ...any) {
		errs = append(errs, fmt.Errorf("setting %s (%s): %w", setting, s.Origin(setting), fmt.Errorf(format, args...)))
	}
	v := reflect.ValueOf(s).Elem()
	for _, f := range Fields() {
		if err := f.check(v.FieldByIndex(f.index)); err != nil {
			fail(f.Setting, "%w", err)
		}
	}

	if !isWord(s.Walherd.Cluster, "-") {
		fail("WALHERD_CLUSTER", "%q: want letters, digits, _ and - only", s.Walherd.Cluster)
	}
	if name := s.Postgres.SlotName; !isWord(name, "") || len(name) > 63 {
		fail("WALG_SLOTNAME", "%q: want 1 to 63 letters, digits and _", s.Postgres.SlotName)
	}
	for _, size := range []struct {
		setting string
		value   int
	}{
		{"WALG_PG_WAL_SIZE", s.Postgres.WALSize},
		{"WALG_PG_WAL_PAGE_SIZE", s.Postgres.WALPageSize},
		{"WALG_PG_BLOCK_SIZE", s.Postgres.BlockSize},
	} {
		if size.value > 0 && bits.OnesCount(uint(size.value)) != 1 {
			fail(size.setting, "%d: want a power of two", size.value)
		}
	}
	if n := s.Walherd.Replicas; n == 2 || n == 4 {
		fail("WALHERD_REPLICAS", "%d: want 1, 3 or 5; of an even number as many may fail as of one less", n)
	}
	if s.General.ZstdLevel != "" && s.General.CompressionMethod != "zstd" {
		fail("WALG_ZSTD_LEVEL", "needs WALG_COMPRESSION_METHOD=zstd, which is %s", s.General.CompressionMethod)
	}
	if t := s.General.TargetStorage; t != "" && !strings.EqualFold(t, "default") {
		known := false
		for name := range s.Failover.Storages {
			known = known || strings.EqualFold(name, t)
		}
		if !known {
			names := append([]string{"default"}, slices.Sorted(maps.Keys(s.Failover.Storages))...)
			fail("WALG_TARGET_STORAGE", "%q: unknown storage (--target-storage); configured are %s", t, strings.Join(names, ", "))
		}
	}
	for name := range s.Failover.Storages {
		if strings.EqualFold(name, "default") || strings.EqualFold(name, "all") {
			fail("WALG_FAILOVER_STORAGES", "the name %q is reserved: default is the main storage, all is every one", name)
		}
	}
	if s.Failover.CacheAliveLimit < s.Failover.CacheDeadLimit {
		fail("WALG_FAILOVER_STORAGES_CACHE_EMA_ALIVE_LIMIT", "%v is below the limit of the dead, %v",
			s.Failover.CacheAliveLimit, s.Failover.CacheDeadLimit)
	}
	if (s.Monitoring.HTTPExposePprof || s.Monitoring.HTTPExposeExpvar) && s.Monitoring.HTTPListen == "" {
		fail("HTTP_LISTEN", "HTTP_EXPOSE_PPROF and HTTP_EXPOSE_EXPVAR need an address")
	}
	return errors.Join(errs...)
}

// ValidateBackup checks the rules that concern taking a backup. They are
// apart from Validate because archive_command runs with the same settings: a
// wrong option of a backup must not stop WAL archiving. backup-push calls it
// once its own flags are folded in.
func (s *Settings) ValidateBackup() error {
	p := &s.Postgres
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.WithoutFilesMetadata {
		for _, other := range []struct {
			set     bool
			setting string
		}{
			{p.UseRatingComposer, "WALG_USE_RATING_COMPOSER"},
			{p.UseCopyComposer, "WALG_USE_COPY_COMPOSER"},
			{p.UseDatabaseComposer, "WALG_USE_DATABASE_COMPOSER"},
			{p.DeltaFromName != "", "WALG_DELTA_FROM_NAME"},
			{p.DeltaFromUserData != "", "WALG_DELTA_FROM_USER_DATA"},
		} {
			if other.set {
				fail("WALG_WITHOUT_FILES_METADATA cannot be used with %s, which needs the files metadata", other.setting)
			}
		}
	}
	if p.DeltaFromName != "" && p.DeltaFromUserData != "" {
		fail("WALG_DELTA_FROM_NAME and WALG_DELTA_FROM_USER_DATA exclude each other")
	}
	for _, data := range []struct{ setting, value string }{
		{"WALG_SENTINEL_USER_DATA", p.SentinelUserData},
		{"WALG_DELTA_FROM_USER_DATA", p.DeltaFromUserData},
	} {
		if data.value != "" && !json.Valid([]byte(data.value)) {
			fail(`setting %s: not valid JSON; a plain word needs quotes of its own, as in '"nightly"'`, data.setting)
		}
	}
	return errors.Join(errs...)
}

// check holds v against the field's bounds and words.
func (f *Field) check(v reflect.Value) error {
	if f.Enum != nil && v.String() != "" && !slices.Contains(f.Enum, v.String()) {
		return fmt.Errorf("%q: want one of %s", v.String(), strings.Join(f.Enum, ", "))
	}
	if f.Min == "" && f.Max == "" {
		return nil
	}
	n := number(v)
	if low, err := f.bound(f.Min); err == nil && n < low {
		if f.Min == "1" {
			return fmt.Errorf("%s: expected to be positive", shown(v))
		}
		return fmt.Errorf("%s: want at least %s", shown(v), f.Min)
	}
	if high, err := f.bound(f.Max); err == nil && n > high {
		return fmt.Errorf("%s: want at most %s", shown(v), f.Max)
	}
	return nil
}

// bound reads a bound of the field; an error if there is none.
func (f *Field) bound(text string) (float64, error) {
	if f.Type == "duration" {
		d, err := time.ParseDuration(text)
		return float64(d), err
	}
	return strconv.ParseFloat(text, 64)
}

func number(v reflect.Value) float64 {
	if v.Kind() == reflect.Float64 {
		return v.Float()
	}
	return float64(v.Int())
}

func shown(v reflect.Value) string { return fmt.Sprint(v.Interface()) }

// Kind is a kind of storage, as in the name of its _PREFIX setting.
type Kind string

// The kinds of storage.
const (
	KindOSS   Kind = "OSS"
	KindS3    Kind = "S3"
	KindFile  Kind = "FILE"
	KindGS    Kind = "GS"
	KindAZ    Kind = "AZ"
	KindSwift Kind = "SWIFT"
	KindSSH   Kind = "SSH"
)

// Storage is the place objects are kept.
type Storage struct {
	// Kind of the storage.
	Kind Kind
	// Location is the directory of a FILE storage, else the address as it
	// was written.
	Location string
	// Prefix is the path below Location that is ours, "" for none.
	Prefix string
}

// Storage tells where objects are kept. When several storages are configured
// the first of OSS, S3, FILE, GS, AZ, SWIFT and SSH is meant; when none is,
// the error is ErrNoStorage.
//
// It refuses when a setting is present that walherd does not act on yet and
// that changes where or how bytes are stored. Nothing can be stored without
// asking here, so nothing is ever stored in plaintext, or at the wrong place,
// because a setting was not understood.
func (s *Settings) Storage() (Storage, error) {
	if _, err := s.Later(); err != nil {
		return Storage{}, err
	}
	for _, candidate := range s.prefixes() {
		location := candidate.value
		if location == "" {
			continue
		}
		if candidate.kind == KindFile {
			if rest, ok := strings.CutPrefix(location, "file://"); ok {
				location = strings.TrimPrefix(rest, "localhost")
			}
			if location == "" {
				return Storage{}, fmt.Errorf("setting WALG_FILE_PREFIX (%s): %q names no directory",
					s.Origin("WALG_FILE_PREFIX"), s.File.Prefix)
			}
		}
		return Storage{Kind: candidate.kind, Location: location, Prefix: strings.Trim(s.General.StoragePrefix, "/")}, nil
	}
	return Storage{}, ErrNoStorage
}

// prefix is the setting that says where a storage is.
type prefix struct {
	kind           Kind
	setting, value string
}

// prefixes are those of all kinds of storage, the one that counts first.
func (s *Settings) prefixes() []prefix {
	return []prefix{
		{KindOSS, "WALG_OSS_PREFIX", s.Stores.OSSPrefix},
		{KindS3, "WALG_S3_PREFIX", s.S3.Prefix},
		{KindFile, "WALG_FILE_PREFIX", s.File.Prefix},
		{KindGS, "WALG_GS_PREFIX", s.Stores.GSPrefix},
		{KindAZ, "WALG_AZ_PREFIX", s.Stores.AZPrefix},
		{KindSwift, "WALG_SWIFT_PREFIX", s.Stores.SwiftPrefix},
		{KindSSH, "WALG_SSH_PREFIX", s.Stores.SSHPrefix},
	}
}

// Unused warns of storages that are configured and pass for another: backups
// would not be where somebody looks for them.
func (s *Settings) Unused() (warnings []Warning) {
	used := ""
	for _, p := range s.prefixes() {
		switch {
		case p.value == "":
		case used == "":
			used = p.setting
		default:
			warnings = append(warnings, Warning{p.setting, fmt.Sprintf("is not used, because %s is set too (%s): unset one of the two", used, s.Origin(used))})
		}
	}
	return warnings
}

// Later reports settings that were given and that walherd does not act on
// yet: as an error where ignoring them would change where or how bytes are
// stored, as warnings where it only does less.
func (s *Settings) Later() ([]Warning, error) {
	var warnings []Warning
	var errs []error
	v := reflect.ValueOf(s).Elem()
	for _, f := range Fields() {
		given, ok := s.set[f.Setting]
		if !ok || f.Later == "" || !f.Refused && !f.warn || f.isDefault(v.FieldByIndex(f.index)) {
			continue
		}
		if f.LaterIf != nil && !slices.Contains(f.LaterIf, given.text) {
			continue
		}
		if f.Refused {
			errs = append(errs, fmt.Errorf("setting %s (%s): %s is not supported yet, and ignoring it would change what is stored; unset it to go on without",
				f.Setting, given.origin, f.Later))
		} else {
			warnings = append(warnings, Warning{f.Setting, fmt.Sprintf("%s is not supported yet, the setting is ignored (%s)", f.Later, given.origin)})
		}
	}
	return warnings, errors.Join(errs...)
}

// isDefault reports whether v is the built-in value, however it was written.
func (f *Field) isDefault(v reflect.Value) bool {
	switch x := v.Interface().(type) {
	case time.Duration:
		d, err := time.ParseDuration(f.Default)
		return err == nil && d == x
	case ByteSize:
		var d ByteSize
		return d.UnmarshalText([]byte(f.Default)) == nil && d == x
	case StorageMap:
		return len(x) == 0
	case TagMap:
		return len(x) == 0
	}
	return shown(v) == f.Default
}

// ForStorage are the settings of a failover storage: those of the process with
// what the storage's own entry says on top. Of the process's storage prefixes
// none is inherited, so that an entry without one is an error and not the main
// storage under another name.
func (s *Settings) ForStorage(name string) (*Settings, error) {
	own, ok := s.Failover.Storages[name]
	if !ok {
		return nil, fmt.Errorf("storage %q is not configured", name)
	}
	merged := map[string]string{}
	for _, f := range Fields() {
		v, given := s.set[f.Setting]
		prefix := strings.HasSuffix(f.Setting, "_PREFIX") && f.Setting != "WALG_STORAGE_PREFIX"
		if given && !f.nested && !prefix && f.Setting != "WALG_TARGET_STORAGE" && f.Setting != "WALG_CONFIG_PATH" {
			merged[f.Setting] = v.text
		}
	}
	for key, value := range own {
		f := table().byName[key]
		if f == nil {
			return nil, fmt.Errorf("storage %q: unknown setting %s%s", name, key, didYouMean(key))
		}
		merged[f.Setting] = value
	}
	env := make([]string, 0, len(merged))
	for k, v := range merged {
		env = append(env, k+"="+v)
	}
	out, _, err := Load(nil, env, "", nil)
	if err != nil {
		return nil, fmt.Errorf("storage %q: %w", name, err)
	}
	return out, nil
}
