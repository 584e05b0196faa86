// Package verify looks into a data directory without changing a byte of it: it proves that the log, the
// database files and SQLite's own view agree (Run), and shows what is in the log (List, Dump).
//
// It needs no daemon. It takes the directory's lock for the time it reads; when a daemon holds it, the
// files change under the reader, and a comparison that fails is repeated at the newest position before
// it counts as a fault.
//
// What is checked for each database, in this order, and what a fault of each kind is reported as:
//
//  1. the log's entries form a chain and every entry is whole: the first transaction that is not;
//  2. replayed from the first entry on, the checksum of all pages after each entry is the one that the
//     entry names: the first entry where it is not (only when the log still begins with transaction 1);
//  3. the database as an application sees it, its file with the committed frames of its write-ahead log
//     over it, has the pages of the log's head: the transaction that wrote the first page that differs;
//  4. PRAGMA integrity_check, on a copy.
//
// Transactions that are in the write-ahead log and not yet captured are no fault, and neither are
// files behind the log after a crash: the next start of the node brings them together. They are notes.
package verify

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/logkey"
)

// Options of Run.
type Options struct {
	DataDir string
	Names   []string // databases to look at, by name; empty: all
	TempDir string   // where copies are made, each as large as its database; empty: os.TempDir

	// Integrity runs PRAGMA integrity_check on a file that nobody else has open, and returns its rows.
	// nil: the sqlite3 command, when there is one.
	Integrity func(ctx context.Context, path string) ([]string, error)

	// Progress, if not nil, is told for a database how many bytes of its log have been read.
	Progress func(name string, done, total int64)

	Keys *logkey.Keys // of encrypted logs

	Logger *slog.Logger // default: discard
}

// Fault is something that is wrong with a database.
type Fault struct {
	TXID uint64 // first transaction that is bad; 0 when the fault belongs to none
	Err  error
}

func (f Fault) Error() string {
	if f.TXID == 0 {
		return f.Err.Error()
	}
	return fmt.Sprintf("first bad TXID %016x: %s", f.TXID, f.Err)
}

// Database is what was found out about one database.
type Database struct {
	ID, Name   string
	First, Max uint64 // transactions in the log; 0 when it is empty
	Checksum   uint64 // of all pages after Max
	Entries    int
	PageSize   uint32 // bytes
	Pages      uint32
	Replayed   bool   // the log begins with transaction 1, so it was replayed from nothing
	Integrity  string // "ok", "not run", or what is wrong
	Faults     []Fault
	Notes      []string
}

// OK reports whether nothing is wrong.
func (d *Database) OK() bool { return len(d.Faults) == 0 }

func (d *Database) fault(txid uint64, format string, args ...any) {
	d.Faults = append(d.Faults, Fault{TXID: txid, Err: fmt.Errorf(format, args...)})
}

func (d *Database) note(format string, args ...any) {
	d.Notes = append(d.Notes, fmt.Sprintf(format, args...))
}

// Report is the result of Run.
type Report struct {
	DataDir   string
	Running   bool // a daemon has the directory open
	Databases []*Database
}

// OK reports whether nothing is wrong with any database.
func (r *Report) OK() bool {
	for _, d := range r.Databases {
		if !d.OK() {
			return false
		}
	}
	return true
}

// formatMarker is the beginning of <data>/FORMAT in every version of this program.
const formatMarker = "litefs "

// ErrNotDataDir is returned for a directory that is no data directory.
var ErrNotDataDir = errors.New("not a litefs data directory")

// ErrNoDatabase is returned when a database that was asked for does not exist.
var ErrNoDatabase = errors.New("no such database")

// Run verifies the databases of a data directory. The error is about the run; what is wrong with a
// database is in the report.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	if err := CheckDataDir(o.DataDir); err != nil {
		return nil, err
	}
	lock, running, err := LockDataDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	if lock != nil {
		defer lock.Close() //nolint:errcheck // it was only read
	}
	report := &Report{DataDir: o.DataDir, Running: running}
	records, err := findRecords(o.DataDir, o.Names)
	if err != nil {
		return nil, err
	}
	replica, err := isReplica(o.DataDir)
	if err != nil {
		return nil, err
	}
	for _, rec := range records {
		db, err := verifyRecord(ctx, o, rec, running, replica)
		if err != nil {
			return report, fmt.Errorf("verify %s: %w", rec.name, err)
		}
		report.Databases = append(report.Databases, db)
	}
	return report, nil
}

