package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs/internal/halt"
)

// This file is the replica's side of a write lock that it borrows; db_borrow.go is what that means for the files.

// Bounds in time of what a holder does.
const (
	borrowCatchUp  = 30 * time.Second // for the stream to bring what the primary had when it lent
	commitAnswer   = 10 * time.Second // of the primary, and then it is asked what became of the transaction
	commitSpeed    = 256 << 10        // bytes of it a second that the network carries at least
	outcomeAnswer  = 3 * time.Second
	outcomeFor     = 30 * time.Second // until the outcome is given up as unknown
	outcomePause   = 200 * time.Millisecond
	renewAnswer    = 3 * time.Second
	releaseAnswer  = 3 * time.Second
	acquirePause   = 200 * time.Millisecond // after a request that failed
	reclaimAtClose = 2 * time.Second
)

var errReleased = errors.New("the write lock was released")

// borrowed is a write lock that this node has from the primary.
type borrowed struct {
	s     *Store
	db    *DB
	token string

	unasked bool // for programs that do not ask for it by name

	pos      Pos                    // where the next transaction joins; DB.mu guards it
	underWay atomic.Pointer[HaltTx] // was sent, and not let in yet

	commits atomic.Int64  // that the primary has made
	wanted  atomic.Bool   // somebody waits for the lock at the primary
	news    chan struct{} // woken when wanted is set

	over chan struct{} // closed when it is lost or released
	gone chan struct{} // closed when local programs write no more

	mu    sync.Mutex // guards everything below
	lease *halt.Lease
	link  HaltLink
	url   string // of the link
	err   error  // why it is over
}

// Halt is the right to write to a database of a replica, in the primary's place. On the primary it stands for nothing:
// who may write writes.
type Halt struct{ b *borrowed }

// Done is closed when the right is lost.
func (h *Halt) Done() <-chan struct{} {
	if h.b == nil {
		return nil
	}
	return h.b.over
}

// Err says why it was lost; nil while it was not.
func (h *Halt) Err() error {
	if h.b == nil {
		return nil
	}
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	return h.b.err
}

