package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/litefs/litefs"
)

var (
	errStopping   = errors.New("this node is stopping")
	errNotPrimary = errors.New("this node is not the primary any more")
)

// session is one stream to one replica, from its positions on. One goroutine runs it; preparing a
// snapshot, which may take long, is the only thing done beside it.
type session struct {
	src    Source
	sub    Subscription
	out    *streamWriter
	limits limits
	log    *slog.Logger

	// pos is where the replica is once it has taken all that was sent. A database that is absent is
	// at the zero position.
	pos map[uint32]litefs.Pos

	named map[uint32]string // names the replica was told on this stream
	last  *uint32           // the database named last, whose LTX frames need no DB frame

	due queue // databases that may have something to send; they take turns

	failures map[uint32]failure // databases whose last turn failed

	// A database is in snapshots.held from the moment it needs a snapshot until it was sent or
	// failed; it takes no turns meanwhile. One snapshot is prepared at a time.
	snapshots struct {
		held    map[uint32]struct{}
		waiting []uint32
		busy    bool
		ready   chan snapshot // capacity 1, so that the one at work never waits for the session
		work    sync.WaitGroup
	}
}

// failure says when a database that could not be read is tried again.
type failure struct {
	at    time.Time
	delay time.Duration
}

// snapshot is a prepared snapshot, or why there is none.
type snapshot struct {
	db  Database
	ltx *litefs.LTXReader
	err error
}

// runSession streams to out until the replica, the server or the node's role ends it. The error says
// which, or what failed.
func (s *Server) runSession(ctx context.Context, out *streamWriter, posMap map[uint32]litefs.Pos, logger *slog.Logger) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(s.ctx, func() { cancel(errStopping) })()

	ss := &session{
		src:      s.src,
		sub:      s.src.Subscribe(),
		out:      out,
		limits:   s.limits,
		log:      logger,
		pos:      posMap,
		named:    make(map[uint32]string),
		failures: make(map[uint32]failure),
	}
	ss.snapshots.held = make(map[uint32]struct{})
	ss.snapshots.ready = make(chan snapshot, 1)
	defer func() {
		cancel(err)
		err = errors.Join(err, ss.endSnapshots(), ss.sub.Close())
	}()
	defer func() {
		// What came before the end is good, unless it is the writing that failed.
		if ferr := out.Flush(); ferr != nil && !errors.Is(err, ferr) {
			err = errors.Join(err, fmt.Errorf("last flush: %w", ferr))
		}
	}()

	// The subscription is older than this list: what changes from here on is marked in it.
	for _, db := range s.src.Databases() {
		ss.due.push(db.ID())
	}
	for id := range posMap {
		ss.due.push(id) // may have been dropped
	}
	return ss.run(ctx)
}

