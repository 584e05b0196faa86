package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/litefs/litefs"
)

var (
	errStopping   = errors.New("this node is stopping")
	errNotPrimary = errors.New("this node is not the primary any more")
)

// Bounds of what is on its way to one replica.
const (
	// maxOutstanding is how many bytes, of all databases, the replica has not acknowledged. A database
	// of which nothing is on its way may send one piece beyond.
	maxOutstanding = 16 * litefs.StreamWindow

	// maxSnapshots is how many snapshots are prepared or on their way: each takes the room of its
	// database on the disk.
	maxSnapshots = 4
)

// maxTurns is how many turns are taken between two looks at everything else: a look costs about what a small turn does.
const maxTurns = 8

// session is one stream to one replica, from its positions on. One goroutine runs it; beside it one
// reads what the replica says, and one prepares a snapshot, which may take long.
type session struct {
	src  Source
	sub  Subscription
	out  *streamWriter
	acks *acks

	replica string // node id
	limits  limits
	log     *slog.Logger
	wanted  filter

	// pos is where the replica is once it has taken all files that were sent whole. A database that is
	// absent is at the zero position.
	pos map[uint32]litefs.Pos

	named map[uint32]string // names the replica was told on this stream
	last  *uint32           // the database named last, whose LTX frames need no DB frame

	due queue // databases that may have something to send; they take turns

	bases bases

	// files are those of which a part was sent. They take the turns of their databases.
	files map[uint32]*outFile

	// sent and taken count bytes of files, by database, since the stream began: the difference is on
	// its way. A database that may not send now is in blocked until the replica acknowledges.
	sent, taken map[uint32]int64
	outstanding int64 // sum of the differences
	blocked     map[uint32]struct{}

	// pages: the replica fetches pages that differ. A database whose position is not on the log is in
	// offLog from the moment the replica is told until it asks again; it takes no turns meanwhile. Those
	// for which it then asks for everything are in whole until they are sent.
	pages         bool
	offLog, whole map[uint32]struct{}

	// promises: the replica keeps what is not decided. told is what it was told to be.
	promises bool
	told     map[uint32]uint64

	// levels: the replica keeps levels that were set. toldLevel is what it was told.
	levels    bool
	toldLevel map[uint32]string

	handoff <-chan struct{} // closed when this replica is to take the lease
	nodes   uint64          // version of the list of nodes that the replica was told, plus 1

	failures map[uint32]failure // databases whose last turn failed
	beatOwed bool               // the last heartbeat told of a backlog: tell when it is gone

	chunk []byte // what is sent at once

	// A database is in snapshots.held from the moment it needs a snapshot until that is prepared or
	// failed; it takes no turns meanwhile. One snapshot is prepared at a time.
	snapshots struct {
		held    map[uint32]struct{}
		waiting []uint32
		busy    bool
		open    int           // prepared and not sent whole
		ready   chan snapshot // capacity 1, so that the one at work never waits for the session
		work    sync.WaitGroup
	}
}

// outFile is a file that is sent in chunks.
type outFile struct {
	ltx      *litefs.LTXReader
	offset   int64
	snapshot bool
}

// failure says when a database that could not be read is tried again.
type failure struct {
	at    time.Time
	delay time.Duration
}

