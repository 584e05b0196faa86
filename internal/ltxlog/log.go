// Package ltxlog is the durable, ordered list of transactions of one database.
//
// A log is a directory of entries, which are LTX files (format 3, github.com/superfly/ltx). An entry
// holds the pages that one or more consecutive transactions changed:
//
//	<min TXID, 16 hex>-<max TXID, 16 hex>.ltx     an entry
//	<TXID, 16 hex>.pack                           small entries; see pack.go
//	<any>.tmp                                     an entry being made; removed by Open
//	durable                                       TXID up to which entries are known to be on disk
//	recent                                        copies of entries that the last run made durable one by one; see restore.go
//
// With a key (Options.Sealing) the files of entries, and the copies, lie encrypted; form.go has both ways.
//
// Entries form a chain: Min is the Max of the entry before plus one, and Pre, the rolling checksum
// of the database before the entry, is the Post of the entry before. An entry with Min 1 is a
// snapshot: it carries every page. A new log starts with one; a log whose old entries were
// retired (Retain) starts anywhere.
//
// What is promised:
//
//   - An entry is in the list completely or not at all, whatever operation fails and wherever the
//     process or the machine stops.
//   - An operation that returns an error has added nothing and leaves the log usable. The one side
//     effect it may have is documented at Import.
//   - Nothing is durable until the sync argument or Sync asks for it; after that, all of it.
//   - No byte from a peer is believed: a file is verified completely before it is listed.
//
// One goroutine changes a log at a time (others wait); readers run beside it. Who may append, and
// what the pages mean, is decided elsewhere.
package ltxlog

import (
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/litefs/litefs/internal/vfs"
)

var (
	// ErrCorrupt: the bytes are not a valid entry.
	ErrCorrupt = errors.New("corrupt LTX entry")
	// ErrBroken: the log lacks or cannot read an entry that others follow. See BrokenError.
	ErrBroken = errors.New("transaction log is broken")
	// ErrMismatch: the entry does not join the head of the log. See MismatchError.
	ErrMismatch = errors.New("entry does not join the transaction log")
	// ErrNotFound: the log holds no such entry (any more).
	ErrNotFound = errors.New("no such entry in the transaction log")
	// ErrNoSnapshot: the oldest entry is not a snapshot, so the database cannot be rebuilt.
	ErrNoSnapshot = errors.New("transaction log does not start with a snapshot")
	// ErrReadOnly: the log was opened to be read.
	ErrReadOnly = errors.New("transaction log is open read-only")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("transaction log is closed")
)

// BrokenError says where a log is broken. It matches ErrBroken and the cause.
type BrokenError struct {
	TXID uint64 // the first transaction that cannot be read
	Err  error
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("%s at transaction %016x: %s", ErrBroken, e.TXID, e.Err)
}
func (e *BrokenError) Unwrap() []error { return []error{ErrBroken, e.Err} }

// MismatchError tells the position an entry needs and the one the log has. It matches ErrMismatch.
type MismatchError struct {
	HaveTXID, HavePost uint64 // head of the log; zero when it is empty
	WantTXID, WantPost uint64 // position that the entry follows
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: log is at %016x/%016x, entry follows %016x/%016x",
		ErrMismatch, e.HaveTXID, e.HavePost, e.WantTXID, e.WantPost)
}
func (e *MismatchError) Unwrap() error { return ErrMismatch }

// Entry describes one entry. The invariants hold for every listed entry: 1 <= Min <= Max <=
// MaxTXID; Pre is 0 when Min is 1, else flagged with bit 63; Post is flagged with bit 63.
type Entry struct {
	Min, Max           uint64 // first and last transaction
	Size               int64  // bytes of the file
	Pre, Post          uint64 // rolling checksum of the database before and after
	Commit             uint32 // pages of the database after it; 0: the database was dropped
	PageSize           uint32 // bytes
	Epoch              uint64 // fencing token of the primary that wrote it (LTX node ID)
	Timestamp          time.Time
	WALOffset, WALSize int64 // bytes of the WAL it was captured from; 0, 0 for a journal
	Salt1, Salt2       uint32
}

