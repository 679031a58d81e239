package pg

import (
	"regexp"
	"testing"

	"pgregory.net/rapid"
)

// backupNamePattern is the form of a backup name, in a line.
var backupNamePattern = regexp.MustCompile(`^base_([0-9A-F]{24})(?:_D_([0-9A-FZ]{24}))?(?:_[0-9A-F]{8})?$`)

func checkBackupName(t interface{ Errorf(string, ...any) }, s string) {
	m := backupNamePattern.FindStringSubmatch(s)
	name, err := ParseBackupName(s)
	if (err == nil) != (m != nil) || err == nil && string(name) != s {
		t.Errorf("%q: name %q, error %v", s, name, err)
	}
	if got, want := BackupName(s).IsIncrement(), m != nil && m[2] != ""; got != want {
		t.Errorf("%q: IsIncrement %v, want %v", s, got, want)
	}
}

func TestBackupName(t *testing.T) {
	t.Parallel()
	const seg = "00000001000000A0000000FF"
	for s, want := range map[string]struct{ valid, increment bool }{
		"base_" + seg:                                   {true, false},
		"base_" + seg + "_00000028":                     {true, false},
		"base_" + seg + "_D_" + seg:                     {true, true},
		"base_" + seg + "_D_" + seg + "_00000028":       {true, true},
		"base_" + seg + "_D_ZZZZZZZZZZZZZZZZZZZZZZZZ":   {true, true},
		"base_" + seg + "_D_" + seg[:23]:                {},
		"base_" + seg + "_D_":                           {},
		"base_" + seg + "_D":                            {},
		"base_" + seg + "_":                             {},
		"base_" + seg + "_0000002":                      {},
		"base_" + seg + "_000000280":                    {},
		"base_" + seg + "\n":                            {},
		"base_" + seg[:23]:                              {},
		"base_" + seg + "0":                             {},
		"base_ZZZZZZZZZZZZZZZZZZZZZZZZ":                 {},
		"base_" + seg[:22] + "ff":                       {},
		"base_" + seg[:23] + "é":                        {},
		"base_" + seg[:23] + "\x80":                     {},
		seg:                                             {},
		"Base_" + seg:                                   {},
		"":                                              {},
		"LATEST":                                        {},
		"base_" + seg + "_00000028_D_" + seg:            {},
		"base_" + seg + "_D_" + seg + "_D_" + seg:       {},
		"base_" + seg + "_D_" + seg + "_backup_stop.js": {},
	} {
		_, err := ParseBackupName(s)
		if (err == nil) != want.valid {
			t.Errorf("%q: error %v", s, err)
		}
		if got := BackupName(s).IsIncrement(); got != want.increment {
			t.Errorf("%q: IsIncrement %v", s, got)
		}
		checkBackupName(t, s)
	}
}

// TestBackupNameIsItsPattern: names put together out of right and almost right
// pieces.
func TestBackupNameIsItsPattern(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		piece := rapid.OneOf(
			rapid.SampledFrom([]string{"base_", "_D_", "_", "D", "\n", "é", "z", "ZZZZZZZZZZZZZZZZZZZZZZZZ"}),
			rapid.StringMatching(`[0-9A-F]{24}`), rapid.StringMatching(`[0-9A-FZ]{24}`), rapid.StringMatching(`_[0-9A-F]{8}`),
			rapid.StringMatching(`_D_[0-9A-FZ]{24}`), rapid.StringMatching(`base_[0-9A-F]{24}`), rapid.String(),
		)
		s := ""
		for _, p := range rapid.SliceOfN(piece, 0, 4).Draw(t, "pieces") {
			s += p
		}
		checkBackupName(t, s)
	})
}

func FuzzBackupName(f *testing.F) {
	f.Add("base_00000001000000A0000000FF_D_00000001000000A0000000FE_00000028")
	f.Fuzz(func(t *testing.T, s string) { checkBackupName(t, s) })
}
