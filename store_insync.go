package litefs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs/internal/ltxlog"
)

// inSync is which replicas have every transaction that was acknowledged at the levels quorum and archive: docs/promises.md.
//
// Invariant: whoever the lease record may name is in waited, and who is in waited has everything in acked.
type inSync struct {
	// recording is held while the record beside the lease is written, so that the last one written is the last one that
	// was meant. Before mu.
	recording sync.Mutex

	waiting atomic.Int32 // commits that wait for replicas

	mu       sync.Mutex // guards everything below
	waited   map[string]struct{}
	recorded map[string]struct{}  // those that the record names for certain
	unknown  map[string]time.Time // those that a record names which may have been written, or may be yet; and until when that is believed
	leaving  map[string]struct{}  // not to be named any more
	acked    map[uint32]Pos       // by database: the newest transaction that was acknowledged
	commits  map[*waitingCommit]struct{}
}

// waitingCommit is a transaction that waits for replicas.
type waitingCommit struct {
	db    *DB
	pos   Pos
	level Level
	since time.Time
}

// begin forgets everything: this node alone has what it has, at the beginning of a reign.
func (q *inSync) begin() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waited, q.recorded = make(map[string]struct{}), make(map[string]struct{})
	q.unknown, q.leaving = make(map[string]time.Time), make(map[string]struct{})
	q.acked, q.commits = make(map[uint32]Pos), make(map[*waitingCommit]struct{})
}

// acknowledge reports whether a transaction may be acknowledged: everybody who is waited for has it, and so have level.N
// of those who are recorded. has is asked under the mutex, so that who joins meanwhile either has it or is waited for.
func (q *inSync) acknowledge(c *waitingCommit, has func(node string) bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for node := range q.waited {
		if !has(node) {
			return false
		}
		if _, ok := q.recorded[node]; ok {
			n++
		}
	}
	if n < c.level.N {
		return false
	}
	if q.acked[c.db.id].TXID < c.pos.TXID { // it may be asked for again: DB.promiseKept
		q.acked[c.db.id] = c.pos
	}
	return true
}

// join makes a replica one that is waited for, if it has everything that was acknowledged.
func (q *inSync) join(node string, has func(dbID uint32, acked Pos) bool, dbs []uint32) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.waited[node]; ok {
		return false
	}
	for _, id := range dbs {
		if !has(id, q.acked[id]) {
			return false
		}
	}
	q.waited[node] = struct{}{}
	return true
}

// shed marks those as leaving who hold a commit up for longer than a third of its time-out, if enough are left without
// them.
func (q *inSync) shed(now time.Time, has func(node string, c *waitingCommit) bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.leaving)
	for c := range q.commits {
		if now.Sub(c.since) < c.level.Timeout/3 {
			continue
		}
		left := 0
		var slow []string
		for node := range q.waited {
			_, named := q.recorded[node]
			switch ok := has(node, c); {
			case !ok:
				slow = append(slow, node)
			case named:
				left++
			}
		}
		if left < c.level.N {
			continue // it would not help this commit
		}
		for _, node := range slow {
			q.leaving[node] = struct{}{}
		}
	}
}

// toRecord is who the record is to name beside this node, and whether it does not do so yet.
func (q *inSync) toRecord() (nodes []string, news bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for node := range q.waited {
		if _, ok := q.leaving[node]; ok {
			news = true
			continue
		}
		nodes = append(nodes, node)
		if _, ok := q.recorded[node]; !ok {
			news = true
		}
	}
	slices.Sort(nodes)
	return nodes, news
}

// wrote notes that the record was written with these nodes, or may have been.
func (q *inSync) wrote(nodes []string, err error, now time.Time, belief time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	named := make(map[string]struct{}, len(nodes))
	for _, node := range nodes {
		named[node] = struct{}{}
	}
	if err != nil {
		for _, node := range nodes {
			q.unknown[node] = now.Add(belief)
		}
		maps.DeleteFunc(q.recorded, func(node string, _ struct{}) bool { _, ok := named[node]; return !ok })
		return
	}
	maps.DeleteFunc(q.unknown, func(_ string, until time.Time) bool { return now.After(until) })
	if len(q.unknown) == 0 {
		q.recorded = named
	} else {
		// One that was overtaken may still arrive: certain is only who is in both.
		q.recorded = maps.Clone(named)
		maps.DeleteFunc(q.recorded, func(node string, _ struct{}) bool { _, ok := q.unknown[node]; return !ok })
	}
	for node := range q.leaving {
		_, again := named[node]
		_, perhaps := q.unknown[node]
		if !again && !perhaps {
			delete(q.waited, node)
			delete(q.leaving, node)
		}
	}
}

