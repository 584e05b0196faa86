package litefs

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// Status is what a node knows of itself, for people and monitoring.
type Status struct {
	Role        Role
	PrimaryURL  string // "" when none is known
	Hostname    string // of the primary
	DataDir     string
	MountDir    string
	Passthrough bool
	LogsSealed  bool // what is new in the logs is encrypted

	Lag    time.Duration // age of the last moment at which this node had all that the primary had
	Synced bool          // there was such a moment; always on a primary
	Stale  bool          // a replica's copy is older than Store.MaxStaleness: reads are refused, unless Store.ServeStale

	Databases []DBStatus
	Failed    map[string]error // databases that were set aside, by name, and why
	Replicas  []ReplicaStatus  // on a primary

	InSync, Waited []string // node ids: see Store.InSync

	Seeded   *Seeded         // what this start has taken from an archive; nil: it was not asked to
	Archives []ArchiveStatus // where the primary archives; none without backup

	Subscribers int // listeners for changes: replicas and readers of events
}

// DBStatus is one database in Status.
type DBStatus struct {
	ID       uint32
	Name     string
	Pos      Pos // visible to readers
	Received Pos // in the log
	Durable  Pos // in the log, and not lost with the power

	PageSize, Pages uint32
	WALSize         int64 // bytes of the -wal
	LogEntries      int
	LogBytes        int64

	Repairing string // what is being repaired; "" when nothing is
	// Waiting: a transaction waits for readers to leave the write-ahead log, which
	// is at its hard limit.
	Waiting bool

	// Level is what is promised of its commits. LevelPending: not yet, see DB.LevelPending.
	Level        Level
	LevelPending bool
	LevelSet     bool // by DB.SetLevel, and not by a rule
	// Held: writers wait, at level max-lag, for a replica to come closer.
	Held bool

	// Lent: a replica has the write lock of this database of the primary. Borrowed: programs on this replica have it.
	Lent, Borrowed bool
	// NotBorrowed is why they have not got it when one wanted to write last; "": they have, or none wanted to.
	NotBorrowed string

	// LoadBytes of LoadSize bytes of the first copy have come; 0 of 0: it is here.
	LoadBytes, LoadSize int64

	Commits      uint64        // local transactions captured since the start
	Reaped       uint64        // log entries that retention has removed since the start
	ApplyLatency time.Duration // of the last entry applied, from its commit; 0: none was

	// Trouble is why the database does not follow the primary; nil if it does.
	Trouble error
	Since   time.Time // when the trouble began
}

// Status returns the node's state. Its parts may be some moments apart.
func (s *Store) Status() Status {
	lag, synced := s.Lag()
	st := Status{
		Role:     s.Role(),
		Hostname: s.PrimaryHost(),
		DataDir:  s.path,
		MountDir: s.MountDir(),

		LogsSealed: s.LogKeys.On(),

		Lag:      lag,
		Synced:   synced,
		Stale:    s.RefusesReads(),
		Failed:   s.Failed(),
		Replicas: s.Replicas(),
		Archives: s.archiveStatus(),
		Seeded:   s.seeded.Load(),

		Subscribers: s.Subscribers(),
	}
	if st.Role == RolePrimary {
		st.InSync, st.Waited = s.InSync()
	}
	s.mu.Lock()
	st.PrimaryURL, st.Passthrough = s.primaryURL, s.passthrough
	s.mu.Unlock()
	for _, db := range s.DBs() {
		st.Databases = append(st.Databases, db.Status())
	}
	return st
}

// dbCounts are of one database, since the store was opened.
type dbCounts struct {
	commits atomic.Uint64 // local transactions captured
	reaped  atomic.Uint64 // log entries removed by retention
	applied atomic.Int64  // nanoseconds from its commit that the last entry applied was visible
}

// Status returns the state of one database. It waits for nothing.
func (db *DB) Status() DBStatus {
	st := DBStatus{ID: db.id, Name: db.Name(), PageSize: db.sums.PageSize(), Pages: db.sums.Count()}
	st.Received, st.Durable, st.Pos = db.reached()
	st.Commits, st.Reaped = db.counts.commits.Load(), db.counts.reaped.Load()
	st.ApplyLatency = time.Duration(db.counts.applied.Load())
	if fi, err := os.Stat(db.WALPath()); err == nil {
		st.WALSize = fi.Size()
	}
	for _, e := range db.txlog.Entries() {
		st.LogEntries++
		st.LogBytes += e.Size
	}
	if r := db.repairing.Load(); r != nil {
		st.Repairing = *r
	}
	st.Waiting = db.waiting.Load()
	st.Level, st.LevelPending, st.LevelSet, st.Held = db.Level(), db.LevelPending(), db.LevelSet(), db.brake.on()
	st.Lent, st.Borrowed = db.onLoan.Load(), db.borrowed.Load() != nil
	if db.store.Role() == RoleReplica {
		st.NotBorrowed = db.forwarding.refusedWith()
	}
	if p := db.loadProgress.Load(); p != nil {
		st.LoadBytes, st.LoadSize = p.bytes, p.size
	}
	if t := db.trouble.Load(); t != nil {
		st.Trouble, st.Since = t.err, t.since
	}
	return st
}

// Lag returns how long ago this node had all that the primary had, by the
// primary's clock then and this node's now; false when it never had.
func (s *Store) Lag() (time.Duration, bool) {
	if s.Role() == RolePrimary {
		return 0, true
	}
	at := s.syncedAt.Load()
	if at == 0 {
		return 0, false
	}
	return time.Since(time.UnixMilli(at)), true
}

// lagFile is the content of the file .lag: milliseconds with a sign, 10
// characters or one more, and a newline. A node that never had all says
// 2147483647.
func (s *Store) lagFile() []byte {
	const never = 1<<31 - 1
	ms := int64(never)
	if lag, ok := s.Lag(); ok {
		ms = min(max(lag.Milliseconds(), -never), never)
	}
	return fmt.Appendf(nil, "%+010d\n", ms)
}

// ApplyLatencyBounds are the upper bounds of the buckets of a LatencyHistogram.
var ApplyLatencyBounds = [...]time.Duration{
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, time.Minute,
}

// LatencyHistogram counts durations by size. The zero value is ready for use.
type LatencyHistogram struct {
	buckets [len(ApplyLatencyBounds) + 1]atomic.Uint64 // the last is for what is above all bounds
	sum     atomic.Int64                               // nanoseconds
}

// Observe counts d; what two clocks make negative counts as 0.
func (h *LatencyHistogram) Observe(d time.Duration) {
	d = max(d, 0)
	i := 0
	for i < len(ApplyLatencyBounds) && d > ApplyLatencyBounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(int64(d))
}

// Counts returns how many durations fell into each bucket, the last being above
// all bounds, and their sum.
func (h *LatencyHistogram) Counts() (buckets [len(ApplyLatencyBounds) + 1]uint64, sum time.Duration) {
	for i := range h.buckets {
		buckets[i] = h.buckets[i].Load()
	}
	return buckets, time.Duration(h.sum.Load())
}

// Subscribers returns how many listen for changes.
func (s *Store) Subscribers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.subscribers)
}