// Release gives the lock back, and returns when local programs write no more: it waits until ctx ends for one that is in a transaction.
func (h *Halt) Release(ctx context.Context) error {
	if h.b == nil {
		return nil
	}
	h.b.lose(errReleased)
	select {
	case <-h.b.gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Halt borrows the write lock of a database from the primary, and lets local programs write to it: each of their
// transactions is committed there first. It waits until ctx ends.
func (s *Store) Halt(ctx context.Context, name string) (*Halt, error) {
	return s.halt(ctx, name, false)
}

func (s *Store) halt(ctx context.Context, name string, unasked bool) (*Halt, error) {
	db := s.DBByName(name)
	if db == nil {
		return nil, fmt.Errorf("%s: %w", name, ErrDatabaseNotFound)
	}
	if s.Role() == RolePrimary {
		return &Halt{}, nil
	}
	client, ok := s.Client.(HaltClient)
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: this node has no client that could", ErrNotLent)
	case s.Guarded:
		return nil, fmt.Errorf("%w: fuse.guardian is on, and the two do not go together yet", ErrNotLent)
	}
	// One at a time on this node; the next is in the primary's queue when this one is gone.
	if err := db.borrowing.acquire(ctx); err != nil {
		return nil, fmt.Errorf("another program here has the write lock of %s: %w", name, err)
	}
	b, err := s.borrow(ctx, db, client, unasked)
	if err != nil {
		db.borrowing.release()
		return nil, fmt.Errorf("write lock of %s: %w", name, err)
	}
	s.goRun(b.renewLoop)
	s.goRun(func() {
		defer db.borrowing.release()
		b.giveBack()
	})
	return &Halt{b}, nil
}

func (s *Store) borrow(ctx context.Context, db *DB, client HaltClient, unasked bool) (_ *borrowed, err error) {
	if err := db.takePeer(ctx); err != nil {
		return nil, err
	}
	token, err := randomHex(16)
	if err != nil {
		return nil, err
	}
	b := &borrowed{s: s, db: db, token: string(token), unasked: unasked, news: make(chan struct{}, 1), over: make(chan struct{}), gone: make(chan struct{})}
	ok, err := db.directWAL(ctx, true)
	if err == nil && !ok {
		err = fmt.Errorf("%w: other programs have %s-wal open, and their writes would not come to litefs: end them, or name the database in replica.halt-databases", ErrNotLent, db.Name())
	}
	if err != nil {
		return nil, errors.Join(err, b.leaveDirect())
	}
	defer func() {
		if err == nil {
			return
		}
		b.abandon()
		err = errors.Join(err, b.leaveDirect())
	}()
	if err := b.acquire(ctx, client); err != nil {
		return nil, err
	}
	if err := b.catchUp(ctx); err != nil {
		return nil, err
	}
	if err := db.lendHere(b); err != nil {
		return nil, err
	}
	b.log("local programs may write: the primary's write lock is held", "primary", b.url, "pos", b.pos)
	return b, nil
}

// acquire asks the primary of today for the lock, again and again.
func (b *borrowed) acquire(ctx context.Context, client HaltClient) error {
	var last error
	for {
		url := b.s.PrimaryURL()
		if url != "" {
			if b.link == nil || b.url != url {
				b.relink(client, url)
			}
			sent := haltNow()
			g, err := b.link.Acquire(ctx, b.db.id, b.token)
			if err == nil {
				b.lease = halt.NewLease(b.token, g.Epoch, sent, halt.Time(g.TTL), halt.Time(g.First))
				b.pos = g.Pos
				return nil
			}
			if errors.Is(err, ErrNotLent) || errors.Is(err, ErrDatabaseNotFound) {
				return err
			}
			last = err
		}
		timer := time.NewTimer(acquirePause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if last == nil {
				last = ErrNoPrimary
			}
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-b.s.ctx.Done():
			timer.Stop()
			return errors.New("this node is stopping")
		}
	}
}

func (b *borrowed) relink(client HaltClient, url string) {
	link := HaltLink(nil)
	if b.link != nil {
		b.link.Close() // it may be what is broken
	} else {
		link = b.s.haltLinks.take(url)
	}
	if link == nil {
		link = countedLink{client.HaltLink(url), &b.s.stats.HaltCalls}
	}
	b.link, b.url = link, url
}

// catchUp waits until the database is where the primary lent it.
func (b *borrowed) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, borrowCatchUp)
	defer cancel()
	sub := b.s.Subscribe()
	defer sub.Close() //nolint:errcheck // forgets the subscription
	renew := time.NewTicker(time.Duration(haltBounds.First) / 3)
	defer renew.Stop()
	for b.db.Pos() != b.pos {
		b.s.Hurry(b.db.id)
		if b.db.Pos().TXID > b.pos.TXID {
			return fmt.Errorf("%w: the primary has gone on", ErrHaltLost)
		}
		select {
		case <-sub.NotifyCh():
			sub.DirtySet()
		case <-renew.C:
			if err := b.renew(); errors.Is(err, ErrHaltLost) {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("this node is at %v, the primary lent the database at %v: %w", b.db.Pos(), b.pos, context.Cause(ctx))
		case <-b.s.ctx.Done():
			return errors.New("this node is stopping")
		}
	}
	return nil
}

// heard notes the answer to a request that was sent at a time, and has prolonged the lock.
func (b *borrowed) heard(sent halt.Time, news HaltNews) {
	b.mu.Lock()
	b.lease.Renewed(sent)
	b.mu.Unlock()
	if news.Wanted && !b.wanted.Swap(true) {
		select {
		case b.news <- struct{}{}:
		default:
		}
	}
}

