package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"
	"sync/atomic"

	"github.com/walherd/walherd/engine/delta"
	"github.com/walherd/walherd/engine/pack"
)

// layers is what a chain's restore knows of each file while it goes from step
// to step.
type layers struct {
	*chain
	// claims holds, for each file, the run of an attempt that met its entry
	// in this step; 0 is none.
	claims []atomic.Uint32
	runs   atomic.Uint32
	// state is where in scratch the missing pages of a file are kept that
	// was begun with an increment, in reverse order; after is what it
	// becomes when the step is done. Until then another attempt at an
	// object has to find what the first found.
	state, after []int64
	scratch      *os.File
	scratchEnd   atomic.Int64
}

// Values of layers.state that are no offset.
const (
	notBegun = -1
	complete = -2
)

// scratchName is the file of layers.scratch. It is there as long as parts are
// restored: an interrupted restore goes on with it.
const scratchName = MarkerName + ".pages"

func newLayers(c *chain, t *target) (*layers, error) {
	l := &layers{chain: c, claims: make([]atomic.Uint32, c.files.len())}
	if !c.reverse {
		return l, nil
	}
	l.state, l.after = make([]int64, c.files.len()), make([]int64, c.files.len())
	for i := range l.state {
		l.state[i], l.after[i] = notBegun, notBegun
	}
	if t.past != nil && t.past.fresh() {
		// What an earlier restore kept there is of no use.
		if err := t.root.Remove(scratchName); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("make file for the state of pages: %w", err)
		}
	}
	if t.past.endedBelow(len(t.plan.Bases)) {
		// Every state was used, and the file dropped: the journal's facts
		// point to what nobody reads any more.
		l.scratchEnd.Store(math.MaxInt64)
		return l, nil
	}
	f, err := t.root.OpenFile(scratchName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make file for the state of pages: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("make file for the state of pages: %w", errors.Join(err, f.Close()))
	}
	l.scratch = f
	l.scratchEnd.Store(info.Size())
	return l, nil
}

// dropScratch removes the file for the state of pages, when all parts are
// restored, and what a killed put has left.
func (t *target) dropScratch() error {
	for _, name := range []string{scratchName, newName} {
		if err := t.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

func (l *layers) close() error {
	if l == nil || l.scratch == nil {
		return nil
	}
	return l.scratch.Close()
}

// done reports whether nothing older than the steps so far matters for file i.
func (l *layers) done(i int) bool { return l.reverse && l.state[i] == complete }

// needs tells what of a step is needed of file i.
func (l *layers) needs(step, i int) holding {
	if l.done(i) {
		return nothing
	}
	return l.holds(step, i)
}

// order is the steps in the order of the restore.
func (l *layers) order() []int {
	out := make([]int, l.last+1)
	for i := range out {
		out[i] = i
		if l.reverse {
			out[i] = l.last - i
		}
	}
	return out
}

// split tells a step's objects apart: those that hold something needed, and
// those that do not if their list is to be believed.
func (l *layers) split(step int, objects []Object) (needed, redundant []Object) {
	for _, o := range objects {
		files, listed := l.tars[step][o.Name]
		use := !listed
		for _, i := range files {
			use = use || l.needs(step, int(i)) != nothing
		}
		if use {
			needed = append(needed, o)
		} else {
			redundant = append(redundant, o)
		}
	}
	return needed, redundant
}

// begin makes ready for a step.
func (l *layers) begin() {
	for i := range l.claims {
		l.claims[i].Store(0)
	}
}

// wantsAny reports whether anything is needed of a step.
func (l *layers) wantsAny(step int) bool {
	for i := range l.claims {
		if l.needs(step, i) != nothing {
			return true
		}
	}
	return false
}

// missing is an ErrIncomplete that names files which a step should have had.
func (l *layers) missing(step int) error {
	var names []string
	n := 0
	for i := range l.claims {
		if l.claims[i].Load() == 0 && l.needs(step, i) != nothing {
			if n++; n <= maxShown {
				names = append(names, l.files.name(i))
			}
		}
	}
	switch {
	case n == 0:
		return nil
	case n > maxShown:
		names = append(names, fmt.Sprintf("and %d more", n-maxShown))
	}
	return fmt.Errorf("%w: its list of files has %s, its tars do not", ErrIncomplete, strings.Join(names, ", "))
}

// end settles what the step has done.
func (l *layers) end() { copy(l.state, l.after) }

// claim takes the entry of file i for run, one of runs of an attempt at an
// object; again tells that an earlier one of them had it.
func (l *layers) claim(i int, run uint32, runs []uint32) (again bool, err error) {
	for {
		old := l.claims[i].Load()
		again = false
		for _, r := range runs {
			again = again || r == old
		}
		if old != 0 && (!again || old == run) {
			return false, final(archiveError("the file occurs twice in the backup"))
		}
		if l.claims[i].CompareAndSwap(old, run) {
			return again, nil
		}
	}
}

// layer restores an entry of a step's data parts.
func (a *attempt) layer(ctx context.Context, h pack.Header, content io.Reader, buf []byte) error {
	l := a.layers
	last := a.step == l.last
	i, known := l.files.find(fileKey(h.Name))
	switch {
	case h.IsDir():
		// The target has all that are left; a base has some that were
		// dropped since.
		if !last {
			return nil
		}
		if known {
			l.claims[i].Store(a.run)
		}
		return a.target.directory(h.Name, h.Mode)
	case h.Name == controlPath && last && a.plan.Keep.wants(h.Name):
		return a.keepControl(h, content)
	case !known:
		return nil
	}
	kind := l.needs(a.step, i)
	if kind == nothing {
		return nil
	}
	again, err := l.claim(i, a.run, a.runs)
	if err != nil {
		return err
	}
	switch {
	case l.reverse:
		err = a.older(ctx, i, kind, again, h, content, buf)
	case kind == wholeFile:
		err = a.write(ctx, h, content, buf, again || a.target.past != nil)
	default:
		err = a.apply(ctx, h, content)
	}
	return writeError(err)
}

// writeError makes the failures of the target final that delta reports.
func writeError(err error) error {
	if w := (*delta.WriteError)(nil); errors.As(err, &w) {
		return final(err)
	}
	return err
}

// increment opens content as an increment.
func (a *attempt) increment(ctx context.Context, h pack.Header, content io.Reader) (*delta.Reader, error) {
	d, err := delta.NewReader(entryReader{ctx, content}, h.Size, a.layers.pageSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrArchive, err)
	}
	return d, nil
}

// entryReader reads an entry until ctx is done, with errors sorted.
type entryReader struct {
	ctx context.Context
	r   io.Reader
}

func (e entryReader) Read(p []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := e.r.Read(p)
	if err != nil && err != io.EOF {
		err = readError(err)
	}
	return n, err
}

// apply puts an increment on the file that the steps before have made.
func (a *attempt) apply(ctx context.Context, h pack.Header, content io.Reader) (err error) {
	d, err := a.increment(ctx, h, content)
	if err != nil {
		return err
	}
	f, err := a.target.open(h.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, final(f.Close())) }()
	if err := delta.Apply(f, d, a.wrote); err != nil {
		return err
	}
	// The newest mode counts, in either order.
	return final(f.Chmod(h.Mode.Perm()))
}

