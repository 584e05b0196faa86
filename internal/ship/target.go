package ship

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/objstore"
)

// workers is how many databases are shipped to a target at the same time: enough that one large
// snapshot holds up no other database, few enough to bound memory.
const workers = 4

// target ships to one place.
type target struct {
	opt    *Options
	place  Target
	store  *limited
	logger *slog.Logger
	cache  cache
	wake   chan struct{} // asks for a look at the databases before its time; capacity 1
	slots  chan struct{} // full while as many databases are visited as may be

	puts, bytes atomic.Uint64
	heldAt      time.Time // when it was looked at what the log keeps; run's
	above       bool      // that was more than it may then; run's

	mu struct {
		sync.Mutex
		chains  map[uint32]*chain // by id of the database
		waiters map[*waiter]struct{}
		tidying map[uint32]bool // databases whose history upkeep is at, by id
		err     error           // of the store, at the last attempt
		resume  time.Time       // nothing is tried before, after errors, but for what a commit waits for
		pause   time.Duration   // the last one
		ready   bool            // the store has been checked
		over    bool            // the log keeps more for the place than it may
		told    int64           // bytes that the log kept when a word was said
	}
}

func newTarget(o *Options, place Target) *target {
	t := &target{opt: o, place: place, wake: make(chan struct{}, 1), slots: make(chan struct{}, workers), logger: o.Logger.With("archive", place.Store.String())}
	t.store = &limited{Store: place.Store, requests: newBucket(o.Requests, max(2*o.Requests, 4))}
	if o.Bandwidth > 0 {
		t.store.bytes = newBucket(float64(o.Bandwidth), float64(max(o.Bandwidth, 1<<20)))
	}
	t.mu.chains, t.mu.waiters, t.mu.tidying = map[uint32]*chain{}, map[*waiter]struct{}{}, map[uint32]bool{}
	return t
}

// run looks at all databases again and again. Nobody tells it of transactions that are not waited for: a look at a
// thousand positions is cheaper than a thousand wake-ups.
func (t *target) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	tick := time.NewTimer(t.opt.Interval)
	defer tick.Stop()
	for {
		woken := false
		t.lookAtHeld(time.Now())
		for _, c := range t.due(time.Now()) {
			if c.wanted { // those come first
				if t.begin(c) {
					work.Go(func() { t.visit(urgent(ctx), c) })
				}
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-t.wake:
				woken = true
			case t.slots <- struct{}{}:
			}
			if woken {
				break // for a commit that waits, perhaps
			}
			if !t.begin(c) {
				<-t.slots
				continue
			}
			work.Go(func() {
				t.visit(ctx, c)
				<-t.slots
			})
		}
		if woken {
			continue
		}
		tick.Reset(t.nextLook())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-t.wake:
		}
	}
}

// begin marks a chain as busy; false when somebody is at it, or it is not used any more.
func (t *target) begin(c *chain) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.idle != nil || t.mu.chains[c.db.ID()] != c {
		return false
	}
	c.idle = make(chan struct{})
	return true
}

// due returns the databases that have something to be done and are not at it: those first that a commit waits for,
// then the longest waiting.
func (t *target) due(now time.Time) []*chain {
	primary, epoch := t.opt.Source.IsPrimary(), t.opt.Source.Epoch()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !primary {
		clear(t.mu.chains) // another node writes now; what it wrote is read when this one does again
		return nil
	}
	there := map[uint32]bool{}
	var due []*chain
	for _, db := range t.opt.Source.Databases() {
		id := db.ID()
		there[id] = true
		c := t.mu.chains[id]
		if c == nil || c.epoch != epoch || c.name != db.Name() {
			if c != nil && c.idle != nil {
				continue
			}
			c = &chain{db: db, name: db.Name(), epoch: epoch}
			t.mu.chains[id] = c
		}
		if c.tailTXID >= db.Pos().TXID {
			c.behind = time.Time{}
		} else if c.behind.IsZero() {
			c.behind = now
		}
		c.wanted = t.wanted(id) > c.tailTXID
		inOrder := !now.After(c.upkeep) || t.mu.tidying[id]
		if c.idle != nil || !c.wanted && (c.cutting || now.Before(t.mu.resume) || now.Before(c.resume) || c.behind.IsZero() && inOrder) {
			continue
		}
		due = append(due, c)
	}
	for id, c := range t.mu.chains {
		switch {
		case there[id] || c.idle != nil:
		case !c.attached || c.tail.Max == 0 || c.epoch != epoch:
			delete(t.mu.chains, id) // nothing is known of its history
		case !now.Before(t.mu.resume) && !now.Before(c.resume):
			c.dropped, c.behind = true, time.Time{}
			due = append(due, c)
		}
	}
	slices.SortStableFunc(due, func(a, b *chain) int { return a.waits(now).Compare(b.waits(now)) })
	return due
}