// InSync returns the replicas that the lease record names as having every acknowledged transaction, and those that
// commits wait for.
func (s *Store) InSync() (recorded, waited []string) {
	s.insync.mu.Lock()
	defer s.insync.mu.Unlock()
	return slices.Sorted(maps.Keys(s.insync.recorded)), slices.Sorted(maps.Keys(s.insync.waited))
}

// recordTimeout is short: renewals of the lease write the record as well.
const recordTimeout = time.Second

// recordBelief is how long a write of the record that was not answered is believed to be able to arrive: much longer
// than any call is waited for.
const recordBelief = time.Minute

// writeRecord writes the record beside the lease.
func (s *Store) writeRecord(ctx context.Context, lease FencedLease, successor string) error {
	q := &s.insync
	q.recording.Lock()
	defer q.recording.Unlock()
	r := s.recordOf(successor)
	nodes, _ := q.toRecord()
	if s.promises() {
		r.InSync = append([]string{s.nodeID}, nodes...)
	}
	err := lease.SetRecord(ctx, r)
	if errors.Is(err, ErrLeaseExpired) {
		return err // nothing was written, and nothing counts any more
	}
	q.wrote(nodes, err, time.Now(), recordBelief)
	s.replicas.poke()
	return err
}

// errNoQuorum says that a commit was refused for want of replicas.
var errNoQuorum = errors.New("not enough replicas have it in time")

// awaitPromise waits until the transaction at the log's head is on enough nodes, and in the archives if the level says
// so. Nobody else commits to the database meanwhile: in a write-ahead log db.mu is held, with a rollback journal its
// writer waits for us.
func (s *Store) awaitPromise(db *DB, pos Pos, level Level, until time.Time) error {
	var archived <-chan struct{}
	if level.Kind == LevelArchive {
		done, stop := s.offer(db, pos)
		defer stop()
		archived = done
	}
	c := &waitingCommit{db: db, pos: pos, level: level, since: time.Now()}
	q := &s.insync
	q.waiting.Add(1)
	defer q.waiting.Add(-1)
	q.mu.Lock()
	q.commits[c] = struct{}{}
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.commits, c)
		q.mu.Unlock()
	}()
	deadline := time.NewTimer(time.Until(until))
	defer deadline.Stop()
	fence := time.NewTimer(s.untilFence())
	defer fence.Stop()
	for {
		changed := s.replicas.changedFor(db.id)
		if s.Role() != RolePrimary {
			return fmt.Errorf("%w: this node is not the primary any more", errNoQuorum)
		}
		if archived == nil && q.acknowledge(c, func(node string) bool { return db.isOn(s.replicas.ackOf(node, db.id), pos, level.Memory) }) {
			return nil
		}
		select {
		case <-changed:
		case <-archived:
			archived = nil
		case <-fence.C:
			fence.Reset(s.untilFence()) // the lease may have been renewed
		case <-deadline.C:
			if archived != nil {
				return s.notArchived(pos.TXID, level)
			}
			recorded, waited := s.InSync()
			return fmt.Errorf("%w: %d asked for, within %v; in sync are %v, waited for %v", errNoQuorum, level.N, level.Timeout, recorded, waited)
		case <-s.ctx.Done():
			return errors.New("this node is stopping")
		}
	}
}

// OnWait has fn called in each request of the mount that is about to wait for replicas, so that the mount answers others
// meanwhile.
func (s *Store) OnWait(fn func()) { s.onWait.Store(&fn) }

func (s *Store) relieve() {
	if fn := s.onWait.Load(); fn != nil {
		(*fn)()
	}
}

// untilFence is how long this node is the primary unless it renews its lease.
func (s *Store) untilFence() time.Duration {
	at := s.fenceAt.Load()
	if at == 0 {
		return time.Hour
	}
	return max(0, time.Duration(at-int64(bootNow())))
}