// runSession streams to out until the replica, the server or the node's role ends it. The error says
// which, or what failed.
func (s *Server) runSession(ctx context.Context, out *streamWriter, posMap map[uint32]litefs.Pos, wanted filter, up ackSource, logger *slog.Logger) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer context.AfterFunc(s.ctx, func() { cancel(errStopping) })()

	ss := &session{
		src:       s.src,
		sub:       s.src.Subscribe(),
		out:       out,
		acks:      newAcks(up),
		replica:   up.id,
		limits:    s.limits,
		log:       logger,
		wanted:    wanted,
		pos:       posMap,
		named:     make(map[uint32]string),
		files:     make(map[uint32]*outFile),
		sent:      make(map[uint32]int64),
		taken:     make(map[uint32]int64),
		blocked:   make(map[uint32]struct{}),
		pages:     up.pages,
		promises:  up.promises,
		told:      make(map[uint32]uint64),
		levels:    up.levels,
		toldLevel: make(map[uint32]string),
		offLog:    make(map[uint32]struct{}),
		whole:     make(map[uint32]struct{}),
		chunk:     make([]byte, litefs.MaxStreamChunkSize),
		bases:     newBases(up.remote),
		failures:  make(map[uint32]failure),
		handoff:   up.conn.Handoff(),
	}
	ss.snapshots.held = make(map[uint32]struct{})
	ss.snapshots.ready = make(chan snapshot, 1)
	go ss.acks.read(ctx)
	defer func() {
		cancel(err)
		ss.endAcks()
		err = errors.Join(err, ss.endSnapshots(), ss.sub.Close())
	}()
	defer func() {
		// What came before the end is good, unless it is the writing that failed.
		if ferr := out.Flush(); ferr != nil && !errors.Is(err, ferr) {
			err = errors.Join(err, fmt.Errorf("last flush: %w", ferr))
		}
	}()

	// The subscription is older than this list: what changes from here on is marked in it.
	var ids []uint32
	for _, db := range s.src.Databases() {
		ids = append(ids, db.ID())
	}
	ss.changed(slices.Values(ids))
	ss.changed(maps.Keys(posMap)) // may have been dropped
	return ss.run(ctx)
}

// endAcks waits for the goroutine that reads the replica: a body must not be read after its request.
func (s *session) endAcks() {
	s.acks.end()
	s.acks.src.conn.Close()
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
		} else if err := s.settled(); err != nil {
			return err
		}

		var err error
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			s.retry(time.Now())
			err = s.heartbeat()
		case <-s.sub.NotifyCh():
			s.changed(maps.Keys(s.sub.DirtySet()))
		case <-s.acks.notify:
			err = s.takeAcks()
		case <-s.handoff:
			err = s.handOff()
		case snap := <-s.snapshots.ready:
			s.takeSnapshot(snap)
		case <-s.bases.news.ch:
			for id := range s.bases.news.take() {
				s.due.push(id)
			}
		case <-turn:
			for n := 0; err == nil && n < maxTurns && s.due.len() > 0; n++ {
				err = s.turn(ctx, s.due.pop())
			}
		}
		if err != nil {
			return err
		}
		s.prepareSnapshot(ctx)
	}
}

// changed makes databases due that may have something to send. Those that the
// replica has come first: one of them may have given its name to one that it has
// not.
func (s *session) changed(ids iter.Seq[uint32]) {
	for _, known := range []bool{true, false} {
		for id := range ids {
			if _, has := s.pos[id]; has == known {
				s.due.push(id)
			}
		}
	}
}