// IsSnapshot says whether e carries every page of the database.
func (e Entry) IsSnapshot() bool { return e.Min == 1 }

// TakesBack says whether e is what takes the transaction before it back, whose commit was refused, and nothing else. Both
// have one time, so an application that changes a page and changes it back is not meant, unless it does so within a
// millisecond.
func (e Entry) TakesBack(before Entry) bool {
	return before.Max > 0 && before.Pre != 0 && e.Min == before.Max+1 && e.Min == e.Max && e.Post == before.Pre &&
		e.Timestamp.UnixMilli() == before.Timestamp.UnixMilli()
}

// Dropped is an entry that Open removed.
type Dropped struct {
	Min, Max uint64
	// Durable: the entry had been made durable, so this is damage and not the trace of a crash.
	Durable bool
	Err     error // what was wrong with it, or with an entry before it
	packed  bool  // it lies in a pack
}

// Options configures a log. The zero value works.
type Options struct {
	FS     vfs.FS       // default: the real disk
	Logger *slog.Logger // default: discard

	// Buffers are encoding buffers (about 200 KB while in use) that many logs may share.
	// Default: the log's own.
	Buffers *Buffers

	// Repair makes Open drop everything from the first broken entry on, where it would return
	// ErrBroken. The drops are reported as always.
	Repair bool

	// ReadOnly leaves the directory as it is: what Open would remove is only left out, and every
	// change is ErrReadOnly.
	ReadOnly bool

	// Recent is what makes entries durable one by one, for all logs of a node: its OpenRecent came before. ID is that of
	// the log there. nil: each entry is synced, and its directory.
	Recent *Recent
	ID     uint64

	// Sealing encrypts the log. nil: it lies in the clear, and one that is encrypted is ErrSealed.
	Sealing *Sealing

	// Packs lets small entries share files: see pack.go.
	Packs bool

	packSize  int64 // default: maxPack
	spillSize int   // bytes of an entry that are held in memory; default: spillSize
}

func (o *Options) ensureDefaults() {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Buffers == nil {
		o.Buffers = &Buffers{}
	}
	if o.packSize == 0 {
		o.packSize = maxPack
	}
	if o.spillSize == 0 {
		o.spillSize = spillSize
	}
}

// Log is an open transaction log.
//
// Locks are taken in the order compact, change, sync, mu. Whoever removes or replaces files holds change
// and sync; a plain append holds change alone, so a background Sync does not hold it up.
type Log struct {
	dir     string
	fs      vfs.FS
	logger  *slog.Logger
	buffers *Buffers
	dropped []Dropped // set by Open, then constant
	spill   int       // Options.spillSize
	packs   bool      // Options.Packs
	maxPack int64     // Options.packSize
	form    form      // how entries lie on the disk

	recent *Recent // Options.Recent
	id     uint64  // Options.ID

	live     live
	readOnly bool
	compact  sync.Mutex // held by the one compaction
	change   struct {
		sync.Mutex
		// debris are files that an operation had to leave behind because their removal failed
		// too. They are not listed but the next Open would find them, and one may cover entries
		// appended later: so nothing is changed before they are gone.
		debris []string
		// spares are files of retired entries, waiting for new ones: see retire.
		spares struct {
			ready, fresh []string
			next         uint64
		}
		copies copies
		pack   *pack // to which small entries are added; nil: none yet
		cut    place // an entry in a pack that could not be taken back; no pack: there is none
		copied bool  // cut is of entries that somebody may read: the pack is replaced by a copy
		// dropped: files were removed that must not be found again, and the directory not synced.
		dropped bool
	}
	names atomic.Bool // files were made since the directory was synced last. Cleared by who holds sync
	sync  struct {
		sync.Mutex
		// suspect are files whose fsync failed: the kernel may have thrown their pages away,
		// and a second fsync would succeed without them. They are written anew.
		suspect map[string]bool
	}
	mu struct {
		sync.RWMutex
		entries []Entry        // chain, oldest first; every one has a file, or a place in one
		places  map[span]place // of listed entries that lie in packs
		synced  uint64         // every listed entry with Max <= synced is on disk under its name
		durable uint64         // every listed entry with Max <= durable is on disk, or its copy in the file of recent entries; >= synced
		closed  bool
	}
	// mark is the durable file: see putMark. Its lock comes last.
	mark struct {
		sync.Mutex
		file      vfs.File // opened at first use
		forgotten uint64   // copies with a smaller number in the file of recent entries do not count
		seq       uint64   // number of the mark that was written last
		safe      int64    // place of the one that was synced last
		unnamed   bool     // the name of the file may not be durable
	}
	// readers counts the open files of an entry by name. An entry is opened and counted while it
	// is listed (mu is held), so the count of one that is not listed only falls.
	readers struct {
		sync.Mutex
		open map[string]int
	}
}