// waits is since when a chain waits; those that wait for upkeep alone come last.
func (c *chain) waits(now time.Time) time.Time {
	if c.wanted {
		return time.Time{}
	}
	if c.behind.IsZero() {
		return now
	}
	return c.behind
}

// maxPause bounds the time between two attempts at a target that fails.
const maxPause = 30 * time.Second

// visit does what is to be done for one database: what the target lacks first, and then, when others may have their turn
// at what is new, the rest.
func (t *target) visit(ctx context.Context, c *chain) {
	err := t.check(ctx)
	if err == nil {
		err = t.ship(ctx, c)
	}
	t.mu.Lock()
	var tidy *tidying
	if id := c.db.ID(); err == nil && !c.dropped && c.tail.Max > 0 && time.Now().After(c.upkeep) && !t.mu.tidying[id] && c.tidied == nil {
		t.mu.tidying[id] = true
		tidy = c.tidying()
	}
	t.ended(ctx, c, err)
	t.mu.Unlock()
	if tidy != nil {
		t.tidy(ctx, c, tidy)
	}
}

// ended notes how it went, and lets others at the chain. mu is held.
func (t *target) ended(ctx context.Context, c *chain, err error) {
	if c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
	if err != nil {
		t.logger.Debug("not archived", "db", c.name, "error", err, "pauses", []time.Duration{t.mu.pause, c.pause})
	}
	var store *storeError
	switch {
	case ctx.Err() != nil:
		return
	case err == nil:
		if t.mu.err != nil || c.err != nil {
			t.logger.Info("archived again", "db", c.name)
		}
		t.mu.err, t.mu.pause, c.err, c.pause = nil, 0, nil, 0
		if t.wanted(c.db.ID()) > c.tailTXID {
			t.look() // since the log was listed
		}
		return
	case errors.Is(err, errNotOurs):
		// Another node was quicker. What it wrote is read before anything else is done.
		t.logger.Warn("another node writes this archive: its history is looked at again", "db", c.name, "reason", err)
		if isUrgent(ctx) {
			t.look()
		}
	case errors.As(err, &store):
		if t.mu.pause == 0 {
			t.logger.Error("cannot archive; tried again, and the log keeps what is missing", "error", err)
		}
		t.mu.pause = t.longer(t.mu.pause)
		t.mu.err, t.mu.resume = err, time.Now().Add(t.mu.pause)
	default:
		// It is this database's fault: the others go on.
		if c.pause == 0 {
			t.logger.Error("cannot archive a database; tried again, and its log keeps what is missing", "db", c.name, "error", err)
		}
		c.pause = t.longer(c.pause)
		c.err, c.resume = err, time.Now().Add(c.pause)
	}
	t.forget(c)
}

// longer is the pause after another error.
func (t *target) longer(pause time.Duration) time.Duration {
	return min(max(2*pause, t.opt.Interval), maxPause)
}

// forget lets a chain's history be read anew, but for what the archive is known to have. mu is held.
func (t *target) forget(c *chain) {
	if c.dropped {
		return
	}
	if t.mu.chains[c.db.ID()] == c {
		t.mu.chains[c.db.ID()] = &chain{
			db: c.db, name: c.name, epoch: c.epoch, tailTXID: c.tailTXID, tried: c.tried, behind: c.behind, err: c.err, resume: c.resume, pause: c.pause,
			upkeep: c.upkeep, untidy: c.untidy, untidied: c.untidied,
		}
	}
}

