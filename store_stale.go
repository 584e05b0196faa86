package litefs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/peer"
)

// This file lets a replica refuse reads while its copy is too old: docs/promises.md.

// Bounds of the time between two looks at the age of the copy; between them it is an eighth of Store.MaxStaleness.
const (
	staleLookMin = 5 * time.Millisecond
	staleLookMax = 250 * time.Millisecond
)

// staleTimeout bounds the wait for the first look.
const staleTimeout = 10 * time.Second

// Staleness is Lag by the worse of two clocks: the primary's at the last moment at which this node had everything, and
// this machine's own since it heard of that moment. So it is too small only if news were long on their way and the
// clock here is behind the primary's.
func (s *Store) Staleness() (time.Duration, bool) {
	lag, ok := s.Lag()
	if !ok || s.Role() == RolePrimary {
		return lag, ok
	}
	return max(lag, time.Duration(int64(bootNow())-s.syncedHere.Load())), true
}

// noteCeased is called when this node ceases to be the primary: until now, or until its lease ended, its copy was the
// primary's.
func (s *Store) noteCeased() {
	now, since := int64(bootNow()), int64(0)
	if at := s.fenceAt.Load(); at != 0 {
		since = max(0, now-at)
	}
	s.syncedHere.Store(now - since)
	s.syncedAt.Store(time.Now().Add(-time.Duration(since)).UnixMilli())
}

// RefusesReads reports whether reads are refused: this node is a replica whose copy is older than MaxStaleness.
func (s *Store) RefusesReads() bool { return s.refusing.Load() }

// boundStaleness refuses and allows reads until the store closes.
func (s *Store) boundStaleness() {
	tick := time.NewTicker(min(max(s.MaxStaleness/8, staleLookMin), staleLookMax))
	defer tick.Stop()
	var failing error
	for {
		err := s.lookAtStaleness()
		if err != nil && s.ctx.Err() == nil && (failing == nil || failing.Error() != err.Error()) {
			s.Logger.Error("reads of a copy that is too old are not refused, or those of one that is fresh are; tried again", "error", err)
		}
		failing = err
		if err == nil {
			s.staleOnce.Do(func() { close(s.staleKnown) })
		}
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Store) lookAtStaleness() error {
	age, known := s.Staleness()
	stale := s.Role() == RoleReplica && (!known || age > s.MaxStaleness)
	if s.refusing.Swap(stale) != stale {
		switch {
		case !known && stale:
			s.Logger.Info("no primary was heard of yet: the copy counts as too old", "refused", !s.ServeStale, "max-staleness", s.MaxStaleness)
		case stale:
			s.Logger.Warn("the copy is too old", "refused", !s.ServeStale, "age", age, "max-staleness", s.MaxStaleness)
		default:
			s.Logger.Info("the copy is fresh enough")
		}
	}
	if s.Role() != RoleReplica || s.ServeStale {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, time.Second)
	defer cancel()
	var errs []error
	for _, db := range s.DBs() {
		errs = append(errs, db.refuseReads(ctx, stale))
	}
	return errors.Join(errs...)
}

// awaitStaleness lets nobody open a database before reads of a copy that is too old are refused: the mount serves from a
// moment before that on.
func (s *Store) awaitStaleness(name string) error {
	if s.MaxStaleness == 0 || s.ServeStale || s.Role() != RoleReplica || s.DBByName(name) == nil {
		return nil
	}
	patience := time.NewTimer(staleTimeout)
	defer patience.Stop()
	select {
	case <-s.staleKnown:
		return nil
	case <-patience.C:
	case <-s.ctx.Done():
	}
	return fmt.Errorf("whether the copy of %s is too old is not known: %w", name, syscall.EIO)
}

// refuseReads has the peer refuse reads, or allow them.
func (db *DB) refuseReads(ctx context.Context, refuse bool) error {
	p := db.peerNow()
	if p == nil && refuse && db.store.roles == nil { // no primary was met since the start; roles that move have seen to it
		if err := db.takePeer(ctx); err != nil {
			return err
		}
		p = db.peerNow()
	}
	if p == nil {
		return nil
	}
	return p.RefuseReads(ctx, refuse)
}

func (db *DB) peerNow() *peer.Peer {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.peer
}
