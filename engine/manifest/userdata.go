package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// UserData is what a user attached to a backup: any JSON value, kept as
// compact text, so that numbers and the order of members survive. Empty is no
// user data; a JSON null is none as well.
type UserData []byte

// ParseUserData checks that text is one JSON value and makes it compact.
// Empty text is no user data.
func ParseUserData(text string) (UserData, error) {
	if text == "" {
		return nil, nil
	}
	var u UserData
	if err := json.Unmarshal([]byte(text), &u); err != nil {
		return nil, fmt.Errorf("parse user data %.100q: %w (user data is any JSON value; a plain word needs double quotes)", text, err)
	}
	return u, nil
}

// String is the JSON text, "" for none.
func (u UserData) String() string { return string(u) }

// MarshalJSON writes the text as it is, null for none.
func (u UserData) MarshalJSON() ([]byte, error) {
	if len(u) == 0 {
		return []byte("null"), nil
	}
	return u, nil
}

// UnmarshalJSON keeps a compact copy of the value.
func (u *UserData) UnmarshalJSON(b []byte) error {
	*u = nil
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	var buf bytes.Buffer
	if err := json.Compact(&buf, b); err != nil {
		return err
	}
	*u = buf.Bytes()
	return nil
}

// Equal reports whether both hold the same JSON value: the order of object
// members and the spelling of strings do not matter, numbers are compared as
// exact decimals (1.0 equals 1 and 1e0, 2^53 differs from 2^53+1). None
// equals none.
func (u UserData) Equal(o UserData) bool {
	if len(u) == 0 || len(o) == 0 {
		return len(u) == len(o)
	}
	a, err := u.decode()
	if err != nil {
		return false
	}
	b, err := o.decode()
	return err == nil && equalJSON(a, b)
}

func (u UserData) decode() (any, error) {
	dec := json.NewDecoder(bytes.NewReader(u))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err == nil {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}

func equalJSON(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			w, ok := b[k]
			if !ok || !equalJSON(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equalJSON(a[i], b[i]) {
				return false
			}
		}
		return true
	case json.Number:
		b, ok := b.(json.Number)
		return ok && equalNumbers(string(a), string(b))
	default:
		return a == b
	}
}

// equalNumbers compares two JSON numbers without expanding them: 1e999999999
// in a stranger's metadata must not fill the memory.
func equalNumbers(a, b string) bool {
	if a == b {
		return true
	}
	da, ea := decimal(a)
	db, eb := decimal(b)
	return da == db && ea.Cmp(eb) == 0
}

// decimal splits a JSON number into its signed significant digits, without
// leading and trailing zeros, and the power of ten of the last one. Zero is
// "" and 0, whatever its sign or exponent.
func decimal(s string) (digits string, exp *big.Int) {
	mantissa, exponent := s, ""
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		mantissa, exponent = s[:i], s[i+1:]
	}
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")

	digits = whole + fraction
	significant := strings.TrimRight(digits, "0")
	trailing := len(digits) - len(significant)
	significant = strings.TrimLeft(significant, "0")
	if significant == "" {
		return "", new(big.Int)
	}

	exp = new(big.Int)
	if exponent != "" {
		exp.SetString(strings.TrimPrefix(exponent, "+"), 10)
	}
	exp.Add(exp, big.NewInt(int64(trailing-len(fraction))))
	if negative {
		significant = "-" + significant
	}
	return significant, exp
}