// settled flushes when nothing is due.
func (s *session) settled() error {
	if s.beatOwed && s.behind() == 0 {
		return s.heartbeat()
	}
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// behind counts the databases that have more to send.
func (s *session) behind() uint32 {
	return uint32(s.due.len() + len(s.files) + len(s.bases.open) + len(s.bases.waiting) + len(s.snapshots.held) + len(s.failures) + len(s.blocked) + len(s.offLog))
}

// heartbeat also sends what was written before it: while databases take turns without end, nothing
// else flushes.
func (s *session) heartbeat() error {
	if !s.src.Serving() {
		// A hand-over that has just ended: its end comes before the stream's.
		select {
		case <-s.handoff:
			return errors.Join(s.handOff(), errNotPrimary)
		default:
			return errNotPrimary
		}
	}
	f := &litefs.HeartbeatStreamFrame{UnixMilli: time.Now().UnixMilli(), Epoch: s.src.Epoch(), Behind: s.behind()}
	s.beatOwed = f.Behind > 0
	if err := litefs.WriteStreamFrame(s.out, f); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	if err := s.tellNodes(); err != nil {
		return err
	}
	if err := s.out.Flush(); err != nil {
		return fmt.Errorf("heartbeat: flush: %w", err)
	}
	return nil
}

// turn sends a file of a database, or a piece of one, if there is one, and queues the database again
// then. The error is one that the stream cannot go on after; an error of the database alone is noted
// for later.
func (s *session) turn(ctx context.Context, id uint32) error {
	if _, ok := s.snapshots.held[id]; ok {
		return nil // queued again when its snapshot is prepared
	}
	if _, ok := s.offLog[id]; ok {
		return nil // queued again when the replica has asked
	}
	if !s.src.Serving() {
		return errNotPrimary
	}
	db, ok := s.src.Database(id)
	switch {
	case !ok && !s.src.Dropped(id):
		s.forget(id) // not to be had at the moment: the replica keeps what it has
		return nil
	case !ok, !s.wanted.wants(db.Name()):
		// A copy that is not followed any more would grow old and not say so.
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
	if !s.maySend(id) {
		s.blocked[id] = struct{}{}
		return nil // queued again by an acknowledgement
	}
	if f, ok := s.files[id]; ok {
		s.due.push(id)
		return s.sendChunk(db, f)
	}
	if b, ok := s.bases.open[id]; ok {
		return s.sendBase(db, b)
	}
	if begun, err := s.beginBase(ctx, db); begun || err != nil {
		return err
	}
	ltx, err := db.NextLTX(s.pos[id])
	if told := s.tellPromise(db); told != nil {
		if err == nil {
			told = errors.Join(told, ltx.Close())
		}
		return told
	}
	switch {
	case err == nil:
		if ltx.Pos() == s.pos[id] {
			s.fail(db, errors.Join(fmt.Errorf("log entry %d-%d leads nowhere", ltx.MinTXID, ltx.MaxTXID), ltx.Close()))
			return nil
		}
		s.due.push(id)
		if ltx.Size > litefs.MaxStreamFileSize {
			f := &outFile{ltx: ltx}
			s.files[id] = f
			return s.sendChunk(db, f)
		}
		return s.send(db, ltx)
	case errors.Is(err, io.EOF):
		delete(s.failures, id)
		return nil
	case errors.Is(err, litefs.ErrSnapshotNeeded) && s.mayFetchPages(id):
		s.offLog[id] = struct{}{}
		if err := litefs.WriteStreamFrame(s.out, &litefs.OffLogStreamFrame{DBID: id}); err != nil {
			return fmt.Errorf("database %s: %w", db.Name(), err)
		}
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

// tellPromise tells what the replica must know before it gets the entry that was just read: it may have been committed
// under a level that was set a moment before.
func (s *session) tellPromise(db Database) error {
	if err := s.tellLevel(db); err != nil {
		return err
	}
	return s.tellDecided(db)
}

// errLevels ends the stream of a replica that would promise less as the primary.
var errLevels = errors.New("the replica's version does not keep levels that litefs durability has set: run the same version of litefs on both nodes")

// tellLevel tells the replica which level was set, if that is news.
func (s *session) tellLevel(db Database) error {
	id, level := db.ID(), db.LevelNoted()
	if !s.levels {
		if level != litefs.LevelOfRule {
			return fmt.Errorf("database %s: %w", db.Name(), errLevels)
		}
		return nil
	}
	if s.toldLevel[id] == level {
		return nil
	}
	s.toldLevel[id] = level
	if err := litefs.WriteStreamFrame(s.out, &litefs.LevelStreamFrame{DBID: id, Epoch: s.src.Epoch(), Level: level}); err != nil {
		return fmt.Errorf("database %s: %w", db.Name(), err)
	}
	return nil
}

// errPromises ends the stream of a replica that would show what may be taken back.
var errPromises = errors.New("the replica's version cannot keep transactions that wait at their level until they are decided: run the same version of litefs on both nodes")

// tellDecided tells the replica up to where it may apply what it was sent, if that is news.
func (s *session) tellDecided(db Database) error {
	id := db.ID()
	decided := db.Decided(s.pos[id].TXID)
	if !s.promises {
		if decided != litefs.AllDecided {
			return fmt.Errorf("database %s: %w", db.Name(), errPromises)
		}
		return nil
	}
	if told, ok := s.told[id]; ok && told == decided {
		return nil
	}
	s.told[id] = decided
	if err := litefs.WriteStreamFrame(s.out, &litefs.DecidedStreamFrame{DBID: id, TXID: decided}); err != nil {
		return fmt.Errorf("database %s: %w", db.Name(), err)
	}
	return nil
}

// mayFetchPages reports whether the replica has files of the database, of which most pages may be right.
func (s *session) mayFetchPages(id uint32) bool {
	_, whole := s.whole[id]
	return s.pages && !whole && !s.pos[id].IsZero()
}

// maySend reports whether a piece of the database may be sent before more is acknowledged.
func (s *session) maySend(id uint32) bool {
	n := s.sent[id] - s.taken[id]
	return n == 0 || n < litefs.StreamWindow && s.outstanding < maxOutstanding
}

// count notes bytes of a file that were sent.
func (s *session) count(id uint32, n int64) {
	s.sent[id] += n
	s.outstanding += n
}

// takeAcks takes what the replica has told.
func (s *session) takeAcks() error {
	taken, resume, err := s.acks.collect()
	if err != nil {
		return err
	}
	for id, n := range taken {
		if n < s.taken[id] || n > s.sent[id] {
			return fmt.Errorf("the replica acknowledges %d bytes of database %s, of %d that were sent", n, litefs.FormatDBID(id), s.sent[id])
		}
		if n > 0 {
			s.outstanding -= n - s.taken[id]
			s.taken[id] = n
		}
	}
	for id := range s.blocked {
		if s.maySend(id) {
			delete(s.blocked, id)
			s.due.push(id)
		}
	}
	for id, f := range resume {
		var err error
		if f.Next > 0 {
			err = s.resumeBase(id, f)
		} else {
			err = s.resume(id, litefs.ResumeStreamFrame{DBID: id, Ask: f.Ask, Pos: f.Pos})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// resume goes on from where the replica says, whatever was sent before.
func (s *session) resume(id uint32, f litefs.ResumeStreamFrame) error {
	if _, has := s.pos[id]; !has && s.named[id] == "" {
		// Dropped meanwhile, or made up: what a replica makes up is not remembered.
		s.log.Debug("replica asks for a database that it was not told of", "id", litefs.FormatDBID(id))
		return nil
	}
	if err := s.giveUp(id); err != nil {
		s.log.Warn("file not closed", "error", err)
	}
	s.pos[id] = f.Pos
	delete(s.failures, id)
	s.untell(id)
	delete(s.offLog, id)
	if f.Pos.Chksum == 0 {
		s.whole[id] = struct{}{}
	}
	s.due.push(id)
	if err := litefs.WriteStreamFrame(s.out, &litefs.ResumedStreamFrame{DBID: id, Ask: f.Ask}); err != nil {
		return fmt.Errorf("resume database %s: %w", litefs.FormatDBID(id), err)
	}
	s.log.Info("replica asks for a database anew", "id", litefs.FormatDBID(id), "pos", f.Pos.String())
	return nil
}

// giveUp ends the file or the base of a database that is being sent, if there is one.
func (s *session) giveUp(id uint32) error {
	err := s.giveUpBase(id)
	f, ok := s.files[id]
	if !ok {
		return err
	}
	delete(s.files, id)
	if f.snapshot {
		s.snapshots.open--
		s.acks.src.conn.Sending(id, litefs.Transfer{})
		s.wakeBases()
	}
	return errors.Join(err, f.ltx.Close())
}

// forget stops sending a database.
func (s *session) forget(id uint32) {
	if err := s.giveUp(id); err != nil {
		s.log.Warn("file not closed", "error", err)
	}
	delete(s.failures, id)
	delete(s.offLog, id)
	delete(s.whole, id)
	s.untell(id)
}

// untell notes that the replica may have thrown away what it was told.
func (s *session) untell(id uint32) {
	delete(s.told, id)
	delete(s.toldLevel, id)
}

// drop tells the replica, if it has the database, to drop it.
func (s *session) drop(id uint32) error {
	s.forget(id)
	_, has := s.pos[id]
	_, named := s.named[id]
	if !has && !named {
		return nil
	}
	delete(s.pos, id)
	delete(s.named, id)
	s.acks.src.conn.Forget(id)
	if err := litefs.WriteStreamFrame(s.out, &litefs.DropDBStreamFrame{DBID: id}); err != nil {
		return fmt.Errorf("drop database %s: %w", litefs.FormatDBID(id), err)
	}
	if s.last != nil && *s.last == id {
		s.last = nil
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

// send sends a small file whole, and closes it.
func (s *session) send(db Database, ltx *litefs.LTXReader) (err error) {
	defer func() { err = errors.Join(err, ltx.Close()) }()
	id := db.ID()
	b := s.chunk[:ltx.Size]
	if _, err := io.ReadFull(ltx, b); err != nil {
		s.fail(db, fmt.Errorf("transactions %d-%d: %w", ltx.MinTXID, ltx.MaxTXID, err))
		return nil
	}
	if s.last == nil || *s.last != id {
		if err := s.name(db); err != nil {
			return err
		}
	}
	if err := litefs.WriteStreamFrame(s.out, &litefs.LTXStreamFrame{Size: ltx.Size}); err != nil {
		return fmt.Errorf("database %s: %w", db.Name(), err)
	}
	if _, err := s.out.Write(b); err != nil {
		return fmt.Errorf("database %s: transactions %d-%d: %w", db.Name(), ltx.MinTXID, ltx.MaxTXID, err)
	}
	s.count(id, ltx.Size)
	s.sentWhole(id, ltx.Pos())
	return nil
}

// sendChunk sends the next piece of a file.
func (s *session) sendChunk(db Database, f *outFile) error {
	id := db.ID()
	if f.snapshot && f.offset == 0 {
		if err := s.tellLevel(db); err != nil {
			return err
		}
	}
	b := s.chunk[:min(int64(len(s.chunk)), f.ltx.Size-f.offset)]
	frame := &litefs.ChunkStreamFrame{DBID: id, Size: f.ltx.Size, Offset: f.offset, Len: uint32(len(b))}
	if _, err := io.ReadFull(f.ltx, b); err != nil {
		s.fail(db, errors.Join(fmt.Errorf("transactions %d-%d: at byte %d of %d: %w", f.ltx.MinTXID, f.ltx.MaxTXID, f.offset, f.ltx.Size, err), s.giveUp(id)))
		b, frame.Len = nil, 0 // the replica gives it up too
	}
	if err := litefs.WriteStreamFrame(s.out, frame); err != nil {
		return fmt.Errorf("database %s: %w", db.Name(), err)
	}
	if _, err := s.out.Write(b); err != nil {
		return fmt.Errorf("database %s: transactions %d-%d: at byte %d of %d: %w", db.Name(), f.ltx.MinTXID, f.ltx.MaxTXID, f.offset, f.ltx.Size, err)
	}
	s.count(id, int64(len(b)))
	f.offset += int64(len(b))
	if f.offset < f.ltx.Size {
		if f.snapshot && len(b) > 0 {
			s.acks.src.conn.Sending(id, litefs.Transfer{From: f.ltx.Pos(), Sent: f.offset, Size: f.ltx.Size})
		}
		return nil
	}
	if f.snapshot {
		s.log.Info("snapshot sent", "database", db.Name(), "txid", f.ltx.MaxTXID, "bytes", f.ltx.Size)
	}
	s.sentWhole(id, f.ltx.Pos())
	return s.giveUp(id)
}

// sentWhole notes that the replica will be at pos.
func (s *session) sentWhole(id uint32, pos litefs.Pos) {
	s.pos[id] = pos
	delete(s.failures, id)
	delete(s.whole, id)
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
