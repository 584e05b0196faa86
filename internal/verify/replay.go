package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/superfly/ltx"

	"github.com/litefs/litefs/internal/logkey"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/sqlitefile"
)

// replay is a log applied to an empty file, entry by entry, with the checksum of each page. Beside a
// running node it follows: advance reads on from where it was.
type replay struct {
	file *os.File
	head ltxlog.Entry
	// posts are the checksums after each entry seen, by which files of an earlier position are known.
	posts map[uint64]uint64

	keys     *logkey.Keys
	progress func(done, total int64) // bytes of the log

	complete bool     // the log began with a snapshot, so the fields below are known
	pages    []pageAt // of page i+1
	sum      uint64   // XOR of all sums
}

// pageAt is the state of one page.
type pageAt struct {
	sum  uint64
	txid uint64 // the entry that wrote it last, by its first transaction
}

func newReplay(dir string, keys *logkey.Keys, progress func(done, total int64)) (*replay, error) {
	f, err := os.CreateTemp(dir, "litefs-verify-*.db")
	if err != nil {
		return nil, fmt.Errorf("make a file to replay the log into: %w", err)
	}
	return &replay{file: f, posts: map[uint64]uint64{}, keys: keys, progress: progress}, nil
}

// close removes the file.
func (r *replay) close() {
	// Nothing of it is of use, and the next line says so to the disk.
	_ = r.file.Close()
	_ = os.Remove(r.file.Name())
}

// openLog opens a log without changing it, with what only the file of recent entries beside all logs has of it.
func openLog(dir string, keys *logkey.Keys) (*ltxlog.Log, error) {
	disk := newDryFS()
	record := filepath.Dir(dir)
	dirOf := func(id uint64) string {
		if fmt.Sprintf("%016x", id) == filepath.Base(record) {
			return dir
		}
		return "" // another's: there is no such directory
	}
	recent, err := ltxlog.OpenRecent(filepath.Join(record, "..", "..", "recent"), dirOf, ltxlog.RecentOptions{FS: disk})
	if err != nil {
		return nil, err
	}
	if err := recent.Close(); err != nil {
		return nil, err
	}
	return keys.OpenAsIs(record, filepath.Base(dir), filepath.Base(record), ltxlog.Options{FS: disk})
}

// advance reads the log from where the replay is, up to its end. ok is false when the log is empty or
// bad, which is then noted in db.
func (r *replay) advance(ctx context.Context, dir string, db *Database) (ok bool, err error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		db.note("there is no log yet")
		return false, nil
	}
	log, err := openLog(dir, r.keys)
	var broken *ltxlog.BrokenError
	if errors.As(err, &broken) {
		db.fault(broken.TXID, "%w", err)
		return false, nil
	}
	if errors.Is(err, logkey.ErrDestroyed) {
		db.fault(0, "%w", err)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the log: %w", err)
	}
	defer log.Close() //nolint:errcheck // read only
	for _, d := range log.Dropped() {
		if d.Durable {
			db.fault(d.Min, "the last entry of the log is damaged: %w", d.Err)
			return false, nil
		}
		db.note("the last entry of the log, %016x-%016x, was not completely written: the next start of the node removes it", d.Min, d.Max)
	}
	entries := log.Entries()
	if len(entries) == 0 {
		db.note("the log is empty")
		return false, nil
	}
	r.restartIfReplaced(entries)
	done, total := int64(0), int64(0)
	for _, e := range entries {
		total += e.Size
	}
	for _, e := range entries {
		done += e.Size
		if e.Max <= r.head.Max {
			continue
		}
		r.progress(done, total)
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if err := r.apply(log, e); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return false, err // retired or merged by the running node: read again
			}
			db.fault(e.Min, "%w", err)
			return false, nil
		}
	}
	db.First, db.Max, db.Checksum = entries[0].Min, r.head.Max, r.head.Post
	db.Entries, db.PageSize, db.Pages, db.Replayed = len(entries), r.head.PageSize, r.head.Commit, r.complete
	return true, nil
}

