package litefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/litefs/litefs/sqlitefile"
)

// This file is what the mount calls: one method for each thing that an
// application does to the tree. Paths are relative to the mount. own says that
// the caller is a thread of this process: a replica's peer.

// IOMode is how the kernel reaches the bytes of an open file.
type IOMode int

const (
	// IOCached keeps pages in the kernel's cache; each write comes to us.
	IOCached IOMode = iota
	// IOPassthrough lets the kernel go to the backing file directly.
	IOPassthrough
	// IODirect brings each read and write to us as it is, past the kernel's cache.
	IODirect
)

// openFile counts the handles that are open on a path of the mount.
type openFile struct {
	handles, writers int
	own              int // of handles, those that captures read a wal-index through

	// direct: each write comes to us as SQLite makes it.
	direct bool

	// begun: the size of the file was set since an application first opened it.
	// Until then a -shm is what a connection that is gone has left there: whoever
	// opens it first empties it, and recovers (SQLite: unixLockSharedMemory).
	begun bool
}

// isOpen reports whether an application has the file at path open.
func (s *Store) isOpen(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens[path] != nil
}

// MountDir is where the tree is visible to applications.
func (s *Store) MountDir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mountDir == "" {
		return s.FilesDir()
	}
	return s.mountDir
}

// indexInUse reports whether applications share the wal-index at path, so that
// it says which frames are committed.
func (s *Store) indexInUse(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.opens[path]
	return f != nil && f.handles > f.own && f.begun
}

// countOwn notes that captures have opened (1) or will close (-1) the wal-index
// at path.
func (s *Store) countOwn(path string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.opens[path]; f != nil {
		f.own = max(0, f.own+n)
	}
}

// throughMount reports whether shared memory must be read through the mount.
func (s *Store) throughMount() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mountDir != "" && !s.passthrough
}

// Opening is called before a file is opened, and says how. first is set when
// no handle is open on it; otherwise the mode stays what it is.
func (s *Store) Opening(own bool, path string, writable, first bool) (IOMode, error) {
	name, typ := fileOf(path)
	s.mu.Lock()
	err := s.failed[name]
	s.mu.Unlock()
	if err != nil && !own {
		return IOCached, fmt.Errorf("database %s was set aside: %w", name, syscall.EIO)
	}
	if !own && typ == FileTypeDatabase {
		if err := s.awaitStaleness(name); err != nil {
			return IOCached, err
		}
	}
	if writable && !own && typ == FileTypeDatabase && s.ReadOnlyReplica {
		// SQLite then opens it for reading, and says "readonly database" at once
		// where it would wait for a lock. Its readers write to the -shm.
		if err := s.writableName(own, name); err != nil {
			return IOCached, err
		}
	}
	if writable && !own && typ == FileTypeDatabase {
		s.recordBefore(name)
	}
	if !first {
		return IOCached, nil
	}
	switch typ {
	case FileTypeWAL:
		if writable && s.DBByName(name) == nil {
			s.warnForeign(name)
		}
		if s.wantsDirectWAL(name) {
			return IODirect, nil
		}
		return IOPassthrough, nil
	case FileTypeSHM:
		return IOPassthrough, nil
	case FileTypeJournal:
		return s.journalMode(path), nil
	}
	if s.Role() == RoleReplica && s.DBByName(name) != nil {
		return IOPassthrough, nil
	}
	return s.databaseMode(name)
}

// writesUnseen reports whether applications write to the file at path without
// us: it is open with passthrough.
func (s *Store) writesUnseen(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unseen[path]
}

// databaseMode chooses the mode of a file that may be a database. Writes in a
// rollback-journal mode must come to us, for they are the only trace of what a
// transaction changed; those of a write-ahead log's checkpoint need not.
// A new or empty file may become anything, so it is cached too.
func (s *Store) databaseMode(name string) (IOMode, error) {
	f, err := os.Open(filepath.Join(s.FilesDir(), name))
	if err != nil {
		return IOCached, nil // not there yet
	}
	defer f.Close() //nolint:errcheck // read only
	hdr, size, err := readHeader(f)
	if size == 0 || (err == nil && !hdr.IsWAL()) {
		return IOCached, nil
	}
	return IOPassthrough, nil
}

