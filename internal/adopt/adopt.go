// Package adopt turns a data directory of LiteFS 0.5 into one of this program, in place: databases are
// renamed, so that not a byte of them changes, a new history begins with them, and all the rest is kept
// until somebody asks for its end.
//
//	dbs/NAME/database, wal, journal  ->  files/NAME, NAME-wal, NAME-journal
//	dbs/NAME/{shm,ltx/...}, clusterid -> litefs-0.5/...
//
// The log of LiteFS 0.5 is LTX of version 1, which nothing here reads; what it says goes into the plan.
package adopt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/vfs"
	"github.com/litefs/litefs/sqlitefile"
)

// keptDir is where what is not taken over stays, below the data directory.
const keptDir = "litefs-0.5"

// ErrNothing reports a directory that LiteFS 0.5 has not written, or that is adopted already.
var ErrNothing = errors.New("not a data directory of LiteFS 0.5")

// Database is one database of the plan.
type Database struct {
	Name     string `json:"name"`
	Bytes    int64  `json:"bytes"`
	PageSize uint32 `json:"pageSize"`
	WAL      int64  `json:"wal,omitempty"`     // bytes of its write-ahead log, which goes with it
	Journal  int64  `json:"journal,omitempty"` // bytes of its rollback journal, likewise
	TXID     string `json:"txid,omitempty"`    // last one in LiteFS's log, to compare nodes by
	Dropped  bool   `json:"dropped,omitempty"` // only its log is left: it is not taken over
}

// Plan says what an adoption does.
type Plan struct {
	Dir       string     `json:"dir"`
	Databases []Database `json:"databases"`
	Resumed   bool       `json:"resumed,omitempty"` // one was cut off before, and goes on

	source string // where dbs and clusterid are: Dir, or the kept directory
}

// Examine makes the plan for the directory. It changes nothing.
func Examine(dir string) (Plan, error) {
	p := Plan{Dir: dir, source: dir}
	if exists(filepath.Join(dir, "FORMAT")) {
		return p, fmt.Errorf("%w: %s is a data directory of this litefs already", ErrNothing, dir)
	}
	if exists(filepath.Join(dir, keptDir)) {
		p.source, p.Resumed = filepath.Join(dir, keptDir), true
	}
	ents, err := os.ReadDir(filepath.Join(p.source, "dbs"))
	if errors.Is(err, fs.ErrNotExist) {
		return p, fmt.Errorf("%w: %s has no dbs/", ErrNothing, dir)
	}
	if err != nil {
		return p, err
	}
	for _, ent := range ents {
		db, err := p.examine(ent.Name())
		if err != nil {
			return p, fmt.Errorf("%s: %w", ent.Name(), err)
		}
		p.Databases = append(p.Databases, db)
	}
	return p, nil
}

func (p *Plan) examine(name string) (db Database, err error) {
	db.Name = name
	dir := filepath.Join(p.source, "dbs", name)
	if db.TXID, err = lastTXID(filepath.Join(dir, "ltx")); err != nil {
		return db, err
	}
	path := filepath.Join(dir, "database")
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && p.Resumed {
		path = filepath.Join(p.Dir, "files", name) // moved before it was cut off
		fi, err = os.Stat(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && fi.Size() == 0:
		db.Dropped = true
		return db, nil
	case err != nil:
		return db, err
	}
	db.Bytes = fi.Size()
	if db.WAL, err = size(filepath.Join(dir, "wal")); err != nil {
		return db, err
	}
	if db.Journal, err = size(filepath.Join(dir, "journal")); err != nil {
		return db, err
	}
	db.PageSize, err = pageSize(path)
	return db, err
}

// pageSize reads the header: what is no database is not taken for one.
func pageSize(path string) (uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	b := make([]byte, sqlitefile.HeaderSize)
	if _, err := io.ReadFull(f, b); err != nil {
		return 0, fmt.Errorf("read the header of the database: %w", err)
	}
	h, err := sqlitefile.ParseHeader(b)
	if err != nil {
		return 0, err
	}
	return h.PageSize, nil
}

// lastTXID is the highest TXID that the names in LiteFS's log say; "" when there is none.
func lastTXID(dir string) (string, error) {
	ents, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var last uint64
	for _, ent := range ents {
		_, name, ok := strings.Cut(strings.TrimSuffix(ent.Name(), ".ltx"), "-")
		if n, err := strconv.ParseUint(name, 16, 64); ok && err == nil {
			last = max(last, n)
		}
	}
	if last == 0 {
		return "", nil
	}
	return fmt.Sprintf("%016x", last), nil
}

// Run carries the plan out. Cut off at any point, it is resumed by Examine and Run: format, which makes the
// directory one of this program, is called last.
func (p *Plan) Run(format func(dir string) error) error {
	if pid, path, err := user(p.Dir); err != nil {
		return err
	} else if pid != 0 {
		return fmt.Errorf("process %d has %s open: stop LiteFS first", pid, path)
	}
	kept, files := filepath.Join(p.Dir, keptDir), filepath.Join(p.Dir, "files")
	for _, dir := range []string{kept, files} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"dbs", "clusterid"} {
		if err := move(filepath.Join(p.Dir, name), filepath.Join(kept, name)); err != nil {
			return err
		}
	}
	p.source = kept
	for _, db := range p.Databases {
		if db.Dropped {
			continue
		}
		// The database last: while it is at its old place nothing that belongs to it is missed.
		from, to := filepath.Join(kept, "dbs", db.Name), filepath.Join(files, db.Name)
		for _, part := range [][2]string{{"journal", "-journal"}, {"wal", "-wal"}, {"database", ""}} {
			if err := move(filepath.Join(from, part[0]), to+part[1]); err != nil {
				return err
			}
		}
		if err := vfs.OS().SyncDir(from); err != nil {
			return err
		}
	}
	for _, dir := range []string{files, kept, p.Dir} {
		if err := vfs.OS().SyncDir(dir); err != nil {
			return err
		}
	}
	return format(p.Dir)
}

// Kept returns how many bytes an adoption has left in the directory; 0 when there is nothing to clean.
func Kept(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(filepath.Join(dir, keptDir), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			bytes += fi.Size()
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return bytes, err
}

// Clean removes what an adoption has kept. It refuses while the adoption is not through.
func Clean(dir string) error {
	if !exists(filepath.Join(dir, "FORMAT")) {
		return fmt.Errorf("%s is not adopted: nothing is removed", dir)
	}
	return os.RemoveAll(filepath.Join(dir, keptDir))
}

// move renames a file that is there and was not moved before. It overwrites nothing.
func move(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return nil
}

// user finds a process that has a file below dir open.
func user(dir string) (pid int, path string, err error) {
	dir, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return 0, "", err
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0, "", err
	}
	i := slices.IndexFunc(fds, func(fd string) bool {
		target, err := os.Readlink(fd)
		return err == nil && strings.HasPrefix(target, dir+string(filepath.Separator))
	})
	if i < 0 {
		return 0, "", nil
	}
	path, _ = os.Readlink(fds[i]) // for the message alone
	pid, err = strconv.Atoi(strings.Split(fds[i], "/")[2])
	return pid, path, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func size(path string) (int64, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}
