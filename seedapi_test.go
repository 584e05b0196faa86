package litefs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/litefs/litefs"
	"github.com/litefs/litefs/internal/sqlitetest"
)

// The API that programs of LiteFS 0.1 were written against, as the compiler
// sees it.
var (
	_ func(uint32) string                            = litefs.FormatDBID
	_ func(string) (uint32, error)                   = litefs.ParseDBID
	_ func(string) string                            = litefs.TrimName
	_ func(io.Writer, litefs.StreamFrame) error      = litefs.WriteStreamFrame
	_ func(io.Reader) (litefs.StreamFrame, error)    = litefs.ReadStreamFrame
	_ func(*litefs.Store, uint32, string) *litefs.DB = litefs.NewDB
	_ func(string) *litefs.Store                     = litefs.NewStore
	_ func(uint64, uint64) []litefs.LockType         = litefs.ParseLockRange
	_ func(litefs.FileType) bool                     = litefs.FileType.IsValid
	_ func(litefs.Pos) bool                          = litefs.Pos.IsZero

	_ func(*litefs.DB, litefs.JournalMode) error                = (*litefs.DB).CommitJournal
	_ func(*litefs.DB) (*os.File, error)                        = (*litefs.DB).CreateJournal
	_ func(*litefs.DB) string                                   = (*litefs.DB).DatabasePath
	_ func(*litefs.DB) uint32                                   = (*litefs.DB).ID
	_ func(*litefs.DB) bool                                     = (*litefs.DB).InWriteTx
	_ func(*litefs.DB) string                                   = (*litefs.DB).JournalPath
	_ func(*litefs.DB) string                                   = (*litefs.DB).LTXDir
	_ func(*litefs.DB, uint64, uint64) string                   = (*litefs.DB).LTXPath
	_ func(*litefs.DB) string                                   = (*litefs.DB).Name
	_ func(*litefs.DB) error                                    = (*litefs.DB).Open
	_ func(*litefs.DB, uint64) (*os.File, error)                = (*litefs.DB).OpenLTXFile
	_ func(*litefs.DB) string                                   = (*litefs.DB).Path
	_ func(*litefs.DB) *litefs.RWMutex                          = (*litefs.DB).PendingLock
	_ func(*litefs.DB) *litefs.RWMutex                          = (*litefs.DB).ReservedLock
	_ func(*litefs.DB) *litefs.RWMutex                          = (*litefs.DB).SharedLock
	_ func(*litefs.DB) litefs.Pos                               = (*litefs.DB).Pos
	_ func(*litefs.DB) uint64                                   = (*litefs.DB).TXID
	_ func(*litefs.DB, string) error                            = (*litefs.DB).TryApplyLTX
	_ func(*litefs.DB, *os.File, []byte, int64) error           = (*litefs.DB).WriteDatabase
	_ func(*litefs.DB, *os.File, []byte, int64) error           = (*litefs.DB).WriteJournal
	_ func(*litefs.Store) error                                 = (*litefs.Store).Close
	_ func(*litefs.Store, string) (*litefs.DB, *os.File, error) = (*litefs.Store).CreateDB
	_ func(*litefs.Store, uint32) *litefs.DB                    = (*litefs.Store).DB
	_ func(*litefs.Store, string) *litefs.DB                    = (*litefs.Store).DBByName
	_ func(*litefs.Store, uint32) string                        = (*litefs.Store).DBDir
	_ func(*litefs.Store) []*litefs.DB                          = (*litefs.Store).DBs
	_ func(*litefs.Store, uint32, string) (*litefs.DB, error)   = (*litefs.Store).ForceCreateDB
	_ func(*litefs.Store) bool                                  = (*litefs.Store).IsPrimary
	_ func(*litefs.Store, uint32)                               = (*litefs.Store).MarkDirty
	_ func(*litefs.Store) error                                 = (*litefs.Store).Open
	_ func(*litefs.Store) string                                = (*litefs.Store).Path
	_ func(*litefs.Store) map[uint32]litefs.Pos                 = (*litefs.Store).PosMap
	_ func(*litefs.Store) string                                = (*litefs.Store).PrimaryURL
	_ func(*litefs.Store) *litefs.Subscriber                    = (*litefs.Store).Subscribe
	_ func(*litefs.Store, *litefs.Subscriber)                   = (*litefs.Store).Unsubscribe
	_ func(*litefs.Subscriber) error                            = (*litefs.Subscriber).Close
	_ func(*litefs.Subscriber) map[uint32]struct{}              = (*litefs.Subscriber).DirtySet
	_ func(*litefs.Subscriber, uint32)                          = (*litefs.Subscriber).MarkDirty
	_ func(*litefs.Subscriber) <-chan struct{}                  = (*litefs.Subscriber).NotifyCh
	_ func(*litefs.RWMutex) bool                                = (*litefs.RWMutex).CanLock
	_ func(*litefs.RWMutex) bool                                = (*litefs.RWMutex).CanRLock
	_ func(*litefs.RWMutex) litefs.RWMutexState                 = (*litefs.RWMutex).State
	_ func(*litefs.RWMutex) *litefs.RWMutexGuard                = (*litefs.RWMutex).TryLock
	_ func(*litefs.RWMutex) *litefs.RWMutexGuard                = (*litefs.RWMutex).TryRLock
	_ func(*litefs.RWMutexGuard) bool                           = (*litefs.RWMutexGuard).CanLock
	_ func(*litefs.RWMutexGuard)                                = (*litefs.RWMutexGuard).RLock
	_ func(*litefs.RWMutexGuard) bool                           = (*litefs.RWMutexGuard).TryLock
	_ func(*litefs.RWMutexGuard)                                = (*litefs.RWMutexGuard).Unlock

	_ litefs.StreamFrame = &litefs.DBStreamFrame{DBID: 1, Name: ""}
	_ litefs.StreamFrame = &litefs.LTXStreamFrame{Size: 0}

	_ = []litefs.StreamFrameType{litefs.StreamFrameTypeDB, litefs.StreamFrameTypeLTX}
	_ = []litefs.FileType{litefs.FileTypeNone, litefs.FileTypeDatabase, litefs.FileTypeJournal, litefs.FileTypeWAL, litefs.FileTypeSHM}
	_ = []litefs.JournalMode{litefs.JournalModeDelete, litefs.JournalModeTruncate, litefs.JournalModePersist, litefs.JournalModeWAL}
	_ = []litefs.LockType{litefs.LockTypePending, litefs.LockTypeReserved, litefs.LockTypeShared}
	_ = []litefs.RWMutexState{litefs.RWMutexStateUnlocked, litefs.RWMutexStateShared, litefs.RWMutexStateExclusive}
	_ = []error{litefs.ErrDatabaseNotFound, litefs.ErrDatabaseExists, litefs.ErrNoPrimary, litefs.ErrPrimaryExists, litefs.ErrLeaseExpired, litefs.ErrReadOnlyReplica}
	_ = []int{
		litefs.SQLITE_DATABASE_SIZE_OFFSET, litefs.WALHeaderSize, litefs.WALFrameHeaderSize, litefs.WALIndexHeaderSize,
		litefs.PENDING_BYTE, litefs.RESERVED_BYTE, litefs.SHARED_FIRST, litefs.SHARED_SIZE,
		litefs.WAL_WRITE_LOCK, litefs.WAL_CKPT_LOCK, litefs.WAL_RECOVER_LOCK,
		litefs.WAL_READ_LOCK0, litefs.WAL_READ_LOCK1, litefs.WAL_READ_LOCK2, litefs.WAL_READ_LOCK3, litefs.WAL_READ_LOCK4,
		litefs.F_OFD_GETLK, litefs.F_OFD_SETLK, litefs.F_OFD_SETLKW, litefs.PageSize,
	}
)

