package litefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/peer"
	"github.com/litefs/litefs/internal/vfs"
	"github.com/litefs/litefs/internal/watch"
)

// Store represents a collection of databases: one data directory, one role in
// one cluster.
//
// Set the exported fields before Open and leave them alone afterwards.
//
// Locks, outermost first: Store.adopting of a name, DB.upkeep, DB.ingest, DB.mu,
// Store.mu. A holder of DB.mu must not open, stat or otherwise touch a path of
// the mount: the kernel may be holding the directory's lock for a request that
// is itself waiting for that DB.mu.
type Store struct {
	path string

	// Client used to connect to other nodes.
	Client Client

	// Leaser manages the lease that controls leader election. A store without
	// one is a primary for as long as it is open.
	Leaser Leaser

	// Invalidator is told which bytes of a database a replica has applied, as
	// soon as readers can see them. It is called with the database's lock held:
	// it must not wait for the database, nor touch a path of the mount. The mount
	// needs none: a peer writes through it, so that the kernel's cache knows.
	Invalidator Invalidator

	// ReadOnlyReplica refuses to open a replica's databases for writing. Without
	// it they open, and a write is told that the database is locked.
	ReadOnlyReplica bool

	// Logger receives one line for each change of state. Defaults to slog's.
	Logger *slog.Logger

	// Retention bounds the log of each database; see Retention.
	Retention Retention

	// Archive keeps the archives of the databases; nil: there are none.
	Archive Archive

	// Seeder finds what an empty data directory is to begin with; nil: with nothing.
	Seeder Seeder
	seeded atomic.Pointer[Seeded]

	// ScrubInterval is the time between two scrubs of all databases in the
	// background. 0: there are none.
	ScrubInterval time.Duration

	// StrictVerify compares all pages of a database with their checksums after each
	// of its transactions. Slow: for tests, and for a disk that is under suspicion.
	StrictVerify bool

	// PackedLogs lets small transactions share files of the log, which makes each cheaper.
	PackedLogs bool

	// LogKeys encrypt the logs. nil: they lie in the clear, and those that are encrypted keep the store from opening.
	LogKeys *logkey.Keys

	// Keeper holds what must outlive this process: a replica's locks. May be
	// nil.
	Keeper Keeper

	// Watchdog ends this process when it lets its lease run out. May be nil.
	Watchdog Watchdog

	// OwnerPID is the process that is named to whoever finds the data directory
	// in use. Zero: this one.
	OwnerPID int

	// PrimaryHostname is what .primary says on a replica. Empty: the host in
	// the primary's URL.
	PrimaryHostname string

	// MayLead makes the node a candidate: it may become the primary. Only a
	// Leaser that is a Registry moves the role between nodes.
	MayLead bool

	// Promote makes a candidate ask for the role once it has had everything of
	// its primary.
	Promote bool

	// DemoteDelay is how long a node that has handed over is no candidate.
	DemoteDelay time.Duration

	// ReconnectDelay is how long a replica waits before it connects again.
	ReconnectDelay time.Duration

	// RollForwardTimeout is how long a primary whose power was cut waits for
	// followers that do not answer; they may have what it lost. 0: none is asked.
	RollForwardTimeout time.Duration

	// Levels are what is promised of transactions, by the name of the database; the first rule that matches counts.
	Levels []LevelRule

	// MaxStaleness is how old the copy of a replica may be: reads of an older one are refused, or served with a line in
	// the log if ServeStale is set. 0: any.
	MaxStaleness time.Duration
	ServeStale   bool

	// HaltDatabases are patterns, as path.Match has them, of the databases whose write-ahead logs are always opened so that
	// each write comes to the store: see Store.Halt.
	HaltDatabases []string

	// ForwardedLocks says that a mount asks for each lock (Store.Lock); LocksBehind, that there is no other one, and that the
	// locks are on the files behind it.
	ForwardedLocks, LocksBehind bool

	// Guarded says that the mount outlives this process: see ErrGuarded.
	Guarded bool

	known  knownReplicas
	reigns reigns
	noted  bool // the file run says that the store is open; of Open and Close
	cut    bool // the last run ended with the machine

	lockFile *os.File
	bootID   string // of this machine's present boot; tests set it before Open
	logFS    vfs.FS // of the logs; nil is the real disk

	// recent has copies of entries of all logs that had to be durable at once.
	recent *ltxlog.Recent

	// logBuffers are shared by all logs: with its own, each of a thousand databases would hold on to
	// half a megabyte.
	logBuffers ltxlog.Buffers

	// peerBuffers likewise, by all peers of a replica.
	peerBuffers peer.Buffers

	pageCopies sync.Pool // of *pageCopies, for all databases

	syncFile  func(*os.File) error // of a database; tests set it
	nodeID    string
	clusterID string
	lastRole  Role // of the last run, before this one's is settled

	// recorded is the role on disk, by which the next start recovers: a node that
	// was the primary is one there until the last of its writers has ended.
	recorded atomic.Int32
	roleFile sync.Mutex // held by who writes it there
	role     atomic.Int32
	epoch    atomic.Uint64

	// reign is the epoch under which local transactions are logged: that of this
	// node's last reign, while epoch may be another node's already.
	reign atomic.Uint64

	// roles runs the role of a node whose lease moves; nil otherwise. fenceAt is
	// when its reign is over unless it is renewed, by bootNow; 0 without one.
	roles   *roleLoop
	running atomic.Bool // the loop
	fenceAt atomic.Int64
	stateOf atomic.Pointer[roleState]
	// notDrained is why the last hand-over that failed did.
	notDrained atomic.Pointer[error]

	// notAsked is why the primary did not hand over when it was asked last.
	notAsked atomic.Pointer[error]
	lentOut  atomic.Int32 // databases that replicas write to
	withheld atomic.Bool  // no write lock is lent: the role is about to move
	handing  atomic.Bool  // the lease is being handed over: followers are served until they know
	watcher  *watch.Watcher
	lockDev  atomic.Uint64 // st_dev of the files that locks are on; 0 without a mount
	stats    Stats
	replicas ReplicaRegistry

	insync            inSync
	keeping, bounding sync.Once // of keepInSync and boundLag

	onWait atomic.Pointer[func()] // see OnWait

	haltLinks haltLinks

	scrubbing sync.Mutex // held by the one scrub at work
	importing sync.Mutex // held by the one import at work

	// upstream is the connection to the primary at work; nil while there is none.
	upstream atomic.Pointer[upstream]

	// syncedAt is the primary's time, in milliseconds since 1970, at which this
	// replica had all that the primary had; 0 for never.
	// syncedHere is when this node heard of it, by bootNow.
	syncedAt, syncedHere atomic.Int64

	// refusing: the copy of this replica is older than MaxStaleness.
	refusing atomic.Bool

	staleOnce  sync.Once
	staleKnown chan struct{} // closed at the first look at the age of the copy

	synced   chan struct{} // closed at the first such time
	syncOnce sync.Once

	// ctx ends when the store closes; wg counts every goroutine started under
	// it, and Close waits for them.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// recording is held by the one recordAll at work; recordedAll is set once it has come to its end.
	recording   sync.Mutex
	recordedAll bool

	mu sync.Mutex // guards everything below
	// mountDir is where applications see the tree. Until Mounted is called it
	// is the tree itself, which serves a program that uses the package with no
	// kernel mount.
	mountDir    string
	passthrough bool
	live        bool // the tree was in use before Open; see TakeOver
	byID        map[uint32]*DB
	byName      map[string]*DB
	failed      map[string]error // relative path -> why its record could not be opened
	dropped     map[uint32]struct{}
	newcomers   map[string]*newcomer

	// adopting are the files that are put on record now: two who find one at the same time do not record it twice. Such
	// a channel is closed at the end of it; see beginAdopting.
	adopting map[string]chan struct{}

	foreign     map[string]struct{} // files that were warned of; see warnForeign
	opens       map[string]*openFile
	unseen      map[string]bool // files open with passthrough: their writes do not come to us
	subscribers map[*Subscriber]struct{}
	primaryURL  string
	lease       Lease          // of a Leaser that is no Registry
	nodes       []NodePosition // the others that are known
}

