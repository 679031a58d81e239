package progress

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"golang.org/x/term"
)

// Screen shares a terminal between log lines and bars. It is the writer to
// give to a log handler: while bars are drawn a log line appears above them,
// otherwise it passes through untouched. A terminal made narrower while bars
// are drawn may keep a stale copy of them; log lines are never erased. It is
// safe for concurrent use.
type Screen struct {
	out io.Writer

	mu    sync.Mutex
	frame []string // the lines drawn, the cursor being on the line below
	tail  []byte   // begin of a log line whose end has not come yet
}

// NewScreen makes a screen of a terminal, normally os.Stderr.
func NewScreen(out io.Writer) *Screen { return &Screen{out: out} }

// Write writes log lines.
func (s *Screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.frame) == 0 {
		return s.out.Write(p)
	}
	// A bar may only stand below whole lines.
	s.tail = append(s.tail, p...)
	end := bytes.LastIndexByte(s.tail, '\n') + 1
	if end == 0 {
		return len(p), nil
	}
	var b bytes.Buffer
	s.erase(&b)
	b.Write(s.tail[:end])
	s.tail = append(s.tail[:0], s.tail[end:]...)
	for _, line := range s.frame {
		b.WriteString(line + "\n")
	}
	if _, err := s.out.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// draw replaces the bars by lines, each narrower than the terminal; none
// removes the bars. It overwrites in place, which does not flicker. Errors
// are dropped: a lost terminal must not fail the work it shows.
func (s *Screen) draw(lines []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b bytes.Buffer
	if len(lines) == 0 {
		s.erase(&b)
		b.Write(s.tail)
		s.tail = nil
	} else {
		if len(s.frame) > 0 {
			fmt.Fprintf(&b, "\x1b[%dA\r", len(s.frame))
		}
		for _, line := range lines {
			b.WriteString(line + "\x1b[K\n")
		}
		if len(lines) < len(s.frame) {
			b.WriteString("\x1b[J")
		}
	}
	s.frame = lines
	_, _ = s.out.Write(b.Bytes())
}

// erase removes what is drawn and leaves the cursor where it began.
func (s *Screen) erase(b *bytes.Buffer) {
	if len(s.frame) > 0 {
		fmt.Fprintf(b, "\x1b[%dA\r\x1b[J", len(s.frame))
	}
}

// size is that of the terminal; 80 by 24 if it does not tell.
func (s *Screen) size() (cols, rows int) {
	if f, ok := s.out.(interface{ Fd() uintptr }); ok {
		if c, r, err := term.GetSize(int(f.Fd())); err == nil && c > 0 && r > 0 {
			return c, r
		}
	}
	return 80, 24
}