// What a program of its own brings: a lease in memory, and a network that is
// the other store.
type lessor struct{ holder *leaser }

type leaser struct {
	lessor *lessor
	url    string
	closed bool
}

func (l *leaser) Close() error         { l.closed = true; return nil }
func (l *leaser) AdvertiseURL() string { return l.url }

func (l *leaser) Acquire(context.Context) (litefs.Lease, error) {
	if l.lessor.holder != nil {
		return nil, litefs.ErrPrimaryExists
	}
	l.lessor.holder = l
	return &lease{l, time.Now()}, nil
}

func (l *leaser) PrimaryURL(context.Context) (string, error) {
	if l.lessor.holder == nil {
		return "", litefs.ErrNoPrimary
	}
	return l.lessor.holder.url, nil
}

type lease struct {
	leaser  *leaser
	renewed time.Time
}

func (l *lease) RenewedAt() time.Time        { return l.renewed }
func (l *lease) TTL() time.Duration          { return time.Minute }
func (l *lease) Renew(context.Context) error { l.renewed = time.Now(); return nil }
func (l *lease) Close() error                { l.leaser.lessor.holder = nil; return nil }

type client struct{ primary *litefs.Store }

func (c client) Stream(ctx context.Context, _ string, posMap map[uint32]litefs.Pos) (litefs.StreamReader, error) {
	sub := c.primary.Subscribe()
	for _, db := range c.primary.DBs() {
		sub.MarkDirty(db.ID())
	}
	if posMap == nil {
		posMap = map[uint32]litefs.Pos{}
	}
	return &stream{ctx: ctx, store: c.primary, sub: sub, pos: posMap, dirty: sub.DirtySet()}, nil
}