// older restores an entry in reverse order.
func (a *attempt) older(ctx context.Context, i int, kind holding, again bool, h pack.Header, content io.Reader, buf []byte) (err error) {
	l := a.layers
	newest := l.newest(a.step, i)
	if kind == wholeFile && newest {
		if err := a.write(ctx, h, content, buf, again || a.target.past != nil); err != nil {
			return err
		}
		l.after[i] = complete
		return nil
	}
	var d *delta.Reader
	if kind == increment {
		if d, err = a.increment(ctx, h, content); err != nil {
			return err
		}
	}
	var f *os.File
	if newest {
		f, err = a.create(h, again || a.target.past != nil)
	} else {
		f, err = a.target.open(h.Name)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, final(f.Close())) }()

	var p *delta.Partial
	switch {
	case newest:
		p, err = delta.Create(f, d, a.wrote)
	default:
		if p, err = l.load(i, f); err != nil {
			return final(err)
		}
		if kind == increment {
			err = p.Fill(f, d, a.wrote)
		} else {
			err = p.FillWhole(f, entryReader{ctx, content}, h.Size, a.wrote)
		}
	}
	if err != nil {
		return err
	}
	if newest {
		a.now.files++
	}
	return final(l.store(i, p))
}

// load takes up what is missing of file i.
func (l *layers) load(i int, f *os.File) (*delta.Partial, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, delta.StoredSize(info.Size(), l.pageSize))
	if _, err := l.scratch.ReadAt(b, l.state[i]); err != nil {
		return nil, fmt.Errorf("read state of pages: %w", err)
	}
	return delta.PartialOf(b, info.Size(), l.pageSize)
}

// store keeps what is missing of file i for the steps to come.
func (l *layers) store(i int, p *delta.Partial) error {
	if p.Complete() {
		l.after[i] = complete
		return nil
	}
	b := p.Bytes()
	at := l.scratchEnd.Add(int64(len(b))) - int64(len(b))
	if _, err := l.scratch.WriteAt(b, at); err != nil {
		return fmt.Errorf("keep state of pages: %w", err)
	}
	l.after[i] = at
	return nil
}

// open opens a file that was restored before, for reading and writing.
func (t *target) open(p string) (*os.File, error) {
	root, rel, err := t.locate(p)
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile(rel, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) {
		// Its own mode may forbid it. The mode comes back at once: it does
		// not bind an open file.
		info, serr := root.Lstat(rel)
		if serr != nil || !info.Mode().IsRegular() {
			return nil, final(errors.Join(err, serr))
		}
		if err := root.Chmod(rel, 0o600); err != nil {
			return nil, final(err)
		}
		if f, err = root.OpenFile(rel, os.O_RDWR, 0); err == nil {
			if err := f.Chmod(info.Mode().Perm()); err != nil {
				return nil, final(errors.Join(err, f.Close()))
			}
		}
	}
	if err != nil {
		return nil, final(fmt.Errorf("open file to apply an increment: %w", err))
	}
	return f, nil
}
