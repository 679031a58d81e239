// Package failover chooses among several storages in order of preference: the
// first that takes writes, or all that can be read. It never moves or copies
// an object, and it does not hide the storages behind one: callers get them in
// order and loop.
//
// What is known of a storage is kept in a small file that all commands of a
// host share, because most of them live for a fraction of a second: one
// command pays for the check, the others read the file. Three things change
// what is known.
//
//   - A check lists the root and, for commands that write, puts and deletes an
//     object. It decides alive or dead. An alive storage is checked again when
//     its status is older than Options.Lifetime; a dead one after
//     Options.Recheck, so that the return to the primary is not a matter of a
//     quarter of an hour.
//   - A Put that failed for good (the retries inside of the Bucket gave up, or
//     there was nothing to retry) makes its storage dead at once: the next
//     command, or the next call, goes to the next storage. A check of one
//     megabyte may well pass where a segment does not fit.
//   - Any other failed operation, and a deadline that passed, put the storage in
//     doubt: its status is forgotten, so that the next choice begins with a
//     check. They are no verdict: one unreadable object must not hide all the
//     others that the storage holds, and a store that forbids deletion still
//     takes WAL.
//
// WAL-G keeps a moving average of weighted results instead, and writes it to
// the file every five minutes at most. Short commands never live to see that
// average cross a limit, in either direction, so a primary that died while
// known as alive fails every wal-push until its status expires. A failure that
// outlived the retries needs no averaging. The file is WAL-G's, in name and
// form, and either program goes by what the other one wrote.
//
// It fails when no storage is alive (ErrNoneAlive, with the reason of each)
// and when a storage is asked for that there is not (ErrUnknown). Trouble with
// the file is a warning in the log and costs checks, nothing else.
package failover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/walherd/walherd/storage"
)

// Names with a meaning of their own. Names are matched without case.
const (
	// Primary is the name of the first storage, and of no other.
	Primary = "default"
	// All means every storage where one is asked for by name to read from;
	// no storage may have it.
	All = "all"
)

// What can go wrong, for errors.Is. Neither wraps storage.ErrNotExist: that a
// storage is down does not prove that an object is missing.
var (
	// ErrNoneAlive tells that no storage can be used; the message names
	// each one that was tried and why.
	ErrNoneAlive = errors.New("no alive storages")
	// ErrUnknown tells that there is no storage of the name asked for.
	ErrUnknown = errors.New("unknown storage")

	errClosed   = errors.New("the storages were closed")
	errReadOnly = errors.New("choose a storage to write to: the storages were opened for reading")
)

// Member is one storage.
type Member struct {
	// Name as it was configured.
	Name string
	// Bucket holds the objects. What Set hands out also notices failures;
	// see the package comment.
	Bucket storage.Bucket
	// Probe is the same storage for checks; nil is Bucket. Give a Bucket
	// that retries little: behind ten patient tries a store that refuses
	// connections looks like one that hangs, and costs the whole
	// Options.Timeout.
	Probe storage.Bucket
	// ID is a hash of the storage's settings without its secrets. A
	// storage whose settings changed is another one, of which nothing is
	// known. To share the status file with WAL-G it has to be WAL-G's hash:
	// hex MD5 of the store's type followed by the JSON of its settings.
	ID string
}

// Defaults of Options.
const (
	DefaultTimeout        = 30 * time.Second
	DefaultRecheck        = time.Minute
	DefaultRecheckTimeout = 5 * time.Second
	DefaultAliveLimit     = 0.99
	DefaultDeadLimit      = 0.88
)

