package litefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/dbfile"
	"github.com/litefs/litefs/internal/peer"
	"github.com/litefs/litefs/sqlitefile"
)

// An import makes a file the content of a database, as a writer would: nothing
// that an application, a replica or a crash can see lies between before and after.
//
//	receive   into a file of the tree's disk, under a name that no database has
//	check     header, size, checksum, every b-tree: nothing has changed yet
//	place     no such database: rename, which puts it on record as any rename does
//	          a database: one transaction of a peer that holds the write lock
//
// The tempting way for a database that exists, a rename over it, would be a drop
// and a new database: connections would go on reading and writing the old file.

// ErrNotImported is what is wrong with the file of an import. Nothing has changed.
var ErrNotImported = errors.New("not imported")

// importTimeout is how long an import waits for writers that are in a
// transaction, and for readers when the page size changes.
const importTimeout = 30 * time.Second

// importPrefix is how the file that is received is called in the tree. No
// database may have such a name, so it is never put on record.
const importPrefix = ".litefs-import-"

// Imported is what an import did.
type Imported struct {
	Pos      Pos
	Created  bool // there was no such database
	Pages    uint32
	PageSize uint32 // bytes
	OldPages uint32 // of the database before
}

// Import makes the database file that r holds, of size bytes, the content of the
// database called name. sum is the checksum of its pages as a position has it; 0:
// not known. Connections stay open and keep their journal mode; they see the new
// content from their next transaction on. Errors: ErrReadOnlyReplica, ErrNotImported,
// ErrBusy, of the file system. After an error nothing has changed, unless it says
// so: then the import is in the database and will be in the log.
func (s *Store) Import(ctx context.Context, name string, r io.Reader, size int64, sum uint64) (Imported, error) {
	got, err := s.importAs(ctx, name, r, size, sum)
	if err != nil {
		return got, fmt.Errorf("import of %q: %w", name, err)
	}
	s.Logger.Info("database imported", "db", name, "created", got.Created, "pages", got.Pages, "pagesize", got.PageSize, "pos", got.Pos.String())
	return got, nil
}