// check asks the store once whether it can be trusted with an archive.
func (t *target) check(ctx context.Context) error {
	t.mu.Lock()
	ready := t.mu.ready || t.place.Check == nil
	t.mu.Unlock()
	if ready {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := t.place.Check(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	t.mu.ready = true
	t.mu.Unlock()
	return nil
}

// lacks reports whether there is something to ship, and nothing that keeps it from being shipped.
func (t *target) lacks() bool {
	if !t.opt.Source.IsPrimary() {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.err != nil {
		return false
	}
	for _, db := range t.opt.Source.Databases() {
		if c := t.mu.chains[db.ID()]; db.Pos().TXID > 0 && (c == nil || c.err == nil && c.tailTXID < db.Pos().TXID) {
			return true
		}
	}
	return false
}

// needs are the transactions from which the log is kept; none for a place that is given up.
func (t *target) needs(dbID uint32) []uint64 {
	t.mu.Lock()
	givenUp := t.mu.over && t.place.Hold.GiveUp
	t.mu.Unlock()
	if givenUp {
		return nil
	}
	return t.lacksFrom(dbID)
}

// lacksFrom are the transactions with which entries of the log are to begin: after the last moment, and after the one
// that may have been written.
func (t *target) lacksFrom(dbID uint32) []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.mu.chains[dbID]
	if c == nil {
		return []uint64{1}
	}
	if c.tried > c.tailTXID {
		return []uint64{c.tailTXID + 1, c.tried + 1}
	}
	return []uint64{c.tailTXID + 1}
}

func (t *target) status() litefs.ArchiveStatus {
	s := litefs.ArchiveStatus{Place: t.place.Store.String(), Puts: t.puts.Load(), Bytes: t.bytes.Load(), Requests: t.store.asked.Load()}
	t.mu.Lock()
	defer t.mu.Unlock()
	var since time.Time
	for _, c := range t.mu.chains {
		if err := cmp.Or(c.err, c.untidy); err != nil {
			s.Err = err.Error()
		}
		if c.behind.IsZero() {
			continue
		}
		s.Databases++
		if since.IsZero() || c.behind.Before(since) {
			since = c.behind
		}
	}
	if !since.IsZero() {
		s.Lag = time.Since(since)
	}
	if t.mu.err != nil {
		s.Err = t.mu.err.Error()
	}
	s.Over = t.overText()
	return s
}

// shipped notes that the target has a database up to a transaction.
func (t *target) shipped(c *chain, txid uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.tailTXID = txid
	t.answer(c.db.ID(), txid)
	if txid >= c.db.Pos().TXID {
		c.behind = time.Time{}
	} else {
		c.behind = time.Now()
	}
}

// askTimeout bounds a request, but for the bytes of an object, which have transferTime.
const askTimeout = 30 * time.Second

// urgentTimeout is askTimeout for an upload that a commit waits for. One that hangs keeps the next attempt from being
// made, and the commit has the time for one only if the first is given up well before the commit is.
const urgentTimeout = litefs.DefaultArchiveTimeout * 2 / 3

// transferTime is what the bytes of an object may take: a second for a quarter of a megabyte.
func transferTime(size int64) time.Duration {
	return time.Duration(min(size>>18, math.MaxInt32)) * time.Second
}

// put writes an object once. errNotOurs: the name is taken.
func (t *target) put(ctx context.Context, c *chain, key string, f *made) error {
	answer := askTimeout
	if isUrgent(ctx) {
		answer = urgentTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, answer+transferTime(f.size))
	defer cancel()
	if !t.opt.Source.IsPrimary() || t.opt.Source.Epoch() != c.epoch {
		return errNotPrimary
	}
	_, err := t.store.PutIfAbsent(ctx, key, f.file, f.attrs())
	if errors.Is(err, objstore.ErrExists) {
		return errNotOurs
	}
	if err == nil {
		t.puts.Add(1)
		t.bytes.Add(uint64(f.size))
	}
	return err
}
