package restore

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// journal appends to the marker what is done, a line of JSON for each fact. A
// line that a crash cut is passed over by who reads it: what it would have told
// is done again.
type journal struct {
	mu      sync.Mutex
	f       *os.File
	stopped bool
}

// journalVersion is the form of the lines.
const journalVersion = 1

// fact is a line: one of its members is set.
type fact struct {
	// Begin heads the facts that follow and voids those before.
	Begin *beginning `json:"begin,omitempty"`
	Done  *doneFact  `json:"done,omitempty"`
	// End is the number of a step of which all is restored.
	End *int `json:"end,omitempty"`
	// Recovery tells that recovery settings are written from here on. No head
	// voids it: nothing takes them back.
	Recovery bool `json:"recovery,omitempty"`
}

// beginning tells whose facts follow.
type beginning struct {
	Version int    `json:"version"`
	Backup  string `json:"backup"`
	// Options are the plan's in words, Plan its digest.
	Options string `json:"options"`
	Plan    string `json:"plan"`
	Session string `json:"session"`
}

// doneFact is one object that is restored.
type doneFact struct {
	Step   int    `json:"step"`
	Object string `json:"object"`
	Size   int64  `json:"size"`
	// Files is what became of a chain's files, see outcome.
	Files string `json:"files,omitempty"`
}

func newJournal(f *os.File) *journal { return &journal{f: f} }

// lock keeps other restores out as long as this process lives.
func (j *journal) lock() error {
	if err := lockFile(j.f); err != nil {
		return fmt.Errorf("%w: another restore is at work on it: %w", ErrUnfinished, err)
	}
	return nil
}

func (j *journal) close() error { return j.f.Close() }

func (j *journal) write(f fact) error {
	line, err := json.Marshal(f)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.stopped && !f.Recovery {
		return nil
	}
	_, err = j.f.Write(append(line, '\n'))
	return err
}

func (j *journal) begin(p *Plan, session string) error {
	// The line end is for a line that was cut.
	if _, err := j.f.WriteString("\n"); err != nil {
		return err
	}
	return j.write(fact{Begin: &beginning{
		Version: journalVersion, Backup: string(p.Backup), Options: p.options(), Plan: p.digest(), Session: session,
	}})
}

func (j *journal) done(step int, o Object, files []byte) error {
	return j.write(fact{Done: &doneFact{Step: step, Object: o.Name, Size: o.Size, Files: base64.StdEncoding.EncodeToString(files)}})
}

// end notes that all of a step is restored. Only then the facts of the steps
// after it hold, which build on it: of a step with an object that has to be read
// in every run nothing more is noted.
func (j *journal) end(step int, vital bool) error {
	if vital {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.stopped = true
		return nil
	}
	return j.write(fact{End: &step})
}

// recovery notes that recovery settings are about to be written.
func (j *journal) recovery() error { return j.write(fact{Recovery: true}) }

// past is what an interrupted restore had done. A nil past is of none.
type past struct {
	objects map[objectKey]*doneFact
	ends    map[int]bool
	// recovery tells that recovery settings may be there.
	recovery bool
}

type objectKey struct {
	step int
	name string
}

func (p *past) ended(step int) bool { return p != nil && p.ends[step] }

// endedBelow reports whether all steps below n are restored.
func (p *past) endedBelow(n int) bool {
	for step := range n {
		if !p.ended(step) {
			return false
		}
	}
	return true
}

func (p *past) has(step int, o Object) bool {
	if p == nil {
		return false
	}
	d, ok := p.objects[objectKey{step, o.Name}]
	return ok && d.Size == o.Size
}

// fresh reports whether nothing was done.
func (p *past) fresh() bool { return len(p.objects) == 0 && len(p.ends) == 0 }

