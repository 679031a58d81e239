package messages

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var clusterPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func TestParseCluster(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]bool{
		"":                      false,
		"a":                     true,
		"Main-15_eu":            true,
		strings.Repeat("x", 64): true,
		strings.Repeat("x", 65): false,
		"a.b":                   false,
		"a b":                   false,
		"*":                     false,
		">":                     false,
		"a\n":                   false,
		"é":                     false,
		"a\x80b":                false,
		strings.Repeat("é", 32): false,
	} {
		c, err := ParseCluster(s)
		if (err == nil) != want || want && string(c) != s {
			t.Errorf("%q: cluster %q, error %v", s, c, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.StringMatching(`[A-Za-z0-9_-]{0,70}`), rapid.StringMatching(`[A-Z_-]{0,9}[ -~]?[a-z0-9]{0,9}`)).Draw(t, "name")
		if _, err := ParseCluster(s); (err == nil) != clusterPattern.MatchString(s) {
			t.Errorf("%q: error %v", s, err)
		}
	})
}
