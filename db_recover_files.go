package litefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/internal/vfs"
	"github.com/litefs/litefs/sqlitefile"
)

// logged names the pages that are taken from each entry of the log.
type logged struct {
	entry ltxlog.Entry
	pgnos map[uint32]struct{}
}

// rollForward writes the pages that the log has and the files lack; with whole
// set these are all. It reports false, with nothing changed, when the log does
// not have them.
func (db *DB) rollForward(pgnos []uint32, whole bool) (bool, error) {
	wanted := make(map[uint32]struct{}, len(pgnos))
	for _, pgno := range pgnos {
		if pgno <= db.sums.Count() {
			wanted[pgno] = struct{}{} // the rest is cut off
		}
	}
	if whole {
		for pgno := uint32(1); pgno <= db.sums.Count(); pgno++ {
			if pgno != sqlitefile.LockPgno(db.sums.PageSize()) {
				wanted[pgno] = struct{}{}
			}
		}
	}
	n := len(wanted)
	from, err := db.findInLog(wanted)
	if err != nil {
		return false, fmt.Errorf("look for pages in the log: %w", err)
	}
	if len(wanted) > 0 {
		return false, nil
	}
	if err := db.materialise(from); err != nil {
		return false, fmt.Errorf("roll the files forward to the log: %w", err)
	}
	head, _ := db.txlog.Head()
	db.log().Warn("the files were not what the log says and are brought to it", "pages", n, "txid", head.Max)
	return true, nil
}

// findInLog finds the newest version of the wanted pages, and takes those that
// have the checksum on record out of wanted.
func (db *DB) findInLog(wanted map[uint32]struct{}) ([]logged, error) {
	var from []logged
	entries := db.txlog.Entries()
	for i := len(entries) - 1; i >= 0 && len(wanted) > 0; i-- {
		l := logged{entry: entries[i], pgnos: make(map[uint32]struct{})}
		damaged := false
		err := db.txlog.Pages(entries[i], func(pgno uint32, data []byte) error {
			if _, ok := wanted[pgno]; !ok {
				return nil
			}
			damaged = damaged || pagesum.Page(pgno, data) != db.sums.Get(pgno)
			l.pgnos[pgno] = struct{}{}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if damaged {
			return nil, nil
		}
		for pgno := range l.pgnos {
			delete(wanted, pgno)
		}
		from = append(from, l)
	}
	return from, nil
}

// materialise writes the write-ahead log and then pages of the log into the
// database file, durably, and removes the write-ahead log. A crash in between
// leaves files that the next start rolls forward again.
func (db *DB) materialise(from []logged) error {
	img, err := db.openImage()
	if errors.Is(err, sqlitefile.ErrNotDatabase) {
		img, err = nil, nil
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(db.DatabasePath(), os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(db.writeFile(f, img, from), f.Close())
	}
	if img != nil {
		err = errors.Join(err, img.Close())
	}
	if err != nil {
		return err
	}
	db.closeWAL()
	db.at = capture.WALPos{}
	for _, path := range []string{db.WALPath(), db.SHMPath()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return vfs.OS().SyncDir(filepath.Dir(db.DatabasePath()))
}

func (db *DB) writeFile(f *os.File, img *image, from []logged) error {
	if err := db.writeFrames(f, img); err != nil {
		return err
	}
	ps := int64(db.sums.PageSize())
	for _, l := range from {
		err := db.txlog.Pages(l.entry, func(pgno uint32, data []byte) error {
			if _, ok := l.pgnos[pgno]; !ok {
				return nil
			}
			_, err := f.WriteAt(data, int64(pgno-1)*ps)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := f.Truncate(int64(db.sums.Count()) * ps); err != nil {
		return err
	}
	return f.Sync()
}

// writeFrames copies the newest frame of each page in the image.
func (db *DB) writeFrames(f *os.File, img *image) error {
	ps := db.sums.PageSize()
	if img == nil || img.pageSize != ps {
		return nil
	}
	b := make([]byte, ps)
	for pgno := range img.frames {
		if pgno > db.sums.Count() {
			continue
		}
		if err := img.readPage(pgno, b); err != nil {
			return err
		}
		if _, err := f.WriteAt(b, int64(pgno-1)*int64(ps)); err != nil {
			return err
		}
	}
	return nil
}

// syncFiles makes the database and its write-ahead log durable as they are.
func (db *DB) syncFiles() error {
	for _, path := range []string{db.DatabasePath(), db.WALPath()} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return fmt.Errorf("make the files durable: %w", err)
		}
	}
	return nil
}