func (s *Store) importAs(ctx context.Context, name string, r io.Reader, size int64, sum uint64) (Imported, error) {
	if err := s.mayImport(name); err != nil {
		return Imported{}, err
	}
	if !s.importing.TryLock() {
		return Imported{}, fmt.Errorf("another import is at work: %w", ErrBusy)
	}
	defer s.importing.Unlock()
	f, err := s.receive(r, size)
	if err != nil {
		return Imported{}, err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // renamed, or removed by the next import
	defer f.Close()           //nolint:errcheck // synced
	image, err := dbfile.Open(f, size)
	if err == nil && sum != 0 {
		err = checkSum(ctx, image, sum)
	}
	if err == nil {
		err = image.Check(ctx)
	}
	if err != nil {
		return Imported{}, notImported(err)
	}
	if err := s.mayImport(name); err != nil { // receiving may have taken long
		return Imported{}, err
	}
	got := Imported{Pages: image.PageCount(), PageSize: image.Header().PageSize}
	db := s.DBByName(name)
	if db == nil {
		got.Created = true
		db, err = s.importNew(name, f)
	} else {
		got.OldPages, err = db.importOver(ctx, image)
	}
	if err != nil {
		return got, err
	}
	got.Pos = db.Pos()
	return got, nil
}

func notImported(err error) error {
	if errors.Is(err, dbfile.ErrNoImage) {
		return fmt.Errorf("%w: %w", ErrNotImported, err)
	}
	return err
}

func checkSum(ctx context.Context, image *dbfile.Image, want uint64) error {
	got, err := image.Checksum(ctx, nil)
	if err == nil && got != want {
		err = fmt.Errorf("%w: its checksum is %016x, want %016x: the file has changed, or was changed on the way", dbfile.ErrNoImage, got, want)
	}
	return err
}

// mayImport refuses what cannot be imported here, whatever the file is.
func (s *Store) mayImport(name string) error {
	if err := ValidateName(name); err != nil {
		return fmt.Errorf("%w: %w", ErrNotImported, err)
	}
	if !s.IsPrimary() {
		return ErrReadOnlyReplica
	}
	s.mu.Lock()
	failed, known := s.failed[name], s.byName[name] != nil
	s.mu.Unlock()
	switch {
	case failed != nil:
		return fmt.Errorf("%w: the database is set aside: %w", ErrNotImported, failed)
	case !known && s.exists(name):
		return fmt.Errorf("%w: there is something of that name that is no database: move it away first", ErrNotImported)
	}
	return nil
}

// receive puts what comes into a file of the tree's disk, durably.
func (s *Store) receive(r io.Reader, size int64) (_ *os.File, err error) {
	if err := s.removeImports(); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.FilesDir(), importPrefix)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	n, err := io.Copy(f, io.LimitReader(r, size+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("receive: %w", err)
	case n != size:
		return nil, fmt.Errorf("%w: %d bytes came, want %d", ErrNotImported, n, size)
	}
	if err := f.Sync(); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	return f, nil
}

// removeImports removes what imports have left that a crash cut off.
func (s *Store) removeImports() error {
	left, err := filepath.Glob(filepath.Join(globEscape(s.FilesDir()), importPrefix+"*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// globEscape takes the meaning from what filepath.Glob would not take as it is.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// importNew gives the file its name. Like all files of the mount it is then the
// owner's of the directory that it is in.
func (s *Store) importNew(name string, f *os.File) (*DB, error) {
	path := filepath.Join(s.MountDir(), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if st, ok := dir.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		err = f.Chown(int(st.Uid), int(st.Gid))
	}
	if err := errors.Join(err, f.Chmod(0o644)); err != nil {
		return nil, err
	}
	from := filepath.Join(s.MountDir(), filepath.Base(f.Name()))
	err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("a file of that name was made meanwhile: %w", ErrBusy)
	}
	if err != nil {
		return nil, &os.LinkError{Op: "rename", Old: from, New: path, Err: err}
	}
	// The mount has put it on record with the rename; a tree without one has not.
	db, err := s.adopt(name)
	if err != nil && !errors.Is(err, ErrDatabaseExists) {
		return nil, fmt.Errorf("the file is there, but not on record yet: %w", err)
	}
	if err := db.promiseFirst(); err != nil {
		return nil, fmt.Errorf("the database is there, and on this node alone so far: %w", err)
	}
	return db, nil
}

// importOver makes image the content of the database, in one transaction.
func (db *DB) importOver(ctx context.Context, image *dbfile.Image) (oldPages uint32, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, importTimeout, fmt.Errorf("a connection has been in a transaction for %v: %w", importTimeout, ErrBusy))
	defer cancel()
	p, err := peer.Open(ctx, peer.Options{
		Path: filepath.Join(db.store.MountDir(), db.Name()), Backing: db.DatabasePath(), Logger: db.log(),
		LocksBehind: db.store.LocksBehind,
	})
	if err != nil {
		return 0, busy(ctx, err)
	}
	db.lent.Store(true)
	defer func() {
		// The write-ahead log goes on behind what the peer wrote, perhaps with pages of another size.
		db.forgetWrites()
		db.lent.Store(false)
		// The locks must go, however late it is.
		err = errors.Join(err, p.Close(context.WithoutCancel(ctx)))
	}()
	if oldPages = p.PageCount(); oldPages == 0 {
		return 0, fmt.Errorf("the database is being created: %w", ErrBusy)
	}
	page := make([]byte, p.PageSize())
	if err := p.ReadPage(1, page); err != nil {
		return 0, err
	}
	old, err := sqlitefile.ParseHeader(page)
	if err != nil {
		return 0, err
	}
	if !db.store.IsPrimary() {
		return 0, ErrReadOnlyReplica
	}
	image.Replace(old)
	before := db.Pos()
	if err := p.Apply(ctx, image.PageCount(), image.Header().PageSize, image.Pages); err != nil {
		return 0, busy(ctx, err)
	}
	// Nobody writes until the peer is closed, so what is captured now is this.
	err = p.Sync()
	if err == nil {
		err = db.Settle()
	}
	if err == nil && db.Pos() == before {
		err = ErrReadOnlyReplica // another node became the primary meanwhile
	}
	if err != nil {
		return 0, fmt.Errorf("the import is in the database, but not in the log yet: %w", err)
	}
	// Nobody commits before the peer is closed. Readers see the import already, so it is not taken back.
	if err := db.promiseFirst(); err != nil {
		return 0, fmt.Errorf("the import is in the database, and on this node alone so far: %w", err)
	}
	return oldPages, nil
}

// busy is what made a peer give up.
func busy(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}