// journalMode chooses the mode of a rollback journal. Its writes must come to us: the zeroed header of a persistent
// journal, by which SQLite commits, is one. A new or empty journal is written front to back in pieces that are no pages
// of the cache, which would split them into more requests, and it is read only by a rollback. One that has content is
// looked into at each transaction, to see whether it is hot, and is cached for that.
func (s *Store) journalMode(path string) IOMode {
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(s.FilesDir(), path), &st); err != nil || st.Size > 0 {
		return IOCached
	}
	return IODirect
}

// OpenedDirect is called before Opened for a file that is open for direct I/O.
func (s *Store) OpenedDirect(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.opens[path]
	if f == nil {
		f = &openFile{}
		s.opens[path] = f
	}
	f.direct = true
}

// gatedWAL reports whether each write to the write-ahead log at path comes to us as SQLite makes it; ungatedWAL, that
// it is open otherwise.
func (s *Store) gatedWAL(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.opens[path]
	return f != nil && f.direct
}

func (s *Store) ungatedWAL(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.opens[path]
	return f != nil && !f.direct
}

// Opened is called after a file was opened, with passthrough or not.
func (s *Store) Opened(path string, passthrough, writable bool) {
	if path == "" {
		return // its name is gone already
	}
	s.mu.Lock()
	s.unseen[path] = passthrough
	f := s.opens[path]
	if f == nil {
		f = &openFile{}
		s.opens[path] = f
	}
	f.handles++
	if writable {
		f.writers++
	}
	name, typ := fileOf(path)
	db := s.byName[name]
	s.mu.Unlock()
	if db != nil && (typ == FileTypeWAL || typ == FileTypeSHM) {
		db.closing.Store(false)
		db.poke()
	}
}

// Released is called after a handle was closed. last is set when no handle is
// left on the file.
func (s *Store) Released(path string, writable, last bool) {
	s.mu.Lock()
	wrote := writable
	if f := s.opens[path]; f != nil {
		wrote = f.writers > 0
		if f.handles--; f.handles <= 0 || last {
			delete(s.opens, path)
			delete(s.unseen, path)
		} else {
			wrote = false
			f.begun = f.begun && f.handles > f.own
		}
	}
	s.mu.Unlock()
	name, typ := fileOf(path)
	if path == "" || !last || typ != FileTypeDatabase || s.Role() == RoleReplica {
		return
	}
	db := s.DBByName(name)
	if db != nil {
		err := db.lastClose()
		if errors.Is(err, sqlitefile.ErrNotDatabase) {
			db.log().Warn("the file is no database any more: it is dropped from the followers, and its record is kept in the data directory", "reason", err, "record", filepath.Join(s.path, "aside"))
			s.dropKeeping(db)
			return
		}
		if err != nil {
			db.log().Error("cannot capture what was written before the last close; it is captured with the next transaction", "error", err)
			db.noteUnseen()
		}
		return
	}
	if wrote && s.hasHeader(name) && !journalHot(filepath.Join(s.FilesDir(), name)+"-journal") {
		s.adoptClosed(name)
	}
}

// warnForeign warns, once, of a file that has a journal or a write-ahead log
// beside it and no header: its application encrypts it, or it is none of ours.
func (s *Store) warnForeign(name string) {
	f, err := os.Open(filepath.Join(s.FilesDir(), name))
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck // read only
	_, size, err := readHeader(f)
	if size == 0 || !errors.Is(err, sqlitefile.ErrNotDatabase) {
		return
	}
	s.mu.Lock()
	_, warned := s.foreign[name]
	if len(s.foreign) < maxForeign {
		s.foreign[name] = struct{}{}
	}
	s.mu.Unlock()
	if !warned {
		s.Logger.Warn("a file that is written like a database has no database header: it stays on this node alone; is it encrypted by its application?", "file", name)
	}
}

// maxForeign bounds how many files are warned of only once.
const maxForeign = 1024

// Creating is called before a file is made.
func (s *Store) Creating(own bool, path string) error {
	name, typ := fileOf(path)
	switch typ {
	case FileTypeDatabase:
		return s.writableName(own, name)
	case FileTypeJournal:
		if !own && s.isOver(name) {
			return syscall.EACCES // SQLite: "attempt to write a readonly database"
		}
	}
	return nil
}

