package litefs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/peer"
	"github.com/litefs/litefs/sqlitefile"
)

// DB represents a SQLite database: a file in the tree, and the record of its
// transactions.
//
// The log, the page checksums and the position always agree with each other
// (between them the order is: log, then checksums, then position). What may be
// ahead of them is the application's database: by the transactions in its
// write-ahead log that are not captured yet, or by the pages noted in dirty.
type DB struct {
	store *Store
	id    uint32
	dir   string
	name  atomic.Pointer[string]

	pos   atomic.Pointer[Pos]
	epoch atomic.Uint64 // of the newest entry

	// wake tells the capture loop to look at the write-ahead log. Capacity 1:
	// a pending wake-up covers all that came before it is taken.
	wake chan struct{}

	captured time.Time // when the capture loop last found something; its own
	stop     chan struct{}
	done     chan struct{}

	// unjournaled is set once SQLite was seen writing without a journal.
	unjournaled atomic.Bool

	// behind is set from a capture that failed to the next one that did not.
	behind atomic.Bool

	// closing is set while the wal-index is gone and the write-ahead log is not:
	// the last connection is removing one after the other, and with no wal-index
	// to tell them apart, frames that were never committed would look like news.
	closing atomic.Bool

	// locks are the rollback-journal locks that a Go program takes through
	// this package. Applications on the mount lock in the kernel.
	locks struct{ pending, reserved, shared RWMutex }

	// ingest is held while the log takes an entry from the network, so that
	// maintenance, which would wait for the network then, leaves the log alone.
	// Before mu.
	ingest sync.Mutex

	// ours is set on a node that was the primary in its last run, until the
	// database has taken a transaction of the primary after it.
	ours atomic.Bool

	// epochList is when each primary began to write the database.
	epochList epochFile

	// repairing says what is being repaired, nil when nothing is.
	repairing atomic.Pointer[string]

	// upkeep is held while maintenance is at the log and the checksums, which are
	// not closed meanwhile. Before ingest.
	upkeep sync.Mutex

	counts dbCounts

	// peering is held while the peer is opened, which must not be under mu.
	peering semaphore

	// level is what SetLevel has set; nil: what the rules say counts.
	level atomic.Pointer[Level]

	// brake holds local writers back while no replica is close enough behind.
	brake brake

	// local is set while local programs may write, or may have written since the
	// last capture. It is cleared under mu, when the peer has the locks.
	local atomic.Bool

	// trouble is why a replica's database does not follow; nil when it does.
	trouble atomic.Pointer[trouble]

	// waiting is set while an entry waits for readers to leave the write-ahead log
	// of a replica, which is at its hard limit.
	waiting atomic.Bool

	// loadProgress is how far load is, for those who must not wait for mu.
	loadProgress atomic.Pointer[loadProgress]

	// hold is up to which transaction a replica may apply: those after it are not decided.
	hold atomic.Uint64

	// ended is closed, for those who must not wait for mu, and unproved that sumsErr is set: the checksums prove no page.
	ended, unproved atomic.Bool

	// lent is set while a peer of this process has the locks of all writers on a primary: what is written to the write-ahead
	// log then is the peer's, and not SQLite's.
	lent atomic.Bool

	// lending is the write lock that replicas borrow. onLoan is set while one may have it: the peer has the locks on a
	// primary then, and transactions come through CommitHeld alone. wroteLent: a program wrote to the file meanwhile.
	lending           *lending
	onLoan, wroteLent atomic.Bool

	// borrowed is the primary's write lock, while local programs write under it to this replica; the peer has let go of
	// its WRITE lock then. borrowing is held from the request for it to its end. wantDirect: the write-ahead log is to be
	// opened so that each write comes to us.
	borrowed   atomic.Pointer[borrowed]
	borrowing  semaphore
	forwarding *forwarding
	haltFile   haltFile
	wantDirect atomic.Bool

	// made is the newest transaction that this run put into the log under that lock; 0: none.
	made atomic.Uint64

	// wrote is what was seen of the writes to a write-ahead log that commits wait at.
	wrote walWrites

	mu     sync.Mutex // guards everything below
	closed bool

	// undecided is the newest transaction of the log while nobody can say that it is committed; nil: all are.
	// While it is set, the position that others see is the one before it.
	undecided *undecided

	// offered is the newest transaction that archives are to get before it is decided; nil: none was.
	offered atomic.Pointer[Pos]

	// passed is the newest transaction of the log on a replica that writes under the primary's lock, while SQLite has not
	// published it.
	passed *passedTx

	txlog *ltxlog.Log
	sums  *pagesum.File

	// wal is the write-ahead log that captures read, nil while there is none;
	// at is how far it has been captured.
	wal *walFile
	at  capture.WALPos

	// doubt is since when the write-ahead log is not what was captured; zero: it is.
	doubt time.Time

	// settled is at as of the last checkpoint that came to its end.
	settled capture.WALPos

	// dirty holds the pages written through the mount since the last capture
	// of a rollback-journal transaction. When allDirty is set it may be
	// incomplete, and the next capture compares every page.
	dirty    map[uint32]struct{}
	allDirty bool

	// syncing is a sync of the database file that SQLite was told the end of before
	// it was there; nil: none. The end of the journal, which is the commit, waits
	// for it.
	syncing *fileSync

	// sumsErr is set when the page checksums lag behind the log for good.
	sumsErr error

	// leftWAL is set when the write-ahead log went while the database file was
	// open with passthrough: what is written in another journal mode since then
	// comes to us only where a journal ends, and not at all without one.
	leftWAL bool

	// peer applies entries on a replica; nil on a primary.
	peer *peer.Peer
	// load is the first content, on its way into the file; nil when none is.
	load *load
	// stale is set on a replica whose files may lack pages of the log: the
	// next sync asks for a snapshot.
	stale bool
	// maybeSeen is the end of what was to be shown when that failed: readers
	// of a replica may be there, and the position is before it. 0: none.
	maybeSeen uint64

	// redo are entries that the files of a replica may lack, or have in part:
	// the daemon before was cut off while it applied them.
	redo []ltxlog.Entry

	buf []byte // one page
}

