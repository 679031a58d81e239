package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const permanentMember = "is_permanent"

// SetPermanent returns a metadata.json with its is_permanent set. All else
// stays as it was, byte for byte: the document may have been written by
// another version, with members that this one does not know and that its
// writer will want back.
func SetPermanent(document []byte, permanent bool) ([]byte, error) {
	// Readers take the last of equal members, and the case of a name for
	// nothing; so each is set.
	type place struct{ from, to int }
	var places []place
	dec := json.NewDecoder(bytes.NewReader(document))
	fail := func(err error) ([]byte, error) { return nil, fmt.Errorf("mark backup metadata: %w", err) }
	if t, err := dec.Token(); err != nil {
		return fail(err)
	} else if t != json.Delim('{') {
		return fail(errors.New("it is no JSON object"))
	}
	begin, members := int(dec.InputOffset()), 0
	for ; dec.More(); members++ {
		key, err := dec.Token()
		if err != nil {
			return fail(err)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return fail(err)
		}
		if name, _ := key.(string); strings.EqualFold(name, permanentMember) {
			end := int(dec.InputOffset())
			places = append(places, place{end - len(value), end})
		}
	}
	if _, err := dec.Token(); err != nil {
		return fail(err)
	}
	text := strconv.FormatBool(permanent)
	var out bytes.Buffer
	if len(places) == 0 {
		out.Write(document[:begin])
		fmt.Fprintf(&out, "%q:%s", permanentMember, text)
		if members > 0 {
			out.WriteByte(',')
		}
		out.Write(document[begin:])
		return out.Bytes(), nil
	}
	at := 0
	for _, p := range places {
		out.Write(document[at:p.from])
		out.WriteString(text)
		at = p.to
	}
	out.Write(document[at:])
	return out.Bytes(), nil
}
