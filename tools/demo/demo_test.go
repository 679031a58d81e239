package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The demo is worth something only if its checks can fail.

func TestDifferences(t *testing.T) {
	t.Parallel()
	a := []fact{{"accounts", "10|5"}, {"history", "3|5|abc"}}
	for name, c := range map[string]struct {
		found []fact
		want  string
	}{
		"equal":   {[]fact{{"accounts", "10|5"}, {"history", "3|5|abc"}}, ""},
		"changed": {[]fact{{"accounts", "10|6"}, {"history", "3|5|abc"}}, "accounts: was 10|5, is 10|6"},
		"missing": {a[:1], "history: was 3|5|abc, is missing"},
		"more":    {append(a[:2:2], fact{"x", "1"}), "x: was not there, is 1"},
		"order":   {[]fact{a[1], a[0]}, "accounts: was 10|5, is 3|5|abc\nhistory: was 3|5|abc, is 10|5"},
	} {
		if got := strings.Join(differences(a, c.found), "\n"); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestBalanced(t *testing.T) {
	t.Parallel()
	if err := balanced([]fact{{"a", "1|7"}, {"b", "2|7"}, {"c", "3|7|x"}}); err != nil {
		t.Error(err)
	}
	for _, bad := range [][]fact{
		{{"a", "1|7"}, {"b", "2|8"}},
		{{"a", "1|7"}, {"b", "2|"}},
		{{"a", "1|7"}, {"b", ""}},
	} {
		if balanced(bad) == nil {
			t.Errorf("%v passes", bad)
		}
	}
}

func TestReadTimes(t *testing.T) {
	t.Parallel()
	read := func(text string) (f figures, err error) {
		path := filepath.Join(t.TempDir(), "times")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		err = f.readTimes(path)
		return f, err
	}
	const seg = "000000010000000000000001"
	f, err := read(seg + " 2000000 0\n" + seg + ".00000028.backup 9000000 0\n" + seg + " 4000000 0\n")
	if err != nil || f.segments != 2 || f.meanPush != 3*time.Millisecond {
		t.Errorf("got %+v, %v", f, err)
	}
	for _, bad := range []string{"", "00000002.history 1 0\n", seg + " 5 1\n", seg + " 5\n", "x\n"} {
		if _, err := read(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--scale", "0"}, {"x"}, {"--storage", "tape"}, {"--compression", "zip"}, {"--encryption", "rot13"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out, &out); err == nil {
			t.Errorf("%q passes", args)
		}
	}
}

func TestChosen(t *testing.T) {
	t.Parallel()
	plain := options{storage: storageFile, compression: "lz4", encryption: encryptionNone}
	if plain.chosen() {
		t.Error("the default counts as a choice")
	}
	for _, change := range []func(*options){
		func(o *options) { o.storage = storageS3 },
		func(o *options) { o.compression = "zstd" },
		func(o *options) { o.encryption = encryptionOpenPGP },
	} {
		o := plain
		change(&o)
		if err := o.check(); err != nil || !o.chosen() {
			t.Errorf("%+v: %v, chosen %v", o, err, o.chosen())
		}
	}
}

func TestControlField(t *testing.T) {
	t.Parallel()
	const text = "pg_control version number:            1300\nDatabase system identifier:           7\n"
	if got := controlField(text, "Database system identifier"); got != "7" {
		t.Errorf("got %q", got)
	}
	if got := controlField(text, "Nothing"); got != "" {
		t.Errorf("got %q", got)
	}
}