// NewDB returns a new instance of DB whose record is at path. It is not part
// of the store until the store opens it.
func NewDB(store *Store, id uint32, path string) *DB {
	db := &DB{
		store: store,
		id:    id,
		dir:   path,
		wake:  make(chan struct{}, 1),
		stop:  make(chan struct{}),
		done:  make(chan struct{}),
		dirty: make(map[uint32]struct{}),

		peering: newSemaphore(),
		lending: newLending(),

		borrowing: newSemaphore(), forwarding: newForwarding(),
	}
	db.hold.Store(AllDecided)
	name := ""
	db.name.Store(&name)
	db.pos.Store(&Pos{})
	return db
}

// ID returns the database ID.
func (db *DB) ID() uint32 { return db.id }

// Name of the database: its path relative to the mount.
func (db *DB) Name() string { return *db.name.Load() }

// Path of the directory with the database's record.
func (db *DB) Path() string { return db.dir }

// Pos returns the current transaction position of the database.
func (db *DB) Pos() Pos { return *db.pos.Load() }

// TXID returns the current transaction ID.
func (db *DB) TXID() uint64 { return db.Pos().TXID }

// Epoch returns the epoch of the newest transaction.
func (db *DB) Epoch() uint64 { return db.epoch.Load() }

// DatabasePath returns the path to the underlying database file.
func (db *DB) DatabasePath() string { return filepath.Join(db.store.FilesDir(), db.Name()) }

// JournalPath returns the path to the underlying journal file.
func (db *DB) JournalPath() string { return db.DatabasePath() + "-journal" }

// WALPath returns the path to the underlying write-ahead log.
func (db *DB) WALPath() string { return db.DatabasePath() + "-wal" }

// SHMPath returns the path to the underlying wal-index.
func (db *DB) SHMPath() string { return db.DatabasePath() + "-shm" }

// LTXDir returns the path to the directory of LTX transaction files.
func (db *DB) LTXDir() string { return filepath.Join(db.dir, ltxName) }

// Open initializes the database from files in its data directory, recovering
// whatever the last run left unfinished, and makes it part of its store, which
// must be open. The tree must not be in use. ErrDatabaseExists: the store has a
// database with this id or name.
func (db *DB) Open() error {
	if db.store.watcher == nil {
		return errors.New("the store of the database is not open")
	}
	if db.store.DB(db.id) != nil {
		return ErrDatabaseExists
	}
	if err := db.open(); err != nil {
		return err
	}
	if err := db.store.register(db); err != nil {
		return errors.Join(err, db.close())
	}
	return nil
}