// renew asks once. An error other than ErrHaltLost tells nothing.
func (b *borrowed) renew() error {
	ctx, cancel := context.WithTimeout(b.s.ctx, renewAnswer)
	defer cancel()
	b.mu.Lock()
	link := b.link
	b.mu.Unlock()
	sent := haltNow()
	news, err := link.Renew(ctx, b.db.id, b.token)
	if err == nil {
		b.heard(sent, news)
	}
	return err
}

// renewLoop renews the lock until it is over.
func (b *borrowed) renewLoop() {
	tick := time.NewTicker(time.Duration(haltBounds.First) / 2)
	defer tick.Stop()
	for {
		select {
		case <-b.over:
			return
		case <-b.s.ctx.Done():
			return
		case <-tick.C:
		}
		err := b.renew()
		b.mu.Lock()
		usable := b.lease.Usable(haltNow())
		b.mu.Unlock()
		// What became of a transaction that is under way is found out by who sent it.
		if errors.Is(err, ErrHaltLost) || !usable {
			b.lose(errors.Join(ErrHaltLost, err))
		}
	}
}

// usable says why there is no point in sending a transaction.
func (b *borrowed) usable() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	if !b.lease.Usable(haltNow()) {
		return fmt.Errorf("%w: it was not renewed in time", ErrHaltLost)
	}
	return nil
}

// log tells of a step that somebody asked for by name, which is rare.
func (b *borrowed) log(message string, args ...any) {
	level := slog.LevelInfo
	if b.unasked {
		level = slog.LevelDebug
	}
	b.db.log().Log(b.s.ctx, level, message, args...)
}

// lose ends it. The first reason counts.
func (b *borrowed) lose(why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return
	}
	b.err = why
	b.lease.Lose()
	if errors.Is(why, errReleased) {
		b.log("the primary's write lock is released: local programs are to end their transactions")
	} else {
		b.db.log().Warn("the primary's write lock is lost: what is under way here is not committed", "reason", why)
	}
	close(b.over)
}

// commit has the primary make a transaction its own. An error: it has not, or nobody knows.
func (b *borrowed) commit(o *outgoing) error {
	b.mu.Lock()
	link := b.link
	b.mu.Unlock()
	patience := commitAnswer + time.Duration(o.size/commitSpeed)*time.Second
	if level := b.db.Level(); level.Gated() {
		patience += level.Timeout
	}
	ctx, cancel := context.WithTimeout(b.s.ctx, patience)
	sent := haltNow()
	news, err := link.Commit(ctx, b.db.id, b.token, o.tx, io.NewSectionReader(o.file, 0, o.size), o.size)
	cancel()
	if err == nil {
		b.commits.Add(1)
		b.heard(sent, news)
		return nil
	}
	ctx, cancel = context.WithTimeout(b.s.ctx, outcomeFor)
	defer cancel()
	b.db.log().Warn("a transaction was sent to the primary and not acknowledged: asking what became of it", "txid", o.tx.Post.TXID, "error", err)
	out, asked := b.resolve(ctx, o.tx)
	switch out {
	case HaltCommitted:
		b.commits.Add(1)
		return nil
	case HaltVoid:
		b.underWay.Store(nil)
		return fmt.Errorf("the primary refused transaction %016x: %w", o.tx.Post.TXID, err)
	}
	return fmt.Errorf("nobody knows whether the primary has transaction %016x: %w", o.tx.Post.TXID, errors.Join(err, asked))
}

