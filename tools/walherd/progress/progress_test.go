package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// terminal is as much of one as the bars use: rows of text, cursor up,
// carriage return, erase to the end of line or screen.
type terminal struct {
	rows     []string
	row, col int
}

// feed draws what was written. lf says that a line feed returns to column 0
// by itself, as a terminal driver makes it.
func (v *terminal) feed(t interface{ Fatalf(string, ...any) }, text string, lf bool) {
	for i := 0; i < len(text); i++ {
		for len(v.rows) <= v.row {
			v.rows = append(v.rows, "")
		}
		switch c := text[i]; c {
		case '\r':
			v.col = 0
		case '\n':
			v.row++
			if lf {
				v.col = 0
			}
		case 0x1b:
			end := i + 2
			for end < len(text) && text[end] >= '0' && text[end] <= '9' {
				end++
			}
			n := 1
			_, _ = fmt.Sscanf(text[i+2:end], "%d", &n)
			switch text[end] {
			case 'A':
				if v.row -= n; v.row < 0 {
					t.Fatalf("cursor left the screen by %d rows", -v.row)
				}
			case 'K':
				v.rows[v.row] = v.rows[v.row][:min(v.col, len(v.rows[v.row]))]
			case 'J':
				v.rows[v.row] = v.rows[v.row][:min(v.col, len(v.rows[v.row]))]
				v.rows = v.rows[:v.row+1]
			default:
				t.Fatalf("unknown sequence %q", text[i:end+1])
			}
			i = end
		default:
			line := v.rows[v.row]
			for len(line) < v.col {
				line += " "
			}
			v.rows[v.row] = line[:v.col] + string(c) + line[min(v.col+1, len(line)):]
			v.col++
		}
	}
}

func (v *terminal) String() string {
	return strings.TrimRight(strings.Join(v.rows, "\n"), "\n")
}

// syncBuffer is a buffer several goroutines write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *syncBuffer) screen(t *testing.T) string {
	var v terminal
	v.feed(t, s.String(), true)
	return v.String()
}

// records decodes a JSON log.
func records(t *testing.T, log string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, line := range strings.Split(strings.TrimSpace(log), "\n") {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v in %q", err, log)
		}
		out = append(out, r)
	}
	return out
}

func TestLogLines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		tr := New(Options{Logger: slog.New(slog.NewJSONHandler(&log, nil)), Total: 1000, Title: "backup-push", Interval: 10 * time.Second})
		p := tr.Part("part_001", 400)
		p.Add(200)
		time.Sleep(10*time.Second + time.Millisecond)
		p.Add(200)
		p.Done(50)
		q := tr.Part("part_002", 600)
		q.Add(600)
		time.Sleep(10 * time.Second)
		q.Done(70)
		tr.Finish()
		tr.Finish()

		got := records(t, log.String())
		if len(got) != 3 {
			t.Fatalf("%d lines: %s", len(got), log.String())
		}
		for i, want := range []map[string]any{
			{"msg": "backup-push", KeyState: "running", KeyDone: 200., KeyTotal: 1000., KeyPercent: 20., KeyRate: 20., KeyLeft: 40e9, KeyParts: 0., KeyInFlight: 1., KeyStored: 0.},
			{"msg": "backup-push", KeyState: "running", KeyDone: 1000., KeyPercent: 100., KeyRate: 50., KeyLeft: nil, KeyParts: 1., KeyInFlight: 1., KeyStored: 50.},
			{"msg": "backup-push", KeyState: "finished", KeyDone: 1000., KeyPercent: 100., KeyParts: 2., KeyInFlight: 0., KeyStored: 120., KeyElapsed: 20001e6},
		} {
			for k, v := range want {
				if got[i][k] != v {
					t.Errorf("line %d: %s is %v, want %v", i, k, got[i][k], v)
				}
			}
		}
	})
}

func TestStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		tr := New(Options{Logger: slog.New(slog.NewJSONHandler(&log, nil)), Total: 10})
		tr.Part("a", 10).Add(3)
		tr.Finish()
		got := records(t, log.String())
		if len(got) != 1 || got[0][KeyState] != "stopped" || got[0][KeyDone] != 3. {
			t.Errorf("got %v", got)
		}
	})
}