func (db *DB) open() error {
	name, err := os.ReadFile(filepath.Join(db.dir, "name"))
	if err != nil {
		return fmt.Errorf("read its name: %w", err)
	}
	if err := ValidateName(string(name)); err != nil {
		return fmt.Errorf("name on record: %w", err)
	}
	db.setName(string(name))

	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.openRecord(); err != nil {
		return err
	}
	if err := db.recover(); err != nil {
		db.closeWAL()
		return errors.Join(err, db.closeRecord(false))
	}
	db.start()
	return nil
}

// openRecord opens the log and the checksums. db.mu is held.
func (db *DB) openRecord() (err error) {
	if err := db.readLevel(); err != nil {
		return fmt.Errorf("level: %w", err)
	}
	if db.txlog, err = db.store.LogKeys.Open(db.dir, ltxName, FormatDBID(db.id), ltxlog.Options{
		FS: db.store.logFS, Logger: db.log(), Buffers: &db.store.logBuffers, Recent: db.store.recent, ID: uint64(db.id), Packs: db.store.PackedLogs,
	}); err != nil {
		return fmt.Errorf("transaction log: %w", err)
	}
	if db.sums, err = db.openSums(); err != nil {
		return errors.Join(fmt.Errorf("page checksums: %w", err), db.txlog.Close())
	}
	if err := db.openEpochs(); err != nil {
		return errors.Join(err, db.sums.Close(false), db.txlog.Close())
	}
	return nil
}

// openSums opens the page checksums. What a power cut left of a file that was
// not synced yet is no damage: they are rebuilt.
func (db *DB) openSums() (*pagesum.File, error) {
	path := filepath.Join(db.dir, "checksums")
	sums, err := pagesum.Open(path, db.store.bootID)
	if !errors.Is(err, pagesum.ErrCorrupt) {
		return sums, err
	}
	db.log().Warn("page checksums are damaged and begin anew", "error", err)
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return pagesum.Open(path, db.store.bootID)
}

// start begins to capture in the background. db.mu is held.
func (db *DB) start() {
	role, last := db.store.Role(), db.store.lastRole
	// Where a primary's mount lives on under a daemon that has no lease, writers are in until the locks are taken.
	db.local.Store(role == RolePrimary || last == RolePrimary && (role == RoleNone || db.store.live))
	db.publish()
	db.openWAL()
	go db.captureLoop()
}

// close ends the background capture, takes a last look at the files, and marks
// the record clean when it agrees with them.
func (db *DB) close() error {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil
	}
	db.closed = true
	db.ended.Store(true)
	db.mu.Unlock()
	db.brake.set(db, "") // it is not waited for: it opens files through the mount
	close(db.stop)
	<-db.done

	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	db.mu.Lock()
	defer db.mu.Unlock()
	var errs []error
	if db.peer != nil {
		errs = append(errs, db.releasePeer())
	}
	errs = append(errs, db.settleSync())
	clean := db.sumsErr == nil && !db.allDirty && len(db.dirty) == 0 && !db.stale
	if db.store.Role() == RoleReplica {
		entries, ok := db.unapplied()
		clean = clean && ok && len(entries) == 0 // else the log is ahead of the files
	}
	if db.store.Role() != RoleReplica {
		if err := db.captureWAL(true); err != nil {
			clean = false
			errs = append(errs, err)
		}
	}
	db.closeWAL()
	// A clean mark outlives a power cut, so what it stands for must too.
	if err := errors.Join(db.syncFiles(), db.txlog.Sync()); err != nil {
		clean = false
		errs = append(errs, err)
	}
	if clean {
		if err := db.noteState(); err != nil {
			clean = false
			errs = append(errs, fmt.Errorf("note the state of the files: %w", err))
		}
	}
	return errors.Join(append(errs, db.closeRecord(clean))...)
}

// closeRecord closes the log and the checksums. db.mu is held.
func (db *DB) closeRecord(clean bool) error {
	return errors.Join(db.sums.Close(clean), db.txlog.Close())
}

// setName changes what the database is called in this process.
func (db *DB) setName(name string) {
	db.name.Store(&name)
}

// log is the store's logger with the database's name.
func (db *DB) log() *slog.Logger { return db.store.Logger.With("db", db.Name()) }