// Stats are counters of events that an operator wants to see stay small.
type Stats struct {
	// NetGaps counts captures that found pages changed behind the capture's
	// back. It stays 0 unless somebody writes to the data directory directly.
	NetGaps atomic.Uint64
	// Captures counts log entries written for local transactions; Commits the
	// transactions in them; Barriers the checkpoints that waited for a capture.
	Captures, Commits, Barriers atomic.Uint64
	// CaptureErrors counts captures that failed and will be tried again.
	CaptureErrors atomic.Uint64
	// Applied counts log entries applied on a replica, ApplyErrors the times
	// that a database could not go on.
	Applied, ApplyErrors atomic.Uint64
	// ApplyLatency is the time from the commit on the primary, by its clock, to
	// the moment at which readers here can see it.
	ApplyLatency LatencyHistogram
	// Rejoins counts databases that were brought to the primary by the pages that
	// differ, RejoinPages those pages, RejoinBytes what moved for them, and
	// RejoinSnapshots the times that a whole snapshot was needed.
	Rejoins, RejoinPages, RejoinBytes, RejoinSnapshots atomic.Uint64
	// Scrubs counts databases that were scrubbed to the end, ScrubFaults what was
	// found.
	Scrubs, ScrubFaults atomic.Uint64
	// Forwarded counts transactions that were made on replicas, on the primary.
	Forwarded atomic.Uint64
	// HaltCalls counts what this node has asked of a primary about write locks.
	HaltCalls HaltCalls
	// RolledForward counts transactions that came back from followers.
	RolledForward atomic.Uint64
	// ReadLive counts log entries that followers got from memory, ReadLog those
	// that were read from the disk for them.
	ReadLive, ReadLog atomic.Uint64
	// TailsKept counts tails of forked histories that went into lost+found.
	TailsKept atomic.Uint64
	// PageHashes counts pages hashed, a measure of work that tests assert.
	PageHashes atomic.Uint64
}

