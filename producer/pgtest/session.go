package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// A psql and the backend that answers it cost 90 ms of processor time to start
// and to end, the statement they run often a hundredth of that, and Await asks
// many times. So the statements of SQL and Await in database postgres go to one
// psql, which is kept for as long as the server runs.
//
// What a test sees is what a psql of its own would show: between calls DISCARD
// ALL forgets settings and temporary tables, a transaction left open ends the
// session and with it is rolled back, and so does an error.

// session is a psql that reads statements from a pipe.
type session struct {
	mu  sync.Mutex // held for the length of a call
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	// outFile is what out reads from.
	outFile io.Closer
	// errs is what psql says besides; a file, since a pipe that nobody reads
	// fills up with notices.
	errs *os.File
	// of is the postmaster that the session is with.
	of int
}

// mark is a row that no test selects.
const mark = "pgtest: end of the answer"

// longest is what surely fits in a pipe: psql may write an answer while the
// statements after it are still written to it.
const longest = 32 << 10

// reload is a call whose effect reaches an open session a moment later, and a
// new one at once.
const reload = "pg_reload_conf"

// kept reports whether statements mean the same to a psql that has run others
// before: not the commands of psql itself (of which \c changes the database).
func kept(statements string) bool {
	return len(statements) < longest && !strings.ContainsRune(statements, '\\') && !strings.Contains(statements, reload)
}

// ask runs statements in the kept psql. asked is false when they were not sent:
// another goroutine has it, or it cannot be started.
func (c *Cluster) ask(statements string) (text string, err error, asked bool) {
	s := &c.session
	if !s.mu.TryLock() {
		return "", nil, false
	}
	defer s.mu.Unlock()
	pid := c.srv.pid()
	if pid == 0 {
		return "", nil, false
	}
	// The backend may be gone: a crash of another ends all of them.
	if s.cmd != nil && (s.of != pid || s.send("") != nil || s.forgotten() != nil) {
		s.end()
	}
	if s.cmd == nil {
		if err := s.begin(c); err != nil {
			return "", nil, false
		}
		s.of = pid
	}
	if s.errs.Truncate(0) != nil || s.send(statements) != nil {
		s.end()
		return "", nil, false
	}
	text, err = s.answer()
	if err != nil {
		said := s.end()
		return text, fmt.Errorf("run psql: %w: %s", err, said), true
	}
	// Its answer is awaited by the next call.
	if _, err := io.WriteString(s.in, "DISCARD ALL;\n"); err != nil {
		s.end()
	}
	return text, nil, true
}

func (s *session) begin(c *Cluster) error {
	errs, err := os.CreateTemp(c.base, "psql-")
	if err != nil {
		return fmt.Errorf("make file for psql's errors: %w", err)
	}
	cmd := c.Command(context.Background(), "psql", psqlArgs("postgres")...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return errors.Join(err, errs.Close())
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return errors.Join(err, errs.Close())
	}
	cmd.Stderr = errs
	if err := errors.Join(os.Remove(errs.Name()), cmd.Start()); err != nil {
		return errors.Join(err, errs.Close(), in.Close(), out.Close())
	}
	s.cmd, s.in, s.out, s.outFile, s.errs = cmd, in, bufio.NewReader(out), out, errs
	if err := errors.Join(s.send(""), s.forgotten()); err != nil {
		s.end()
		return err
	}
	return nil
}

// send writes statements and a query of the mark. The semicolon on a line of its
// own ends a statement that has none.
func (s *session) send(statements string) error {
	if statements != "" {
		statements += "\n;\n"
	}
	_, err := io.WriteString(s.in, statements+"SELECT '"+mark+"';\n")
	return err
}

// forgotten waits until nothing of the calls before is left.
func (s *session) forgotten() error {
	_, err := s.answer()
	return err
}

// answer reads rows up to the mark. An error means that psql has ended.
func (s *session) answer() (string, error) {
	var text strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		if line == mark+"\n" {
			return strings.TrimSuffix(text.String(), "\n"), nil
		}
		text.WriteString(line)
		if err != nil {
			return strings.TrimSuffix(text.String(), "\n"), s.ended(err)
		}
	}
}

// ended is why psql does not answer.
func (s *session) ended(read error) error {
	if !errors.Is(read, io.EOF) {
		return read
	}
	if err := s.cmd.Wait(); err != nil {
		return err
	}
	return read
}

// end ends psql and returns what it said besides.
func (s *session) end() string {
	if s.cmd == nil {
		return ""
	}
	s.in.Close()
	if s.cmd.ProcessState == nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	}
	s.outFile.Close()
	said, err := io.ReadAll(io.NewSectionReader(s.errs, 0, 1<<20))
	if err != nil {
		said = []byte(err.Error())
	}
	s.errs.Close()
	s.cmd = nil
	return strings.TrimSpace(string(said))
}

// leave ends the session, unless a call is in the middle of it: that ends with
// the server.
func (c *Cluster) leave() {
	if c.session.mu.TryLock() {
		defer c.session.mu.Unlock()
		c.session.end()
	}
}

// psqlArgs are not psql -c, which makes one transaction of all statements: a
// restore point would come before the commit of the rows in front of it.
func psqlArgs(database string) []string {
	return []string{"-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"}
}