// CheckDataDir refuses a directory that this program did not make.
func CheckDataDir(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "FORMAT"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w: it has no FORMAT file; name the directory of data.dir, not the mount", dir, ErrNotDataDir)
	}
	if err != nil {
		return fmt.Errorf("read the format of %s: %w", dir, err)
	}
	if !strings.HasPrefix(string(b), formatMarker) {
		return fmt.Errorf("%s: %w: its FORMAT file says %.40q", dir, ErrNotDataDir, b)
	}
	return nil
}

// LockDataDir takes the directory's lock, so that no daemon starts while its files are read. With a
// running daemon there is no lock and running is true.
func LockDataDir(dir string) (lock *os.File, running bool, err error) {
	f, err := os.Open(filepath.Join(dir, "LOCK"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil // never run, and not created here: nothing is written
	}
	if err != nil {
		return nil, false, fmt.Errorf("lock %s: %w", dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, false, nil
	}
	if closeErr := f.Close(); closeErr != nil {
		return nil, false, fmt.Errorf("lock %s: %w", dir, closeErr)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, true, nil
	}
	return nil, false, fmt.Errorf("lock %s: %w", dir, err)
}

// isReplica reports whether the node that wrote last was a follower: then the frames in a write-ahead
// log are copies of log entries.
func isReplica(dir string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(dir, "role"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the role of %s: %w", dir, err)
	}
	return strings.TrimSpace(string(b)) == "replica", nil
}

// record is where the parts of one database lie.
type record struct {
	id, name string
	ltx      string // directory of the log
	file     string // database file; -wal beside it
}

// findRecords lists the databases of a data directory by name.
func findRecords(dir string, names []string) ([]record, error) {
	ents, err := os.ReadDir(filepath.Join(dir, "dbs"))
	if errors.Is(err, fs.ErrNotExist) {
		ents, err = nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the databases of %s: %w", dir, err)
	}
	wanted := make(map[string]bool, len(names))
	for _, name := range names {
		wanted[name] = true
	}
	var out []record
	for _, ent := range ents {
		if !ent.IsDir() {
			continue
		}
		base := filepath.Join(dir, "dbs", ent.Name())
		b, err := os.ReadFile(filepath.Join(base, "name"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a record that a crash left half made
		}
		if err != nil {
			return nil, fmt.Errorf("read the name of database %s: %w", ent.Name(), err)
		}
		name := strings.TrimRight(string(b), "\n")
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("database %s has the name %q, which lies outside of the mount", ent.Name(), name)
		}
		if len(names) > 0 && !wanted[name] {
			continue
		}
		delete(wanted, name)
		out = append(out, record{id: ent.Name(), name: name, ltx: filepath.Join(base, "ltx"), file: filepath.Join(dir, "files", name)})
	}
	for name := range wanted {
		return nil, fmt.Errorf("%w: %s has no database %q", ErrNoDatabase, dir, name)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out, nil
}

// Beside a running node a comparison is repeated this often before a difference counts.
const (
	liveTries = 20
	livePause = 100 * time.Millisecond
)

// verifyRecord verifies one database.
func verifyRecord(ctx context.Context, o Options, rec record, running, replica bool) (*Database, error) {
	db := &Database{ID: rec.id, Name: rec.name, Integrity: "not run"}
	r, err := newReplay(o.TempDir, o.Keys, func(done, total int64) { o.Progress(rec.name, done, total) })
	if err != nil {
		return nil, err
	}
	defer r.close()
	tries := 1
	if running {
		tries = liveTries
	}
	var found *comparison
	for try := range tries {
		if try > 0 {
			if err := pause(ctx, livePause); err != nil {
				return nil, err
			}
		}
		db.Faults, db.Notes, found = nil, nil, nil
		found, err = verifyOnce(ctx, rec, r, db, replica)
		if err != nil && !(running && errors.Is(err, fs.ErrNotExist)) {
			return nil, err
		}
		if err == nil && db.OK() {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if found == nil || !db.OK() {
		return db, nil
	}
	return db, checkIntegrity(ctx, o, rec, r, found, db)
}

// pause waits, unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// verifyOnce reads the log and compares it with the files, once. A nil comparison says that there was
// nothing to compare.
func verifyOnce(ctx context.Context, rec record, r *replay, db *Database, replica bool) (*comparison, error) {
	ok, err := r.advance(ctx, rec.ltx, db)
	if err != nil || !ok {
		return nil, err
	}
	return compare(rec, r, db, replica)
}
