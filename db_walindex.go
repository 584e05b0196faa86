package litefs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/litefs/litefs/internal/capture"
	"github.com/litefs/litefs/sqlitefile"
)

// This file reads the wal-index of a database, which says which frames of its
// write-ahead log are committed.

// publishedLimit returns how far the wal-index has published the write-ahead
// log. db.mu is held.
func (db *DB) publishedLimit() (capture.Limit, error) {
	if !db.store.indexInUse(db.Name() + "-shm") {
		// What the file says may be left from a connection that died, and a
		// stale limit would hide commits.
		return capture.Limit{}, nil
	}
	if db.indexUnread() {
		// Not open through the mount yet, and the backing file is old: what the
		// checksum chain proves is at most one commit ahead of the wal-index.
		return capture.Limit{}, nil
	}
	b := make([]byte, 2*sqlitefile.IndexHeaderSize)
	for range 100 {
		n, err := db.readIndex(b)
		if err != nil {
			return capture.Limit{}, err
		}
		if hdr, ok := sqlitefile.ParseIndexHeader(b[:n]); ok {
			return capture.Published(hdr), nil
		}
		// Two copies that differ: the writer is between them. If it stays so
		// the writer has died there, and the next one will recover.
	}
	return capture.Published(sqlitefile.IndexHeader{}), nil
}

// indexUnread reports whether applications share a wal-index that only the mount
// shows as it is, and that is not open through the mount. db.mu is held.
func (db *DB) indexUnread() bool {
	return db.wal != nil && db.wal.shm == nil && db.store.throughMount() && db.store.indexInUse(db.Name()+"-shm")
}

// readIndex reads the header of the wal-index.
func (db *DB) readIndex(b []byte) (int, error) {
	f := db.wal.shm
	if f == nil {
		var err error
		if f, err = os.Open(db.SHMPath()); errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		} else if err != nil {
			return 0, fmt.Errorf("open the wal-index: %w", err)
		}
		db.wal.shm = f
	}
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read the wal-index: %w", err)
	}
	return n, nil
}

// prepareIndex opens the wal-index through the mount where that is the only
// place to read it: without passthrough, stores to the mapping live in the
// kernel's cache of the mount's inode and reach the backing file late. It is
// called with no lock held, and never from a request's handler: opening a path
// of the mount may wait for a request that waits for db.mu.
func (db *DB) prepareIndex() {
	if !db.store.throughMount() {
		return
	}
	db.mu.Lock()
	need := db.wal != nil && db.wal.shm == nil
	db.mu.Unlock()
	if !need || !db.store.isOpen(db.Name()+"-shm") {
		return
	}
	f, err := os.Open(filepath.Join(db.store.MountDir(), db.Name()+"-shm"))
	if err != nil {
		return // gone again; captures go by the checksum chain meanwhile
	}
	db.mu.Lock()
	if db.wal != nil && db.wal.shm == nil {
		db.store.countOwn(db.Name()+"-shm", 1)
		db.wal.shm, f = f, nil
	}
	db.mu.Unlock()
	if f != nil {
		if err := f.Close(); err != nil {
			db.log().Warn("close the wal-index", "error", err)
		}
	}
}

// shmGone forgets the wal-index, which was removed.
func (db *DB) shmGone() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.wal != nil && db.wal.shm != nil {
		if err := db.closeIndex(db.wal); err != nil {
			db.log().Warn("close the wal-index", "error", err)
		}
	}
}

// closeIndex closes the wal-index of w, which is open.
func (db *DB) closeIndex(w *walFile) error {
	if db.store.throughMount() {
		db.store.countOwn(db.Name()+"-shm", -1)
	}
	f := w.shm
	w.shm = nil
	return f.Close()
}
