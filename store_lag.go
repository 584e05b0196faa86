package litefs

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/litefs/litefs/internal/peer"
)

// This file holds writers back while no replica is close enough behind them, at level max-lag: docs/promises.md.

// Bounds of the time between two looks at how far replicas are; between them it is an eighth of the level's bound.
const (
	lagLookMin = 5 * time.Millisecond
	lagLookMax = time.Second
)

// brakeAttempt bounds one attempt to hold the writers of a database: who changes its role waits for that long at most.
const brakeAttempt = 100 * time.Millisecond

// brakePatience is how long a transaction under way may take before that is worth a line in the log.
const brakePatience = 10 * time.Second

// boundLag looks at the databases at level max-lag, on a primary, until the store closes.
func (s *Store) boundLag() {
	marks := make(map[uint32]*lagMarks)
	leading := false // in the reign that marks are of
	for {
		changed := s.replicas.changed()
		if s.Role() != RolePrimary {
			leading = false
			s.releaseBrakes()
		} else {
			if !leading {
				// What was written before is of any age: writers wait until a replica has it.
				clear(marks)
				for _, db := range s.DBs() {
					if !db.Pos().IsZero() {
						marks[db.id] = &lagMarks{}
					}
				}
			}
			leading = true
			s.lookAtLag(marks)
		}
		if !s.braking() {
			changed = nil // acknowledgements come by the thousand
		}
		timer := time.NewTimer(s.lagLook())
		select {
		case <-s.ctx.Done():
		case <-changed:
			timer.Reset(lagLookMin)
			select {
			case <-s.ctx.Done():
			case <-timer.C:
			}
		case <-timer.C:
		}
		timer.Stop()
		if s.ctx.Err() != nil {
			return
		}
	}
}

// lagLook is the time between two looks.
func (s *Store) lagLook() time.Duration {
	look := lagLookMax
	for _, r := range s.Levels { // a database may come before the next look
		if r.Level.Kind == LevelMaxLag {
			look = min(look, r.Level.MaxLag/8)
		}
	}
	for _, db := range s.DBs() {
		if l := db.level.Load(); l != nil && l.Kind == LevelMaxLag {
			look = min(look, l.MaxLag/8)
		}
	}
	return max(look, lagLookMin)
}

// lookAtLag looks once at each database.
func (s *Store) lookAtLag(marks map[uint32]*lagMarks) {
	full := s.archiveFull()
	maps.DeleteFunc(marks, func(id uint32, _ *lagMarks) bool { return s.DB(id) == nil })
	for _, db := range s.DBs() {
		level := db.Level()
		if level.Kind != LevelMaxLag {
			db.brake.set(db, full)
			delete(marks, db.id)
			continue
		}
		m := marks[db.id]
		if m == nil {
			m = &lagMarks{marks: []lagMark{{at: time.Duration(bootNow())}}} // new since the last look
			marks[db.id] = m
		}
		lag, known := db.lookAtLag(m)
		why := full
		if why == "" && (!known || lag > level.MaxLag) {
			why = noReplicaClose
		}
		db.brake.set(db, why)
	}
}

// lookAtLag returns the age of the oldest transaction that no replica has.
func (db *DB) lookAtLag(m *lagMarks) (time.Duration, bool) {
	now := time.Duration(bootNow())
	head := db.Pos().TXID
	if db.behind.Load() { // the log lacks what was committed: nothing is noted
		if n := len(m.marks); n == 0 {
			return 0, false
		}
		return now - m.marks[0].at, true
	}
	var best uint64
	for _, ack := range db.store.replicas.acksOf(db.id) {
		if txid := ack.Received.TXID; txid > best && db.hasInHistory(ack.Received) {
			best = txid
		}
	}
	return m.look(now, head, best)
}

// hasInHistory reports whether pos is one of this log's.
func (db *DB) hasInHistory(pos Pos) bool {
	return pos == db.Pos() || db.isLogged(pos)
}

// braking reports whether writers of any database are held back.
func (s *Store) braking() bool {
	for _, db := range s.DBs() {
		if db.brake.on() {
			return true
		}
	}
	return false
}

func (s *Store) releaseBrakes() {
	for _, db := range s.DBs() {
		db.brake.set(db, "")
	}
}

// noReplicaClose is why writers are held at level max-lag.
const noReplicaClose = "no replica is close enough behind"

// brake holds the writers of one database back. The zero value does not.
type brake struct {
	mu  sync.Mutex // guards everything below
	end context.CancelFunc
	// done is closed when the locks are gone.
	done chan struct{}
}

func (b *brake) on() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.end != nil
}

// set begins to hold, for a reason, or ends it (""), and waits for neither.
func (b *brake) set(db *DB, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case why != "" && b.end == nil && !db.ended.Load():
		if b.done != nil {
			select {
			case <-b.done:
			default:
				return // the last one is letting go; at the next look
			}
		}
		ctx, cancel := context.WithCancel(db.store.ctx)
		done := make(chan struct{})
		b.end, b.done = cancel, done
		db.store.goRun(func() {
			defer close(done)
			db.holdWriters(ctx, why)
		})
	case why == "" && b.end != nil:
		b.end()
		b.end = nil
	}
}

// release ends it and waits until the locks are gone.
func (b *brake) release(db *DB) {
	b.set(db, "")
	b.mu.Lock()
	done := b.done
	b.mu.Unlock()
	if done != nil {
		<-done
	}
}

// holdWriters holds local writers back until ctx ends.
func (db *DB) holdWriters(ctx context.Context, why string) {
	var h *peer.Hold
	began, told := time.Now(), false
	for ctx.Err() == nil && h == nil {
		var err error
		if h, err = db.tryHold(ctx); err == nil || ctx.Err() != nil {
			continue
		}
		waits := errors.Is(err, context.DeadlineExceeded) && time.Since(began) < brakePatience
		if !waits && !told { // once: it is tried again all the time
			db.log().Error("writers are not held back: tried again; a long transaction, or a connection in locking_mode=EXCLUSIVE?", "reason", why, "error", err)
			told = true
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			select {
			case <-ctx.Done():
			case <-time.After(brakeAttempt):
			}
		}
	}
	if h == nil {
		return
	}
	since := time.Now()
	db.log().Warn("writers are held back: they wait, and get BUSY", "reason", why, "level", db.Level().String())
	<-ctx.Done()
	db.forgetWrites() // not after the release: the next writer may have begun
	if err := h.Release(); err != nil {
		db.log().Error("the locks that held writers back were not let go of cleanly", "error", err)
	}
	db.poke()
	db.log().Info("writers go on", "waited", time.Since(since))
}

// tryHold makes one attempt. It fails while the role of the database changes.
func (db *DB) tryHold(ctx context.Context) (*peer.Hold, error) {
	ctx, cancel := context.WithTimeout(ctx, brakeAttempt)
	defer cancel()
	if err := db.peering.acquire(ctx); err != nil {
		return nil, err
	}
	defer db.peering.release()
	db.mu.Lock()
	held := db.peer != nil || db.closed
	db.mu.Unlock()
	if held { // its role is changing
		<-ctx.Done()
		return nil, ctx.Err()
	}
	opt := db.peerOptions()
	opt.Locks = nil
	return peer.HoldWriters(ctx, opt)
}