// Role is what a node may do.
type Role int32

// Roles of a node.
const (
	// RoleNone is a store that is not open, or has no lease and knows no primary.
	RoleNone Role = iota
	RolePrimary
	RoleReplica
)

func (r Role) String() string {
	switch r {
	case RolePrimary:
		return "primary"
	case RoleReplica:
		return "replica"
	default:
		return "none"
	}
}

// Retention bounds how much history is kept in a database's log. The newest
// entry is always kept. Zero values mean the defaults.
type Retention struct {
	// Age is how long an entry is kept. Default 10 minutes.
	Age time.Duration
	// Bytes bounds the log of one database. Default 1 GiB.
	Bytes int64
	// Interval is how often the bounds are enforced. Default 1 minute.
	Interval time.Duration
}

// withDefaults fills in what was left at zero.
func (r Retention) withDefaults() Retention {
	if r.Age == 0 {
		r.Age = 10 * time.Minute
	}
	if r.Bytes == 0 {
		r.Bytes = 1 << 30
	}
	if r.Interval == 0 {
		r.Interval = time.Minute
	}
	return r
}

// NewStore returns a new instance of Store for the data directory at path.
func NewStore(path string) *Store {
	s := &Store{
		path:           path,
		syncFile:       syncData,
		synced:         make(chan struct{}),
		staleKnown:     make(chan struct{}),
		Logger:         slog.Default(),
		ReconnectDelay: time.Second,
		DemoteDelay:    10 * time.Second,
		byID:           make(map[uint32]*DB),
		byName:         make(map[string]*DB),
		failed:         make(map[string]error),
		dropped:        make(map[uint32]struct{}),
		newcomers:      make(map[string]*newcomer),
		adopting:       make(map[string]chan struct{}),
		foreign:        make(map[string]struct{}),
		opens:          make(map[string]*openFile),
		unseen:         make(map[string]bool),
		subscribers:    make(map[*Subscriber]struct{}),
	}
	s.replicas.has = func(dbID uint32) bool { return s.DB(dbID) != nil }
	return s
}

