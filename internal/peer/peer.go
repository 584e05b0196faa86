// Package peer is a SQLite connection at the level of files: it applies
// replicated transactions to a database that other processes are reading with
// SQLite, as SQLite's own WAL writer would. Readers keep their snapshots,
// never wait and never see half a transaction; other writers get SQLITE_BUSY
// for as long as the Peer is open, and may write at once when it is closed.
//
// # Locks
//
// All locks are open-file-description locks, on descriptors opened by the same
// path that the applications use, or on the files behind a mount that keeps the
// applications' locks there. From Open to Close the Peer holds
//
//	database  SHARED    no last close can remove the WAL, no journal_mode change
//	database  RESERVED  no writer in a rollback journal mode
//	-shm      DMS       nobody truncates the wal-index
//	-shm      WRITE     no writer in WAL mode, nobody recovers the wal-index
//
// and CKPT, RECOVER and the READ slots for moments, as wal.c does. The kernel
// has no wake-up for a lock that others let go, so waiting is polling with a
// back-off, bounded by the context.
//
// # Every database has a WAL here
//
// The header of a database says whether a connection creates a WAL, but what
// makes a connection read through one is that the -wal exists and is not empty
// when it takes SHARED (pager.c, pagerOpenWalIfPresent; os_unix.c, unixAccess).
// So a database whose header names a rollback journal is applied in the same
// way: its -wal exists and has at least a header while the Peer is open.
//
// One thing has to be excluded: a reader that took SHARED before the -wal was
// there reads the database file itself, and a checkpoint would change it under
// its eyes. Nobody can be that reader when the header says WAL, or when the
// -wal was there before; else the -wal is created under an EXCLUSIVE lock, held
// for an instant. This is the only place that waits for readers.
//
// The reverse holds as well: SQLite deletes a WAL beside an EMPTY database file.
// Until the first transaction there is no WAL therefore; that transaction is
// written to the database file itself, under EXCLUSIVE, its header last. A
// file without its first bytes is one whose first transaction was not finished,
// and Open empties it.
//
// # Page size
//
// A transaction that has every page may change the page size; it goes through
// the WAL as well. See changePageSize.
//
// # Durability
//
// Nothing is synced in Apply but the header of a WAL that restarts (wal.c says
// why); checkpoints sync as SQLite's do. The log of transactions is the durable
// record of a replica, the WAL is not.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs/sqlitefile"
)

var (
	// ErrHotJournal says that a rollback journal has to be played back before
	// the database may be read.
	ErrHotJournal = errors.New("hot rollback journal beside the database")

	// ErrPageSize says that a transaction has another page size than the
	// database and does not hold every page. Nothing was applied.
	ErrPageSize = errors.New("page size differs from the database's")

	// ErrReaders says that the WAL had to restart, because it is at its hard
	// limit or because the page size changes, and that readers kept it from
	// that until the context ended. Nothing was applied.
	ErrReaders = errors.New("readers keep the WAL from restarting")

	// ErrClosed is returned by operations on a closed Peer.
	ErrClosed = errors.New("peer is closed")
)

// Default limits of the WAL in bytes.
const (
	DefaultSoftWAL = 4 << 20
	DefaultHardWAL = 256 << 20
)

// Options tell Open what to open.
type Options struct {
	Path    string       // of the database, as the applications open it; -wal and -shm lie beside it
	Backing string       // of the same file outside the mount, when Path is in a mount of this process
	Logger  *slog.Logger // nil: silent

	// LocksBehind takes the locks on Backing: the mount keeps those of the
	// applications there, and asks this process for each (package fuse).
	LocksBehind bool

	// Locks, if there is one, keeps the locks beyond the end of this process.
	Locks LockKeeper

	SoftWAL int64 // bytes; a larger WAL is checkpointed, 0 = DefaultSoftWAL
	HardWAL int64 // bytes; at a larger WAL Apply waits for readers, 0 = DefaultHardWAL

	// Eager asks for the locks of writers each millisecond: who writes all the
	// time leaves but a moment between two transactions.
	Eager bool

	Buffers *Buffers // nil: its own

	Waiting *atomic.Bool // set while Apply waits for them; nil: nobody wants to know

	pause     time.Duration        // the longest between two attempts to get a writer's lock, 0 = maxPause
	locksOnly bool                 // see Hold
	before    func(c change) error // see file
}