// restartIfReplaced begins anew when the log was replaced by a snapshot that is not the continuation of
// what was read.
func (r *replay) restartIfReplaced(entries []ltxlog.Entry) {
	last := entries[len(entries)-1]
	if r.head.Max == 0 || last.Max > r.head.Max || last.Post == r.head.Post {
		return
	}
	r.head, r.complete, r.pages, r.sum = ltxlog.Entry{}, false, nil, 0
	clear(r.posts)
}

// apply adds one entry and checks that it leads to the checksum it names.
func (r *replay) apply(log *ltxlog.Log, e ltxlog.Entry) error {
	if e.IsSnapshot() {
		r.complete, r.pages, r.sum = true, nil, 0
	}
	err := log.Pages(e, func(pgno uint32, data []byte) error {
		if !r.complete {
			return nil // only that the entry is whole
		}
		if _, err := r.file.WriteAt(data, int64(pgno-1)*int64(e.PageSize)); err != nil {
			return err
		}
		r.set(pgno, pageChecksum(pgno, data), e.Min)
		return nil
	})
	if err != nil {
		return fmt.Errorf("entry %016x-%016x: %w", e.Min, e.Max, err)
	}
	if r.complete {
		if err := r.resize(e.Commit, e.PageSize); err != nil {
			return err
		}
		if got := uint64(ltx.ChecksumFlag) | r.sum; got != e.Post && e.Commit > 0 {
			return fmt.Errorf("entry %016x-%016x: the pages after it have checksum %016x, the entry says %016x", e.Min, e.Max, got, e.Post)
		}
	}
	r.head = e
	r.posts[e.Post] = e.Max
	return nil
}

// set stores the sum of a page.
func (r *replay) set(pgno uint32, sum, txid uint64) {
	for uint32(len(r.pages)) < pgno {
		r.pages = append(r.pages, pageAt{})
	}
	p := &r.pages[pgno-1]
	r.sum ^= (p.sum ^ sum) &^ uint64(ltx.ChecksumFlag)
	p.sum, p.txid = sum, txid
}

// resize drops the pages beyond count.
func (r *replay) resize(count, pageSize uint32) error {
	for uint32(len(r.pages)) > count {
		r.sum ^= r.pages[len(r.pages)-1].sum &^ uint64(ltx.ChecksumFlag)
		r.pages = r.pages[:len(r.pages)-1]
	}
	if err := r.file.Truncate(int64(count) * int64(pageSize)); err != nil {
		return fmt.Errorf("replay the log: %w", err)
	}
	return nil
}

// page returns the state of a page; the lock page has none.
func (r *replay) page(pgno uint32) pageAt {
	if pgno == sqlitefile.LockPgno(r.head.PageSize) || pgno > uint32(len(r.pages)) {
		return pageAt{}
	}
	return r.pages[pgno-1]
}

// pageChecksum is the checksum of one page as every position is made of.
func pageChecksum(pgno uint32, data []byte) uint64 { return uint64(ltx.ChecksumPage(pgno, data)) }

// Replay writes to w a database as it was after a transaction, made of the log alone, and returns its pages and rolling
// checksum. The node may run. ErrNoEntry: the log has no entry that ends there.
func Replay(w io.WriterAt, dataDir, name string, txid uint64, keys *logkey.Keys) (pages uint32, sum uint64, err error) {
	records, err := findRecords(dataDir, []string{name})
	if err != nil {
		return 0, 0, err
	}
	log, err := openLog(records[0].ltx, keys)
	if err != nil {
		return 0, 0, fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if e, ok := log.Find(txid); !ok || e.Max != txid {
		return 0, 0, fmt.Errorf("%w: %s has none that ends with %016x", ErrNoEntry, name, txid)
	}
	return log.Replay(w, txid)
}