// Path returns underlying data directory.
func (s *Store) Path() string { return s.path }

// FilesDir returns the directory that the mount shows.
func (s *Store) FilesDir() string { return filepath.Join(s.path, "files") }

// NodeID identifies this data directory among the nodes of its cluster.
func (s *Store) NodeID() string { return s.nodeID }

// ClusterID identifies the cluster; empty on a replica that has never met its
// primary.
func (s *Store) ClusterID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clusterID
}

// Epoch is the number of the current primary's reign.
func (s *Store) Epoch() uint64 { return s.epoch.Load() }

// Stats returns the store's counters.
func (s *Store) Stats() *Stats { return &s.stats }

// Open initializes the store based on files in the data directory: every
// database is recovered, then the role is settled for the first time.
//
// A database that cannot be recovered is set aside: it is logged, its files
// refuse to open, and the others go on.
func (s *Store) Open() (err error) {
	s.Retention = s.Retention.withDefaults()
	for _, r := range s.Levels {
		if err := r.Level.Validate(); err != nil {
			return fmt.Errorf("level of %q: %w", r.Match, err)
		}
		if err := s.mayAsk(r.Level); err != nil {
			return fmt.Errorf("level of %q: %w", r.Match, err)
		}
	}
	s.insync.begin()
	if err := s.openDir(); err != nil {
		return err
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.watcher, err = watch.New(s.Logger); err != nil {
		return fmt.Errorf("watch the write-ahead logs: %w", err)
	}
	if s.lastRole, err = s.readRole(); err != nil {
		return err
	}
	s.recorded.Store(int32(s.lastRole))
	epoch, err := s.readEpoch()
	if err != nil {
		return err
	}
	s.reign.Store(epoch)
	if err := s.readNodes(); err != nil {
		return err
	}
	if err := s.readDropped(); err != nil {
		return err
	}
	if err := s.known.open(filepath.Join(s.path, "replicas")); err != nil {
		return err
	}
	if err := s.reigns.open(filepath.Join(s.path, "reigns")); err != nil {
		return err
	}
	if err := s.settleLogKeys(); err != nil {
		return err
	}
	// Before any log is opened: some get back what only this has.
	logOf := func(id uint64) string { return filepath.Join(s.DBDir(uint32(id)), ltxName) }
	if s.recent, err = ltxlog.OpenRecent(filepath.Join(s.path, "recent"), logOf, ltxlog.RecentOptions{FS: s.logFS, Logger: s.Logger, Wipe: s.LogKeys.On()}); err != nil {
		return err
	}
	if err := s.afterPowerCut(); err != nil {
		return err
	}
	if err := s.seed(s.ctx); err != nil {
		return err
	}
	if err := s.openRecords(); err != nil {
		return err
	}
	if err := s.settleUnrecorded(); err != nil {
		return fmt.Errorf("look for databases without a record: %w", err)
	}
	if err := s.settleRole(s.ctx); err != nil {
		return err
	}
	if err := s.noteRunning(); err != nil {
		return err
	}
	s.startMaintenance()
	return nil
}

// Mounted tells the store that its tree is now visible at dir, with or without
// passthrough, and starts the work that needs it: following a primary.
func (s *Store) Mounted(dir string, passthrough bool) error {
	var st unix.Stat_t
	locked := dir
	if s.LocksBehind {
		locked = s.FilesDir()
	}
	if err := unix.Stat(locked, &st); err != nil {
		return fmt.Errorf("stat the mount: %w", err)
	}
	s.lockDev.Store(st.Dev)
	s.mu.Lock()
	s.mountDir, s.passthrough = dir, passthrough
	live := s.live
	s.mu.Unlock()
	s.startRole()
	if s.IsPrimary() {
		s.goRun(s.recordAll)
	}
	s.levelsChanged()
	if s.MaxStaleness > 0 {
		s.goRun(s.boundStaleness)
	}
	if live {
		s.dropStrayLocks()
		s.takenOver()
	}
	return nil
}

// Unmounting stops what uses the mount: following the primary, and the locks
// and files of a replica's peers. The mount can be taken away afterwards.
func (s *Store) Unmounting() error {
	if s.cancel != nil {
		s.cancel()
	}
	s.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	errs := []error{s.endHolds(ctx, 0)}
	for _, db := range s.DBs() {
		errs = append(errs, db.leaveMount())
	}
	s.mu.Lock()
	s.mountDir = ""
	s.mu.Unlock()
	return errors.Join(errs...)
}

// Close signals for the store to shut down, waits for its goroutines, and
// marks every database that is whole as cleanly stopped. The tree must not be
// in use any more: unmount first.
func (s *Store) Close() error {
	var errs []error
	if s.cancel != nil {
		s.cancel()
	}
	s.wg.Wait()
	s.haltLinks.close()
	for _, db := range s.DBs() {
		if err := db.close(); err != nil {
			errs = append(errs, fmt.Errorf("close database %s: %w", db.Name(), err))
		}
	}
	if s.recent != nil {
		errs = append(errs, s.recent.Close())
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, s.noteStopped())
	}
	if s.watcher != nil {
		errs = append(errs, s.watcher.Close())
		s.watcher = nil
	}
	s.mu.Lock()
	lease := s.lease
	s.lease = nil
	subs := make([]*Subscriber, 0, len(s.subscribers))
	for sub := range s.subscribers {
		subs = append(subs, sub)
	}
	s.mu.Unlock()
	for _, sub := range subs {
		errs = append(errs, sub.Close())
	}
	if lease != nil {
		errs = append(errs, lease.Close())
	}
	if s.roles != nil {
		s.roles.release()
	}
	if s.lockFile != nil {
		errs = append(errs, s.lockFile.Close())
		s.lockFile = nil
	}
	return errors.Join(errs...)
}

