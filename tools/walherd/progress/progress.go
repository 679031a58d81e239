// Package progress shows how far long work has come: bars on a terminal, a
// line in the log now and then elsewhere.
//
// It never fails and never stops the work: what cannot be written is not
// shown. A nil *Tracker and a nil *Part do nothing, so callers need no
// switch for quiet work.
package progress

import (
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/cheggaaa/pb/v3"
)

// Options say what is tracked and where it is shown.
type Options struct {
	// Out is the terminal, or better the *Screen the log is written to as
	// well. It is only written to if IsTTY.
	Out io.Writer
	// IsTTY draws bars on Out.
	IsTTY bool
	// Logger gets a line every Interval if there are no bars, and one at
	// the end. nil logs nothing.
	Logger *slog.Logger
	// Total is the size of the work in bytes, 0 if it is not known.
	Total int64
	// Title names the work, as in "backup-push".
	Title string
	// Interval between log lines; 0 is 30 s.
	Interval time.Duration
	// Refresh is how often bars are redrawn; 0 is 200 ms.
	Refresh time.Duration
}

// Keys of the attributes in log lines. Sizes are bytes, the rate is bytes per
// second.
const (
	KeyState    = "state"
	KeyDone     = "done_bytes"
	KeyTotal    = "total_bytes"
	KeyPercent  = "percent"
	KeyRate     = "rate_bytes_s"
	KeyLeft     = "time_left"
	KeyElapsed  = "elapsed"
	KeyParts    = "parts_done"
	KeyInFlight = "parts_in_flight"
	KeyStored   = "stored_bytes"
)

// Tracker follows one piece of work. It is safe for concurrent use.
type Tracker struct {
	screen *Screen // nil without a terminal
	logger *slog.Logger
	title  string
	start  time.Time

	stop    chan struct{}
	stopped chan struct{}
	finish  sync.Once

	mu        sync.Mutex
	total     int64
	done      int64
	stored    int64
	doneParts int
	parts     []*Part // in flight, oldest first
	bar       *pb.ProgressBar
}

// Part is one part of the work in flight.
type Part struct {
	t    *Tracker
	name string
	size int64
	done int64
	gone bool // done, or begun anew by another Part
	bar  *pb.ProgressBar
}

// The bars are pb's; its pool of bars is not used: it puts the terminal into
// another mode, which stops a process that runs in the background, and
// catches signals, which are the command's to handle.
const (
	totalBar   = `{{string . "name"}} {{counters . "%s / %s"}} {{bar . "[" "=" ">" " " "]"}} {{percent . "%.0f%%" ""}} {{speed . "%s/s" "-"}}, {{rtime . "%s left" "%s" "-"}}`
	unknownBar = `{{string . "name"}} {{counters . }} in {{string . "elapsed"}}, {{speed . "%s/s" "-"}}`
	partBar    = `  {{string . "name"}} {{counters . "%s / %s"}} {{bar . "[" "=" ">" " " "]"}} {{percent . "%.0f%%" ""}}`
)

// New begins to track. Without a terminal and without a logger there is
// nothing to do, and it returns nil. Finish must be called.
func New(opt Options) *Tracker {
	opt.IsTTY = opt.IsTTY && opt.Out != nil
	if !opt.IsTTY && opt.Logger == nil {
		return nil
	}
	t := &Tracker{
		logger:  opt.Logger,
		title:   opt.Title,
		total:   opt.Total,
		start:   time.Now(),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
	period, tick := opt.Interval, t.logProgress
	if period <= 0 {
		period = 30 * time.Second
	}
	if opt.IsTTY {
		var shared bool
		if t.screen, shared = opt.Out.(*Screen); !shared {
			t.screen = NewScreen(opt.Out)
		}
		t.bar = t.newTotalBar()
		t.redraw()
		period, tick = opt.Refresh, t.redraw
		if period <= 0 {
			period = 200 * time.Millisecond
		}
	}
	go t.run(period, tick)
	return t
}

func (t *Tracker) newTotalBar() *pb.ProgressBar {
	if t.total <= 0 {
		return newBar(unknownBar, t.title, t.total)
	}
	return newBar(totalBar, t.title, t.total)
}

func newBar(template, name string, total int64) *pb.ProgressBar {
	return pb.New64(total).
		SetTemplateString(template).
		SetWriter(io.Discard).
		Set(pb.Static, true).
		Set(pb.Bytes, true).
		Set(pb.Color, false).
		Set("name", name).
		Start()
}

func (t *Tracker) run(period time.Duration, tick func()) {
	defer close(t.stopped)
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			tick()
		case <-t.stop:
			return
		}
	}
}

