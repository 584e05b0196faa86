package litefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/superfly/ltx"
	"golang.org/x/sys/unix"

	"github.com/litefs/litefs/internal/ltxlog"
	"github.com/litefs/litefs/internal/pagesum"
	"github.com/litefs/litefs/sqlitefile"
)

// closeTimeout bounds what is done while the store closes.
const closeTimeout = 5 * time.Second

// NextLTX returns the log entry that continues from pos. It returns io.EOF
// when there is nothing after pos, and ErrSnapshotNeeded when pos is not on
// this log: too old, too new, or on another history.
//
// It does not take db.mu, which a commit holds that waits for the replicas which ask here.
func (db *DB) NextLTX(pos Pos) (*LTXReader, error) {
	if db.ended.Load() {
		return nil, ErrDatabaseNotFound
	}
	head, ok := db.txlog.Head()
	if !ok {
		return nil, io.EOF
	}
	if pos.TXID == head.Max && pos.Chksum == head.Post {
		return nil, io.EOF
	}
	e, ok := db.txlog.Find(pos.TXID + 1)
	if !ok || e.Min != pos.TXID+1 || e.Min > 1 && e.Pre != pos.Chksum {
		return nil, ErrSnapshotNeeded
	}
	return db.entryReader(e)
}

func (db *DB) entryReader(e ltxlog.Entry) (*LTXReader, error) {
	r := &LTXReader{Size: e.Size, MinTXID: e.Min, MaxTXID: e.Max, Post: e.Post}
	if b, ok := db.txlog.Live(e); ok {
		db.store.stats.ReadLive.Add(1)
		r.ReadCloser = io.NopCloser(bytes.NewReader(b))
		return r, nil
	}
	db.store.stats.ReadLog.Add(1)
	rc, err := db.txlog.OpenEntry(e)
	if err != nil {
		return nil, fmt.Errorf("open log entry %016x: %w", e.Min, err)
	}
	r.ReadCloser = rc
	return r, nil
}

// OpenLTXFile returns a file handle to an LTX file that contains the given TXID.
func (db *DB) OpenLTXFile(txID uint64) (*os.File, error) {
	db.mu.Lock()
	e, ok := db.txlog.Find(txID)
	db.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("transaction %016x is not in the log: %w", txID, os.ErrNotExist)
	}
	path := db.LTXPath(e.Min, e.Max)
	if db.txlog.HasOwnFile(e) {
		return os.Open(path)
	}
	f, err := db.entryInMemory(e, path)
	if err != nil {
		return nil, fmt.Errorf("open log entry %016x: %w", e.Min, err)
	}
	return f, nil
}

// entryInMemory returns a file in memory with the bytes of an entry that does not lie on the disk as a file of its own.
func (db *DB) entryInMemory(e ltxlog.Entry, name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(filepath.Base(name), unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	rc, err := db.txlog.OpenEntry(e)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	_, err = io.Copy(f, rc)
	err = errors.Join(err, rc.Close())
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// LTXPath returns the path of an LTX file. Where Store.PackedLogs is set, small transactions have none of their own:
// OpenLTXFile has them.
func (db *DB) LTXPath(minTXID, maxTXID uint64) string {
	return filepath.Join(db.LTXDir(), ltx.FormatFilename(ltx.TXID(minTXID), ltx.TXID(maxTXID)))
}

// snapshotRounds is how often a snapshot copies the pages that changed under
// it before it holds captures back for the last round.
const snapshotRounds = 3

// SnapshotLTX returns the whole database as one LTX file.
//
// Pages are copied into a temporary file with no lock that an application
// could feel, then the pages that changed meanwhile are copied again, the last
// ones while captures wait. What proves a page is its checksum on record.
func (db *DB) SnapshotLTX(ctx context.Context) (*LTXReader, error) {
	tmp, err := os.CreateTemp(db.store.path, ".snapshot-*")
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	// Unlinked at once: a crash leaves nothing behind.
	if err := os.Remove(tmp.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot: %w", err), tmp.Close())
	}
	s := &snapshot{db: db, tmp: tmp}
	for range snapshotRounds {
		if err := s.copyChanged(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("snapshot: %w", err), tmp.Close())
		}
	}
	r, err := s.finish(ctx)
	return r, errors.Join(err, tmp.Close())
}

// snapshot is a copy of a database in the making.
type snapshot struct {
	db       *DB
	tmp      *os.File
	pageSize uint32
	sums     []uint64 // of the pages copied so far, by pgno; 0 = none
}

// copyChanged copies the pages whose checksum on record is not that of the
// copy, in runs between which captures go on.
func (s *snapshot) copyChanged(ctx context.Context) error {
	const run = 256 // pages copied while captures wait
	for pgno := uint32(1); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.db.mu.Lock()
		next, more, err := s.copyRun(pgno, run)
		s.db.mu.Unlock()
		if err != nil || !more {
			return err
		}
		pgno = next
	}
}