// LockKeeper holds copies of the descriptors that locks are taken on: such a
// lock belongs to the open file, and lasts until its last copy is closed or it
// is let go through one of them. Files are named by their suffix, "" or "-shm".
type LockKeeper interface {
	// Keep takes a copy; the locks on it are held.
	Keep(suffix string, f *os.File) error
	// Drop closes the copy, if there is one; the locks on it were let go.
	Drop(suffix string) error
	// Kept returns the copy that a process before this one left, if there is
	// one, and only once: it is the caller's.
	Kept(suffix string) (fd int, ok bool)
}

func (o *Options) ensureDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Eager:
		o.pause = eagerPause
	case o.pause == 0:
		o.pause = maxPause
	}
	if o.Buffers == nil {
		o.Buffers = &Buffers{}
	}
	if o.SoftWAL <= 0 {
		o.SoftWAL = DefaultSoftWAL
	}
	if o.Waiting == nil {
		o.Waiting = &atomic.Bool{}
	}
	if o.HardWAL <= 0 {
		o.HardWAL = DefaultHardWAL
	}
	o.HardWAL = max(o.HardWAL, o.SoftWAL)
}

// realPath is where to look without asking the mount.
func (o *Options) realPath() string {
	if o.Backing != "" {
		return o.Backing
	}
	return o.Path
}

// Peer is one such connection. Its methods may be called from any goroutine;
// they take turns.
type Peer struct {
	opt Options

	pageCount atomic.Uint32 // of the newest commit
	walSize   atomic.Int64  // bytes of the WAL that hold frames in force

	mu       sync.Mutex // held over each operation
	closed   bool
	lent     bool // WRITE is not held, or the WAL is not open: see lend.go
	db       *file
	pageSize uint32    // bytes; 0 while the database file is empty
	wal      *walFile  // nil while the database file is empty
	index    *walIndex // likewise
	load     *Load     // the first content, being written; nil: none is
	nextCkpt uint32    // no automatic checkpoint before this frame
}

// WALPos is the end of the WAL's last commit. Frame 0 is the start of the WAL.
type WALPos struct {
	Salt1, Salt2, Frame uint32
	Cksum               sqlitefile.Cksum
}

// Open takes the locks and readies the wal-index, recovering it from the WAL if
// need be. It creates an empty database file when there is none. It waits for
// local writers to end their transactions, and once for readers (see the
// package comment), until ctx ends. Errors: ErrHotJournal,
// sqlitefile.ErrNotDatabase, the context's, of the file system.
func Open(ctx context.Context, opt Options) (*Peer, error) {
	opt.ensureDefaults()
	p := &Peer{opt: opt}
	err := p.open(ctx)
	if err == nil && p.index == nil {
		err = p.dropKeptIndex()
	}
	if err != nil {
		return nil, fmt.Errorf("open %s as a peer: %w", opt.Path, errors.Join(err, p.release()))
	}
	return p, nil
}

// PageCount returns the size of the database in pages, after the newest commit.
func (p *Peer) PageCount() uint32 { return p.pageCount.Load() }

// WALSize returns how many bytes of the WAL hold transactions that were not
// yet taken out of it by a restart.
func (p *Peer) WALSize() int64 { return p.walSize.Load() }

// PageSize returns the page size in bytes, 0 while the database is empty.
func (p *Peer) PageSize() uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pageSize
}

// WALPos returns the end of the newest commit in the WAL: whoever captures the
// local writes that follow Close begins there.
func (p *Peer) WALPos() WALPos {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.walPos()
}

func (p *Peer) walPos() WALPos {
	if p.index == nil {
		return WALPos{}
	}
	h := p.index.hdr
	pos := WALPos{Salt1: h.Salt1, Salt2: h.Salt2, Frame: h.MaxFrame, Cksum: h.FrameCksum}
	if h.MaxFrame == 0 {
		pos.Cksum = p.wal.hdr.Cksum
	}
	return pos
}

// ReadPage reads the newest committed content of a page. buf must be as large
// as a page.
func (p *Peer) ReadPage(pgno uint32, buf []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.readPage(pgno, buf); err != nil {
		return fmt.Errorf("read page %d of %s: %w", pgno, p.opt.Path, err)
	}
	return nil
}