// isOver reports whether this node has ceased to be the primary and has not taken the database's locks yet. A transaction
// that begins then could not end: its commit would be refused, which leaves a hot journal each time, and who takes the
// locks waits for a moment without one.
func (s *Store) isOver(name string) bool {
	if s.Role() != RoleReplica {
		return false // asked for each write of a journal
	}
	db := s.DBByName(name)
	return db != nil && db.local.Load()
}

// writableName refuses to change a database's file where this node may not.
func (s *Store) writableName(own bool, name string) error {
	if !own && s.Role() == RoleReplica && s.DBByName(name) != nil {
		return syscall.EROFS
	}
	return nil
}

// Writing is called before bytes that come through the daemon are written.
func (s *Store) Writing(own bool, path string, off int64, data []byte) error {
	name, typ := fileOf(path)
	switch typ {
	case FileTypeWAL:
		if own || !s.gatedWAL(path) {
			return nil
		}
		if db := s.DBByName(name); db != nil {
			if db.lent.Load() {
				return nil
			}
			return db.writeWAL(off, data)
		}
		level := s.levelByName(name)
		if !level.Gated() {
			return nil
		}
		return fmt.Errorf("%s is at level %s and not on record: its commits cannot be promised: %w", name, level, syscall.EIO)
	case FileTypeJournal:
		if !own && s.isOver(name) && !journalHot(filepath.Join(s.FilesDir(), path)) {
			return syscall.EROFS // it begins, in a journal that was kept
		}
		if off == 0 && sqlitefile.IsZeroed(data) && journalHot(filepath.Join(s.FilesDir(), path)) {
			return s.journalEnds(own, name, false) // PERSIST: the zeroed header is the commit
		}
	case FileTypeDatabase:
		if own {
			return nil
		}
		s.awaitNewcomer(name)
		db := s.DBByName(name)
		if db == nil {
			if s.Role() != RoleReplica {
				s.noteNewcomer(name, off, data)
			}
			return nil
		}
		switch {
		case s.Role() != RoleReplica:
			if !db.mayPromise() {
				return fmt.Errorf("%s is at level %s and is written without a journal (journal_mode OFF or MEMORY, or by something else than SQLite): such a commit cannot wait: %w", name, db.Level(), syscall.EIO)
			}
			db.awaitCapture()
		case s.isOpen(name + "-shm"):
			// The write is a reader's checkpoint, which writes what is there already.
		case db.local.Load() && journalHot(db.JournalPath()):
			// It may be a rollback. A commit is refused when its journal ends.
		default:
			return syscall.EROFS
		}
	}
	return nil
}

// Wrote is called after bytes that came through the daemon were written.
func (s *Store) Wrote(path string, off int64, n int) {
	if name, typ := fileOf(path); typ == FileTypeDatabase {
		db := s.DBByName(name)
		if db != nil && db.onLoan.Load() {
			db.wroteLent.Store(true) // not noted: this may be the peer, under what notes are guarded by
			return
		}
		if db != nil && (s.Role() != RoleReplica || db.local.Load()) {
			db.noteWrite(off, n)
		}
	}
}

// Truncating is called before a file gets another size.
func (s *Store) Truncating(own bool, path string, size int64) error {
	name, typ := fileOf(path)
	if typ == FileTypeDatabase {
		s.awaitAdopting(name) // truncate(2) opens nothing
	}
	db := s.DBByName(name)
	switch typ {
	case FileTypeDatabase:
		if db == nil || own {
			return nil
		}
		if s.Role() == RoleReplica && !db.local.Load() {
			if err := db.endsCheckpoint(); err != nil {
				db.log().Error("a checkpoint is refused", "error", err)
				return syscall.EIO
			}
			return nil
		}
		if err := db.refuseLent(size); err != nil {
			return err
		}
		if err := db.barrier(size); err != nil {
			s.stats.CaptureErrors.Add(1)
			db.log().Error("a checkpoint is refused: its transactions are not in the log yet; the write-ahead log grows until they are", "error", err)
			return syscall.EIO
		}
		return nil
	case FileTypeSHM:
		s.mu.Lock()
		if f := s.opens[path]; f != nil {
			f.begun = true
		}
		s.mu.Unlock()
	case FileTypeJournal:
		if size == 0 && journalHot(filepath.Join(s.FilesDir(), path)) {
			return s.journalEnds(own, name, false)
		}
	}
	return nil
}