// copyRun copies up to n changed pages from pgno on. db.mu is held.
func (s *snapshot) copyRun(pgno uint32, n int) (next uint32, more bool, err error) {
	db := s.db
	if db.closed {
		return 0, false, ErrDatabaseNotFound
	}
	if ps := db.sums.PageSize(); ps != s.pageSize {
		s.pageSize, s.sums = ps, nil
	}
	count := db.sums.Count()
	for len(s.sums) <= int(count) {
		s.sums = append(s.sums, 0)
	}
	var img *image
	defer func() {
		if img != nil {
			err = errors.Join(err, img.Close())
		}
	}()
	b := make([]byte, s.pageSize)
	for ; pgno <= count && n > 0; pgno++ {
		want := db.sums.Get(pgno)
		if s.sums[pgno] == want {
			continue
		}
		if img == nil {
			if img, err = db.openAppliedImage(); err != nil {
				return 0, false, err
			}
		}
		if err := img.readPage(pgno, b); err != nil {
			return 0, false, err
		}
		if pagesum.Page(pgno, b) != want {
			continue // a transaction is not captured yet; the next round has it
		}
		if _, err := s.tmp.WriteAt(b, int64(pgno-1)*int64(s.pageSize)); err != nil {
			return 0, false, err
		}
		s.sums[pgno] = want
		n--
	}
	return pgno, pgno <= count, nil
}

// finish copies the last pages while captures wait, and encodes the snapshot.
func (s *snapshot) finish(ctx context.Context) (*LTXReader, error) {
	db := s.db
	db.mu.Lock()
	defer db.mu.Unlock()
	for tries := 0; ; tries++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if db.closed {
			return nil, ErrDatabaseNotFound
		}
		if db.peer == nil && db.store.Role() != RoleReplica {
			if err := db.captureWAL(false); err != nil {
				return nil, err
			}
		}
		for pgno, more := uint32(1), true; more; {
			var err error
			if pgno, more, err = s.copyRun(pgno, 1<<20); err != nil {
				return nil, err
			}
		}
		missing := s.missing()
		if missing == 0 {
			return s.encode()
		}
		if tries == 100 {
			return nil, fmt.Errorf("page %d does not have its checksum on record: run `litefs verify`", missing)
		}
		// A rollback-journal transaction is under way: its pages are in the
		// file and not yet in the log. Let it end.
		db.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		db.mu.Lock()
	}
}

// missing returns the first page that could not be copied, 0 for none.
func (s *snapshot) missing() uint32 {
	for pgno := uint32(1); pgno <= s.db.sums.Count(); pgno++ {
		if s.sums[pgno] != s.db.sums.Get(pgno) {
			return pgno
		}
	}
	return 0
}

// encode turns the copy into an LTX file, which is unlinked already.
func (s *snapshot) encode() (*LTXReader, error) {
	db := s.db
	head, ok := db.txlog.Head()
	if !ok {
		return nil, io.EOF
	}
	out, err := os.CreateTemp(db.store.path, ".snapshot-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(out.Name()); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	size, err := s.encodeTo(out, head)
	if err == nil {
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return &LTXReader{ReadCloser: out, Size: size, MinTXID: 1, MaxTXID: head.Max, Post: head.Post}, nil
}

func (s *snapshot) encodeTo(w io.Writer, head ltxlog.Entry) (int64, error) {
	every := func(yield func(uint32) bool) {
		for pgno := uint32(1); pgno <= head.Commit && yield(pgno); pgno++ {
		}
	}
	return encodeFile(w, ltx.Header{
		Version: ltx.Version, PageSize: s.pageSize, Commit: head.Commit,
		MinTXID: 1, MaxTXID: ltx.TXID(head.Max), Timestamp: head.Timestamp.UnixMilli(), NodeID: head.Epoch,
	}, every, head.Post, func(pgno uint32, b []byte) error {
		_, err := s.tmp.ReadAt(b, int64(pgno-1)*int64(len(b)))
		return err
	})
}

// encodeFile writes an LTX file of the pages, ascending, that leads to the checksum
// post, and returns its size in bytes. The lock page is left out.
func encodeFile(w io.Writer, hdr ltx.Header, pgnos iter.Seq[uint32], post uint64, read func(pgno uint32, b []byte) error) (int64, error) {
	enc, err := ltx.NewEncoder(w)
	if err != nil {
		return 0, err
	}
	err = enc.EncodeHeader(hdr)
	b := make([]byte, hdr.PageSize)
	for pgno := range pgnos {
		if err != nil {
			break
		}
		if pgno == sqlitefile.LockPgno(hdr.PageSize) {
			continue
		}
		if err = read(pgno, b); err == nil {
			err = enc.EncodePage(ltx.PageHeader{Pgno: pgno}, b)
		}
	}
	if err == nil {
		enc.SetPostApplyChecksum(ltx.Checksum(post))
		err = enc.Close()
	}
	if err != nil {
		return 0, errors.Join(err, enc.Cleanup())
	}
	return enc.N(), nil
}

// openAppliedImage opens the image on whichever role this node has. db.mu is
// held.
func (db *DB) openAppliedImage() (*image, error) {
	if db.peer == nil {
		return db.openImage()
	}
	f, err := os.Open(db.DatabasePath())
	if err != nil {
		return nil, err
	}
	return &image{file: f, peer: db.peer, pageSize: db.sums.PageSize(), count: db.sums.Count()}, nil
}