func (p *Peer) readPage(pgno uint32, buf []byte) error {
	if err := p.usable(); err != nil {
		return err
	}
	switch n := p.pageCount.Load(); {
	case pgno == 0 || pgno > n:
		return fmt.Errorf("database has %d pages", n)
	case uint32(len(buf)) != p.pageSize:
		return fmt.Errorf("buffer of %d bytes, want %d", len(buf), p.pageSize)
	}
	frame, err := p.index.find(pgno)
	if err != nil {
		return err
	}
	if frame != 0 {
		return p.wal.readPage(frame, buf)
	}
	// A page that was never written may lie beyond the end of the file: zeroes.
	n, err := p.db.ReadAt(buf, int64(pgno-1)*int64(p.pageSize))
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(buf[n:])
	return nil
}

// Sync makes everything applied so far durable in the WAL.
func (p *Peer) Sync() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.usable(); err != nil {
		return fmt.Errorf("sync %s: %w", p.opt.Path, err)
	}
	if p.wal == nil {
		return nil
	}
	if err := p.wal.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", p.wal.f.Name(), err)
	}
	return nil
}

// Close lets go of all locks. A database in a rollback journal mode that nobody
// else has open loses its WAL, as at SQLite's last close. While a connection is
// open the WAL has to stay, since that connection goes on to write it; the last
// one to close removes it then, and until then new connections use it as well.
// Closing twice does nothing.
func (p *Peer) Close(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	var err error
	if p.load != nil {
		err = p.load.abort()
	}
	if p.index != nil && p.index.shut {
		err = errors.Join(err, p.reopen())
	}
	err = errors.Join(err, p.leaveRollbackMode(ctx))
	p.closed = true
	if err := errors.Join(err, p.release()); err != nil {
		return fmt.Errorf("close peer of %s: %w", p.opt.Path, err)
	}
	return nil
}

// leaveRollbackMode takes the WAL away from a database whose header does not
// ask for one. It must not stay if it can be helped: once a checkpoint of an
// application truncates it, it counts as absent for new connections, which then
// read the database file beside connections that still write the WAL.
func (p *Peer) leaveRollbackMode(ctx context.Context) error {
	if p.wal == nil || p.index.dirty || p.lent {
		return nil
	}
	page := make([]byte, p.pageSize)
	if err := p.readPage(1, page); err != nil {
		return err
	}
	h, err := sqlitefile.ParseHeader(page)
	if asksForJournal := err == nil && !h.IsWAL(); !asksForJournal {
		return nil
	}
	if ok, err := p.tryExclusive(); !ok || err != nil {
		return err
	}
	if complete, err := p.checkpoint(ctx); !complete || err != nil {
		return err
	}
	return p.closeWAL(true)
}

// release lets go of the locks and closes everything. The -shm goes first:
// whoever gets a lock on the database finds WRITE free as well.
func (p *Peer) release() error {
	err := p.closeWAL(false)
	if p.db != nil {
		err = errors.Join(err, p.unlockAndClose(p.db))
		p.db = nil
	}
	return err
}

// unlockAndClose does not leave the unlocking to close: while this process
// starts another one, the child has the descriptor too for a moment.
func (p *Peer) unlockAndClose(f *file) error {
	err := errors.Join(unlock(f, 0, 0), f.Close())
	if p.opt.Locks != nil && f.kept {
		err = errors.Join(err, p.opt.Locks.Drop(f.suffix))
	}
	return err
}

// dropKeptIndex lets go of the locks on a wal-index that is not used any more.
func (p *Peer) dropKeptIndex() error {
	f, err := p.keptFile("-shm")
	if f == nil || err != nil {
		return err
	}
	return p.unlockAndClose(f)
}

// keep has the locks on f outlive this process.
func (p *Peer) keep(f *file) error {
	if p.opt.Locks == nil {
		return nil
	}
	if err := p.opt.Locks.Keep(f.suffix, f.File); err != nil {
		return fmt.Errorf("keep the locks of %s: %w", f.Name(), err)
	}
	f.kept = true
	return nil
}

// closeWAL closes -shm and -wal and with remove unlinks them, which needs an
// EXCLUSIVE lock on the database.
func (p *Peer) closeWAL(remove bool) error {
	var errs []error
	for _, f := range []*file{p.index.file(), p.wal.file()} {
		if f == nil {
			continue
		}
		if remove {
			errs = append(errs, f.remove())
		}
		errs = append(errs, p.unlockAndClose(f))
	}
	p.index, p.wal = nil, nil
	return errors.Join(errs...)
}