// stream sends log entries by the calls that the API had at first.
type stream struct {
	ctx   context.Context
	store *litefs.Store
	sub   *litefs.Subscriber
	pos   map[uint32]litefs.Pos
	dirty map[uint32]struct{}
	named uint32   // database of the last DB frame
	file  *os.File // payload of the last LTX frame
}

// It belongs to the cluster of its store.
func (s *stream) ClusterID() string { return s.store.ClusterID() }
func (s *stream) NodeID() string    { return s.store.NodeID() }
func (s *stream) Epoch() uint64     { return s.store.Epoch() }

func (s *stream) NextFrame() (litefs.StreamFrame, error) {
	for {
		for id := range s.dirty {
			db := s.store.DB(id)
			next := s.pos[id].TXID + 1
			if db == nil || next > db.TXID() {
				delete(s.dirty, id)
				continue
			}
			if s.named != id {
				s.named = id
				return &litefs.DBStreamFrame{DBID: id, Name: db.Name()}, nil
			}
			f, err := db.OpenLTXFile(next)
			if err != nil {
				return nil, err
			}
			fi, err := f.Stat()
			if err != nil {
				return nil, errors.Join(err, f.Close())
			}
			s.file, s.pos[id] = f, litefs.Pos{TXID: next}
			return &litefs.LTXStreamFrame{Size: fi.Size()}, nil
		}
		select {
		case <-s.ctx.Done():
			return nil, s.ctx.Err()
		case <-s.sub.NotifyCh():
			s.dirty = s.sub.DirtySet()
		}
	}
}

func (s *stream) Read(p []byte) (int, error) {
	if s.file == nil {
		return 0, io.EOF
	}
	return s.file.Read(p)
}

func (s *stream) Close() error { return s.sub.Close() }

type invalidator struct{}

func (invalidator) InvalidateDB(*litefs.DB, int64, int64) error { return nil }