// DB returns a database by ID. Returns nil if the database does not exist.
func (s *Store) DB(id uint32) *DB {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id]
}

// DBByName returns a database by name, its path relative to the mount.
// Returns nil if the database does not exist.
func (s *Store) DBByName(name string) *DB {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byName[name]
}

// DBs returns a list of databases, sorted by name.
func (s *Store) DBs() []*DB {
	s.mu.Lock()
	a := make([]*DB, 0, len(s.byID))
	for _, db := range s.byID {
		a = append(a, db)
	}
	s.mu.Unlock()
	sort.Slice(a, func(i, j int) bool { return a[i].Name() < a[j].Name() })
	return a
}

// DBDir returns the folder that stores the record of a single database.
func (s *Store) DBDir(id uint32) string {
	return filepath.Join(s.path, "dbs", FormatDBID(id))
}

// Failed returns the databases that were set aside, by name, and why.
func (s *Store) Failed() map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[string]error, len(s.failed))
	for k, v := range s.failed {
		m[k] = v
	}
	return m
}

// PosMap returns a map of databases and their transactional position.
func (s *Store) PosMap() map[uint32]Pos {
	m := make(map[uint32]Pos)
	for _, db := range s.DBs() {
		m[db.ID()] = db.Pos()
	}
	return m
}

// Subscribe creates a new subscriber for store changes.
func (s *Store) Subscribe() *Subscriber {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := newSubscriber(s)
	s.subscribers[sub] = struct{}{}
	return sub
}

// Unsubscribe removes a subscriber from the store.
func (s *Store) Unsubscribe(sub *Subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subscribers, sub)
}

// MarkDirty marks a database ID dirty on all subscribers.
func (s *Store) MarkDirty(dbID uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscribers {
		sub.MarkDirty(dbID)
	}
}

// roleChanged wakes the subscribers after a change of the role, or of the primary.
func (s *Store) roleChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscribers {
		sub.wake()
	}
}

// goRun runs fn in a goroutine that Close waits for.
func (s *Store) goRun(fn func()) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		fn()
	}()
}
