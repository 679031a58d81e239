package settings

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
)

var durationType = reflect.TypeFor[time.Duration]()

// decode fills s from values, by setting name; what is missing gets its
// default.
//
// envconfig can only read the process environment, and looks for PREFIX_NAME
// before NAME. So the values are put into the environment under a prefix that
// belongs to this one call (the address of s), and taken out again: calls do
// not see one another, and the result depends on values alone. A setting that
// has no value here but is present in the process environment under its plain
// name is given its default under the prefix too, so that it is not picked up.
func decode(s *Settings, values map[string]setValue) error {
	prefix := strings.ToUpper(fmt.Sprintf("ENVCONFIG_%p", s))
	byKey := make(map[string]*Field, len(values))
	var err error
	put := func(f *Field, text string) {
		key := prefix + "_" + f.key
		byKey[key] = f
		if e := os.Setenv(key, text); e != nil {
			// A NUL byte, which only a config file can hold.
			err = errors.Join(err, fmt.Errorf("read setting %s (%s): %w", f.Setting, values[f.Setting].origin, e))
		}
	}
	defer func() {
		for key := range byKey {
			_ = os.Unsetenv(key)
		}
	}()
	for _, f := range Fields() {
		v, given := values[f.Setting]
		if given {
			put(f, v.text)
		} else if _, present := os.LookupEnv(f.Setting); present && f.Type != "map" {
			put(f, f.Default)
		} else if present {
			put(f, "{}")
		}
	}
	if err != nil {
		return err
	}

	err = envconfig.Process(prefix, s)
	var parse *envconfig.ParseError
	if errors.As(err, &parse) && byKey[parse.KeyName] != nil {
		f := byKey[parse.KeyName]
		return fmt.Errorf("read setting %s (%s): %s: %w",
			f.Setting, values[f.Setting].origin, f.redact(values[f.Setting].text), wantType(f, parse.Err))
	}
	return err
}

// wantType says what a value should have looked like.
func wantType(f *Field, cause error) error {
	var num *strconv.NumError
	if errors.As(cause, &num) {
		cause = num.Err // the value is shown already
	}
	switch f.Type {
	case "number":
		return fmt.Errorf("want a number: %w", cause)
	case "yes/no":
		return fmt.Errorf("want true or false: %w", cause)
	case "duration":
		return fmt.Errorf("want a duration with its unit, as in 30s or 5m: %w", cause)
	}
	return cause
}
