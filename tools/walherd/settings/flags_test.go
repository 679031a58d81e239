package settings

import (
	"io"
	"maps"
	"testing"

	"github.com/spf13/pflag"
)

// TestRegisterGivenFlags: a command line means the same, or is refused with the
// same words, as if every flag were known.
func TestRegisterGivenFlags(t *testing.T) {
	t.Parallel()
	parse := func(register func(*pflag.FlagSet), args []string) (map[string]string, string) {
		fs := pflag.NewFlagSet("walherd", pflag.ContinueOnError)
		fs.SetOutput(io.Discard)
		fs.String(ConfigFlag, "", "")
		fs.Bool("turbo", false, "")
		register(fs)
		if err := fs.Parse(args); err != nil {
			return nil, err.Error()
		}
		return FlagValues(fs), ""
	}
	lines := [][]string{
		nil,
		{"wal-push", "/pg_wal/1"},
		{"--walg-file-prefix", "/a", "wal-push"},
		{"wal-push", "--walg-file-prefix=/a", "--turbo", "--config", "c"},
		{"--walg-file-prefix", "/a", "--walg-file-prefix=/b"},
		{"--walg-file-prefix=--walg-compression-method"},
		{"--walg-file-prefix", "--walg-compression-method"},
		{"--walg-file-prefix"},
		{"--", "--walg-file-prefix", "/a"},
		{"-walg-file-prefix", "/a"},
		{"--WALG-FILE-PREFIX", "/a"},
		{"--walg_file_prefix", "/a"},
		{"--walg-file-prefiks", "/a"},
		{"--=x"},
		{"--"},
		{"--config=c", "--turbo=false"},
	}
	for _, f := range Flags() {
		lines = append(lines, []string{"--" + f.Name, "value"}, []string{"--" + f.Name + "=a=b"})
	}
	for _, args := range lines {
		want, wantErr := parse(RegisterFlags, args)
		got, gotErr := parse(func(fs *pflag.FlagSet) { RegisterGivenFlags(fs, args) }, args)
		if !maps.Equal(got, want) || gotErr != wantErr {
			t.Errorf("%q: %v, error %q; want %v, error %q", args, got, gotErr, want, wantErr)
		}
	}
	var fs pflag.FlagSet
	RegisterGivenFlags(&fs, []string{"--walg-file-prefix", "/a"})
	if f := fs.Lookup("walg-file-prefix"); f == nil || !f.Hidden {
		t.Errorf("flag %+v", f)
	}
}