// publish makes the log's head the position that others see. db.mu is held.
func (db *DB) publish() {
	if len(db.redo) > 0 {
		first := db.redo[0]
		db.pos.Store(&Pos{TXID: first.Min - 1, Chksum: first.Pre})
		db.epoch.Store(first.Epoch)
		return
	}
	if u := db.undecided; u != nil {
		db.pos.Store(&u.before)
		db.epoch.Store(u.epoch)
		return
	}
	if head, ok := db.txlog.Head(); ok {
		db.pos.Store(&Pos{TXID: head.Max, Chksum: head.Post})
		db.epoch.Store(head.Epoch)
	} else {
		db.pos.Store(&Pos{})
		db.epoch.Store(0)
	}
}

// image gives the pages of the database as an application sees them: the
// newest committed frame in the write-ahead log, else the file.
type image struct {
	file     *os.File
	wal      *walFile   // nil: the file alone
	peer     *peer.Peer // on a replica the peer knows where the pages are
	frames   map[uint32]uint32
	pageSize uint32
	count    uint32 // pages
}

// openImage opens the database's pages. With a write-ahead log, frames up to
// db.at count. db.mu is held, and the caller closes the image.
func (db *DB) openImage() (*image, error) {
	f, err := os.Open(db.DatabasePath())
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	img := &image{file: f}
	if err := db.fillImage(img); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return img, nil
}

func (db *DB) fillImage(img *image) error {
	if db.walInUse() {
		size, err := db.wal.size()
		if err != nil {
			return err
		}
		limit, err := db.limitAt()
		if err != nil {
			return err
		}
		batch, err := capture.Scan(db.wal.file, size, capture.WALPos{}, limit)
		if err != nil && !errors.Is(err, capture.ErrRestarted) {
			// After a restart the file has all that was captured.
			return fmt.Errorf("index the write-ahead log: %w", err)
		}
		img.wal, img.pageSize, img.count = db.wal, batch.PageSize, batch.PageCount
		img.frames = make(map[uint32]uint32, len(batch.Pages))
		for _, p := range batch.Pages {
			img.frames[p.Pgno] = p.Frame
		}
		if len(batch.Pages) > 0 {
			return nil
		}
		img.wal = nil
	}
	hdr, size, err := readHeader(img.file)
	if err != nil {
		return err
	}
	img.pageSize, img.count = hdr.PageSize, hdr.Pages(size)
	return nil
}

// Close closes the image's file.
func (img *image) Close() error { return img.file.Close() }

// ReadAt reads whole pages: off and len(p) must be multiples of the page size.
// Bytes beyond the end of the file are zero, as SQLite reads them.
func (img *image) ReadAt(p []byte, off int64) (int, error) {
	ps := int(img.pageSize)
	for n := 0; n+ps <= len(p); n += ps {
		if err := img.readPage(uint32((off+int64(n))/int64(ps))+1, p[n:n+ps]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// readPage reads one page.
func (img *image) readPage(pgno uint32, b []byte) error {
	if img.peer != nil {
		return img.peer.ReadPage(pgno, b)
	}
	if frame, ok := img.frames[pgno]; ok && img.wal != nil {
		return capture.ReadPage(img.wal.file, frame, img.pageSize, b)
	}
	return readFilePage(img.file, pgno, b)
}

// openRead opens a regular file to be read. os.Open would offer it to the
// runtime's poller, in vain and with more system calls than reading it takes.
func openRead(path string) (*os.File, error) {
	for {
		fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// readFilePage reads a page of a database file; what lies beyond the end of
// the file is zero.
func readFilePage(f *os.File, pgno uint32, b []byte) error {
	n, err := f.ReadAt(b, int64(pgno-1)*int64(len(b)))
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read page %d: %w", pgno, err)
	}
	clear(b[n:])
	return nil
}

// readHeader reads a database's header, and the size of its file in bytes.
func readHeader(f *os.File) (sqlitefile.Header, int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return sqlitefile.Header{}, 0, err
	}
	b := make([]byte, sqlitefile.HeaderSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return sqlitefile.Header{}, 0, fmt.Errorf("read the header: %w", err)
	}
	hdr, err := sqlitefile.ParseHeader(b[:n])
	return hdr, fi.Size(), err
}
