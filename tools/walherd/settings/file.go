package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/joho/godotenv"
	"gopkg.in/yaml.v3"
)

// fileEntry is one key of a config file.
type fileEntry struct {
	key    string // as written
	text   string // a scalar as text, a map or list as JSON, "" for null
	line   int    // from 1; 0 if the format does not tell
	nested bool   // text is a map or list
}

// at is where the entry is, to go behind its key.
func (e fileEntry) at() string {
	if e.line == 0 {
		return ""
	}
	return fmt.Sprintf(" (line %d)", e.line)
}

// parseFile reads a config file: a flat map of settings, in the format its
// extension names. The errors name the file and, where the format tells, line
// and key, and never quote a value: it might be a password.
func parseFile(path string, data []byte) ([]fileEntry, error) {
	var parse func([]byte) ([]fileEntry, error)
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".json":
		parse = parseJSON
	case ".yaml", ".yml":
		parse = parseYAML
	case ".toml":
		parse = parseTOML
	case ".env":
		parse = parseDotenv
	default:
		return nil, fmt.Errorf("read config file %s: unknown format %q: name it .json, .yaml, .yml, .toml or .env", path, ext)
	}
	entries, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read config file %s: %w", path, err)
	}
	return entries, nil
}

func parseJSON(data []byte) ([]fileEntry, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	fail := func(err error) error {
		offset := dec.InputOffset()
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			offset = syntax.Offset
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("line %d: %w", lineAt(data, offset), err)
	}

	tok, err := dec.Token()
	if err != nil {
		return nil, fail(err)
	}
	if tok != json.Delim('{') {
		return nil, fail(errors.New("want an object"))
	}
	var entries []fileEntry
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fail(err)
		}
		e := fileEntry{line: lineAt(data, dec.InputOffset())}
		e.key, _ = tok.(string) // a key of an object is a string
		var value any
		if err := dec.Decode(&value); err != nil {
			return nil, fail(fmt.Errorf("key %s: %w", e.key, err))
		}
		if e.text, e.nested, err = scalar(value); err != nil {
			return nil, fail(fmt.Errorf("key %s: %w", e.key, err))
		}
		entries = append(entries, e)
	}
	if _, err := dec.Token(); err != nil {
		return nil, fail(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fail(errors.New("more behind the object"))
	}
	return entries, nil
}

// lineAt is the line, from 1, of the byte before offset.
func lineAt(data []byte, offset int64) int {
	offset = max(0, min(offset, int64(len(data))))
	return 1 + bytes.Count(data[:offset], []byte{'\n'})
}

func parseYAML(data []byte) ([]fileEntry, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, nil // empty, or comments only
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want a map of settings", root.Line)
	}
	var entries []fileEntry
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if key.Tag == "!!merge" {
			return nil, fmt.Errorf("line %d: merge keys (<<) are not supported, write the settings out", key.Line)
		}
		if key.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: want the name of a setting", key.Line)
		}
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		e := fileEntry{key: key.Value, line: key.Line}
		switch {
		case value.Kind == yaml.ScalarNode && value.Tag == "!!null":
		case value.Kind == yaml.ScalarNode:
			// The text as written: numbers keep all their digits.
			e.text = value.Value
		default:
			var v any
			if err := value.Decode(&v); err != nil {
				return nil, fmt.Errorf("line %d: key %s: not a plain map or list", key.Line, key.Value)
			}
			var err error
			if e.text, e.nested, err = scalar(v); err != nil {
				return nil, fmt.Errorf("line %d: key %s: %w", key.Line, key.Value, err)
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func parseTOML(data []byte) ([]fileEntry, error) {
	var values map[string]any
	_, err := toml.Decode(string(data), &values)
	var parse toml.ParseError
	if errors.As(err, &parse) {
		if parse.LastKey != "" {
			return nil, fmt.Errorf("line %d: after key %s: syntax error", parse.Position.Line, parse.LastKey)
		}
		return nil, fmt.Errorf("line %d: syntax error", parse.Position.Line)
	}
	if err != nil {
		return nil, err
	}
	var entries []fileEntry
	for _, key := range slices.Sorted(maps.Keys(values)) {
		e := fileEntry{key: key}
		if e.text, e.nested, err = scalar(values[key]); err != nil {
			return nil, fmt.Errorf("key %s: %w", key, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func parseDotenv(data []byte) ([]fileEntry, error) {
	values, err := godotenv.UnmarshalBytes(data)
	if err != nil {
		// godotenv's error quotes the rest of the file, passwords included.
		return nil, errors.New("want lines of the form NAME=value")
	}
	var entries []fileEntry
	for _, key := range slices.Sorted(maps.Keys(values)) {
		entries = append(entries, fileEntry{key: key, text: values[key]})
	}
	return entries, nil
}

// scalar turns a decoded value into text; a map or list becomes JSON.
func scalar(v any) (text string, nested bool, err error) {
	switch v := v.(type) {
	case nil:
		return "", false, nil
	case string:
		return v, false, nil
	case bool:
		return strconv.FormatBool(v), false, nil
	case json.Number:
		return v.String(), false, nil
	case int64:
		return strconv.FormatInt(v, 10), false, nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), false, nil
	case map[string]any, []any, []map[string]any:
		b, err := json.Marshal(v)
		if err != nil {
			return "", false, errors.New("not a plain map or list")
		}
		return string(b), true, nil
	}
	return "", false, errors.New("want text, a number, true or false")
}