// isOn reports whether an acknowledgement says that a node has a transaction of this log.
func (db *DB) isOn(ack AckStreamFrame, pos Pos, memory bool) bool {
	have := ack.Durable
	if memory {
		have = ack.Received
	}
	if have == pos {
		return true
	}
	if have.TXID <= pos.TXID {
		return false
	}
	return db.isLogged(have) // further on: then it must be on this history
}

// keepInSync lets replicas join and leave, on a primary, until the store closes. It looks ten times a second, so it does
// not run where nothing is promised.
func (s *Store) keepInSync() {
	const look = 100 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		changed := s.replicas.changed()
		if s.Role() == RolePrimary {
			s.reviseInSync()
		}
		select {
		case <-s.ctx.Done():
			return
		case <-changed:
		case <-tick.C:
			continue
		}
		// Acknowledgements come by the thousand.
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reviseInSync looks once at who may join, and who must leave.
func (s *Store) reviseInSync() {
	var dbs []uint32
	byID := make(map[uint32]*DB)
	for _, db := range s.DBs() {
		if db.Level().Gated() {
			dbs = append(dbs, db.id)
			byID[db.id] = db
		}
	}
	q := &s.insync
	for _, r := range s.replicas.List() {
		if !r.Connected || s.roles != nil && !r.Candidate {
			continue
		}
		acks := s.replicas.acksFrom(r.NodeID)
		joined := q.join(r.NodeID, func(id uint32, acked Pos) bool {
			db := byID[id]
			if acked.IsZero() {
				acked = db.decided()
			}
			return acked.IsZero() || db.isOn(acks[id], acked, false)
		}, dbs)
		if joined {
			s.Logger.Info("a replica has every acknowledged transaction: commits wait for it from now on", "replica", r.NodeID)
		}
	}
	q.shed(time.Now(), func(node string, c *waitingCommit) bool {
		return c.db.isOn(s.replicas.ackOf(node, c.db.id), c.pos, c.level.Memory)
	})
	if s.roles == nil {
		// The roles are fixed: nobody reads a record.
		nodes, news := q.toRecord()
		if news {
			q.wrote(nodes, nil, time.Now(), 0)
			s.replicas.poke()
		}
		return
	}
	if _, news := q.toRecord(); !news {
		return
	}
	lease := s.roles.held()
	if lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, recordTimeout)
	defer cancel()
	if err := s.writeRecord(ctx, lease, ""); err != nil && s.ctx.Err() == nil {
		s.Logger.Warn("who is in sync was not written beside the lease", "error", err)
		return
	}
	recorded, waited := s.InSync()
	s.Logger.Info("in sync", "recorded", recorded, "waited", waited)
}

// decided is the position up to which the transactions of the database are decided.
func (db *DB) decided() Pos {
	if pos := db.Pos(); !pos.IsZero() {
		return pos
	}
	if head, ok := db.txlog.Head(); ok {
		return Pos{TXID: head.Max, Chksum: head.Post}
	}
	return Pos{}
}

// Decided returns up to which transaction a replica may apply that was sent everything up to sent: AllDecided where no
// commit is held back. It waits for nothing.
//
// Transactions that were taken back, and what took them back, are decided together, so that no reader sees the first
// without the second.
func (db *DB) Decided(sent uint64) uint64 {
	if !db.Level().Gated() {
		return AllDecided
	}
	decided := db.TXID()
	upto := min(decided, sent)
	for upto < decided {
		back, ok := backOf(db.txlog, upto, decided)
		if !ok {
			break
		}
		upto = back
	}
	return upto
}

// maxBack is how far apart a transaction and what takes it back are looked for, in entries.
const maxBack = 16

// backOf reports whether one of the entries behind upto brings the database back to before an entry that ends at or
// before upto, and then the end of what was before that.
func backOf(l *ltxlog.Log, upto, decided uint64) (uint64, bool) {
	before := make(map[uint64]uint64) // checksum: end
	for txid, i := upto, 0; txid > 0 && i < maxBack; i++ {
		e, ok := l.Find(txid)
		if !ok || e.Max != txid || e.Pre == 0 {
			break
		}
		before[e.Pre] = e.Min - 1
		txid = e.Min - 1
	}
	for txid, i := upto+1, 0; txid <= decided && i < maxBack; i++ {
		e, ok := l.Find(txid)
		if !ok {
			break
		}
		if end, ok := before[e.Post]; ok {
			return end, true
		}
		txid = e.Max + 1
	}
	return 0, false
}
