package http

import (
	"context"
	"errors"
	"fmt"

	"github.com/litefs/litefs"
)

// snapshot is a prepared snapshot, or why there is none.
type snapshot struct {
	db  Database
	ltx *litefs.LTXReader
	err error
}

// prepareSnapshot starts on the next snapshot, unless one is at work or too many are on their way.
func (s *session) prepareSnapshot(ctx context.Context) {
	for !s.snapshots.busy && s.snapshots.open < maxSnapshots && len(s.snapshots.waiting) > 0 {
		id := s.snapshots.waiting[0]
		s.snapshots.waiting = s.snapshots.waiting[1:]
		db, ok := s.src.Database(id)
		if !ok {
			s.release(id)
			continue
		}
		s.snapshots.busy = true
		s.snapshots.work.Go(func() {
			ltx, err := db.SnapshotLTX(ctx)
			s.snapshots.ready <- snapshot{db, ltx, err}
		})
	}
}

// takeSnapshot lets the database of a prepared snapshot take turns again, to send it.
func (s *session) takeSnapshot(snap snapshot) {
	s.snapshots.busy = false
	id := snap.db.ID()
	s.release(id)
	if snap.err != nil {
		s.fail(snap.db, fmt.Errorf("snapshot: %w", snap.err))
		return
	}
	s.files[id] = &outFile{ltx: snap.ltx, snapshot: true}
	s.snapshots.open++
	s.acks.src.conn.Sending(id, litefs.Transfer{From: snap.ltx.Pos(), Size: snap.ltx.Size})
}

func (s *session) release(id uint32) {
	delete(s.snapshots.held, id)
	s.due.push(id)
}

// endSnapshots waits for a snapshot at work, whose context has ended, and closes all files and bases that
// were not sent.
func (s *session) endSnapshots() error {
	s.snapshots.work.Wait()
	var err error
	for id := range s.files {
		err = errors.Join(err, s.giveUp(id))
	}
	for id := range s.bases.open {
		err = errors.Join(err, s.giveUp(id))
	}
	select {
	case snap := <-s.snapshots.ready:
		if snap.err == nil {
			err = errors.Join(err, snap.ltx.Close())
		}
	default:
	}
	return err
}