func openStore(t *testing.T, l *leaser, c litefs.Client) *litefs.Store {
	t.Helper()
	s := litefs.NewStore(filepath.Join(t.TempDir(), "data"))
	s.Leaser, s.Client, s.Invalidator = l, c, invalidator{}
	s.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

// versions are the bytes of a database after each of some transactions.
func versions(t *testing.T, n int) [][]byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source.db")
	c := sqlitetest.Open(t, path, "journal_mode=delete")
	c.MustExec("CREATE TABLE t(x)")
	var all [][]byte
	for range n {
		c.MustExec("INSERT INTO t VALUES (randomblob(5000))")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// transact writes a version of the database as SQLite would: journal, pages,
// the end of the journal.
func transact(t *testing.T, db *litefs.DB, f *os.File, mode litefs.JournalMode, version []byte) {
	t.Helper()
	j, err := db.CreateJournal()
	if err != nil {
		t.Fatal(err)
	}
	if err := db.WriteJournal(j, []byte(litefs.SQLITE_JOURNAL_HEADER_STRING), 0); err != nil {
		t.Fatal(err)
	}
	if err := db.WriteJournal(j, make([]byte, 512), 8); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(version); off += litefs.PageSize {
		if err := db.WriteDatabase(f, version[off:off+litefs.PageSize], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(j.Close(), db.CommitJournal(mode)); err != nil {
		t.Fatal(err)
	}
}

func TestSeedAPI(t *testing.T) {
	lessor := &lessor{}
	store := openStore(t, &leaser{lessor: lessor, url: "http://first:20202"}, client{})
	if !store.IsPrimary() || store.PrimaryURL() != "http://first:20202" {
		t.Errorf("primary %t, its URL %q", store.IsPrimary(), store.PrimaryURL())
	}
	sub := store.Subscribe()
	defer sub.Close() //nolint:errcheck // of a test

	db, f, err := store.CreateDB("app.db")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // of a test
	if _, _, err := store.CreateDB("app.db"); !errors.Is(err, litefs.ErrDatabaseExists) {
		t.Errorf("the same name again: %v, want %v", err, litefs.ErrDatabaseExists)
	}
	if !db.Pos().IsZero() || store.DB(db.ID()) != db || store.DBByName("app.db") != db || len(store.DBs()) != 1 {
		t.Errorf("new database at %s, by id %p, by name %p, want %p", db.Pos(), store.DB(db.ID()), store.DBByName("app.db"), db)
	}
	if db.Name() != "app.db" || db.Path() != store.DBDir(db.ID()) || db.LTXDir() != filepath.Join(db.Path(), "ltx") || db.JournalPath() != db.DatabasePath()+"-journal" {
		t.Errorf("paths: %s, %s, %s, %s", db.Name(), db.Path(), db.LTXDir(), db.JournalPath())
	}

	modes := []litefs.JournalMode{litefs.JournalModeDelete, litefs.JournalModeTruncate, litefs.JournalModePersist}
	all := versions(t, len(modes))
	for i, mode := range modes {
		before := db.Pos()
		transact(t, db, f, mode, all[i])
		if db.TXID() != uint64(i+1) || db.Pos().Chksum == before.Chksum {
			t.Errorf("%s: position %s after %s", mode, db.Pos(), before)
		}
		<-sub.NotifyCh()
		if set := sub.DirtySet(); len(set) != 1 {
			t.Errorf("%s: dirty %v, want %d", mode, set, db.ID())
		}
		fi, err := os.Stat(db.JournalPath())
		switch mode {
		case litefs.JournalModeDelete:
			if !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the journal is still there: %v", err)
			}
		case litefs.JournalModeTruncate:
			if err != nil || fi.Size() != 0 {
				t.Errorf("the journal is not empty: %v", err)
			}
		case litefs.JournalModePersist:
			b, err := os.ReadFile(db.JournalPath())
			if err != nil || len(b) == 0 || b[0] != 0 {
				t.Errorf("the journal's header is not zeroed: %v", err)
			}
		}
		if err == nil {
			if err := os.Remove(db.JournalPath()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.CommitJournal(litefs.JournalModeDelete); err == nil {
		t.Error("a commit without a journal succeeds")
	}
	j, err := db.CreateJournal()
	if err != nil {
		t.Fatal(err)
	}
	if err := db.CommitJournal(litefs.JournalModeWAL); err == nil {
		t.Error("a commit of a journal in WAL mode succeeds")
	}
	if err := errors.Join(j.Close(), db.CommitJournal(litefs.JournalModeDelete)); err != nil {
		t.Error(err)
	}
	if got := store.PosMap(); len(got) != 1 || got[db.ID()] != db.Pos() || db.TXID() != uint64(len(modes)) {
		t.Errorf("positions %v, want %s", got, db.Pos())
	}

	t.Run("TryApplyLTX", func(t *testing.T) { applyByHand(t, lessor, db, all[len(all)-1]) })
	t.Run("Client", func(t *testing.T) { followByClient(t, lessor, store, db, all[len(all)-1]) })
}

// applyByHand brings a second store to the position of db, file by file.
func applyByHand(t *testing.T, lessor *lessor, db *litefs.DB, want []byte) {
	store := openStore(t, &leaser{lessor: lessor, url: "http://second:20202"}, client{})
	if store.IsPrimary() {
		t.Error("two primaries")
	}
	to, err := store.ForceCreateDB(db.ID(), db.Name())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.ForceCreateDB(db.ID(), db.Name()); !errors.Is(err, litefs.ErrDatabaseExists) {
		t.Errorf("made again: %v, want %v", err, litefs.ErrDatabaseExists)
	}
	if err := to.TryApplyLTX(db.LTXPath(2, 2)); err == nil {
		t.Error("a file that does not follow is applied")
	}
	for txid := uint64(1); txid <= db.TXID(); txid++ {
		f, err := db.OpenLTXFile(txid)
		if err != nil {
			t.Fatal(err)
		}
		if f.Name() != db.LTXPath(txid, txid) {
			t.Errorf("file of transaction %d is %s, want %s", txid, f.Name(), db.LTXPath(txid, txid))
		}
		if err := errors.Join(to.TryApplyLTX(f.Name()), f.Close()); err != nil {
			t.Fatalf("apply %s: %v", f.Name(), err)
		}
	}
	if to.Pos() != db.Pos() {
		t.Errorf("position %s, want %s", to.Pos(), db.Pos())
	}
	if _, _, err := store.CreateDB("other.db"); !errors.Is(err, litefs.ErrReadOnlyReplica) {
		t.Errorf("create on a replica: %v, want %v", err, litefs.ErrReadOnlyReplica)
	}
	mustHold(t, to, want)
	c := sqlitetest.Open(t, to.DatabasePath())
	if _, err := c.Exec("INSERT INTO t VALUES (1)"); err == nil {
		t.Error("an application writes on a replica")
	}
}

// mustHold checks what SQLite reads: the file and its write-ahead log.
func mustHold(t *testing.T, db *litefs.DB, want []byte) {
	t.Helper()
	tmp := filepath.Join(t.TempDir(), "copy.db")
	for _, sfx := range []string{"", "-wal"} {
		b, err := os.ReadFile(db.DatabasePath() + sfx)
		if err == nil {
			err = os.WriteFile(tmp+sfx, b, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	sqlitetest.CLI(t, tmp, "PRAGMA wal_checkpoint(TRUNCATE);")
	got, err := os.ReadFile(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes that are not the %d bytes of the primary", len(got), len(want))
	}
}

// followByClient lets a third store follow the first one through a Client.
func followByClient(t *testing.T, lessor *lessor, primary *litefs.Store, db *litefs.DB, want []byte) {
	store := openStore(t, &leaser{lessor: lessor, url: "http://third:20202"}, client{primary})
	sub := store.Subscribe()
	// There is no mount: applications of this program use the tree itself.
	if err := store.Mounted(store.FilesDir(), true); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(time.Minute)
	for store.PosMap()[db.ID()] != db.Pos() {
		select {
		case <-sub.NotifyCh():
		case <-deadline:
			t.Fatalf("position %s, want %s", store.PosMap()[db.ID()], db.Pos())
		}
	}
	if got := store.PrimaryURL(); got != "http://first:20202" {
		t.Errorf("the primary is at %q", got)
	}
	mustHold(t, store.DB(db.ID()), want)
}

func TestSeedAPILocks(t *testing.T) {
	store := openStore(t, &leaser{lessor: &lessor{}}, client{})
	db, f, err := store.CreateDB("locks.db")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // of a test
	if db.InWriteTx() {
		t.Error("a new database is in a transaction")
	}
	reader := db.SharedLock().TryRLock()
	reserved := db.ReservedLock().TryLock()
	if reader == nil || reserved == nil || !db.InWriteTx() || db.ReservedLock().CanRLock() {
		t.Fatal("a writer cannot begin")
	}
	pending := db.PendingLock().TryLock()
	other := db.SharedLock().TryRLock()
	if pending == nil || other == nil || reader.TryLock() || reader.CanLock() {
		t.Error("exclusive beside another reader")
	}
	other.Unlock()
	if !reader.TryLock() || db.SharedLock().State() != litefs.RWMutexStateExclusive {
		t.Error("the last reader cannot become the writer")
	}
	reader.RLock()
	for _, g := range []*litefs.RWMutexGuard{pending, reserved, reader} {
		g.Unlock()
	}
	if db.InWriteTx() || !db.SharedLock().CanLock() {
		t.Error("locks are left")
	}
	locks := litefs.ParseLockRange(litefs.PENDING_BYTE, litefs.SHARED_FIRST+litefs.SHARED_SIZE-1)
	if len(locks) != 3 || locks[0] != litefs.LockTypePending || locks[2] != litefs.LockTypeShared {
		t.Errorf("locks of the whole range: %v", locks)
	}
}

// TestSeedAPIOpen: a database belongs to one store, which closes it.
func TestSeedAPIOpen(t *testing.T) {
	store := openStore(t, &leaser{lessor: &lessor{}}, client{})
	db, f, err := store.CreateDB("app.db")
	if err != nil {
		t.Fatal(err)
	}
	transact(t, db, f, litefs.JournalModeDelete, versions(t, 1)[0])
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := litefs.NewDB(store, db.ID(), db.Path()).Open(); !errors.Is(err, litefs.ErrDatabaseExists) {
		t.Errorf("opened twice: %v, want %v", err, litefs.ErrDatabaseExists)
	}
	if err := litefs.NewDB(store, db.ID()+1, store.DBDir(db.ID()+1)).Open(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no record: %v, want %v", err, os.ErrNotExist)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := litefs.NewDB(store, db.ID(), db.Path()).Open(); err == nil {
		t.Error("opened in a store that is closed")
	}

	again := litefs.NewStore(store.Path())
	again.Leaser, again.Logger = &leaser{lessor: &lessor{}}, store.Logger
	if err := again.Open(); err != nil {
		t.Fatal(err)
	}
	defer again.Close() //nolint:errcheck // of a test
	if got := again.DB(db.ID()); got == nil || got.Pos() != db.Pos() || got.Name() != "app.db" {
		t.Errorf("after a restart: %v, want app.db at %s", got, db.Pos())
	}
}

func TestSeedAPIFrames(t *testing.T) {
	var b bytes.Buffer
	for _, f := range []litefs.StreamFrame{&litefs.DBStreamFrame{DBID: 7, Name: "app.db"}, &litefs.LTXStreamFrame{Size: 9}} {
		if err := litefs.WriteStreamFrame(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	f, err := litefs.ReadStreamFrame(&b)
	if db, ok := f.(*litefs.DBStreamFrame); err != nil || !ok || db.DBID != 7 || db.Name != "app.db" {
		t.Errorf("first frame %v, %v", f, err)
	}
	f, err = litefs.ReadStreamFrame(&b)
	if l, ok := f.(*litefs.LTXStreamFrame); err != nil || !ok || l.Size != 9 {
		t.Errorf("second frame %v, %v", f, err)
	}
	id, err := litefs.ParseDBID(litefs.FormatDBID(7))
	if err != nil || id != 7 || litefs.TrimName("app.db-wal") != "app.db" {
		t.Errorf("id %d, name %s: %v", id, litefs.TrimName("app.db-wal"), err)
	}
}
