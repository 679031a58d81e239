// Package wire is what is said on the daemon's socket: WAL-G's protocol, so
// that its archive library and its client may talk to our daemon, and ours to
// its.
//
// A request is a frame: one byte that tells its kind, two bytes of length (big
// endian, of the whole frame, these three included), and a body.
//
//	'C'  check      body ignored; the answer is 'O' and the connection stays open
//	'F'  wal-push   body: the bare name of a file in pg_wal
//	'f'  wal-fetch  body: one byte, the number of arguments (2), then each with
//	                two bytes of length (big endian) in front: name, destination
//
// An answer is one byte: 'O' done, 'E' failed, 'N' no such file in the archive.
// After every answer but that to a check the connection is closed. The reason
// of a failure is in the daemon's log only: the protocol has no words.
//
// The package imports little, since archive_command's client pays for each
// import once a segment. It fails on frames that break the rules above
// (ErrMalformed) and never reads past the end of a frame.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Kind is what a request asks for.
type Kind byte

// The kinds of request.
const (
	Check Kind = 'C'
	Push  Kind = 'F'
	Fetch Kind = 'f'
)

// String names the kind as the command line does.
func (k Kind) String() string {
	switch k {
	case Check:
		return "check"
	case Push:
		return "wal-push"
	case Fetch:
		return "wal-fetch"
	}
	return fmt.Sprintf("request of unknown kind %q", byte(k))
}

// Reply is the answer to a request.
type Reply byte

// The answers.
const (
	Done   Reply = 'O'
	Failed Reply = 'E'
	Absent Reply = 'N'
)

// ErrAbsent says that no storage has the file: the answer 'N'. The function
// that fetches for a daemon returns it, and so does the client.
var ErrAbsent = errors.New("not in the archive")

// ErrMalformed marks a frame that is none.
var ErrMalformed = errors.New("malformed request")

const (
	headerSize = 3
	// MaxFrame bounds a frame in bytes. The protocol would allow 65535, but
	// the longest request with a meaning holds one path (4096 bytes).
	MaxFrame = 8 << 10
)

// Request is one frame.
type Request struct {
	Kind Kind
	// Name of the WAL file; empty in a check.
	Name string
	// Destination is where a fetch puts it; empty otherwise.
	Destination string
}

// AppendTo appends the frame to b. A request that does not fit is an error.
func (r Request) AppendTo(b []byte) ([]byte, error) {
	start := len(b)
	b = append(b, byte(r.Kind), 0, 0)
	switch r.Kind {
	case Check:
	case Push:
		b = append(b, r.Name...)
	case Fetch:
		b = append(b, 2)
		for _, arg := range []string{r.Name, r.Destination} {
			if len(arg) > MaxFrame {
				return b[:start], fmt.Errorf("send %s of %.40q...: a request has at most %d bytes", r.Kind, r.Name, MaxFrame)
			}
			b = binary.BigEndian.AppendUint16(b, uint16(len(arg)))
			b = append(b, arg...)
		}
	default:
		return b[:start], fmt.Errorf("send %s: %w", r.Kind, ErrMalformed)
	}
	size := len(b) - start
	if size > MaxFrame {
		return b[:start], fmt.Errorf("send %s of %.40q...: a request has at most %d bytes", r.Kind, r.Name, MaxFrame)
	}
	binary.BigEndian.PutUint16(b[start+1:], uint16(size))
	return b, nil
}

// ReadRequest reads one frame and not a byte more. io.EOF says that there was
// no frame, io.ErrUnexpectedEOF that it is cut short; what is said wrongly is
// ErrMalformed. The strings are as the peer sent them: nothing is known of
// them but that they are not empty.
func ReadRequest(r io.Reader) (Request, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Request{}, err
	}
	req := Request{Kind: Kind(header[0])}
	switch req.Kind {
	case Check, Push, Fetch:
	default:
		return Request{}, fmt.Errorf("%w: %s", ErrMalformed, req.Kind)
	}
	size := int(binary.BigEndian.Uint16(header[1:]))
	if size < headerSize || size > MaxFrame {
		return Request{}, fmt.Errorf("%w: a %s of %d bytes, want %d to %d", ErrMalformed, req.Kind, size, headerSize, MaxFrame)
	}
	body := make([]byte, size-headerSize)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Request{}, err
	}
	switch req.Kind {
	case Push:
		req.Name = string(body)
		if req.Name == "" {
			return Request{}, fmt.Errorf("%w: a wal-push without a name", ErrMalformed)
		}
	case Fetch:
		args, err := arguments(body)
		if err != nil {
			return Request{}, err
		}
		if len(args) != 2 || args[0] == "" || args[1] == "" {
			return Request{}, fmt.Errorf("%w: arguments %.100q of a wal-fetch, want a name and a destination", ErrMalformed, args)
		}
		req.Name, req.Destination = args[0], args[1]
	}
	return req, nil
}

// arguments reads a counted list that fills the body.
func arguments(body []byte) ([]string, error) {
	if len(body) == 0 {
		return nil, fmt.Errorf("%w: no count of arguments", ErrMalformed)
	}
	count, rest := int(body[0]), body[1:]
	var args []string
	for range count {
		if len(rest) < 2 {
			return nil, fmt.Errorf("%w: %d arguments announced, %d given", ErrMalformed, count, len(args))
		}
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; n > len(rest) {
			return nil, fmt.Errorf("%w: an argument of %d bytes in the last %d bytes of a frame", ErrMalformed, n, len(rest))
		}
		args, rest = append(args, string(rest[:n])), rest[n:]
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last argument", ErrMalformed, len(rest))
	}
	return args, nil
}