// Part begins a part of size bytes, 0 if that is not known. A part of that
// name that is in flight is given up for another attempt: what it counted is
// taken back, and what its owner still adds is not counted.
func (t *Tracker) Part(name string, size int64) *Part {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &Part{t: t, name: name, size: size}
	if t.screen != nil {
		p.bar = newBar(partBar, name, size)
	}
	for i, old := range t.parts {
		if old.name == name {
			t.done -= old.done
			old.gone = true
			t.parts[i] = p
			if t.screen != nil {
				// A bar takes a step back for one forward, as
				// fast; its speed is measured anew.
				t.bar = t.newTotalBar()
			}
			return p
		}
	}
	t.parts = append(t.parts, p)
	return p
}

// Add counts n more bytes.
func (p *Part) Add(n int64) {
	if p == nil {
		return
	}
	p.t.mu.Lock()
	defer p.t.mu.Unlock()
	if !p.gone {
		p.done += n
		p.t.done += n
	}
}

// Done ends the part, which takes stored bytes in storage. If it turned out
// larger or smaller than was said, so does the work.
func (p *Part) Done(stored int64) {
	if p == nil {
		return
	}
	t := p.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.gone {
		return
	}
	p.gone = true
	t.stored += stored
	t.doneParts++
	if t.total > 0 && p.size > 0 {
		t.total += p.done - p.size
	}
	for i, q := range t.parts {
		if q == p {
			t.parts = append(t.parts[:i], t.parts[i+1:]...)
			break
		}
	}
}

// Finish removes the bars and logs the outcome. Only the first call counts.
func (t *Tracker) Finish() {
	if t == nil {
		return
	}
	t.finish.Do(func() {
		close(t.stop)
		<-t.stopped
		if t.screen != nil {
			t.screen.draw(nil)
		}
		t.mu.Lock()
		state := "finished"
		if len(t.parts) > 0 || t.done < t.total {
			state = "stopped"
		}
		t.mu.Unlock()
		t.log(state)
	})
}

func (t *Tracker) logProgress() { t.log("running") }

func (t *Tracker) log(state string) {
	if t.logger == nil {
		return
	}
	t.mu.Lock()
	elapsed := time.Since(t.start)
	rate := float64(0)
	if elapsed > 0 {
		rate = float64(t.done) / elapsed.Seconds()
	}
	attrs := []any{slog.String(KeyState, state), slog.Int64(KeyDone, t.done)}
	if t.total > 0 {
		attrs = append(attrs, slog.Int64(KeyTotal, t.total), slog.Int64(KeyPercent, int64(float64(t.done)/float64(t.total)*100)))
		if left := t.total - t.done; state == "running" && left > 0 && rate > 0 {
			attrs = append(attrs, slog.Duration(KeyLeft, time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second)))
		}
	}
	attrs = append(attrs,
		slog.Int64(KeyRate, int64(rate)),
		slog.Duration(KeyElapsed, elapsed.Round(time.Millisecond)),
		slog.Int(KeyParts, t.doneParts), slog.Int(KeyInFlight, len(t.parts)), slog.Int64(KeyStored, t.stored))
	t.mu.Unlock()
	t.logger.Info(t.title, attrs...)
}

// redraw draws the total and as many parts as the terminal has room for.
func (t *Tracker) redraw() {
	cols, rows := t.screen.size()
	t.mu.Lock()
	t.bar.Set("elapsed", time.Since(t.start).Round(time.Second))
	lines := []string{render(t.bar, t.done, t.total, cols)}
	// Two rows stay free: the cursor's, and one for the log.
	room := max(0, rows-3)
	for i, p := range t.parts {
		if i == room-1 && len(t.parts) > room {
			lines = append(lines, pb.StripString(fmt.Sprintf("  and %d parts more", len(t.parts)-i), cols-1))
			break
		}
		if i >= room {
			break
		}
		lines = append(lines, render(p.bar, p.done, p.size, cols))
	}
	t.mu.Unlock()
	t.screen.draw(lines)
}

// render is one line, a column narrower than the terminal lest it wraps.
func render(bar *pb.ProgressBar, done, total int64, cols int) string {
	width := max(1, cols-1)
	bar.SetTotal(total).SetCurrent(done).SetWidth(width)
	return pb.StripString(bar.String(), width)
}