// Options says which storages there are and how they are judged.
type Options struct {
	// Members in order of preference. The first is the primary and is
	// called Primary.
	Members []Member
	// Check is whether storages are checked at all. If not, all count as
	// alive, and the rest of the options means nothing but Write.
	Check bool
	// Write is whether a storage has to take writes to be alive.
	Write bool
	// CheckSize is how many bytes a check writes; 0 and less writes nothing,
	// and a check then only reads.
	CheckSize int64
	// Timeout is how long a check may take, both halves together; 0 is
	// DefaultTimeout.
	Timeout time.Duration
	// Lifetime is how long a status is believed; with 0, every choice
	// checks.
	Lifetime time.Duration
	// Recheck is how long it is believed that a storage is dead, if that is
	// less than Lifetime; 0 is DefaultRecheck.
	Recheck time.Duration
	// RecheckTimeout limits the check of a storage known as dead while
	// another one can be used, if that is less than Timeout; 0 is
	// DefaultRecheckTimeout. Someone waits for each such check, and a
	// primary that swallows packets would otherwise cost every command of a
	// host half of its time. A storage has to be brisk to be returned to.
	RecheckTimeout time.Duration
	// AliveLimit and DeadLimit tell how WAL-G's averages in the status file
	// are read: the success rate from which a dead storage is alive again,
	// and the one below which an alive storage is dead. 0 is
	// DefaultAliveLimit and DefaultDeadLimit.
	AliveLimit, DeadLimit float64
	// CachePath is the status file (see CachePath); empty keeps what is
	// known in memory. Readers and writers use different files.
	CachePath string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Log gets warnings about the status file, and one record each time a
	// storage dies or comes back; nil is silence.
	Log *slog.Logger
}

// Keys of the log attributes.
const (
	keyStorage = "storage"
	keyPath    = "path"
	keyErr     = "err"
)

// Set is storages to choose from. It is safe for concurrent use, and several
// processes may share a status file. Make one with Open and end it with Close.
type Set struct {
	opt     Options
	members []*member
	cache   cache
	content func() block // made when first needed, which is rare

	life context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // the checks

	mu      sync.Mutex
	closed  bool
	running map[*member]*probe
	reasons map[*member]error // why it is dead, if that was found here
	// known is what the status file should say; it counts alone when the
	// file cannot be used.
	known  map[string]status
	ahead  map[string]int // changes of known, by key, that are not in the file
	warned map[string]bool
}

// member is a Member inside of a Set.
type member struct {
	Member
	probe storage.Bucket
	key   string
}

