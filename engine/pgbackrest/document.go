package pgbackrest

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

const (
	// format is the only repository format of pgBackRest 2.
	format = 5
	// maxLine bounds one line of a document, in bytes. The longest that are
	// seen list page checksum errors or the files of a reference chain.
	maxLine = 16 << 20
)

// The section every document begins and ends with, and that of passphrases.
const (
	headSection   = "backrest"
	cipherSection = "cipher"
)

// parse reads a document and calls each with its values, in their order; the
// head and the passphrase it keeps to itself, and returns the latter. What was
// read is proven only when parse returns nil. An error of each is returned with
// the line's number.
//
// It is not a common INI file: nothing is trimmed or unquoted, there are no
// comments, and since a key may hold a =, the first one that is followed by a
// JSON value ends it.
func parse(r io.Reader, each func(section, key string, value []byte) error) (passphrase string, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	lines.Split(splitLines)
	d := documentReader{sum: newDocumentSum(), each: each}
	number := 0
	for lines.Scan() {
		number++
		if err := d.line(lines.Bytes()); err != nil {
			return "", fmt.Errorf("line %d: %w", number, err)
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return "", corrupt("line %d has more than %d bytes", number+1, maxLine)
	} else if err != nil {
		return "", err
	}
	switch got := d.sum.end(); {
	case d.want == "":
		return "", corrupt("it ends without its checksum")
	case got != d.want:
		return "", corrupt("its checksum is %s, and it says %s", got, d.want)
	case d.format != format:
		return "", fmt.Errorf("repository format %d (want %d): %w", d.format, format, ErrUnsupported)
	}
	return d.passphrase, nil
}

// splitLines is bufio.ScanLines without its care for carriage returns.
func splitLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

type documentReader struct {
	sum              *documentSum
	each             func(section, key string, value []byte) error
	section          string
	want, passphrase string
	format           int
}

func (d *documentReader) line(line []byte) error {
	switch {
	case len(line) == 0:
		return nil
	case line[0] == '[':
		if len(line) < 3 || line[len(line)-1] != ']' {
			return corrupt("%.80q is no section", line)
		}
		d.section = string(line[1 : len(line)-1])
		return nil
	case d.section == "":
		return corrupt("%.80q stands before the first section", line)
	case d.want != "":
		return corrupt("something follows the checksum")
	}
	key, value, err := splitValue(line)
	if err != nil {
		return err
	}
	if d.section == headSection && key == "backrest-checksum" {
		return decode(value, &d.want)
	}
	d.sum.add(d.section, key, value)
	switch {
	case d.section == headSection && key == "backrest-format":
		return decode(value, &d.format)
	case d.section == headSection:
		return nil
	case d.section == cipherSection:
		if key == "cipher-pass" {
			return decode(value, &d.passphrase)
		}
		return nil
	}
	return d.each(d.section, key, value)
}

func splitValue(line []byte) (key string, value []byte, err error) {
	for at := 0; ; at++ {
		i := bytes.IndexByte(line[at:], '=')
		if i < 0 {
			return "", nil, corrupt("%.80q has no value in JSON", line)
		}
		at += i
		if value := line[at+1:]; at > 0 && json.Valid(value) {
			return string(line[:at]), value, nil
		}
	}
}

// decode reads one JSON value. Members that are not known are of later versions
// and ignored, as pgBackRest does.
func decode(value []byte, to any) error {
	if err := json.Unmarshal(value, to); err != nil {
		return corrupt("%.80q: %w", value, err)
	}
	return nil
}

// documentSum is the checksum of a document: SHA-1 of all of its values, as if
// they were one JSON object of an object for each section.
type documentSum struct {
	h       hash.Hash
	section string
	begun   bool
}

func newDocumentSum() *documentSum { return &documentSum{h: sha1.New()} }

func (s *documentSum) add(section, key string, value []byte) {
	switch {
	case !s.begun:
		io.WriteString(s.h, "{")
		s.open(section)
	case section != s.section:
		io.WriteString(s.h, "},")
		s.open(section)
	default:
		io.WriteString(s.h, ",")
	}
	s.h.Write(append(quote(key), ':'))
	s.h.Write(value)
}

func (s *documentSum) open(section string) {
	s.begun, s.section = true, section
	io.WriteString(s.h, `"`+section+`":{`)
}

func (s *documentSum) end() string {
	if !s.begun {
		io.WriteString(s.h, "{")
	}
	io.WriteString(s.h, "}}")
	return hex.EncodeToString(s.h.Sum(nil))
}

// quote writes a JSON string as pgBackRest does: bytes above ASCII, valid UTF-8
// or not, stay as they are.
func quote(text string) []byte {
	out := make([]byte, 0, len(text)+4)
	out = append(out, '"')
	for _, c := range []byte(text) {
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\n':
			out = append(out, '\\', 'n')
		case '\r':
			out = append(out, '\\', 'r')
		case '\t':
			out = append(out, '\\', 't')
		case '\b':
			out = append(out, '\\', 'b')
		case '\f':
			out = append(out, '\\', 'f')
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}