func (s *session) run(ctx context.Context) error {
	tick := time.NewTicker(s.limits.heartbeat)
	defer tick.Stop()
	always := make(chan struct{})
	close(always)

	if err := s.heartbeat(); err != nil { // the answer's headers go with it
		return err
	}
	for {
		var turn chan struct{}
		if s.due.len() > 0 {
			turn = always
		} else if err := s.out.Flush(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}

		var err error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			s.retry(time.Now())
			err = s.heartbeat()
		case <-s.sub.NotifyCh():
			for id := range s.sub.DirtySet() {
				s.due.push(id)
			}
		case snap := <-s.snapshots.ready:
			err = s.takeSnapshot(snap)
			s.prepareSnapshot(ctx)
		case <-turn:
			err = s.turn(s.due.pop())
			s.prepareSnapshot(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// heartbeat also sends what was written before it: while databases take turns without end, nothing
// else flushes.
func (s *session) heartbeat() error {
	if !s.src.IsPrimary() {
		return errNotPrimary
	}
	f := &litefs.HeartbeatStreamFrame{UnixMilli: time.Now().UnixMilli(), Epoch: s.src.Epoch()}
	if err := litefs.WriteStreamFrame(s.out, f); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("heartbeat: flush: %w", err)
	}
	return nil
}

// turn sends one file of a database, if there is one, and queues the database again then. The error is
// one that the stream cannot go on after; an error of the database alone is noted for later.
func (s *session) turn(id uint32) error {
	if _, ok := s.snapshots.held[id]; ok {
		return nil // queued again when its snapshot was sent
	}
	if !s.src.IsPrimary() {
		return errNotPrimary
	}
	db, ok := s.src.Database(id)
	if !ok {
		return s.drop(id)
	}
	if f, ok := s.failures[id]; ok && time.Now().Before(f.at) {
		return nil // queued again by retry
	}
	if s.named[id] != db.Name() { // new on this stream, or renamed
		if err := s.name(db); err != nil {
			return err
		}
	}
	ltx, err := db.NextLTX(s.pos[id])
	switch {
	case err == nil:
		if ltx.Pos() == s.pos[id] {
			s.fail(db, errors.Join(fmt.Errorf("log entry %d-%d leads nowhere", ltx.MinTXID, ltx.MaxTXID), ltx.Close()))
			return nil
		}
		s.due.push(id)
		return s.send(db, ltx)
	case errors.Is(err, io.EOF):
		delete(s.failures, id)
		return nil
	case errors.Is(err, litefs.ErrSnapshotNeeded):
		s.snapshots.held[id] = struct{}{}
		s.snapshots.waiting = append(s.snapshots.waiting, id)
		return nil
	default:
		s.fail(db, err)
		return nil
	}
}

// drop tells the replica, if it has the database, that it was dropped.
func (s *session) drop(id uint32) error {
	_, has := s.pos[id]
	_, named := s.named[id]
	if !has && !named || !s.src.Dropped(id) {
		return nil
	}
	delete(s.pos, id)
	delete(s.named, id)
	delete(s.failures, id)
	if err := litefs.WriteStreamFrame(s.out, &litefs.DropDBStreamFrame{DBID: id}); err != nil {
		return fmt.Errorf("drop database %s: %w", litefs.FormatDBID(id), err)
	}
	return nil
}

// name sends a DB frame.
func (s *session) name(db Database) error {
	id, name := db.ID(), db.Name()
	if err := litefs.WriteStreamFrame(s.out, &litefs.DBStreamFrame{DBID: id, Name: name}); err != nil {
		return fmt.Errorf("name database %s: %w", name, err)
	}
	s.named[id], s.last = name, &id
	return nil
}

// send sends a file and closes it.
func (s *session) send(db Database, ltx *litefs.LTXReader) (err error) {
	defer func() { err = errors.Join(err, ltx.Close()) }()
	id := db.ID()
	if s.last == nil || *s.last != id {
		if err := s.name(db); err != nil {
			return err
		}
	}
	if err := litefs.WriteStreamFrame(s.out, &litefs.LTXStreamFrame{Size: ltx.Size}); err != nil {
		return fmt.Errorf("database %s: %w", db.Name(), err)
	}
	// Once the frame is out, so many bytes must follow: a file that is shorter ends the stream.
	n, err := io.Copy(s.out, io.LimitReader(ltx, ltx.Size))
	if err == nil && n < ltx.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("database %s: transactions %d-%d: sent %d of %d bytes: %w", db.Name(), ltx.MinTXID, ltx.MaxTXID, n, ltx.Size, err)
	}
	s.pos[id] = ltx.Pos()
	delete(s.failures, id)
	return nil
}

// prepareSnapshot starts on the next snapshot, unless one is at work.
func (s *session) prepareSnapshot(ctx context.Context) {
	for !s.snapshots.busy && len(s.snapshots.waiting) > 0 {
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

// takeSnapshot sends a prepared snapshot and lets its database take turns again.
func (s *session) takeSnapshot(snap snapshot) error {
	s.snapshots.busy = false
	s.release(snap.db.ID())
	if snap.err != nil {
		s.fail(snap.db, fmt.Errorf("snapshot: %w", snap.err))
		return nil
	}
	if err := s.send(snap.db, snap.ltx); err != nil {
		return err
	}
	s.log.Info("snapshot sent", "database", snap.db.Name(), "txid", snap.ltx.MaxTXID, "bytes", snap.ltx.Size)
	return nil
}

func (s *session) release(id uint32) {
	delete(s.snapshots.held, id)
	s.due.push(id)
}

// endSnapshots waits for a snapshot at work, whose context has ended, and closes one that was not sent.
func (s *session) endSnapshots() error {
	s.snapshots.work.Wait()
	select {
	case snap := <-s.snapshots.ready:
		if snap.err == nil {
			return snap.ltx.Close()
		}
	default:
	}
	return nil
}

// fail notes that a database could not be read. The other databases go on.
func (s *session) fail(db Database, err error) {
	f := s.failures[db.ID()]
	f.delay = min(max(2*f.delay, s.limits.retry), s.limits.maxRetry)
	f.at = time.Now().Add(f.delay)
	s.failures[db.ID()] = f
	s.log.Error("database not streamed", "database", db.Name(), "retry", f.delay, "error", err)
}

// retry gives those databases a turn that failed long enough ago.
func (s *session) retry(now time.Time) {
	for id, f := range s.failures {
		if !now.Before(f.at) {
			s.due.push(id)
		}
	}
}

// queue is a first-in-first-out of databases, each at most once in it.
type queue struct {
	ids []uint32
	in  map[uint32]struct{}
}

func (q *queue) len() int { return len(q.ids) }

func (q *queue) push(id uint32) {
	if _, ok := q.in[id]; ok {
		return
	}
	if q.in == nil {
		q.in = make(map[uint32]struct{})
	}
	q.in[id] = struct{}{}
	q.ids = append(q.ids, id)
}

func (q *queue) pop() uint32 {
	id := q.ids[0]
	q.ids = q.ids[1:]
	delete(q.in, id)
	return id
}