// Open makes a Set. It checks no storage yet.
func Open(opt Options) (*Set, error) {
	if len(opt.Members) == 0 {
		return nil, errors.New("open storages: there is none")
	}
	opt.Members = slices.Clone(opt.Members)
	if opt.Timeout <= 0 {
		opt.Timeout = DefaultTimeout
	}
	if opt.Recheck <= 0 {
		opt.Recheck = DefaultRecheck
	}
	if opt.RecheckTimeout <= 0 {
		opt.RecheckTimeout = DefaultRecheckTimeout
	}
	if opt.AliveLimit <= 0 {
		opt.AliveLimit = DefaultAliveLimit
	}
	if opt.DeadLimit <= 0 {
		opt.DeadLimit = DefaultDeadLimit
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	s := &Set{
		opt:     opt,
		cache:   cache{path: opt.CachePath, forget: max(forgetAfter, 2*opt.Lifetime), now: opt.Now},
		content: sync.OnceValue(newBlock),
		running: make(map[*member]*probe),
		reasons: make(map[*member]error),
		known:   make(map[string]status),
		ahead:   make(map[string]int),
		warned:  make(map[string]bool),
	}
	for i, m := range opt.Members {
		name := strings.ToLower(m.Name)
		switch {
		case (name == Primary) != (i == 0):
			return nil, fmt.Errorf("open storage %q: the name %q is that of the first storage, and of no other", m.Name, Primary)
		case name == "" || name == All:
			return nil, fmt.Errorf("open storage %q: choose another name, this one is reserved", m.Name)
		case m.Bucket == nil:
			return nil, fmt.Errorf("open storage %q: it has no bucket", m.Name)
		case opt.Check && opt.CachePath != "" && m.ID == "":
			return nil, fmt.Errorf("open storage %q: it has no ID to remember its status by", m.Name)
		case slices.ContainsFunc(s.members, func(o *member) bool { return strings.EqualFold(o.Name, m.Name) }):
			return nil, fmt.Errorf("open storage %q: there are two of that name (upper and lower case count as one)", m.Name)
		}
		// WAL-G lower-cases the names when it reads its settings.
		in := &member{Member: m, probe: m.Probe, key: name + "#" + m.ID}
		if in.probe == nil {
			in.probe = m.Bucket
		}
		if opt.Check {
			in.Bucket = &watched{b: m.Bucket, set: s, m: in}
		}
		s.members = append(s.members, in)
	}
	s.life, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Writer is the storage to write to: the first that is alive, or the one that
// target names. It fails with ErrUnknown, with ErrNoneAlive, or with the error
// of ctx, which limits the wait for checks.
func (s *Set) Writer(ctx context.Context, target string) (Member, error) {
	if !s.opt.Write {
		return Member{}, errReadOnly
	}
	if strings.EqualFold(target, All) {
		return Member{}, fmt.Errorf("choose a storage to write to: %w %q: name one", ErrUnknown, target)
	}
	alive, err := s.choose(ctx, target, true)
	if err != nil {
		return Member{}, fmt.Errorf("choose a storage to write to: %w", err)
	}
	return alive[0], nil
}

// Readers are the storages to read from, in order: all that are alive, or the
// one that target names. It fails as Writer does, and never returns none.
//
// An object that none of them holds may be in a storage that is not among
// them: see Statuses before telling PostgreSQL that a segment does not exist.
func (s *Set) Readers(ctx context.Context, target string) ([]Member, error) {
	alive, err := s.choose(ctx, target, false)
	if err != nil {
		return nil, fmt.Errorf("choose storages to read from: %w", err)
	}
	return alive, nil
}

// choose gives the alive ones among the members that target names; with first,
// only the first of them.
func (s *Set) choose(ctx context.Context, target string, first bool) ([]Member, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.life.Err() != nil {
		return nil, errClosed
	}
	among, err := s.named(target)
	if err != nil {
		return nil, err
	}
	cs := s.candidates(ctx, among, first)
	chosen, err := pick(ctx, cs, first)
	if err == nil && len(chosen) == 0 {
		// Before giving up, look again at those known as dead. Not sooner:
		// a storage that has no room for a segment may pass the check.
		for i := range cs {
			if cs[i].check == nil {
				cs[i].check = s.check(ctx, cs[i].m, s.opt.Timeout)
			}
		}
		chosen, err = pick(ctx, cs, first)
	}
	if err != nil {
		return nil, err
	}
	if len(chosen) == 0 {
		// The reasons are told, not wrapped: among them may be
		// storage.ErrNotExist for a missing root, which a caller would
		// take for a missing object.
		var reasons []string
		for _, c := range cs {
			reasons = append(reasons, fmt.Sprintf("%s: %v", c.m.Name, c.check.err))
		}
		return nil, fmt.Errorf("%w: %s", ErrNoneAlive, strings.Join(reasons, ", "))
	}
	return chosen, nil
}

// Try checks the storages that target names now, whatever is known of them and
// whether or not Options.Check is set, and learns nothing from it. It is nil if
// one of them can be used, and else fails as Writer does.
func (s *Set) Try(ctx context.Context, target string) error {
	among, err := s.named(target)
	if err != nil {
		return err
	}
	var reasons []string
	for _, m := range among {
		limited, cancel := context.WithTimeout(ctx, s.opt.Timeout)
		err := s.try(limited, m)
		cancel()
		if err == nil {
			return nil
		}
		reasons = append(reasons, fmt.Sprintf("%s: %v", m.Name, err))
	}
	return fmt.Errorf("%w: %s", ErrNoneAlive, strings.Join(reasons, ", "))
}

func (s *Set) named(target string) ([]*member, error) {
	if target == "" || strings.EqualFold(target, All) {
		return s.members, nil
	}
	var names []string
	for _, m := range s.members {
		if strings.EqualFold(m.Name, target) {
			return []*member{m}, nil
		}
		names = append(names, m.Name)
	}
	return nil, fmt.Errorf("%w %q: there are %s", ErrUnknown, target, strings.Join(names, ", "))
}

// candidate is a member in the course of a choice.
type candidate struct {
	m     *member
	alive bool   // as far as is known; counts if check is nil
	check *probe // that will tell
}

// pick waits for the checks and gives the members that are alive; with first,
// only the first one, without a wait for those behind it.
func pick(ctx context.Context, cs []candidate, first bool) ([]Member, error) {
	var chosen []Member
	for _, c := range cs {
		if c.check != nil {
			select {
			case <-c.check.done:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			if errors.Is(c.check.err, errClosed) {
				return nil, errClosed
			}
			c.alive = c.check.err == nil
		}
		if c.alive {
			chosen = append(chosen, c.m.Member)
			if first {
				break
			}
		}
	}
	return chosen, nil
}

// candidates looks up what is known and starts the checks that the choice
// needs: of what is not known, but for a writer nothing behind the first
// storage that is known to be alive.
func (s *Set) candidates(ctx context.Context, among []*member, first bool) []candidate {
	cs := make([]candidate, len(among))
	if !s.opt.Check {
		for i, m := range among {
			cs[i] = candidate{m: m, alive: true}
		}
		return cs
	}
	known := s.recall(ctx)
	now := s.opt.Now()
	states := make([]state, len(among))
	for i, m := range among {
		states[i] = s.judge(known[m.key], now)
	}
	usable := slices.Index(states, alive)
	for i, m := range among {
		cs[i] = candidate{m: m, alive: states[i] == alive}
		switch {
		case first && usable >= 0 && i > usable:
		case states[i] == unknown:
			cs[i].check = s.check(ctx, m, s.opt.Timeout)
		case states[i] == deadStale && usable >= 0:
			cs[i].check = s.check(ctx, m, min(s.opt.Timeout, s.opt.RecheckTimeout))
		case states[i] == deadStale:
			cs[i].check = s.check(ctx, m, s.opt.Timeout)
		}
	}
	return cs
}

// Status is what is known of a storage.
type Status struct {
	// Name of the storage, as it was configured.
	Name  string
	State State
	// Updated is when it was found to be so; zero if the state is Unknown.
	Updated time.Time
	// Err is why it is dead, in words if another process found it; nil if it
	// is not.
	Err error
}

// State is a storage's state.
type State string

// The states.
const (
	Alive State = "alive"
	Dead  State = "dead"
	// Unknown is a storage never checked, in doubt, or checked too long ago.
	Unknown State = "unknown"
)

// Statuses tells what is known of each storage, in order, without checking
// any. Behind Readers, a storage that is not Alive was left out or has failed
// since: what is in none of the others may still be in it.
func (s *Set) Statuses(ctx context.Context) []Status {
	statuses := make([]Status, len(s.members))
	if !s.opt.Check {
		for i, m := range s.members {
			statuses[i] = Status{Name: m.Name, State: Alive}
		}
		return statuses
	}
	known := s.recall(ctx)
	now := s.opt.Now()
	for i, m := range s.members {
		st := known[m.key]
		statuses[i] = Status{Name: m.Name, State: Unknown}
		switch s.judge(st, now) {
		case alive:
			statuses[i].State, statuses[i].Updated = Alive, st.Updated
		case dead, deadStale:
			statuses[i].State, statuses[i].Updated = Dead, st.Updated
			statuses[i].Err = s.reason(m, st)
		}
	}
	return statuses
}

// Close ends the checks that still run and waits for them, but not for a store
// that does not heed its context for longer than a second. All that is known
// is in the status file already. The Buckets handed out remain usable.
func (s *Set) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	ended := make(chan struct{})
	go func() {
		s.work.Wait()
		close(ended)
	}()
	t := time.NewTimer(cleanupTimeout)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
	}
}