// readJournal reads the facts of a marker; a nil beginning is a marker without.
func readJournal(r io.Reader) (*beginning, *past, error) {
	var begun *beginning
	var done *past
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return begun, done, nil // a line that is not ended says nothing
		}
		if err != nil {
			return nil, nil, err
		}
		var f fact
		if !bytes.HasPrefix(line, []byte("{")) || json.Unmarshal(line, &f) != nil {
			continue
		}
		switch {
		case f.Begin != nil:
			recovery := done != nil && done.recovery
			begun, done = f.Begin, &past{objects: map[objectKey]*doneFact{}, ends: map[int]bool{}, recovery: recovery}
		case begun == nil:
		case f.Done != nil:
			done.objects[objectKey{f.Done.Step, f.Done.Object}] = f.Done
		case f.End != nil:
			done.ends[*f.End] = true
		case f.Recovery:
			done.recovery = true
		}
	}
}

// options are what a user chose about which files go where, in words.
func (p *Plan) options() string {
	out := p.KeepText
	if p.chain != nil && p.chain.reverse {
		out += " reverse"
	}
	for _, s := range p.Tablespaces {
		out += fmt.Sprintf(" tablespace %s in %s", s.OID, s.Directory)
	}
	return out
}

// digest identifies what a plan makes of which objects. Of plans with the same
// digest one can go on where another stopped.
func (p *Plan) digest() string {
	h := sha256.New()
	number := func(n uint64) { h.Write(binary.LittleEndian.AppendUint64(nil, n)) }
	text := func(s string) { number(uint64(len(s))); io.WriteString(h, s) }
	objects := func(of []Object) {
		number(uint64(len(of)))
		for _, o := range of {
			text(o.Name)
			number(uint64(o.Size))
		}
	}
	text(string(p.Backup))
	text(p.options())
	objects(p.Data)
	objects(p.Label)
	objects(p.Control)
	number(uint64(len(p.Bases)))
	for _, b := range p.Bases {
		text(string(b.Backup))
		objects(b.Data)
	}
	if c := p.chain; c != nil {
		number(uint64(c.pageSize))
		text(string(c.files.text))
		for i, end := range c.files.ends {
			number(uint64(end))
			number(uint64(c.whole[i]))
			for s := 0; s <= c.last; s++ {
				if c.increments[s].has(i) {
					number(uint64(s))
				}
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// resume takes up an interrupted restore, if the destination holds one.
func (t *target) resume() (err error) {
	info, err := os.Lstat(filepath.Join(t.plan.Destination, MarkerName))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	if t.root, err = os.OpenRoot(t.plan.Destination); err != nil {
		return err
	}
	defer func() {
		if err != nil || t.past == nil {
			err = errors.Join(err, t.close())
			t.root, t.journal = nil, nil
		}
	}()
	f, err := t.root.OpenFile(MarkerName, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	t.journal = newJournal(f)
	if err := t.journal.lock(); err != nil {
		return err
	}
	begun, done, err := readJournal(f)
	if err != nil {
		return err
	}
	if begun == nil {
		// The directory is just not empty, unless a full disk or a crash cut
		// the marker itself, before anything else was written.
		return t.forgetMarker()
	}
	const out = "; empty the directory to start over"
	switch p := t.plan; {
	case begun.Version != journalVersion:
		return fmt.Errorf("%w by another version of this program%s", ErrUnfinished, out)
	case begun.Backup != string(p.Backup):
		return fmt.Errorf("%w of %s: restore that one again to go on with it, or empty the directory to restore %s", ErrUnfinished, begun.Backup, p.Backup)
	case begun.Options != p.options():
		return fmt.Errorf("%w of %s with other options (%q, now %q): give those to go on with it, or empty the directory", ErrUnfinished, begun.Backup, begun.Options, p.options())
	case begun.Plan != p.digest():
		return fmt.Errorf("%w of %s, whose objects in the storage are not what they were%s", ErrUnfinished, begun.Backup, out)
	case p.Keep != nil && p.KeepText == "":
		return fmt.Errorf("%w of %s, and which of its files were wanted is not known%s", ErrUnfinished, begun.Backup, out)
	case done.recovery && p.Recovery == nil:
		return fmt.Errorf("%w of %s with recovery settings: ask for recovery again, to whatever target, or empty the directory", ErrUnfinished, begun.Backup)
	}
	if begun.Session != t.session || t.session == "" || !t.sound(done) {
		done = &past{}
	}
	t.past = done
	return t.journal.restart(t, done)
}

// forgetMarker removes a marker that is all the destination holds.
func (t *target) forgetMarker() error {
	d, err := t.root.Open(".")
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(2)
	if err = errors.Join(err, d.Close()); err != nil || len(names) > 1 {
		return err
	}
	return t.root.Remove(MarkerName)
}

// sound reports whether what the facts refer to is there.
func (t *target) sound(done *past) bool {
	if done.fresh() || t.plan.chain == nil || !t.plan.chain.reverse {
		return true
	}
	if done.endedBelow(len(t.plan.Bases)) {
		return true
	}
	_, err := t.root.Lstat(scratchName)
	return err == nil
}

// restart makes the journal ready for further facts: after those that hold, or,
// if none does, under a new head.
func (j *journal) restart(t *target, done *past) error {
	if done.fresh() {
		return j.begin(t.plan, t.session)
	}
	_, err := j.f.WriteString("\n")
	return err
}

// outcome is what a done object has made of the files of a chain: for each file
// that it held, how far its number is from the one before and, in reverse
// order, where its state is. Nothing for a backup without lists.
func (a *attempt) outcome() []byte {
	l := a.layers
	if l == nil {
		return nil
	}
	var out []byte
	before := 0
	for i := range l.claims {
		if l.claims[i].Load() != a.run {
			continue
		}
		out = binary.AppendUvarint(out, uint64(i-before))
		before = i
		if l.reverse {
			out = binary.AppendVarint(out, l.after[i])
		}
	}
	return out
}

// recall takes up what an interrupted restore had done of a step of a chain.
func (r *restorer) recall(step int) error {
	if r.target.past == nil {
		return nil
	}
	for key, d := range r.target.past.objects {
		if key.step != step {
			continue
		}
		if err := r.layers.recall(d); err != nil {
			return fmt.Errorf("go on with the restore: what %s says of %s: %w; empty the directory to start over", MarkerName, d.Object, err)
		}
	}
	return nil
}

func (l *layers) recall(d *doneFact) error {
	in, err := base64.StdEncoding.DecodeString(d.Files)
	if err != nil {
		return err
	}
	run := l.runs.Add(1)
	at := uint64(0)
	for len(in) > 0 {
		gap, n := binary.Uvarint(in)
		if n <= 0 || gap >= uint64(len(l.claims)) || at+gap >= uint64(len(l.claims)) {
			return errors.New("it is damaged")
		}
		at, in = at+gap, in[n:]
		l.claims[at].Store(run)
		if !l.reverse {
			continue
		}
		after, n := binary.Varint(in)
		if n <= 0 || after < complete || after > l.scratchEnd.Load() {
			return errors.New("it is damaged")
		}
		in = in[n:]
		l.after[at] = after
	}
	return nil
}

// skip counts an object that is done already.
func (r *restorer) skip(o Object) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resumed++
	r.progress.StoredBytes += o.Size
	if r.cfg.Progress != nil {
		p := r.progress
		p.Backup, p.Object, p.Done = r.plan.Backup, o.Name, true
		r.cfg.Progress(p)
	}
}

// first reports whether an entry is the first of its name in a restore that
// goes on with another: that one may have left the file, and this writes it
// anew. A second one is a file that occurs twice.
func (r *restorer) first(name string) bool {
	if r.target.past == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.met == nil {
		r.met, r.metKey = map[uint64]struct{}{}, maphash.MakeSeed()
	}
	key := maphash.String(r.metKey, name)
	if _, ok := r.met[key]; ok {
		return false
	}
	r.met[key] = struct{}{}
	return true
}