// TestNil is not parallel: it counts allocations.
func TestNil(t *testing.T) {
	tr := New(Options{Total: 5, Out: io.Discard})
	if tr != nil {
		t.Fatal("there is nobody to show it to")
	}
	allocs := testing.AllocsPerRun(100, func() {
		p := tr.Part("a", 5)
		p.Add(5)
		p.Done(1)
		tr.Finish()
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		tr := New(Options{Logger: slog.New(slog.NewJSONHandler(&log, nil)), Total: 100})
		first := tr.Part("a", 60)
		other := tr.Part("b", 40)
		first.Add(50)
		other.Add(10)
		second := tr.Part("a", 60)
		first.Add(7) // the first attempt has not heard yet
		first.Done(99)
		second.Add(20)
		if tr.done != 30 || len(tr.parts) != 2 || tr.stored != 0 {
			t.Errorf("done %d, %d parts, %d stored", tr.done, len(tr.parts), tr.stored)
		}
		second.Add(35) // five bytes less than was said
		second.Done(6)
		second.Done(6)
		other.Add(30)
		other.Done(4)
		if tr.done != 95 || tr.total != 95 || tr.stored != 10 || tr.doneParts != 2 || len(tr.parts) != 0 {
			t.Errorf("done %d of %d, stored %d, %d parts done, %d in flight", tr.done, tr.total, tr.stored, tr.doneParts, len(tr.parts))
		}
		tr.Finish()
		if got := records(t, log.String())[0][KeyState]; got != "finished" {
			t.Errorf("state %v", got)
		}
	})
}

func TestBars(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out syncBuffer
		screen := NewScreen(&out)
		logger := slog.New(slog.NewTextHandler(screen, nil))
		logger.Info("before")
		tr := New(Options{Out: screen, IsTTY: true, Logger: logger, Total: 100 << 20, Title: "backup-push"})
		a, b := tr.Part("part_001", 40<<20), tr.Part("part_002", 60<<20)
		for range 20 {
			a.Add(1 << 20)
			b.Add(1 << 20)
			time.Sleep(250 * time.Millisecond)
		}
		logger.Info("amid", "n", 1)
		rows := strings.Split(out.screen(t), "\n")
		if len(rows) != 5 || !strings.Contains(rows[0], "before") || !strings.Contains(rows[1], "amid") {
			t.Fatalf("screen:\n%s", out.screen(t))
		}
		for i, words := range [][]string{
			{"backup-push 40.00 MiB / 100.00 MiB [", ">", "] 40%", "MiB/s, ", " left"},
			{"  part_001 20.00 MiB / 40.00 MiB [", "] 50%"},
			{"  part_002 20.00 MiB / 60.00 MiB [", "] 33%"},
		} {
			for _, w := range words {
				if !strings.Contains(rows[2+i], w) {
					t.Errorf("row lacks %q: %s", w, rows[2+i])
				}
			}
			if len(rows[2+i]) > 79 {
				t.Errorf("row wraps: %s", rows[2+i])
			}
		}
		// Begun anew: what was counted is taken back, which is no speed.
		b = tr.Part("part_002", 60<<20)
		time.Sleep(time.Second)
		rows = strings.Split(out.screen(t), "\n")
		if !strings.Contains(rows[2], " 20.00 MiB / 100.00 MiB [") || !strings.Contains(rows[2], "] 20% -, -") || !strings.Contains(rows[4], " 0 B / 60.00 MiB") {
			t.Errorf("screen:\n%s", out.screen(t))
		}
		b.Add(1)
		a.Done(1)
		time.Sleep(time.Second)
		if s := out.screen(t); strings.Contains(s, "part_001") || !strings.Contains(s, "part_002") {
			t.Errorf("screen:\n%s", s)
		}
		tr.Finish()
		logger.Info("after")
		rows = strings.Split(out.screen(t), "\n")
		if len(rows) != 4 || !strings.Contains(rows[2], "state=stopped") || !strings.Contains(rows[3], "after") {
			t.Errorf("screen:\n%s", out.screen(t))
		}
	})
}

func TestManyParts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out syncBuffer
		tr := New(Options{Out: &out, IsTTY: true, Title: "copy"})
		for i := range 30 {
			tr.Part(fmt.Sprintf("part_%03d", i), 0).Add(5)
		}
		time.Sleep(time.Second)
		rows := strings.Split(out.screen(t), "\n")
		if len(rows) != 22 || !strings.HasPrefix(rows[0], "copy 150 B in ") || rows[21] != "  and 10 parts more" {
			t.Errorf("%d rows:\n%s", len(rows), out.screen(t))
		}
		tr.Finish()
		if s := out.screen(t); s != "" {
			t.Errorf("bars are left:\n%s", s)
		}
	})
}