// Unlinking is called before a file is removed.
func (s *Store) Unlinking(own bool, path string) error {
	name, typ := fileOf(path)
	db := s.DBByName(name)
	switch typ {
	case FileTypeJournal:
		return s.journalEnds(own, name, false)
	case FileTypeWAL:
		if db != nil && !own {
			if s.Role() == RoleReplica {
				return syscall.EROFS
			}
		}
	case FileTypeSHM:
		if db != nil && !own {
			db.closing.Store(true)
		}
	case FileTypeDatabase:
		if isSuper(path) {
			return s.superEnds(own, path)
		}
		if db != nil && !own && db.onLoan.Load() {
			return syscall.EBUSY
		}
		return s.writableName(own, name)
	}
	return nil
}

// Unlinked is called after a file was removed, or was not.
func (s *Store) Unlinked(path string, err error) {
	if err != nil {
		if name, typ := fileOf(path); typ == FileTypeSHM {
			if db := s.DBByName(name); db != nil {
				db.closing.Store(false)
				db.poke()
			}
		}
		return
	}
	s.mu.Lock()
	delete(s.opens, path)
	delete(s.unseen, path)
	s.mu.Unlock()
	if s.Role() == RoleReplica {
		// A replica's peer removes files under DB.mu: see the lock order.
		return
	}
	name, typ := fileOf(path)
	db := s.DBByName(name)
	if db == nil {
		return
	}
	switch typ {
	case FileTypeWAL:
		db.walRemoved()
	case FileTypeSHM:
		db.shmGone()
	case FileTypeDatabase:
		s.drop(db)
	}
}

// journalEnds captures the transaction of a rollback journal that is about to
// end, making the file a database on record if it was not one yet. member: it is one of several databases that commit
// together, and is decided with them.
func (s *Store) journalEnds(own bool, name string, member bool) error {
	if own {
		return nil
	}
	s.awaitNewcomer(name)
	db := s.DBByName(name)
	if db == nil {
		if !s.hasHeader(name) {
			s.warnForeign(name)
			return nil
		}
		if s.Role() == RoleReplica {
			s.Logger.Warn("a new database on a replica is refused: create it on the primary", "db", name)
			return syscall.EROFS
		}
		db, err := s.adopt(name)
		if err == nil {
			err = db.promiseFirst()
		}
		if !errors.Is(err, ErrDatabaseExists) {
			return s.refuse(name, err)
		}
		// Recorded by somebody else meanwhile, perhaps before this transaction.
		return s.refuse(name, db.journalEnds(member))
	}
	if s.Role() != RoleReplica {
		return s.refuse(name, db.journalEnds(member))
	}
	if db.local.Load() {
		return s.refuse(name, db.endLate())
	}
	return nil
}

// refuse turns a failed capture into the error that the application gets.
func (s *Store) refuse(name string, err error) error {
	if err == nil {
		return nil
	}
	s.stats.CaptureErrors.Add(1)
	s.Logger.Error("a commit is refused: it cannot be written to the log", "db", name, "error", err)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return syscall.EIO
}

// Renaming is called before a file or directory gets another name.
func (s *Store) Renaming(own bool, old, new string) error {
	if own {
		return nil
	}
	if s.Role() != RoleReplica {
		for _, db := range s.DBs() {
			if name := db.Name(); db.onLoan.Load() && (name == old || name == new || strings.HasPrefix(name, old+"/")) {
				return syscall.EBUSY
			}
		}
		return s.journalLeaves(old)
	}
	for _, db := range s.DBs() {
		if name := db.Name(); name == old || name == new || strings.HasPrefix(name, old+"/") {
			return syscall.EROFS
		}
	}
	return nil
}