// resolve asks the primary of today, and the log here, until one knows.
func (b *borrowed) resolve(ctx context.Context, tx HaltTx) (HaltOutcome, error) {
	client, _ := b.s.Client.(HaltClient)
	sub := b.s.Subscribe()
	defer sub.Close() //nolint:errcheck // forgets the subscription
	var last error
	for {
		if out := b.db.inLog(tx); out != HaltUnknown {
			return out, nil
		}
		b.mu.Lock()
		if url := b.s.PrimaryURL(); url != "" { // the link may be what is broken
			b.relink(client, url)
		}
		link := b.link
		b.mu.Unlock()
		asking, cancel := context.WithTimeout(ctx, outcomeAnswer)
		out, err := link.Outcome(asking, b.db.id, b.token, tx)
		cancel()
		if err == nil {
			return out, nil
		}
		last = err
		timer := time.NewTimer(outcomePause)
		select {
		case <-timer.C:
		case <-sub.NotifyCh():
			timer.Stop()
			sub.DirtySet()
		case <-ctx.Done():
			timer.Stop()
			return HaltUnknown, last
		}
	}
}

// giveBack waits until it is over, and ends it.
func (b *borrowed) giveBack() {
	select {
	case <-b.over:
	case <-b.s.ctx.Done():
		b.lose(errors.New("this node is stopping"))
	}
	b.reclaim()
	close(b.gone)
	b.abandon()
	if err := b.leaveDirect(); err != nil && b.s.ctx.Err() == nil {
		b.db.log().Warn("the write-ahead log stays open for direct I/O", "error", err)
	}
}

// reclaim ends it for local programs, however long one is in its transaction.
func (b *borrowed) reclaim() {
	for b.s.ctx.Err() == nil {
		err := b.db.reclaim(b.s.ctx)
		if err == nil {
			return
		}
		b.db.log().Error("cannot take the database back from local programs; tried again", "error", err)
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-b.s.ctx.Done():
		}
		timer.Stop()
	}
	// The mount goes: who is in a transaction now will not commit it.
	ctx, cancel := context.WithTimeout(context.Background(), reclaimAtClose)
	defer cancel()
	if err := b.db.reclaim(ctx); err != nil {
		b.db.log().Warn("a local program is in a transaction that will not be committed", "error", err)
	}
}

// abandon tells the primary that nothing more comes.
func (b *borrowed) abandon() {
	b.mu.Lock()
	link, url := b.link, b.url
	b.mu.Unlock()
	if link == nil {
		return
	}
	if b.underWay.Load() != nil {
		link.Close()
		return // nobody knows what became of it: the primary lets the lock expire, and fences
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseAnswer)
	defer cancel()
	if err := link.Release(ctx, b.db.id, b.token); err != nil {
		link.Close()
		b.db.log().Warn("the write lock is not released: the primary lets it expire", "error", err)
		return
	}
	b.s.haltLinks.put(link, url)
}

// leaveDirect opens the write-ahead log again as it is open otherwise.
func (b *borrowed) leaveDirect() error {
	b.db.wantDirect.Store(false)
	if b.s.ctx.Err() != nil || b.s.wantsDirectWAL(b.db.Name()) {
		return nil
	}
	_, err := b.db.directWAL(b.s.ctx, false)
	if errors.Is(err, ErrDatabaseNotFound) {
		return nil
	}
	return err
}

// endBorrow ends what this node has borrowed of a database, before its role or its name changes.
func (db *DB) endBorrow(ctx context.Context, why error) error {
	b := db.borrowed.Load()
	if b == nil {
		return nil
	}
	b.lose(why)
	select {
	case <-b.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a local program is in a transaction under the former primary's lock: %w", context.Cause(ctx))
	}
}

// wantsDirectWAL reports whether the write-ahead log of a database is to be opened so that each write comes to us.
func (s *Store) wantsDirectWAL(name string) bool {
	if s.ForwardedLocks || s.levelByName(name).Gated() {
		return true
	}
	for _, pattern := range s.HaltDatabases {
		if ok, err := path.Match(pattern, name); err == nil && ok {
			return true
		}
	}
	db := s.DBByName(name)
	return db != nil && db.wantDirect.Load()
}

// tellApplied has the primary told how far a database is.
func (s *Store) tellApplied(id uint32) {
	if f := s.upstream.Load(); f != nil {
		if w := f.worker(id); w != nil {
			f.note(w, true)
		}
	}
}