// Dropped returns what Open removed, oldest first.
func (l *Log) Dropped() []Dropped { return append([]Dropped(nil), l.dropped...) }

// Head returns the newest entry; false when the log is empty.
func (l *Log) Head() (Entry, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.mu.entries) == 0 {
		return Entry{}, false
	}
	return l.mu.entries[len(l.mu.entries)-1], true
}

// Tail returns the oldest entry; false when the log is empty.
func (l *Log) Tail() (Entry, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.mu.entries) == 0 {
		return Entry{}, false
	}
	return l.mu.entries[0], true
}

// Entries returns a copy of the list, oldest first.
func (l *Log) Entries() []Entry {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return append([]Entry(nil), l.mu.entries...)
}

// Durable returns the TXID up to which everything in the log is known to be on disk.
func (l *Log) Durable() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.durable
}

// Find returns the entry that contains txid.
func (l *Log) Find(txid uint64) (Entry, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return find(l.mu.entries, txid)
}

// After returns the entries behind the one that ends with a transaction and leads to post; false when there is none such.
func (l *Log) After(txid, post uint64) ([]Entry, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	i := sort.Search(len(l.mu.entries), func(i int) bool { return l.mu.entries[i].Max >= txid })
	if i == len(l.mu.entries) || l.mu.entries[i].Max != txid || l.mu.entries[i].Post != post {
		return nil, false
	}
	return append([]Entry(nil), l.mu.entries[i+1:]...), true
}

func find(entries []Entry, txid uint64) (Entry, bool) {
	i := sort.Search(len(entries), func(i int) bool { return entries[i].Max >= txid })
	if i == len(entries) || entries[i].Min > txid {
		return Entry{}, false
	}
	return entries[i], true
}

// Close syncs the log and ends its use. The error of the sync is returned; the log is closed anyway.
func (l *Log) Close() error {
	l.change.Lock()
	defer l.change.Unlock()
	if l.isClosed() {
		return nil
	}
	var undone error
	if !l.readOnly {
		undone = l.clearDebris()
	}
	l.sync.Lock()
	defer l.sync.Unlock()
	var err error
	if !l.readOnly {
		err = l.syncLocked()
	}
	onDisk := err == nil
	err = errors.Join(err, undone, l.endPack())
	spares := &l.change.spares
	for _, name := range append(spares.ready, spares.fresh...) {
		l.removeOrRemember(name) // the next Open removes what stays
	}
	spares.ready, spares.fresh = nil, nil
	if l.recent != nil {
		l.recent.leave(l, onDisk)
	}
	l.mark.Lock()
	if l.mark.file != nil {
		err = errors.Join(err, l.mark.file.Close())
		l.mark.file = nil
	}
	l.mark.Unlock()
	l.mu.Lock()
	l.mu.closed = true
	l.mu.Unlock()
	return err
}

func (l *Log) isClosed() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.closed
}