// TestScreenKeepsLog: however log lines are cut and whatever is drawn between
// them, the log on the screen is the log that was written.
func TestScreenKeepsLog(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var out bytes.Buffer
		s := NewScreen(&out)
		var log string
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "log") {
				text := rapid.StringMatching(`([a-z]{0,5}\n?){0,3}`).Draw(t, "text")
				log += text
				if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
					t.Fatal(n, err)
				}
			} else if strings.HasSuffix(log, "\n") || log == "" || len(s.frame) > 0 {
				s.draw(rapid.SliceOfN(rapid.StringMatching(`=[=>]{0,9}`), 0, 4).Draw(t, "bars"))
			}
		}
		bars := strings.Join(s.frame, "\n")
		whole := log[:strings.LastIndexByte(log, '\n')+1]
		var v terminal
		v.feed(t, out.String(), true)
		if got, want := v.String(), strings.TrimRight(whole+bars, "\n"); len(s.frame) > 0 && got != want {
			t.Fatalf("screen %q, want %q", got, want)
		}
		s.draw(nil)
		v = terminal{}
		v.feed(t, out.String(), true)
		if got, want := v.String(), strings.TrimRight(log, "\n"); got != want {
			t.Fatalf("screen %q, want %q", got, want)
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	var out syncBuffer
	screen := NewScreen(&out)
	logger := slog.New(slog.NewTextHandler(screen, nil))
	tr := New(Options{Out: screen, IsTTY: true, Logger: logger, Total: 8 * 50 * 100, Title: "x", Refresh: time.Microsecond})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				p := tr.Part(fmt.Sprintf("%d-%d", i, j), 100)
				for range 10 {
					p.Add(10)
				}
				logger.Info("line", "i", i, "j", j)
				p.Done(1)
			}
		})
	}
	wg.Wait()
	tr.Finish()
	rows := strings.Split(out.screen(t), "\n")
	if len(rows) != 8*50+1 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows[:8*50] {
		if !strings.Contains(row, "msg=line") || !strings.HasPrefix(row, "time=") {
			t.Errorf("garbled: %s", row)
		}
	}
	if last := rows[8*50]; !strings.Contains(last, "state=finished") || !strings.Contains(last, "percent=100") || !strings.Contains(last, "stored_bytes=400") {
		t.Errorf("got %s", last)
	}
}

// openPTY makes a pseudo-terminal of that size.
func openPTY(t *testing.T, cols, rows uint16) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// TestPseudoTerminal: on a real terminal the bars fit its width, a resize is
// followed, and the log stays whole.
func TestPseudoTerminal(t *testing.T) {
	t.Parallel()
	master, slave := openPTY(t, 100, 10)
	text := make(chan string)
	go func() {
		b, err := io.ReadAll(master)
		if err != nil && !errors.Is(err, syscall.EIO) { // how a pty ends
			b = fmt.Append(b, err)
		}
		text <- string(b)
	}()

	screen := NewScreen(slave)
	logger := slog.New(slog.NewTextHandler(screen, nil))
	tr := New(Options{Out: screen, IsTTY: true, Logger: logger, Total: 100, Title: "backup-push", Refresh: time.Hour})
	p := tr.Part("part_001", 100)
	p.Add(50)
	tr.redraw()
	for _, line := range screen.frame {
		if len(line) != 99 {
			t.Errorf("row of %d columns on a terminal of 100: %q", len(line), line)
		}
	}
	logger.Info("hello")
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 60, Row: 10}); err != nil {
		t.Fatal(err)
	}
	tr.redraw()
	for _, line := range screen.frame {
		if len(line) != 59 {
			t.Errorf("row of %d columns on a terminal of 60: %q", len(line), line)
		}
	}
	p.Add(50)
	p.Done(20)
	tr.Finish()
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}

	var v terminal
	v.feed(t, <-text, false)
	rows := strings.Split(v.String(), "\n")
	if len(rows) != 2 || !strings.Contains(rows[0], "msg=hello") || !strings.Contains(rows[1], "state=finished") {
		t.Errorf("screen:\n%s", v.String())
	}
}

// TestNarrowTerminal: however small the terminal, no row wraps.
func TestNarrowTerminal(t *testing.T) {
	t.Parallel()
	for _, cols := range []uint16{1, 2, 10, 40} {
		master, slave := openPTY(t, cols, 4)
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, master)
		}()
		tr := New(Options{Out: slave, IsTTY: true, Total: 100, Title: "backup-push", Refresh: time.Hour})
		for i := range 5 {
			tr.Part(fmt.Sprintf("part_%03d", i), 20).Add(3)
		}
		tr.redraw()
		if n := len(tr.screen.frame); n > 2 {
			t.Errorf("%d rows on a terminal of 4", n)
		}
		for _, line := range tr.screen.frame {
			if len(line) > max(1, int(cols)-1) {
				t.Errorf("row of %d columns on a terminal of %d: %q", len(line), cols, line)
			}
		}
		tr.Finish()
		if err := slave.Close(); err != nil {
			t.Fatal(err)
		}
		<-drained
	}
}

func BenchmarkAdd(b *testing.B) {
	tr := New(Options{Logger: slog.New(slog.DiscardHandler)})
	defer tr.Finish()
	p := tr.Part("a", 0)
	for b.Loop() {
		p.Add(1)
	}
}