// Renamed is called after a file or directory got another name, or did not.
func (s *Store) Renamed(old, new string, err error) {
	if err != nil {
		return
	}
	s.moveOpens(old, new)
	if s.Role() == RoleReplica {
		return
	}
	if db := s.DBByName(new); db != nil {
		s.drop(db)
	}
	for _, db := range s.DBs() {
		name := db.Name()
		if rest, ok := strings.CutPrefix(name, old); ok && (rest == "" || rest[0] == '/') {
			s.renameOrDrop(db, new+rest)
		}
	}
	if name, typ := fileOf(new); typ == FileTypeDatabase && s.DBByName(name) == nil && !s.isOpen(name) && s.hasHeader(name) {
		s.adoptClosed(name)
	}
}

// adoptClosed begins to record a database that nobody writes to.
func (s *Store) adoptClosed(name string) {
	db, err := s.adoptWith(name, func(db *DB) error { return db.appendWhole(s.ctx) })
	if err == nil && !s.recordsNew() {
		// The successor was chosen for what was on record before; it would take this for a tail of its own.
		s.drop(db)
		return
	}
	// Removed or renamed meanwhile, or recorded by somebody else: nothing to do. The store closes: the next start does it.
	if err != nil && s.ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDatabaseExists) {
		s.Logger.Error("cannot put a database on record: it is on this node alone until its last close, or the next start", "db", name, "error", err)
	}
}

// renameOrDrop follows a rename that has happened. A database that gets a name
// which cannot be one is not a database any more.
func (s *Store) renameOrDrop(db *DB, name string) {
	_, typ := fileOf(name)
	err := ValidateName(name)
	if err == nil && typ == FileTypeDatabase {
		if err = s.rename(db, name); err == nil {
			return
		}
	}
	db.log().Warn("renamed to what cannot be a database's name: not recorded any more", "new", name, "error", err)
	s.drop(db)
}

// moveOpens keeps the counts of open files under their current paths.
func (s *Store) moveOpens(old, new string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// What is replaced has no name from now on; its handles will be closed under none.
	delete(s.opens, new)
	delete(s.unseen, new)
	moved := make(map[string]*openFile)
	for path, f := range s.opens {
		if rest, ok := strings.CutPrefix(path, old); ok && (rest == "" || rest[0] == '/') {
			moved[new+rest] = f
			delete(s.opens, path)
			s.unseen[new+rest] = s.unseen[path]
			delete(s.unseen, path)
		}
	}
	for path, f := range moved {
		s.opens[path] = f
	}
}

// posSuffix makes the name of the virtual file with a database's position.
const posSuffix = "-pos"

// maxFileName is the longest name of a file, in bytes (NAME_MAX).
const maxFileName = 255

// nodeFiles are the virtual files of the root directory.
var nodeFiles = []string{".primary", ".lag"}

// Virtual returns the content of a file that is not in the tree: the position
// of a database, the name of the primary, or how far this node is behind it.
func (s *Store) Virtual(path string) ([]byte, bool) {
	if name, ok := strings.CutSuffix(path, posSuffix); ok {
		if db := s.DBByName(name); db != nil {
			return []byte(db.Pos().String() + "\n"), true
		}
	}
	if _, ok := s.HaltFile(path); ok {
		return nil, true
	}
	if path == ".lag" {
		return s.lagFile(), true
	}
	if path == ".primary" && s.Role() == RoleReplica {
		if host := s.PrimaryHost(); host != "" {
			return []byte(host + "\n"), true
		}
	}
	return nil, false
}

// Virtuals names the files that Virtual has in a directory of the tree.
func (s *Store) Virtuals(dir string) []string {
	var names []string
	for _, db := range s.DBs() {
		if d, base := filepath.Split(db.Name()); strings.TrimSuffix(d, "/") == dir && len(base)+len(posSuffix) <= maxFileName {
			names = append(names, base+posSuffix)
		}
	}
	if dir == "" {
		for _, name := range nodeFiles {
			if _, ok := s.Virtual(name); ok {
				names = append(names, name)
			}
		}
	}
	return names
}

// Volatile reports whether Virtual may have a file at a path where it has none
// now.
func (s *Store) Volatile(path string) bool {
	return strings.HasSuffix(path, posSuffix) || s.ForwardedLocks && strings.HasSuffix(path, lockSuffix) || slices.Contains(nodeFiles, path)
}

// exists reports whether the tree has a file at path.
func (s *Store) exists(path string) bool {
	_, err := os.Lstat(filepath.Join(s.FilesDir(), path))
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}
